"""Times of a layer that are easy to reckon with."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class StraightTimes:
    """Seconds that grow evenly with the tokens, of prompts from 0, of decodes from `decode_base_s`."""

    kv: int
    prompt_token_s: float = 1e-4
    decode_base_s: float = 1e-3
    decode_token_s: float = 1e-5
    max_layers: int = 4
    max_decodes: int = 1000

    def prompt_s(self, num_tokens: float) -> float:
        return num_tokens * self.prompt_token_s

    def decode_s(self, num_tokens: float) -> float:
        return self.decode_base_s + num_tokens * self.decode_token_s if num_tokens else 0.0

    def kv_tokens(self, num_layers: int) -> int:
        return self.kv

    def max_prompt_requests(self, num_layers: int) -> int:
        return 3

    def max_prompt_tokens(self, num_layers: int) -> float:
        return math.inf

    def max_decode_tokens(self, num_layers: int) -> int:
        return self.max_decodes

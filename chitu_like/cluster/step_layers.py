"""Times of single layers from the cost of steps: for devices that have no tables of layers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from chitu_like.cluster.cost_model import BatchShape, ModelFacts, StepCost
from chitu_like.cluster.kv_capacity import kv_tokens
from chitu_like.core.errors import ConfigError

PROMPT_TOKENS = 8192  # of a batch of prompts; devices saturate long before
MOST_DECODES = 512
WEIGHT_SHARE = 0.5  # of memory, at most, as Helix has it


@dataclass(frozen=True, kw_only=True)
class StepLayers:
    """LayerTimes from a StepCost.

    Attributes:
        facts: of the model.
        device: a node's, for messages.
        layer: the cost of one layer on the node, no head.
        memory_bytes: of the node.
        mean_input, mean_output, longest_input: tokens, what prompts and contexts are taken for.
    """

    facts: ModelFacts
    device: str
    layer: StepCost
    memory_bytes: float
    mean_input: float = 750.0
    mean_output: float = 240.0
    longest_input: int = 2048

    @property
    def max_layers(self) -> int:
        """See LayerTimes: weights take half of the memory at most."""
        fit = int(WEIGHT_SHARE * self.memory_bytes / self.facts.layer_bytes)
        return min(self.facts.num_layers, fit)

    def prompt_s(self, num_tokens: float) -> float:
        """See LayerTimes; prompts of average length."""
        if num_tokens == 0:
            return 0.0
        each = min(num_tokens, self.mean_input)
        shape = BatchShape(
            num_prefill_tokens=max(1, round(num_tokens)),
            prefill_pairs=max(1, round(num_tokens * (each + 1) / 2)),
            num_chunks=max(1, round(num_tokens / each)),
        )
        return self.layer.seconds(shape)

    def decode_s(self, num_tokens: float) -> float:
        """See LayerTimes; every answer is half done."""
        if num_tokens == 0:
            return 0.0
        count = max(1, round(num_tokens))
        context = round(count * (self.mean_input + self.mean_output / 2))
        return self.layer.seconds(BatchShape(num_decodes=count, decode_context=context))

    def kv_tokens(self, num_layers: int) -> int:
        """See LayerTimes."""
        if not 1 <= num_layers <= self.max_layers:
            raise ConfigError(
                f"{self.facts.name} on {self.device}: {num_layers} layers do not fit: it holds 1 to "
                f"{self.max_layers}"
            )
        return kv_tokens(self.facts, memory_bytes=self.memory_bytes, num_layers=num_layers)

    def max_prompt_requests(self, num_layers: int) -> int:
        """See LayerTimes."""
        return max(1, PROMPT_TOKENS // self.longest_input)

    def max_prompt_tokens(self, num_layers: int) -> float:
        """See LayerTimes."""
        return math.inf

    def max_decode_tokens(self, num_layers: int) -> int:
        """See LayerTimes: as many as the cache holds, to a limit."""
        held = self.kv_tokens(num_layers) / (self.mean_input + self.mean_output)
        return max(1, min(MOST_DECODES, int(held)))

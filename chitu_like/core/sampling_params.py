"""What a user may ask of sampling, checked once: every later stage trusts these values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from chitu_like.core.errors import RequestError

MAX_N = 128
"""Completions of one prompt: each is a request of its own, so this bounds what one call expands to."""
MAX_LOGPROBS = 20
"""Alternatives per position that OpenAI allows; every step copies this many values per token."""
MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 512
MAX_STOP_TOKEN_IDS = 128
MAX_LOGIT_BIAS = 1024
MAX_TOKENS_LIMIT = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the tokens of one request are drawn and when it ends.

    Attributes:
        n: independent completions of the prompt, 1 to 128.
        temperature: 0 is greedy; logits are divided by it otherwise.
        top_p: smallest set of tokens whose probability reaches this share (nucleus sampling).
        top_k: number of most probable tokens kept; 0 or -1 keeps all.
        min_p: tokens under this share of the best token's probability are dropped.
        repetition_penalty: > 0; divides positive and multiplies negative logits of tokens that
            occur in prompt or output (Keskar et al. 2019).
        presence_penalty: subtracted once from logits of tokens in the output, -2 to 2.
        frequency_penalty: subtracted per occurrence in the output, -2 to 2.
        logit_bias: token id to a value added to its logit, -100 to 100.
        stop: strings that end the text; not part of it unless include_stop_str_in_output.
        stop_token_ids: token ids that end the request beside the model's own.
        max_tokens: output tokens at most; None: as many as the context still holds.
        min_tokens: end-of-text and stop tokens cannot be drawn before this many tokens.
        ignore_eos: go on after the model's end-of-text token.
        seed: same seed, prompt and parameters: same tokens, whatever shares the batch.
            None: the engine draws one.
        logprobs: alternatives reported for each output position (0: only the chosen token).
        prompt_logprobs: the same for prompt positions.
        skip_special_tokens: leave special tokens out of the text.
        priority: lower runs earlier under the policies that look at it; -100 to 100.

    Raises:
        RequestError: a value out of range, naming it.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    priority: int = 0

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else _listed("stop", self.stop)
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", _listed("stop_token_ids", self.stop_token_ids))
        if not isinstance(self.logit_bias or {}, Mapping):
            raise RequestError(
                f"logit_bias={self.logit_bias!r}: must be a mapping of token ids to numbers",
                param="logit_bias",
            )
        object.__setattr__(self, "logit_bias", dict(self.logit_bias or {}))
        if isinstance(self.top_k, int):
            object.__setattr__(self, "top_k", max(self.top_k, 0))
        for name in ("include_stop_str_in_output", "ignore_eos", "skip_special_tokens"):
            if not isinstance(value := getattr(self, name), bool):
                raise RequestError(f"{name}={value!r}: must be True or False", param=name)
        _between("n", self.n, 1, MAX_N)
        _between("temperature", self.temperature, 0.0, 100.0)
        _between("top_p", self.top_p, 0.0, 1.0, low_is_open=True)
        _between("top_k", self.top_k, 0, MAX_TOKENS_LIMIT)
        _between("min_p", self.min_p, 0.0, 1.0)
        _between("repetition_penalty", self.repetition_penalty, 0.0, 100.0, low_is_open=True)
        _between("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _between("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _between("min_tokens", self.min_tokens, 0, MAX_TOKENS_LIMIT)
        _between("priority", self.priority, -100, 100)
        if self.seed is not None:
            _between("seed", self.seed, -(2**63), 2**63 - 1)
        if self.max_tokens is not None:
            _between("max_tokens", self.max_tokens, 1, MAX_TOKENS_LIMIT)
            if self.min_tokens > self.max_tokens:
                raise RequestError(
                    f"min_tokens={self.min_tokens} exceeds max_tokens={self.max_tokens}: "
                    "lower min_tokens or raise max_tokens",
                    param="min_tokens",
                )
        for name in ("logprobs", "prompt_logprobs"):
            count = getattr(self, name)
            if count is not None:
                _between(name, count, 0, MAX_LOGPROBS)
        self._check_lists()

    def _check_lists(self) -> None:
        _between("number of stop strings", len(self.stop), 0, MAX_STOP_STRINGS, param="stop")
        for text in self.stop:
            if not isinstance(text, str):
                raise RequestError(f"stop={text!r}: each stop must be a string", param="stop")
            _between("length of a stop string", len(text), 1, MAX_STOP_LENGTH, param="stop")
        count = len(self.stop_token_ids)
        _between("number of stop_token_ids", count, 0, MAX_STOP_TOKEN_IDS, param="stop_token_ids")
        for token_id in self.stop_token_ids:
            _between("stop_token_ids", token_id, 0, MAX_TOKENS_LIMIT)
        count = len(self.logit_bias)
        _between("number of logit_bias entries", count, 0, MAX_LOGIT_BIAS, param="logit_bias")
        for token_id, bias in self.logit_bias.items():
            _between("logit_bias token id", token_id, 0, MAX_TOKENS_LIMIT, param="logit_bias")
            _between(f"logit_bias of {token_id}", bias, -100.0, 100.0, param="logit_bias")

    @property
    def needs_history(self) -> bool:
        """Whether sampling looks at the tokens that came before (a penalty is set)."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


def _listed(name: str, value: object) -> tuple[object, ...]:
    """What the user gave as a list, as a tuple; None is empty."""
    if value is not None and not isinstance(value, (Sequence, Set)):
        raise RequestError(f"{name}={value!r}: must be a list", param=name)
    return tuple(value or ())


def _between(
    name: str,
    value: float,
    low: float,
    high: float,
    *,
    low_is_open: bool = False,
    param: str | None = None,
) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and isinstance(low, int) and not isinstance(value, int):
        is_number = False  # an integer is asked for where the bounds are integers
    if (
        not is_number
        or not math.isfinite(value)
        or not low <= value <= high
        or (low_is_open and value == low)
    ):
        above = "above" if low_is_open else "at least"
        kind = "an integer" if isinstance(low, int) else "a number"
        raise RequestError(
            f"{name}={value!r}: must be {kind}, {above} {low} and at most {high}",
            param=param or name,
        )

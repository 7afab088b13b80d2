"""From a request's fields to SamplingParams: the request, else the model's defaults, else ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from chitu_like.core.errors import RequestError
from chitu_like.core.sampling_params import MAX_LOGIT_BIAS, SamplingParams
from chitu_like.server.protocol import SamplingFields

DEFAULTED = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)
"""What a model's generation_config may set."""
_TAKEN_AS_THEY_ARE = (
    "n",
    *DEFAULTED,
    "seed",
    "stop",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "min_tokens",
    "prompt_logprobs",
    "skip_special_tokens",
    "priority",
)


def sampling_params(
    fields: SamplingFields,
    defaults: Mapping[str, float | bool],
    *,
    max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
) -> SamplingParams:
    """Build the parameters of a call, n included.

    Args:
        fields: what the client said.
        defaults: values for fields the client left out.
        max_tokens: None: as many as the context holds.
        logprobs: alternatives per output position; None: none are wanted.
        prompt_logprobs: the same for the prompt where the endpoint itself needs them.

    Raises: RequestError naming the field.
    """
    values: dict[str, object] = {
        name: value for name, value in defaults.items() if name in _TAKEN_AS_THEY_ARE
    }
    for name in _TAKEN_AS_THEY_ARE:
        value = getattr(fields, name)
        if value is not None:
            values[name] = value
    if fields.logit_bias:
        values["logit_bias"] = _logit_bias(fields.logit_bias)
    if prompt_logprobs is not None and fields.prompt_logprobs is None:
        values["prompt_logprobs"] = prompt_logprobs
    return SamplingParams(max_tokens=max_tokens, logprobs=logprobs, **values)  # type: ignore[arg-type]


def for_choice(params: SamplingParams, index: int) -> SamplingParams:
    """Parameters of one of n completions: its own seed where the client gave one."""
    seed = params.seed
    if seed is not None:
        seed = (seed + index + 2**63) % 2**64 - 2**63  # stays a signed 64-bit number
    return dataclasses.replace(params, n=1, seed=seed)


def _logit_bias(by_text: Mapping[str, float]) -> dict[int, float]:
    if len(by_text) > MAX_LOGIT_BIAS:
        raise RequestError(
            f"logit_bias has {len(by_text)} entries: at most {MAX_LOGIT_BIAS}", "logit_bias"
        )
    bias: dict[int, float] = {}
    for key, value in by_text.items():
        if not (key.isascii() and key.isdecimal() and len(key) <= 10):
            raise RequestError(
                f"logit_bias: {key[:20]!r} is not a token id written in digits", "logit_bias"
            )
        bias[int(key)] = value
    return bias

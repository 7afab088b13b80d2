"""SamplingParams: whatever a user hands in, a fault is one RequestError that names the field."""

from __future__ import annotations

import pytest

from chitu_like import SamplingParams
from chitu_like.core.errors import RequestError

NAN = float("nan")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 0),
        ("n", 129),
        ("temperature", -0.1),
        ("temperature", NAN),
        ("temperature", "1"),
        ("top_p", 0),
        ("top_k", "a"),
        ("min_p", 1.1),
        ("repetition_penalty", 0),
        ("presence_penalty", 2.1),
        ("frequency_penalty", float("-inf")),
        ("logit_bias", [1]),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {1: NAN}),
        ("logit_bias", {-1: 1.0}),
        ("stop", 5),
        ("stop", [""]),
        ("stop", ["a"] * 17),
        ("stop", [5]),
        ("stop_token_ids", 5),
        ("stop_token_ids", ["a"]),
        ("include_stop_str_in_output", 1),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("min_tokens", -1),
        ("ignore_eos", "yes"),
        ("seed", 2**63),
        ("logprobs", 21),
        ("logprobs", True),
        ("prompt_logprobs", -1),
        ("skip_special_tokens", None),
        ("priority", 101),
    ],
)
def test_a_fault_names_its_field(name: str, value: object) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**{name: value})  # type: ignore[arg-type]
    assert caught.value.param == name
    assert "\n" not in str(caught.value)


def test_the_spellings_of_nothing_are_one() -> None:
    spelled = SamplingParams(stop=None, stop_token_ids=None, logit_bias=None, top_k=-1)  # type: ignore[arg-type]
    assert spelled == SamplingParams()
    assert SamplingParams(stop="end").stop == ("end",)  # type: ignore[arg-type]
    assert SamplingParams(stop_token_ids=[3, 4]).stop_token_ids == (3, 4)  # type: ignore[arg-type]

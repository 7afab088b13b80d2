from collections.abc import Sequence

import pytest

from chitu_like.bench.parallel import DecodeWindow
from chitu_like.core.errors import PeerError


def window_over(
    news: Sequence[int], *, num_requests: int, num_stages: int = 1, num_steps: int = 2
) -> DecodeWindow:
    """A window after steps of one second each that brought so many tokens."""
    seconds = iter(range(len(news) + 1))
    window = DecodeWindow(num_requests, num_stages, num_steps, lambda: float(next(seconds)), 100)
    counts = [100 + sum(news[: index + 1]) for index in range(len(news))]
    assert [window.is_over(count) for count in counts].index(True) == len(news) - 1
    return window


def test_prefill_lasts_until_every_request_has_a_token() -> None:
    window = window_over([0, 1, 2, 4, 4, 4], num_requests=4)
    assert window.prefill_s() == 4.0
    assert window.step_s() == 1.0


def test_a_step_of_a_pipeline_is_a_round_of_its_micro_batches() -> None:
    window = window_over([0, 1, 2, 2, 2, 2, 2, 2], num_requests=4, num_stages=2)
    assert window.prefill_s() == 4.0
    assert window.step_s() == 2.0


def test_one_request_takes_one_step_a_token_in_a_pipeline_too() -> None:
    assert window_over([0, 1, 1, 1], num_requests=1, num_stages=2).step_s() == 1.0


def test_requests_that_never_decode_together_give_no_time() -> None:
    window = DecodeWindow(2, 1, 2, lambda: 0.0, 0)
    assert not window.is_over(1)
    with pytest.raises(PeerError):
        window.prefill_s()
    with pytest.raises(PeerError):
        window.step_s()

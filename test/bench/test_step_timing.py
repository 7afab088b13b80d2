"""Timing steps: the executor is kept full, repeats and rounds are as asked."""

from collections import deque

import pytest

from chitu_like.bench.host_cost import measure_host_cost
from chitu_like.bench.step_shapes import StepShape
from chitu_like.bench.step_timing import LEAST_REPEATS, spread, time_steps
from chitu_like.core.batch import ScheduledBatch
from chitu_like.core.output import StepOutput


class VirtualDevice:
    """Computes one batch after another, 1 ms for each request, on a clock of its own; see Executor.

    A launch takes the host 0.5 ms, which more than one batch in flight hides.
    """

    def __init__(self, max_in_flight: int) -> None:
        self.max_in_flight = max_in_flight
        self.now_s = 0.0
        self._ends: deque[tuple[float, ScheduledBatch]] = deque()
        self._free_s = 0.0
        self.sizes: list[int] = []

    def submit(self, batch: ScheduledBatch) -> None:
        assert len(self._ends) < self.max_in_flight
        self.now_s += 0.5e-3
        self._free_s = max(self._free_s, self.now_s) + 1e-3 * batch.num_reqs
        self._ends.append((self._free_s, batch))
        self.sizes.append(batch.num_reqs)

    def wait(self, timeout_s: float) -> bool:
        return True

    def collect(self) -> StepOutput:
        end_s, batch = self._ends.popleft()
        self.now_s = max(self.now_s, end_s)
        return StepOutput(batch.step_id, [0] * batch.num_reqs, [], [])

    def shutdown(self) -> None:
        assert not self._ends


@pytest.mark.parametrize(("max_in_flight", "launch_s"), [(1, 0.5e-3), (2, 0.0)])
def test_a_step_takes_what_it_takes_in_service(max_in_flight: int, launch_s: float) -> None:
    device = VirtualDevice(max_in_flight)
    steps = [StepShape(contexts=(5,) * n) for n in (1, 4)]
    told: list[int] = []
    found = time_steps(
        device,
        steps,
        block_size=16,
        rounds=5,
        target_s=10e-3,
        on_step=lambda: told.append(1),
        clock=lambda: device.now_s,
    )
    device.shutdown()
    assert found[0] == pytest.approx([1e-3 + launch_s] * 5)
    assert found[1] == pytest.approx([4e-3 + launch_s] * 5)
    assert len(told) == 2 * 6
    first_round = LEAST_REPEATS + 1 + max_in_flight
    later = round(10e-3 / (1e-3 + launch_s)) + 1 + max_in_flight
    assert device.sizes.count(1) == first_round + 5 * later


def test_spread_is_the_median_distance_from_the_median() -> None:
    assert spread([1.0, 1.0, 1.0]) == 0
    assert spread([1.0, 1.1, 0.8]) == pytest.approx(0.1)


def test_the_engine_takes_longer_for_more_requests() -> None:
    cost = measure_host_cost(64, block_size=16)
    assert 0 < cost.seconds(64) < 0.1
    assert cost.request_s > 0

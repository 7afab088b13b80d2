"""What DistServe's search asks: the share of good requests of a cut, by simulation of real instances.

A phase by itself is the very instance that serves, with the other phase made free. Prefill alone:
answers end with their first token. Decode alone: prompts cost nothing and wait for nobody, so a request
is there with its keys and values when it comes, and decodes beside those that came before.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from chitu_like.cluster.cost_model import BatchShape, StepCost
from chitu_like.cluster.topology import Link
from chitu_like.core.errors import CapacityError
from chitu_like.planner.distserve import Candidate
from chitu_like.planner.instance_plan import Parallelism
from chitu_like.simulator.disagg import simulate_split
from chitu_like.simulator.instance import InstanceShape
from chitu_like.simulator.instance_shapes import InstanceSource
from chitu_like.simulator.recorder import FinishedRequest
from chitu_like.simulator.results import Slo
from chitu_like.simulator.service import simulate
from chitu_like.simulator.workload import PlannedRequest
from chitu_like.simulator.workload_file import Workload

TTFTS, ANSWERS = 20, 2
"""A simulation lasts at least so many promised TTFTs, or promised answers of mean length. One that is
shorter ends before an overloaded instance is late, and any rate would do."""
MAX_REQUESTS = 100_000
"""Of a simulation, whatever the rate."""
NO_LIMIT = 1 << 40


@dataclass(frozen=True, kw_only=True)
class DecodeOnly:
    """The cost of a stage that is given its prompts' keys and values."""

    cost: StepCost

    def seconds(self, shape: BatchShape) -> float:
        """Of the batch's decodes alone."""
        if not shape.num_decodes:
            return 0.0
        return self.cost.seconds(
            BatchShape(num_decodes=shape.num_decodes, decode_context=shape.decode_context)
        )


@dataclass(frozen=True, kw_only=True)
class InstanceSimulation:
    """Simulates a candidate: a phase by itself, or a pair; see planner/distserve.py: Simulate.

    Attributes:
        source: what instances are made of.
        workload: requests.
        slo: promises; both are set.
        num_requests: of a simulation, at least.
        seed: of the workload.
        link: of a pair, each of whose devices has one.
    """

    source: InstanceSource
    workload: Workload
    slo: Slo
    num_requests: int = 300
    seed: int = 0
    link: Link | None = None

    def fits(self, candidate: Candidate) -> bool:
        """Whether an average request fits beside the weights."""
        needed = self.workload.mean_input_len + self.workload.mean_output_len
        for cut in (candidate.prefill, candidate.decode):
            if cut is not None:
                try:
                    shape = self.source.shape(tp=cut.tp, pp=cut.pp)
                except CapacityError:
                    return False
                if shape.num_blocks * shape.block_size < needed:
                    return False
        return True

    def __call__(self, candidate: Candidate, rate: float) -> float:
        """Share of requests whose TTFT, or whose TPOT, is as promised; of pairs the smaller one."""
        prefill, decode = self._shape(candidate.prefill), self._shape(candidate.decode)
        if prefill is not None and decode is not None:
            assert self.link is not None, "a pair has a link between its instances"
            lanes = min(prefill.num_devices, decode.num_devices)
            wide = replace(self.link, bandwidth=self.link.bandwidth * lanes)
            both = simulate_split(
                self._answers(rate), [prefill], [decode], self.source.crossing(wide), slo=self.slo
            )
            return min(both["ttft_attainment"], both["tpot_attainment"])
        if prefill is not None:
            found = simulate(self._first_tokens(rate), [prefill], slo=self.slo, seed=self.seed)
            return found["ttft_attainment"]
        assert decode is not None, "a candidate has a phase"
        return self._decodes_in_time(decode_alone(decode), rate)

    def _decodes_in_time(self, shape: InstanceShape, rate: float) -> float:
        """Share of answers whose tokens come in time from when the request came.

        Prefill made the first token, so waiting for a slot or for blocks is waiting for the second.
        """
        assert self.slo.tpot_s is not None
        promised_s, num_good = self.slo.tpot_s, 0

        def count(request: FinishedRequest) -> None:
            nonlocal num_good
            num_good += request.e2e_s <= promised_s * max(1, request.output_len - 1)

        found = simulate(self._answers(rate), [shape], seed=self.seed, on_finished=count)
        return num_good / found["num_arrived"]

    def _shape(self, cut: Parallelism | None) -> InstanceShape | None:
        return None if cut is None else self.source.shape(tp=cut.tp, pp=cut.pp)

    def _first_tokens(self, rate: float) -> Iterator[PlannedRequest]:
        assert self.slo.ttft_s is not None
        requests = self._requests(rate, TTFTS * self.slo.ttft_s)
        return (replace(request, output_len=1) for request in requests)

    def _answers(self, rate: float) -> Iterator[PlannedRequest]:
        assert self.slo.ttft_s is not None
        assert self.slo.tpot_s is not None
        answer_s = self.slo.tpot_s * self.workload.mean_output_len
        return self._requests(rate, max(TTFTS * self.slo.ttft_s, ANSWERS * answer_s))

    def _requests(self, rate: float, duration_s: float) -> Iterator[PlannedRequest]:
        count = max(self.num_requests, min(math.ceil(duration_s * rate), MAX_REQUESTS))
        return itertools.islice(self.workload.requests(rate=rate, seed=self.seed), count)


def decode_alone(shape: InstanceShape) -> InstanceShape:
    """The same instance, given its prompts' keys and values; whole prompts come in one free step."""
    return replace(
        shape,
        stages=tuple(DecodeOnly(cost=cost) for cost in shape.stages),
        max_num_batched_tokens=NO_LIMIT,
        prefill_chunk_size=NO_LIMIT,
    )

"""Where requests get their way through nodes with layers, and tokens come back to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from chitu_like.router.flow_edges import Ends
from chitu_like.router.flow_routing import FlowRouter
from chitu_like.simulator.clock import VirtualClock
from chitu_like.simulator.feeders import Feeder, OfflineFeeder, OnlineFeeder
from chitu_like.simulator.layer_wires import Passage, Wire
from chitu_like.simulator.recorder import FinishedRequest, Recorder
from chitu_like.simulator.workload import PlannedRequest

Mode = Literal["offline", "online"]


class LayerCoordinator:
    """Feeds requests to the router, and each token back to the first node until the answer is whole.

    Args:
        clock: of the simulation.
        recorder: told of what happens.
        router: finds ways.
        requests: to be answered.
        mode: how they are fed.

    Attributes:
        wires: by their ends; set before the start.
        num_open: requests under way.
    """

    def __init__(
        self,
        clock: VirtualClock,
        recorder: Recorder,
        router: FlowRouter,
        requests: Iterator[PlannedRequest],
        mode: Mode,
    ) -> None:
        self._clock = clock
        self._recorder = recorder
        self._router = router
        self.feeder: Feeder = (
            OfflineFeeder(clock, requests, self.submit, router.has_room)
            if mode == "offline"
            else OnlineFeeder(clock, requests, self.submit)
        )
        self.wires: Mapping[Ends, Wire] = {}
        self.num_open = 0

    def submit(self, request: PlannedRequest, born_s: float) -> bool:
        """Send a request on its way; False: there is none now."""
        route = self._router.begin(request.input_len)
        if route is None:
            return False
        wires = [self.wires[edge.ends] for edge in route.edges]
        passage = Passage(
            self,
            request.index,
            route,
            wires,
            num_input=request.input_len,
            max_output=request.output_len,
            born_s=born_s,
        )
        self._change_open(1)
        self._recorder.count("arrived")
        wires[0].send(passage)
        return True

    def extend(self, passage: Passage) -> None:
        """See Coordinator."""
        self._router.extend(passage.route)
        passage.wires.append(self.wires[passage.route.edges[-1].ends])

    def add(self, passage: Passage) -> None:
        """A token is here: the next may be computed, unless it was the last."""
        passage.num_output += 1
        self._recorder.count("output_tokens")
        is_over = passage.num_output >= passage.max_output
        if passage.is_prompt:
            passage.is_prompt = False
            passage.first_s = self._clock.now_s
            self._recorder.count("prompt_tokens", passage.num_input)
            if not is_over:
                self.feeder.freed()
        if is_over:
            self._end(passage)
            return
        self._router.decoded(passage.route)
        passage.position = 0
        passage.wires[0].send(passage)

    def release(self, num_tokens: int) -> None:
        """Nothing is kept here."""

    def _end(self, passage: Passage) -> None:
        passage.release()
        self._router.end(passage.route)
        self._change_open(-1)
        nodes = [edge.ends[1] for edge in passage.route.edges[:-1]]
        self._recorder.finished(
            FinishedRequest(
                index=passage.index,
                arrival_s=passage.born_s,
                first_token_s=passage.first_s,
                finished_s=self._clock.now_s,
                input_len=passage.num_input,
                output_len=passage.num_output,
                place=" ".join(nodes),
            )
        )
        self.feeder.freed()

    def _change_open(self, number: int) -> None:
        self.num_open += number
        self._recorder.level("coordinator.running", self.num_open)

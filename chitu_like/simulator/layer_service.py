"""A service of nodes that hold some layers each, simulated: Helix's half of the simulator."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping

from chitu_like.cluster.cost_model import LayerTimes, ModelFacts
from chitu_like.cluster.layer_placement import LayerPlacement
from chitu_like.cluster.topology import Cluster
from chitu_like.core.errors import ConfigError
from chitu_like.router.flow_edges import Ends
from chitu_like.router.flow_routing import KVEstimate, make_flow_router
from chitu_like.simulator import layer_network
from chitu_like.simulator.clock import VirtualClock
from chitu_like.simulator.layer_coordinator import LayerCoordinator, Mode
from chitu_like.simulator.layer_nodes import LayerNode
from chitu_like.simulator.layer_wires import Wire
from chitu_like.simulator.recorder import FinishedRequest, Recorder
from chitu_like.simulator.results import Results, Slo
from chitu_like.simulator.workload import PlannedRequest

SLICE_S = 1.0
"""How often what nodes and links do is looked at."""
NUM_FOR_MEAN = 1000
"""Requests whose answers' mean length is taken for the workload's."""


def simulate_layers(
    cluster: Cluster,
    model: ModelFacts,
    layer_times: Mapping[str, LayerTimes],
    placement: LayerPlacement,
    flow: Mapping[Ends, float],
    requests: Iterable[PlannedRequest],
    *,
    router: str = "maxflow",
    mode: Mode = "offline",
    warmup_s: float = 60.0,
    duration_s: float = 600.0,
    seed: int = 0,
    expected_output: float | None = None,
    holds_latency: bool = True,
    slo: Slo | None = None,
    on_finished: Callable[[FinishedRequest], None] | None = None,
    watch: Callable[[float, Recorder], None] | None = None,
) -> Results:
    """Serve requests on nodes with layers until the window closes, or nothing is left to do.

    Models are loaded first, at disk speed; then warm-up and window begin.

    Args:
        cluster: nodes and links.
        model: what is served.
        layer_times: by device type; of all that hold layers.
        placement: who holds what.
        flow: tokens/s of each edge, which maxflow follows. Other routers use every link.
        requests: may be endless. Offline they come as there is room for them.
        router: one of flow_routing.ROUTER_NAMES.
        mode: offline or online.
        warmup_s: before the window that results are of.
        duration_s: of the window.
        seed: of what a router draws by lot.
        expected_output: tokens of an answer that the KV estimate expects; None: the mean of the first
            1000 requests'.
        holds_latency: see Wire.
        slo: what goodput is counted with.
        on_finished: told of every answered request.
        watch: told, after every simulated second, what time it is and what was seen so far.

    Returns: figures over the window; `load_s` says how long loading took.

    Raises:
        ConfigError: the placement leaves layers out or is not of this cluster, a profile is missing,
            the flow goes where there is no link or no layers, a batch that no table covers.
        CapacityError: a request that would never fit.
    """
    if mode not in ("offline", "online"):
        raise ConfigError(f"simulate.mode={mode}: use offline or online")
    layer_network.check_placement(cluster, model, layer_times, placement)
    edges = (
        layer_network.usable_flow(cluster, placement, flow)
        if router == "maxflow"
        else layer_network.usable_links(cluster, placement)
    )
    load_s = max(
        len(layers) * model.layer_bytes / cluster.by_name[name].disk
        for name, layers in placement.held.items()
    )
    clock = VirtualClock()
    recorder = Recorder(
        clock,
        slo=slo,
        warmup_s=load_s + warmup_s,
        duration_s=duration_s,
        on_finished=on_finished,
    )
    nodes = layer_network.make_nodes(clock, cluster, model, layer_times, placement, edges)
    coming = iter(requests)
    if expected_output is None:
        expected_output, coming = _mean_output(coming)
    kv = KVEstimate.offline if mode == "offline" else KVEstimate.online
    coordinator = LayerCoordinator(
        clock,
        recorder,
        make_flow_router(
            router,
            layer_network.routed_nodes(cluster, layer_times, placement),
            edges,
            load_of=nodes.__getitem__,
            kv=kv(expected_output),
            seed=seed,
        ),
        coming,
        mode,
    )
    coordinator.wires = layer_network.make_wires(
        clock, cluster, model, placement, nodes, edges, coordinator, holds_latency=holds_latency
    )
    coordinator.feeder.start(load_s)
    meter = _Meter(clock, recorder, nodes, coordinator.wires)
    for until_s in _slices(load_s, load_s + warmup_s, load_s + warmup_s + duration_s):
        clock.run(until_s)
        meter.read()
        recorder.level("coordinator.waiting", coordinator.feeder.num_waiting)
        if watch is not None:
            watch(clock.now_s, recorder)
        if coordinator.feeder.is_done and not coordinator.num_open:
            break
    return recorder.results().with_figures({"load_s": load_s})


def _mean_output(
    requests: Iterator[PlannedRequest],
) -> tuple[float, Iterator[PlannedRequest]]:
    """What the first requests are answered with in the mean, and all requests still to come."""
    first = list(itertools.islice(requests, NUM_FOR_MEAN))
    if not first:
        raise ConfigError("the workload holds no requests: give at least one")
    mean = sum(request.output_len for request in first) / len(first)
    return mean, itertools.chain(first, requests)


def _slices(start_s: float, *ends_s: float) -> Iterator[float]:
    """Times a second apart up to each of the ends, and the ends themselves."""
    for end_s in ends_s:
        for index in itertools.count(1):
            until_s = start_s + index * SLICE_S
            if until_s >= end_s:
                break
            yield until_s
        yield end_s
        start_s = end_s


class _Meter:
    """Tells a recorder now and then what nodes and wires have done since the last time."""

    def __init__(
        self,
        clock: VirtualClock,
        recorder: Recorder,
        nodes: Mapping[str, LayerNode],
        wires: Mapping[Ends, Wire],
    ) -> None:
        self._last_s = clock.now_s
        self._clock = clock
        self._recorder = recorder
        self._nodes = nodes
        self._wires = {f"{source} -> {target}": wire for (source, target), wire in wires.items()}
        self._busy_s = dict.fromkeys([*self._nodes, *self._wires], 0.0)
        self._num_bytes = dict.fromkeys(self._wires, 0.0)

    def read(self) -> None:
        """Look at all of them; what they did counts as done at once after the last look."""
        last_s, recorder = self._last_s, self._recorder
        self._last_s = self._clock.now_s
        for name, node in self._nodes.items():
            recorder.busy(name, last_s, last_s + self._busy_since(name, node.busy_s))
            recorder.level(f"{name}.kv", node.kv_used / node.kv_capacity)
        for name, wire in self._wires.items():
            num_bytes = wire.num_bytes - self._num_bytes[name]
            self._num_bytes[name] = wire.num_bytes
            busy_s = self._busy_since(name, wire.busy_s)
            recorder.carries(name, last_s, last_s + busy_s, num_bytes)

    def _busy_since(self, name: str, busy_s: float) -> float:
        since = busy_s - self._busy_s[name]
        self._busy_s[name] = busy_s
        return since

"""A cluster and a placement as nodes, wires and the numbers that routing wants to know."""

from __future__ import annotations

from collections.abc import Mapping

from chitu_like.cluster.cost_model import LayerTimes, ModelFacts
from chitu_like.cluster.layer_placement import LayerPlacement
from chitu_like.cluster.topology import SINK, SOURCE, Cluster
from chitu_like.core.errors import ConfigError
from chitu_like.router.flow_edges import Ends, RoutedNode, may_pass
from chitu_like.simulator.clock import VirtualClock
from chitu_like.simulator.layer_nodes import LayerNode
from chitu_like.simulator.layer_wires import Receiver, Wire


def check_placement(
    cluster: Cluster,
    model: ModelFacts,
    layer_times: Mapping[str, LayerTimes],
    placement: LayerPlacement,
) -> None:
    """Whether the placement can be served at all.

    Raises: ConfigError naming the node, the device or the layers that are wrong.
    """
    if placement.num_layers != model.num_layers:
        raise ConfigError(
            f"the placement is of {placement.num_layers} layers, {model.name} has {model.num_layers}"
        )
    if missing := placement.uncovered():
        raise ConfigError(
            f"no node holds layer {missing[0]} ({len(missing)} of {model.num_layers} layers are left "
            "out): place all of them"
        )
    for name, layers in placement.held.items():
        if name not in cluster.by_name:
            raise ConfigError(f"the placement names node {name}, which the cluster does not have")
        device = cluster.by_name[name].device
        if device not in layer_times:
            known = ", ".join(sorted(layer_times)) or "none"
            raise ConfigError(f"node {name}: the profile has no times of {device}, only of {known}")
        if len(layers) > layer_times[device].max_layers:
            raise ConfigError(
                f"node {name} holds {len(layers)} layers of {model.name}: {device} has room for "
                f"{layer_times[device].max_layers}"
            )
        if layer_times[device].kv_tokens(len(layers)) < 1:
            raise ConfigError(
                f"node {name} holds {len(layers)} layers of {model.name}: {device} has no room for "
                "keys and values beside them: place fewer"
            )


def usable_links(cluster: Cluster, placement: LayerPlacement) -> dict[Ends, float]:
    """Every link that a request may pass, in the cluster's order, as a flow of 1."""
    return {
        (link.source, link.target): 1.0
        for link in cluster.links
        if may_pass(placement.held, (link.source, link.target), placement.num_layers)
    }


def usable_flow(
    cluster: Cluster, placement: LayerPlacement, flow: Mapping[Ends, float]
) -> dict[Ends, float]:
    """The edges of a flow that carry something.

    Raises: ConfigError for one without a link, or where no request may pass.
    """
    used = {ends: rate for ends, rate in flow.items() if rate > 0}
    for ends in used:
        if ends not in cluster.link_between:
            raise ConfigError(f"flow {ends[0]} -> {ends[1]}: the cluster has no such link")
        if not may_pass(placement.held, ends, placement.num_layers):
            raise ConfigError(
                f"flow {ends[0]} -> {ends[1]}: the layers there do not follow each other"
            )
    return used


def routed_nodes(
    cluster: Cluster, layer_times: Mapping[str, LayerTimes], placement: LayerPlacement
) -> dict[str, RoutedNode]:
    """What a router knows beforehand of each node that holds layers."""
    nodes = {}
    for name, layers in placement.held.items():
        times, num_layers = layer_times[cluster.by_name[name].device], len(layers)
        num_decodes = times.max_decode_tokens(num_layers)
        nodes[name] = RoutedNode(
            layers=layers,
            kv_tokens=times.kv_tokens(num_layers),
            max_prompt_tokens=times.max_prompt_tokens(num_layers),
            tokens_per_s=num_decodes / (num_layers * times.decode_s(num_decodes)),
        )
    return nodes


def make_nodes(
    clock: VirtualClock,
    cluster: Cluster,
    model: ModelFacts,
    layer_times: Mapping[str, LayerTimes],
    placement: LayerPlacement,
    edges: Mapping[Ends, float],
) -> dict[str, LayerNode]:
    """The nodes that requests may enter."""
    held = placement.held
    entries: dict[str, dict[int, float]] = {}
    for source, target in edges:
        if target != SINK:
            entry = 0 if source == SOURCE else held[source].stop
            entries.setdefault(target, {})[entry] = _token_bytes(model, (source, target))
    return {
        name: LayerNode(
            clock, name, held[name], layer_times[cluster.by_name[name].device], entries[name]
        )
        for name in held
        if name in entries
    }


def make_wires(
    clock: VirtualClock,
    cluster: Cluster,
    model: ModelFacts,
    placement: LayerPlacement,
    nodes: Mapping[str, LayerNode],
    edges: Mapping[Ends, float],
    coordinator: Receiver,
    *,
    holds_latency: bool,
) -> dict[Ends, Wire]:
    """A wire for each edge; no message on it is faster than the network cards at its ends."""
    wires = {}
    for source, target in edges:
        link = cluster.link_between[source, target]
        bandwidth = link.bandwidth
        end: Receiver = coordinator
        if target != SINK:
            bandwidth = min(bandwidth, cluster.by_name[target].nic_in)
            end = nodes[target].queues[0 if source == SOURCE else placement.held[source].stop]
        if source != SOURCE:
            bandwidth = min(bandwidth, cluster.by_name[source].nic_out)
        wires[source, target] = Wire(
            clock,
            end,
            latency_s=link.latency_s,
            bandwidth=bandwidth,
            token_bytes=_token_bytes(model, (source, target)),
            holds_latency=holds_latency,
        )
    return wires


def _token_bytes(model: ModelFacts, ends: Ends) -> float:
    """Of a token on the way: its id at the coordinator's links, its activation between nodes.

    With an activation goes the id, as the flow graph counts it too.
    """
    if SOURCE in ends or SINK in ends:
        return model.token_bytes
    return model.activation_bytes + model.token_bytes

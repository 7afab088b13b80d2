"""What a placement serves: its flow, or less where the KV cache is full before the flow is reached.

By Little's law requests in flight are their rate x their time in the system, and each of them keeps keys
and values on every node of its route. A long pipeline may have the larger flow and serve fewer tokens:
its requests live longer.

It is made to rank placements. It sees means, and no bursts that travel from node to node: beside simulations
its latencies were between 20 % high (arrivals at random, 10 and 24 hops) and 30 % low (some long pipelines),
so simulate what is to be relied on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from chitu_like.cluster.topology import SINK, SOURCE, Cluster
from chitu_like.planner.flow_graph import FlowResult, Route
from chitu_like.planner.queues import LayerSpeed, LinkQueue, NodeDelay, NodeQueue
from chitu_like.planner.throughput import NodeThroughput, TypicalLoad

HALVINGS = 12
"""Of the search for the largest rate: it is then known to 1e-3, and the model is not that good."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """What a placement serves in a steady state.

    Attributes:
        tokens_per_s: prompts and answers together; at most its max flow.
        requests_per_s: the same in requests.
        in_flight: requests in the system.
        prompt_latency_s: from a request to its first token, on the average.
        decode_latency_s: from a token to the next.
        kv_use: on the fullest node, of the KV cache that may be filled.
    """

    tokens_per_s: float = 0.0
    requests_per_s: float = 0.0
    in_flight: float = 0.0
    prompt_latency_s: float = math.inf
    decode_latency_s: float = math.inf
    kv_use: float = 0.0


class Scorer:
    """Scores flows on one cluster.

    Args:
        cluster: nodes and links.
        throughput: of its nodes, with what is served.
        kv_mark: share of a node's KV cache that is filled before requests go elsewhere.
        kv_ratio: of the expected answer, that is reserved beside the prompt.
    """

    def __init__(
        self,
        cluster: Cluster,
        throughput: NodeThroughput,
        *,
        kv_mark: float = 0.85,
        kv_ratio: float = 1.0,
    ) -> None:
        self._load = throughput.load
        self._throughput = throughput
        self._devices = {node.name: node.device for node in cluster.nodes}
        self._kv_share = kv_mark / (self._load.mean_input + kv_ratio * self._load.mean_output)
        self._speeds: dict[tuple[str, int], LayerSpeed] = {}
        model, prompt = throughput.model, self._load.mean_input
        self._messages = {}
        for ends, link in cluster.link_between.items():
            inner = SOURCE not in ends and SINK not in ends
            token_s = (inner * model.activation_bytes + model.token_bytes) / link.bandwidth
            to_prompt = link.latency_s + token_s * (1 if SINK in ends else prompt)
            self._messages[ends] = (to_prompt, link.latency_s + token_s)

    def score(self, flow: FlowResult, held: Mapping[str, range]) -> Score:
        """The largest share of a flow for which all requests in flight have room.

        Args:
            flow: of a placement.
            held: that placement, node -> layers.
        """
        return self.score_routes(flow.routes, held)

    def score_routes(
        self, routes: Sequence[Route], held: Mapping[str, range], *, least: float = 0.0
    ) -> Score:
        """The same, of routes and what they carry.

        Where fewer than `least` tokens a second are served, how few is not looked for: Score() comes
        back.
        """
        whole = sum(route.tokens_per_s for route in routes)
        if whole < least or whole <= 0:
            return Score()
        state = self._steady_state(routes, held)
        low, best = least / whole, Score()
        if low > 0:
            best = state.at(low)
            if best.kv_use > 1:
                return Score()
        found = state.at(1.0)
        if found.kv_use <= 1:
            return found
        high = 1.0
        for _ in range(HALVINGS):
            share = (low + high) / 2
            found = state.at(share)
            if found.kv_use <= 1:
                best, low = found, share
            else:
                high = share
        return best

    def _steady_state(self, routes: Sequence[Route], held: Mapping[str, range]) -> _SteadyState:
        names = sorted({hop.node for route in routes for hop in route.hops})
        place = {name: index for index, name in enumerate(names)}
        nodes = [
            NodeQueue(self._speed(self._devices[name], len(held[name])), self._load)
            for name in names
        ]
        links: dict[tuple[str, str], LinkQueue] = {}
        ways = []
        for route in routes:
            rate = route.tokens_per_s / self._load.tokens
            hops = [(place[hop.node], len(hop.layers)) for hop in route.hops]
            for index, layers in hops:
                nodes[index].add(rate, layers)
            stops = [SOURCE, *(hop.node for hop in route.hops), SINK]
            passed = [
                links.setdefault(ends, LinkQueue(*self._messages[ends], place.get(ends[0])))
                for ends in pairwise(stops)
            ]
            for link in passed:
                link.rate += rate
            ways.append(_Way(rate=rate, hops=hops, links=passed))
        return _SteadyState(nodes, list(links.values()), ways, self._load)

    def _speed(self, device: str, num_layers: int) -> LayerSpeed:
        key = (device, num_layers)
        if key not in self._speeds:
            times = self._throughput.layer_times[device]
            requests = self._kv_share * times.kv_tokens(num_layers) * num_layers
            self._speeds[key] = LayerSpeed.of(times, num_layers, self._load.mean_input, requests)
        return self._speeds[key]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Way:
    """A route, its requests a second, and the layers it runs on each node."""

    rate: float
    hops: list[tuple[int, int]]
    links: list[LinkQueue]


class _SteadyState:
    """Requests on their routes, all of which carry the same share of what they could."""

    def __init__(
        self, nodes: list[NodeQueue], links: list[LinkQueue], ways: list[_Way], load: TypicalLoad
    ) -> None:
        self._nodes = nodes
        self._links = links
        self._ways = ways
        self._load = load

    def at(self, share: float) -> Score:
        """Latencies and use of the KV cache; its use is inf where a node or link cannot keep up."""
        output = self._load.mean_output
        on_node = [delay for node in self._nodes if (delay := node.delays(share))]
        if len(on_node) < len(self._nodes):
            return Score(kv_use=math.inf)
        batches_s = [delay.batch_s for delay in on_node]
        on_link = {
            link: seconds
            for link in self._links
            if (seconds := link.delays(share, output, batches_s))
        }
        if len(on_link) < len(self._links):
            return Score(kv_use=math.inf)
        rates = in_flight = prompts_s = decodes_s = 0.0
        used = [0.0] * len(on_node)
        for way in self._ways:
            prompt_s, decode_s = _pass(
                [on_node[index] for index, _ in way.hops], [on_link[link] for link in way.links]
            )
            rate = share * way.rate
            here = rate * (prompt_s + (output - 1) * decode_s)
            for index, layers in way.hops:
                used[index] += here * layers
            rates += rate
            in_flight += here
            prompts_s += rate * prompt_s
            decodes_s += rate * decode_s
        rooms = (node.speed.kv_room for node in self._nodes)
        return Score(
            tokens_per_s=rates * self._load.tokens,
            requests_per_s=rates,
            in_flight=in_flight,
            prompt_latency_s=prompts_s / rates,
            decode_latency_s=decodes_s / rates,
            kv_use=max(use / room for use, room in zip(used, rooms, strict=True)),
        )


def _pass(nodes: list[NodeDelay], links: list[tuple[float, float]]) -> tuple[float, float]:
    """Seconds of a prompt and of a decode along a route.

    A decode is faster than a prompt and cannot overtake it: both wait for the same batches. One that starts
    t after a prompt which takes P, and would take D alone, arrives after max(D, P - t); prompts start
    at random, so that on the average it is D + x - (1 - exp(-a x)) / a, with x = P - D.
    """
    prompt_s = sum(link[0] for link in links) + sum(node.prompt_s for node in nodes)
    free_s = sum(link[1] for link in links) + sum(node.decode_s for node in nodes)
    longer_s = max(prompt_s - free_s, 0.0)
    # Other routes' prompts are in the way on a part of this one: on each node as many as pass it.
    ahead = sum(node.prompts_per_s * node.prompt_s for node in nodes)
    per_s = ahead / sum(node.prompt_s for node in nodes)
    behind_s = longer_s + math.expm1(-per_s * longer_s) / per_s if per_s else 0.0
    return prompt_s, free_s + behind_s

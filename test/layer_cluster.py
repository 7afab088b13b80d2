"""Small clusters of nodes with layers, and times that can be added up by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from chitu_like.cluster.cost_model import ModelFacts
from chitu_like.cluster.layer_placement import LayerPlacement
from chitu_like.cluster.topology import SINK, SOURCE, Cluster, Link, Node
from chitu_like.simulator.workload import PlannedRequest


@dataclass(frozen=True, kw_only=True)
class StraightTimes:
    """Times of a layer that grow straight with tokens: a LayerTimes."""

    prompt_token_s: float = 1 / 64
    decode_base_s: float = 1 / 8
    decode_token_s: float = 1 / 32
    num_kv_tokens: int = 1 << 20
    num_prompts: int = 4
    num_prompt_tokens: float = math.inf
    num_decodes: int = 4
    max_layers: int = 8

    def prompt_s(self, num_tokens: float) -> float:
        return self.prompt_token_s * num_tokens

    def decode_s(self, num_tokens: float) -> float:
        return self.decode_base_s + self.decode_token_s * num_tokens if num_tokens else 0.0

    def kv_tokens(self, num_layers: int) -> int:
        return self.num_kv_tokens

    def max_prompt_requests(self, num_layers: int) -> int:
        return self.num_prompts

    def max_prompt_tokens(self, num_layers: int) -> float:
        return self.num_prompt_tokens

    def max_decode_tokens(self, num_layers: int) -> int:
        return self.num_decodes


def model_of(num_layers: int) -> ModelFacts:
    return ModelFacts(
        name="toy", num_layers=num_layers, layer_bytes=8.0, activation_bytes=14.0, token_bytes=2.0
    )


def cluster_of(
    names: Sequence[str], *, latency_s: float = 1 / 16, bandwidth: float = 64.0, disk: float = 16.0
) -> Cluster:
    """Nodes of device `toy`, every one linked to every other and to the coordinator."""
    nodes = tuple(Node(name=name, device="toy", memory_bytes=1.0, disk=disk) for name in names)
    ends = [(a, b) for a in (SOURCE, *names) for b in (*names, SINK) if a != b]
    links = tuple(
        Link(source=a, target=b, bandwidth=bandwidth, latency_s=latency_s)
        for a, b in ends
        if (a, b) != (SOURCE, SINK)
    )
    return Cluster(nodes, links)


def placement_of(num_layers: int, **held: tuple[int, int]) -> LayerPlacement:
    """Node -> its first layer, and the one behind its last."""
    return LayerPlacement(num_layers, {name: range(*layers) for name, layers in held.items()})


def requests_of(*lengths: tuple[int, int], gap_s: float = 0.0) -> list[PlannedRequest]:
    """(input, output) tokens of one after the other."""
    return [
        PlannedRequest(index=i, arrival_s=i * gap_s, input_len=input_len, output_len=output_len)
        for i, (input_len, output_len) in enumerate(lengths)
    ]

"""A small table of layer times."""

from chitu_like.cluster.curve import Curve
from chitu_like.cluster.layer_tables import LayerTables, MachineConstants


def constants(num_layers: int = 2) -> MachineConstants:
    numbers = range(1, num_layers + 1)
    return MachineConstants(
        max_num_layers=num_layers,
        vllm_num_blocks_by_layers={k: 1000 // k for k in numbers},
        prompt_max_requests_by_layers=dict.fromkeys(numbers, 3),
        decode_max_tokens_by_layers=dict.fromkeys(numbers, 300),
    )


def tables() -> LayerTables:
    return LayerTables(
        model="toy",
        device="T4",
        prompt=Curve([0, 10, 30], [0, 0.004, 0.006]),
        decode=Curve([0, 1, 300], [0, 0.001, 0.003]),
        machine=constants(),
    )

"""What Helix (arXiv:2406.01566) assumes of the two models it was measured with."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from chitu_like.cluster.profile_records import ModelRecord, PlanningFigures

_DEVICES = ("A100", "V100", "L4", "L4x2", "T4", "T4x2", "T4x4")


def _by_device(*values: int) -> dict[str, int]:
    return dict(zip(_DEVICES, values, strict=True))


LLAMA2_70B = ModelRecord(
    num_layers=80,
    layer_bytes=1.53e9,
    activation_bytes=8192 * 2,
    token_bytes=2,
    kv_bytes_per_token=2 * 8 * 128 * 2,  # keys and values, 8 heads of 128, fp16
    num_heads=64,
    num_kv_heads=8,
    planning=PlanningFigures(
        mean_input=750,
        mean_output=240,
        longest_input=2048,
        typical_layers=_by_device(8, 3, 4, 9, 3, 6, 12),
        typical_layers_small=_by_device(12, 4, 7, 14, 4, 9, 18),
        start_speed={
            "A100": 80,
            "V100": 40,
            "L4": 20,
            "L4x2": 30,
            "T4": 12.5,
            "T4x2": 20,
            "T4x4": 30,
        },
    ),
)

LLAMA1_30B = ModelRecord(
    num_layers=60,
    layer_bytes=1e9,
    activation_bytes=6656 * 2,
    token_bytes=2,
    kv_bytes_per_token=2 * 52 * 128 * 2,
    num_heads=52,
    num_kv_heads=52,
    planning=PlanningFigures(
        mean_input=750,
        mean_output=240,
        longest_input=2048,
        typical_layers=_by_device(12, 4, 8, 14, 4, 10, 20),
        typical_layers_small=_by_device(18, 7, 11, 22, 7, 15, 30),
        start_speed={
            device: float(speed) for device, speed in _by_device(48, 25, 9, 15, 8, 15, 23).items()
        },
    ),
)

HELIX_MODELS: Mapping[str, ModelRecord] = MappingProxyType(
    {"llama2_70b": LLAMA2_70B, "llama1_30b": LLAMA1_30B}
)

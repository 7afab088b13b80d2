"""Whether a model can be cut into that many ranks, before anything is started. No torch."""

from __future__ import annotations

from chitu_like.config.schema import ServeConfig
from chitu_like.config.section import show
from chitu_like.core.errors import ConfigError
from chitu_like.core.model_spec import ModelSpec


def check_layout(config: ServeConfig, spec: ModelSpec) -> None:
    """Compare all that lays out an instance with the model's shape.

    Raises: ConfigError if the model cannot be cut like that.
    """
    infer, name = config.infer, config.models.name
    check_parallel(spec, infer.tp_size, infer.pp_size, name=name)
    partition, layers = infer.pp_layer_partition, spec.num_layers
    if partition is not None and sum(partition) != layers:
        raise ConfigError(
            f"infer.pp_layer_partition={show(partition)} has {sum(partition)} layers but "
            f"{name} has {layers}: make them add up to {layers}"
        )


def check_parallel(spec: ModelSpec, tp_size: int, pp_size: int, *, name: str) -> None:
    """Compare the parallel degrees with the model's shape.

    The vocabulary may have any size: it is padded. KV heads may be fewer than ranks, which then
    hold the same ones.

    Args:
        spec: of the model.
        tp_size: ranks that share each layer.
        pp_size: stages that share the layers.
        name: of the model, for messages.

    Raises: ConfigError if the model cannot be cut like that.
    """
    if fault := _tp_fault(spec, tp_size):
        possible = [size for size in range(1, spec.num_heads + 1) if not _tp_fault(spec, size)]
        raise ConfigError(
            f"tp_size={tp_size} {fault} of {name}: use {_any_of(possible)} (infer.tp_size)"
        )
    if pp_size > spec.num_layers:
        raise ConfigError(
            f"pp_size={pp_size} exceeds num_hidden_layers={spec.num_layers} of {name}: "
            f"use at most {spec.num_layers} (infer.pp_size)"
        )


def _tp_fault(spec: ModelSpec, tp_size: int) -> str | None:
    """What of the model does not go into `tp_size` equal shares; None: all does."""
    for key, number, may_be_shared in (
        ("num_key_value_heads", spec.num_kv_heads, True),
        ("num_attention_heads", spec.num_heads, False),
        ("intermediate_size", spec.intermediate_size, False),
    ):
        if number % tp_size and not (may_be_shared and tp_size % number == 0):
            return f"does not divide {key}={number}"
    return None


def _any_of(numbers: list[int]) -> str:
    """[1, 2, 4] -> "1, 2 or 4"."""
    *others, last = map(str, numbers)
    return f"{', '.join(others)} or {last}" if others else last

"""From a configuration to the Placement that it asks for. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from chitu_like.cluster.placement import Placement, balanced_partition
from chitu_like.config.schema import ServeConfig
from chitu_like.core.model_spec import ModelSpec


def placement_of(config: ServeConfig, spec: ModelSpec) -> Placement:
    """Every instance of the service, each tp_size x pp_size ranks.

    Args:
        config: checked against `spec` by `config/parallel.py`.
        spec: of the model.
    """
    return Placement.uniform(
        num_instances=config.deploy.replicas,
        tp_size=config.infer.tp_size,
        layer_partition=layer_partition_of(config, spec),
    )


def layer_partition_of(config: ServeConfig, spec: ModelSpec) -> Sequence[int]:
    """Layers of each stage: as asked for, else balanced."""
    head_layers = spec.vocab_size * spec.hidden_size / spec.layer_parameters()
    return config.infer.pp_layer_partition or balanced_partition(
        spec.num_layers, config.infer.pp_size, head_layers
    )


def describe_layout(config: ServeConfig, spec: ModelSpec) -> str:
    """In words: "2 instances, tp 2 x pp 2 (5+3 layers)"."""
    infer, replicas = config.infer, config.deploy.replicas
    instances = "1 instance" if replicas == 1 else f"{replicas} instances"
    text = f"{instances}, tp {infer.tp_size} x pp {infer.pp_size}"
    if infer.pp_size > 1:
        text += f" ({'+'.join(map(str, layer_partition_of(config, spec)))} layers)"
    return text

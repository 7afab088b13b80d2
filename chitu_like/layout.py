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

"""From a configuration to the Placement that it asks for. No torch."""

from __future__ import annotations

from chitu_like.cluster.placement import Placement, even_partition
from chitu_like.config.schema import ServeConfig
from chitu_like.core.model_spec import ModelSpec


def placement_of(config: ServeConfig, spec: ModelSpec) -> Placement:
    """Every instance of the service, each tp_size x pp_size ranks.

    Args:
        config: checked against `spec` by `config/parallel.py`.
        spec: of the model.
    """
    infer = config.infer
    partition = infer.pp_layer_partition or even_partition(spec.num_layers, infer.pp_size)
    return Placement.uniform(
        num_instances=config.deploy.replicas, tp_size=infer.tp_size, layer_partition=partition
    )

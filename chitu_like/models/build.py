"""From a ModelSpec to a model whose parameters wait for their values."""

from __future__ import annotations

import torch

from chitu_like.attention.base import AttentionBackend
from chitu_like.core.model_spec import ModelSpec
from chitu_like.distributed.parallel_context import ParallelContext
from chitu_like.layers.options import LayerOptions
from chitu_like.models.base import Model, model_classes
from chitu_like.quantization.base import QuantMethod, Unquantized


def build_model(
    spec: ModelSpec,
    backend: AttentionBackend,
    dtype: torch.dtype,
    device: torch.device,
    *,
    parallel: ParallelContext | None = None,
    quant_method: QuantMethod | None = None,
    op_impl: str = "auto",
) -> Model:
    """Make the modules; memory is reserved, nothing is written to it.

    Args:
        spec: the model.
        backend: computes attention, made for the same spec, dtype and device.
        dtype: of parameters and activations.
        device: of both.
        parallel: this rank's place; None: the only rank.
        quant_method: how linear weights are stored; None: as they are.
        op_impl: kind of implementation of the ops (infer.op_impl).

    Raises: UnsupportedError for an unknown architecture.
    """
    parallel = parallel or ParallelContext.single()
    options = LayerOptions(
        parallel=parallel,
        quant_method=quant_method or Unquantized(),
        dtype=dtype,
        device=device,
        op_impl=op_impl,
    )
    return model_classes.get(spec.architecture)(spec, backend, options).eval()

"""LayerOptions: what every layer is told when it is built."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from chitu_like.distributed.parallel_context import ParallelContext
from chitu_like.quantization.base import QuantMethod


@dataclass(frozen=True, kw_only=True)
class LayerOptions:
    """Passed down unchanged from the model to its smallest layer.

    Attributes:
        parallel: this rank's place.
        quant_method: how linear weights are stored.
        dtype: of parameters and activations.
        device: of both.
        op_impl: kind of implementation to take (infer.op_impl).
        norms_reduce: row-parallel layers give this rank's part of a sum over the ranks of
            `parallel.tp`, and the RMSNorm that adds it to the residual adds up the parts: where the
            devices reach each other, that is one kernel.
    """

    parallel: ParallelContext
    quant_method: QuantMethod
    dtype: torch.dtype
    device: torch.device
    op_impl: str = "auto"
    norms_reduce: bool = False

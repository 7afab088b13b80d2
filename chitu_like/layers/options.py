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
    """

    parallel: ParallelContext
    quant_method: QuantMethod
    dtype: torch.dtype
    device: torch.device
    op_impl: str = "auto"

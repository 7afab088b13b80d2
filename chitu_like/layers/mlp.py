"""The gated MLP of a transformer."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from chitu_like.layers.linear import (
    MergedColumnParallelLinear,
    RowParallelLinear,
)
from chitu_like.layers.options import LayerOptions
from chitu_like.ops.activation import act_and_mul_op


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)).

    Args:
        hidden_size: of x.
        intermediate_size: of gate and up.
        activation: its name in config.json.
        has_bias: whether the linear layers have biases.
        options: how layers are built.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        activation: str,
        *,
        has_bias: bool,
        options: LayerOptions,
    ) -> None:
        super().__init__()
        self.gate_up_proj = MergedColumnParallelLinear(
            hidden_size, [intermediate_size] * 2, has_bias=has_bias, options=options
        )
        self.down_proj = RowParallelLinear(
            intermediate_size, hidden_size, has_bias=has_bias, options=options
        )
        act_and_mul = act_and_mul_op.resolve(options.device, options.dtype, options.op_impl)
        self._act = partial(act_and_mul, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        """X [num_tokens, hidden_size], not modified -> the same shape, fresh."""
        return self.down_proj(self._act(self.gate_up_proj(x)))

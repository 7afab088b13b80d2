"""How far a result may lie from the reference, by dtype, and why."""

import torch
from torch import Tensor

# (relative, absolute). float32: sums of a few hundred products in another order. float16 and
# bfloat16: a result rounded once more or once less than the reference, at 11 and 8 bits.
OP = {
    torch.float32: (1e-5, 1e-5),
    torch.float16: (2e-3, 2e-3),
    torch.bfloat16: (1.6e-2, 1.6e-2),
}
# Logits of a whole tiny model against transformers in float32: issue 2 asks for 1e-4.
LOGITS = (1e-4, 1e-4)


def assert_op_close(found: Tensor, expected: Tensor) -> None:
    """Compare an op's result with the reference's, by the dtype of what was found."""
    rtol, atol = OP[found.dtype]
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=rtol, atol=atol)


def assert_logits_close(found: Tensor, expected: Tensor) -> None:
    """Compare logits of float32 models."""
    rtol, atol = LOGITS
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)

"""Which attention backend "auto" takes: the order of preference, in one place."""

from chitu_like.config.device_facts import DeviceFacts
from chitu_like.config.schema import Dtype

FLASHINFER_HEAD_DIMS = (64, 128, 256)
TRITON_MAX_HEAD_DIM = 256


def choose_attention(facts: DeviceFacts, head_dim: int, dtype: Dtype) -> tuple[str, str]:
    """The first backend of flashinfer, triton and sdpa that serves here, and why it is that one.

    Args:
        facts: of the device.
        head_dim: of the model's queries, keys and values.
        dtype: that the model computes in.
    """
    if facts.device == "cpu":
        return "sdpa", "fast on cpu"
    reason = "FlashInfer is not installed"
    if facts.has_flashinfer:
        if head_dim in FLASHINFER_HEAD_DIMS and dtype != "float32":
            return "flashinfer", "it is installed"
        reason = f"FlashInfer does not serve heads of {head_dim} in {dtype}"
    if not facts.has_triton:
        return "sdpa", f"{reason}, nor is Triton"
    if head_dim > TRITON_MAX_HEAD_DIM:
        return "sdpa", f"{reason}, and triton's are at most {TRITON_MAX_HEAD_DIM}"
    return "triton", reason

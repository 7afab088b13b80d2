"""Which attention "auto" takes: measured on an H200 (benchmarks/RESULTS.md), decided in one place.

Triton's kernels decode fastest; FlashInfer computes long prompts fastest. So where both serve, each
does its part.
"""

from chitu_like.config.device_facts import DeviceFacts
from chitu_like.config.schema import Dtype

FLASHINFER_HEAD_DIMS = (64, 128, 256)
FLASHINFER_CAPABILITY = (8, 0)
"""Ampere's, the least it is chosen for. It names 7.5 too, but prefills no bfloat16 there, and float16
only since 0.6.16 (flashinfer-ai/flashinfer#473 and #3620)."""
TRITON_MAX_HEAD_DIM = 256
HOST_PLANNED = ("ref", "sdpa")
"""Attention whose decodes cannot be captured in a CUDA graph."""


def choose_attention(facts: DeviceFacts, head_dim: int, dtype: Dtype) -> tuple[str, str]:
    """The fastest attention that serves here, and in a few words why it is that one.

    Args:
        facts: of the device.
        head_dim: of the model's queries, keys and values.
        dtype: that the model computes in.

    Returns: (value of infer.attn_type, reason).
    """
    if facts.device == "cpu":
        return "sdpa", "fast on cpu"
    why_not_flashinfer = _why_not_flashinfer(facts, head_dim, dtype)
    why_not_triton = None if facts.has_triton else "Triton is not installed"
    if head_dim > TRITON_MAX_HEAD_DIM:
        why_not_triton = f"triton's heads are of at most {TRITON_MAX_HEAD_DIM}, not of {head_dim}"
    if why_not_triton is None:
        if why_not_flashinfer is None:
            return "flashinfer+triton", "the fastest for prompts, and for decodes, on an H200"
        return "triton", why_not_flashinfer
    if why_not_flashinfer is None:
        return "flashinfer", why_not_triton
    return "sdpa", f"{why_not_flashinfer}; {why_not_triton}"


def why_not_captured(attn_type: str) -> str | None:
    """Why decodes of this attention cannot be captured in a CUDA graph; None if they can."""
    if attn_type.rpartition("+")[2] in HOST_PLANNED:
        return f"decodes of infer.attn_type={attn_type} are planned on the host"
    return None


def _why_not_flashinfer(facts: DeviceFacts, head_dim: int, dtype: Dtype) -> str | None:
    if not facts.has_flashinfer:
        return "FlashInfer with kernels or nvcc is not installed"
    if head_dim not in FLASHINFER_HEAD_DIMS or dtype == "float32":
        return f"FlashInfer does not serve heads of {head_dim} in {dtype}"
    if facts.compute_capability < FLASHINFER_CAPABILITY:
        major, minor = facts.compute_capability
        return f"FlashInfer is for Ampere and later, not for compute capability {major}.{minor}"
    return None

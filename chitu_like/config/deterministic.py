"""What infer.deterministic needs: kernels whose every row is a function of that row alone.

Libraries choose another kernel for every shape of a batch, and with it another order of addition. The
Triton kernels keep one order, so all that computes must be theirs.
"""

from chitu_like.config.attention_choice import TRITON_MAX_HEAD_DIM
from chitu_like.config.device_facts import DeviceFacts
from chitu_like.config.schema import ServeConfig
from chitu_like.core.errors import ConfigError
from chitu_like.core.model_spec import ModelSpec

KERNELS = "triton"
"""The attention backend, and the kind of the ops."""


def check_deterministic(config: ServeConfig, facts: DeviceFacts, spec: ModelSpec) -> None:
    """Raise ConfigError where infer.deterministic is asked for and could not be kept."""
    infer = config.infer
    if not infer.deterministic:
        return
    size, most = spec.head_dim, TRITON_MAX_HEAD_DIM
    needs = (
        (facts.device == "cuda",
         "on a CPU the number of tokens decides how torch adds up; use a CUDA device, or false"),
        (facts.has_triton,
         "its kernels need Triton, which is not installed: pip install triton, or use false"),
        (infer.op_impl in ("auto", KERNELS),
         f"infer.op_impl={infer.op_impl} depends on the batch; use auto or {KERNELS}"),
        (infer.attn_type in ("auto", KERNELS),
         f"infer.attn_type={infer.attn_type} depends on the batch; use auto or {KERNELS}"),
        (infer.tp_size == 1,
         f"infer.tp_size={infer.tp_size} adds up over ranks in an order of its own; use 1, and "
         "infer.pp_size for a model that needs several GPUs"),
        (size <= most,
         f"the model's heads of {size} are more than the {most} of its attention; use false"),
    )  # fmt: skip
    for is_met, fault in needs:
        if not is_met:
            raise ConfigError(f"infer.deterministic=true: {fault}")

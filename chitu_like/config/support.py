"""What the keys promise and this version does not do yet: refused in one line, never ignored.

Each line of the table goes away with the issue that brings its feature.
"""

from chitu_like.config.schema import ServeConfig
from chitu_like.config.section import show
from chitu_like.core.errors import UnsupportedError


def check_supported(config: ServeConfig) -> None:
    """Raise UnsupportedError for the first value that could not take effect."""
    infer = config.infer
    unquantised = "this version serves unquantised checkpoints; leave it out"
    no_kernels = "this version has no compiled kernels; use auto, torch or triton"
    later = (
        ("infer.ep_size", infer.ep_size, infer.ep_size == 1,
         "this version has no models with experts; use 1"),
        ("infer.attn_type", infer.attn_type, infer.attn_type != "flash_mla",
         "this version has no models with latent attention; use auto"),
        ("infer.op_impl", infer.op_impl, infer.op_impl != "cuda", no_kernels),
        ("infer.kv_cache_dtype", infer.kv_cache_dtype, infer.kv_cache_dtype == "auto",
         "this version keeps the KV cache in the model's dtype; use auto"),
        ("infer.mla_absorb", infer.mla_absorb, infer.mla_absorb == "auto",
         "this version has no models with latent attention; use auto"),
        ("infer.soft_fp8", infer.soft_fp8, infer.soft_fp8 is not True, unquantised),
        ("quant", config.quant, config.quant is None, unquantised),
        ("quant_on_load", config.quant_on_load, not config.quant_on_load, unquantised),
    )  # fmt: skip
    for key, value, is_supported, remedy in later:
        if not is_supported:
            raise UnsupportedError(f"{key}={show(value)}: {remedy}")

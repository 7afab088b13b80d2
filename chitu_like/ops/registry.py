"""Op: one numeric primitive, its torch reference, and the faster twins that registered with it.

A layer resolves its ops once, when it is built; the step then calls a plain function::

    self._rms_norm = rms_norm_op.resolve(device, dtype, "auto")     # in __init__
    x = self._rms_norm(x, weight, eps)                              # in forward

The twins of ops/norm.py live in ops/triton/norm.py and ops/cuda/norm.py, and register themselves
when imported, which happens at the first look-up for a CUDA device::

    @rms_norm_op.register("triton", supports=lambda device, dtype: device.type == "cuda")
    def rms_norm_triton(x, weight, eps): ...
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

from chitu_like.core.errors import UnsupportedError

F = TypeVar("F", bound=Callable[..., object])
Supports = Callable[[torch.device, torch.dtype], bool]

REFERENCE = "torch"
PREFERENCE = ("cuda", "triton", REFERENCE)
"""Kinds of implementation, the fastest first; "auto" takes the first that supports the call."""


class Op(Generic[F]):
    """One primitive and its implementations.

    Args:
        name: of the primitive, for messages.
        reference: plain torch; runs everywhere and says what is right. Twins stand in modules of
            the same name as its own.
    """

    def __init__(self, name: str, reference: F) -> None:
        self.name = name
        self._functions: dict[str, F] = {REFERENCE: reference}
        self._supports: dict[str, Supports] = {REFERENCE: lambda _device, _dtype: True}
        self._module = reference.__module__.rpartition(".")[2]
        self._is_loaded = False

    def register(self, kind: str, *, supports: Supports) -> Callable[[F], F]:
        """Decorator that files a twin under `kind`, one of PREFERENCE."""
        if kind not in PREFERENCE or kind in self._functions:
            raise ValueError(f"op {self.name!r}: {kind!r} is taken or no kind of implementation")

        def add(function: F) -> F:
            self._functions[kind] = function
            self._supports[kind] = supports
            return function

        return add

    def kinds(self, device: torch.device, dtype: torch.dtype) -> list[str]:
        """Implementations that support `device` and `dtype`, the fastest first."""
        if device.type == "cuda":
            self._load_twins()
        supports = self._supports
        return [kind for kind in PREFERENCE if kind in supports and supports[kind](device, dtype)]

    def resolve(self, device: torch.device, dtype: torch.dtype, kind: str = "auto") -> F:
        """The function to call for tensors of `dtype` on `device`.

        Args:
            device: of every argument.
            dtype: of the activations.
            kind: "auto" for the fastest; else that kind, or the reference where the op has no
                implementation of that kind at all.

        Raises: UnsupportedError if the op has such an implementation but it does not serve here.
        """
        kinds = self.kinds(device, dtype)
        if kind == "auto":
            return self._functions[kinds[0]]
        if kind not in self._functions:
            return self._functions[REFERENCE]
        if kind not in kinds:
            raise UnsupportedError(
                f"op {self.name}: the {kind} implementation does not serve {dtype} on "
                f"{device.type}: use auto or torch (infer.op_impl)"
            )
        return self._functions[kind]

    def _load_twins(self) -> None:
        if self._is_loaded:
            return
        self._is_loaded = True
        for folder in ("triton", "cuda"):
            if folder == "triton" and importlib.util.find_spec("triton") is None:
                continue  # comes with torch for CUDA on Linux, not everywhere
            package = f"{__package__}.{folder}"
            if importlib.util.find_spec(package) is None:
                continue
            if importlib.util.find_spec(f"{package}.{self._module}") is not None:
                importlib.import_module(f"{package}.{self._module}")

"""What every launch of a small kernel has in common: programmatic dependent launch.

A kernel launched so may start while the one before it still runs. It then waits in `wait_for_previous`,
before it reads or writes anything that an earlier kernel touches (weights it may read sooner), and
lets the next one start likewise. Between two short kernels that hides most of a launch
(CUDA C++ programming guide, "Programmatic Dependent Launch and Synchronization").

Triton compiles a kernel anew for every integer of 1 or a multiple of 16 that was neither before, and for
every tensor that begins at a multiple of 16 bytes where earlier ones did not. Whatever changes so from
one batch to the next is therefore named in `do_not_specialize`: a step would wait for the compiler.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

IS_DEPENDENT = True
"""The one switch, for all kernels but those of paged decodes, which measured faster without."""

SUPPORTED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@triton.jit
def wait_for_previous(PDL: tl.constexpr):
    """Wait until all that earlier kernels wrote can be read; the next kernel may be launched."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


def dependent_launch(device: torch.device) -> dict[str, bool]:
    """Keywords of a kernel's launch: its constexpr PDL and, where it is on, the launch attribute."""
    if IS_DEPENDENT and _can_depend(device):
        return {"PDL": True, "launch_pdl": True}
    return {"PDL": False}


def serves(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels of this folder take tensors of `dtype` on `device`."""
    home = "cpu" if triton.knobs.runtime.interpret else "cuda"  # TRITON_INTERPRET=1, in tests
    return device.type == home and dtype in SUPPORTED_DTYPES


@functools.cache
def _can_depend(device: torch.device) -> bool:
    knows_how = torch.version.cuda is not None and hasattr(tl.extra.cuda, "gdc_wait")
    return (
        device.type == "cuda" and knows_how and torch.cuda.get_device_capability(device) >= (9, 0)
    )

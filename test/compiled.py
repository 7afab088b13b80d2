"""Kernels compiled for a Hopper GPU, on a machine without one: do they compile, and do they spill?

What is compiled is what a call of the Python function would launch: its kernels are recorded instead
of run, so tensors may be on the meta device. Triton must not be in its interpreter's mode.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

CAPABILITY = 90
TARGET = GPUTarget("cuda", CAPABILITY, 32)
OPTIONS = ("num_warps", "num_stages", "num_ctas", "launch_pdl", "maxnreg")
POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A kernel and what it was called with."""

    kernel: JITFunction
    values: Mapping[str, object]
    options: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What ptxas says of a kernel: registers a thread, bytes spilled, bytes shared; and its PTX."""

    name: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    ptx: str


def compile_launches(call: Callable[[], object]) -> list[Compiled]:
    """Compile every kernel that a call would launch."""
    launches: list[Launch] = []

    def record(kernel: JITFunction, *positional: object, **named: object) -> None:
        _specialize(kernel, positional, named)  # raises where a launch would
        options = {name: named.pop(name) for name in OPTIONS if name in named}
        named = {name: named[name] for name in named if name not in ("grid", "warmup")}
        values = dict(zip(kernel.arg_names, positional, strict=False)) | named
        launches.append(Launch(kernel=kernel, values=values, options=options))

    with patch.object(JITFunction, "run", record):
        call()
    assert launches, "the call launches nothing"
    return [_compile(launch) for launch in launches]


def variants_of(call: Callable[[], object]) -> set[tuple[str, str]]:
    """The kernels that a call would launch, each as often as Triton would compile it for them."""
    found = set()

    def note(kernel: JITFunction, *positional: object, **named: object) -> None:
        found.add((kernel.__name__, _specialize(kernel, positional, named)))

    with patch.object(JITFunction, "run", note):
        call()
    return found


def _specialize(
    kernel: JITFunction, positional: Sequence[object], named: Mapping[str, object]
) -> str:
    """What a launch is compiled for, as Triton finds out: it binds the arguments as a launch does."""
    backend = make_backend(TARGET)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    named = {name: value for name, value in named.items() if name not in ("grid", "warmup")}
    _, specialization, options = bind(*positional, **named)
    return f"{specialization} {options}"


def _compile(launch: Launch) -> Compiled:
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.values[parameter.name]
        is_free = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (is_free and _is_one(value)):
            signature[parameter.name] = "constexpr"
            constants[(index,)] = value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
            if is_free:
                attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, int):
            signature[parameter.name] = "i32" if abs(value) < 1 << 31 else "i64"
            if is_free and value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "fp32"
    source = ASTSource(launch.kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=TARGET, options=dict(launch.options))
    ptx = compiled.asm["ptx"]
    report = _assemble(ptx)
    return Compiled(
        name=launch.kernel.__name__,
        registers=_number(r"Used (\d+) registers", report),
        spill_bytes=_number(r"(\d+) bytes spill stores", report),
        shared_bytes=compiled.metadata.shared,
        ptx=ptx,
    )


def _is_one(value: object) -> bool:
    return isinstance(value, int) and value == 1


def _assemble(ptx: str) -> str:
    """What ptxas reports."""
    folder = Path(triton.__file__).parent / "backends/nvidia/bin"
    # The PTX is of the newest version that Triton's newest assembler knows.
    assembler = max(folder.glob("ptxas*"), key=lambda path: len(path.name))
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        done = subprocess.run(
            [assembler, f"-arch=sm_{CAPABILITY}a", "-v", file.name, "-o", "/dev/null"],
            capture_output=True,
            text=True,
            check=True,
        )
    return done.stderr


def _number(pattern: str, report: str) -> int:
    found = re.search(pattern, report)
    assert found, report
    return int(found[1])

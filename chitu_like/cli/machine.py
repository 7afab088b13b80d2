"""What this machine has: device, memory, cores, packages."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform

from chitu_like import __version__
from chitu_like.config.device_facts import GIB, DeviceFacts

OPTIONAL = (
    # import name, what it brings, how to get it
    ("matplotlib", "plots of benchmarks", "pip install 'chitu-like[plot]'"),
    ("llguidance", "structured output", "pip install 'chitu-like[structured]'"),
    (
        "flash_attn",
        "attention on CUDA",
        "pip install --no-build-isolation 'chitu-like[flash_attn]'",
    ),
    ("flashinfer", "attention on CUDA", "pip install 'chitu-like[flashinfer]'"),
    ("flash_mla", "latent attention on Hopper", "built from its own repository"),
    ("triton", "kernels on CUDA", "comes with torch for CUDA"),
    ("transformers", "the peer of bench cpu-transformers", "pip install 'chitu-like[test]'"),
)


def describe_machine(facts: DeviceFacts) -> list[tuple[str, str]]:
    """(what, value) rows: the device and what runs on it."""
    import torch

    bf16 = "computes bfloat16" if facts.supports_bf16 else "does not compute bfloat16"
    rows = [("device", f"{facts.device}: {facts.name}, {bf16}")]
    if facts.device == "cuda":
        rows.append(("devices", f"{facts.num_devices} visible, CUDA {torch.version.cuda}"))
        rows.append(("memory", _free_of(facts.free_bytes, facts.memory_bytes)))
        rows.append(("host memory", f"{facts.host_free_bytes / GIB:.1f} GiB free"))
    else:
        rows.append(("memory", _free_of(facts.free_bytes, facts.memory_bytes)))
    rows += [
        ("cores", str(facts.num_cpu_cores)),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("torch", torch.__version__),
        ("chitu_like", __version__),
    ]
    return rows


def describe_packages() -> list[tuple[str, str]]:
    """(package, version, or what it would bring and how to install it) rows."""
    distributions = importlib.metadata.packages_distributions()  # opens files of every package
    rows = []
    for name, purpose, install in OPTIONAL:
        if importlib.util.find_spec(name) is None:
            rows.append((name, f"not here; {purpose}: {install}"))
        else:
            rows.append((name, f"{_version(distributions.get(name, [name])[0])} ({purpose})"))
    return rows


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def _free_of(free_bytes: int, total_bytes: int) -> str:
    return f"{free_bytes / GIB:.1f} of {total_bytes / GIB:.1f} GiB free"

"""What test_peak_memory.py runs in a process of its own: a rank loads, and says what that took."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from models.run_model import CPU, attention_spec

from chitu_like.attention.ref import RefBackend
from chitu_like.checkpoint.loader import LoadReport, load_weights
from chitu_like.checkpoint.reader import open_checkpoint
from chitu_like.core.model_spec import ModelSpec
from chitu_like.distributed.parallel_context import ParallelContext
from chitu_like.models.build import build_model


def load_and_measure(
    _rank: int, folder: Path, spec: ModelSpec, parallel: ParallelContext
) -> tuple[int, LoadReport]:
    """Peak of resident bytes while loading, mapped files included, above what was there before."""
    backend = RefBackend(attention_spec(spec, 4, torch.float32, tp_size=parallel.tp_size))
    model = build_model(spec, backend, torch.float32, CPU, parallel=parallel)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = resident_bytes("VmRSS")
    with open_checkpoint(folder) as reader:
        report = load_weights(model, reader, progress=False)
    return resident_bytes("VmHWM") - before, report


def resident_bytes(key: str) -> int:
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"^{key}:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None, status
    return int(found[1]) * 1024

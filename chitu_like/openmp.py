"""How OpenMP's threads wait for each other, decided before torch loads it."""

from __future__ import annotations

import os

FEW_CORES = 4


def wait_without_spinning() -> None:
    """Let OpenMP's threads sleep at barriers where cores are few; a user's own setting stays.

    OpenMP reads it once, when torch is imported: so commands, ranks and `from chitu_like import LLM`
    call this first. A program that had imported torch before, as benchmarks/ do, keeps threads that
    spin.

    A thread that spins takes the core that the engine or another process needs. On two cores a
    decode step of Qwen2.5-0.5B takes 42 ms so and 48 ms with spinning; beside other work, spinning
    made steps 10 times slower. On many cores waking up costs more than it saves.
    """
    has_affinity = hasattr(os, "sched_getaffinity")  # Linux alone has it
    num_cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    if num_cores <= FEW_CORES:
        os.environ.setdefault("GOMP_SPINCOUNT", "0")

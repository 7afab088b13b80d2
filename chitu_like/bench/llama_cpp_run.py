"""Timed runs of llama.cpp, by its own tool for measuring."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from chitu_like.core.errors import PeerError

TIMEOUT_S = 600.0
LAST_RUN = "1"
"""Steps of a second run, whose figures nobody needs: the tool ends without waiting for the thread that
writes its report, so what it says last may get lost."""
OUR_OWN = ("GOMP_SPINCOUNT", "OMP_NUM_THREADS")
"""How our threads are set up, by openmp.py and torchrun: the peer keeps its defaults."""


class LlamaCppRun:
    """A model that llama-batched-bench runs.

    Args:
        tool: that program.
        gguf: the model's file.
        num_threads: it computes with.

    Attributes:
        name, version: of llama.cpp, as the tool says it.
    """

    name = "llama.cpp"

    def __init__(self, tool: str, gguf: Path, num_threads: int) -> None:
        self._tool = tool
        self._gguf = gguf
        self._num_threads = num_threads
        self.version: str = read_version(_output([tool, "--version"]))

    def seconds(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> float:
        """Seconds of the prefill of as many prompts as long, and of num_tokens - 1 decode steps.

        The prefill brings the logits of each first token, which it draws none from.

        Raises:
            PeerError: the tool failed, or its report is not of this run.
        """
        length, num_steps = len(prompts[0]), num_tokens - 1
        words = {
            "-m": self._gguf,
            "-t": self._num_threads,
            "-c": len(prompts) * (length + num_tokens),
            "-npp": length,
            "-ntg": f"{max(1, num_steps)},{LAST_RUN}",  # not 0: it divides by the time of that
            "-npl": len(prompts),
            "--output-format": "jsonl",
        }
        arguments = [str(word) for pair in words.items() for word in pair]
        prefill_s, decode_s = read_seconds(
            _output([self._tool, *arguments]), length, max(1, num_steps), len(prompts)
        )
        return prefill_s + (decode_s if num_steps else 0.0)


def read_seconds(
    output: str, prompt_len: int, num_steps: int, batch_size: int
) -> tuple[float, float]:
    """Seconds of prefill and of all decode steps, from the first line of JSON among the tool's words.

    Raises: PeerError if there is no such line, or it is of other sizes.
    """
    for line in output.splitlines():
        if not line.startswith("{"):
            continue
        try:
            row = json.loads(line)
            sizes = (row["pp"], row["tg"], row["pl"])
            seconds = float(row["t_pp"]), float(row["t_tg"])
        except (ValueError, KeyError, TypeError) as error:
            raise PeerError(f"llama.cpp reported what is not understood: {line[:200]}") from error
        if sizes != (prompt_len, num_steps, batch_size):
            raise PeerError(
                f"llama.cpp measured prompt, steps and batch {sizes}, "
                f"{(prompt_len, num_steps, batch_size)} were asked for"
            )
        return seconds
    raise PeerError(f"llama.cpp reported no measurement; it said: {_last_line(output)}")


def read_version(output: str) -> str:
    """What stands behind "version:", or that it was not told."""
    found = re.search(r"version: (.+)", output)
    return found.group(1).strip() if found else "of unknown version"


def _output(command: Sequence[str]) -> str:
    """What it writes, log lines included."""
    environment = {name: value for name, value in os.environ.items() if name not in OUR_OWN}
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerError(f"{command[0]} did not run: {error}") from None
    if done.returncode:
        raise PeerError(
            f"{command[0]} ended with {done.returncode}; it said: {_last_line(done.stdout)}"
        )
    return done.stdout


def _last_line(output: str) -> str:
    lines = output.strip().splitlines()
    return lines[-1][:200] if lines else "nothing"

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
TINY = ("models=tiny-chat", "infer.device=cpu", "infer.num_blocks=64")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1")


def run(*words: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *launcher, "test/single_req_test.py", *words],
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_it_answers_its_own_questions() -> None:
    done = run(*TINY, "request.max_new_tokens=8")
    assert done.returncode == 0, done.stderr
    assert "What is a paged KV cache?" in done.stdout
    assert "4 requests, " in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [(), TORCHRUN], ids=["python", "torchrun"])
def test_lengths_are_exact(launcher: tuple[str, ...]) -> None:
    lengths = ("request.prompt_tokens_len=20", "request.max_new_tokens=9")
    done = run(*TINY, *lengths, "infer.stop_with_eos=False", launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("20 tokens in, 9 out") == 4
    assert "4 requests, 36 output tokens" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["request.max_new_tokns=3"], [*TINY, "request.prompt_tokens_len=100000"]]
)
def test_a_mistake_is_one_line(words: list[str]) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1

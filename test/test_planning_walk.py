from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_every_command_of_the_walk_through_runs(tmp_path: Path) -> None:
    """In order and in one folder, since later ones read what earlier ones wrote."""
    blocks = BLOCK.findall((REPO / "docs" / "planning.md").read_text(encoding="utf-8"))
    assert {kind for kind, _ in blocks} == {"bash", "python"}
    for kind, text in blocks:
        command = text.replace("chitu-like ", f"{sys.executable} -m chitu_like.cli ")
        words = ["bash", "-ec", command] if kind == "bash" else [sys.executable, "-c", text]
        done = subprocess.run(
            words,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stderr}"

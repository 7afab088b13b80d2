"""How OpenMP waits is decided before torch, which reads it once, is imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Where torch would be imported, the program ends with what OpenMP would read.
ON_ONE_CORE = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

class End:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            sys.exit(os.environ.get("GOMP_SPINCOUNT", "not set"))

sys.meta_path.insert(0, End())
"""


@pytest.mark.parametrize("given", [None, "7"])
@pytest.mark.parametrize(
    "way",
    [
        "from chitu_like import LLM",
        "from chitu_like.launch import launch; launch(['models=tiny-chat', 'serve.port=0'])",
    ],
)
def test_threads_of_few_cores_sleep_whatever_way_torch_is_reached(
    way: str, given: str | None
) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    if given is not None:
        environ["GOMP_SPINCOUNT"] = given
    done = subprocess.run(
        [sys.executable, "-c", ON_ONE_CORE + way],
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr.splitlines()[-1] == (given or "0"), done.stderr

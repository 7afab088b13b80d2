from __future__ import annotations

import subprocess
import sys

from chitu_like.core.phases import Phases, process_age_s


def test_phases_follow_each_other_without_a_gap() -> None:
    ticks = iter([10.0, 11.0, 11.5, 15.0])
    phases = Phases(before_s=2.0, clock=lambda: next(ticks))
    phases.end("imports")
    phases.end("device")
    phases.end("weights")
    assert phases.seconds == {"imports": 3.0, "device": 0.5, "weights": 3.5}
    assert list(phases.seconds) == ["imports", "device", "weights"]


def test_a_phase_that_comes_back_grows() -> None:
    ticks = iter([0.0, 1.0, 3.0, 4.0])
    phases = Phases(clock=lambda: next(ticks))
    for name in ("load", "wait", "load"):
        phases.end(name)
    assert phases.seconds == {"load": 2.0, "wait": 2.0}


def test_a_process_knows_its_age() -> None:
    program = (
        "import time; time.sleep(0.3); from chitu_like.core.phases import process_age_s; "
        "print(process_age_s())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert 0.25 < float(done.stdout) < 60
    assert process_age_s() > 0

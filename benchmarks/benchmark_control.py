"""Control cost of a step: `python benchmarks/benchmark_control.py --help`; the work is in chitu_like/bench/control.py."""

import sys

from chitu_like.bench.control import run
from chitu_like.cli.command_line import run_reporting

if __name__ == "__main__":
    sys.exit(
        run_reporting("benchmark_control.py", lambda: run("benchmark_control.py", sys.argv[1:]))
    )

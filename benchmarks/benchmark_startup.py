"""Start to ready, phase by phase: `python benchmarks/benchmark_startup.py --help`; the work is in chitu_like/bench/startup.py."""

import sys

from chitu_like.bench.startup import run
from chitu_like.cli.command_line import run_reporting

if __name__ == "__main__":
    sys.exit(
        run_reporting("benchmark_startup.py", lambda: run("benchmark_startup.py", sys.argv[1:]))
    )

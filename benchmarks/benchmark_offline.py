"""The engine in this process: `python benchmarks/benchmark_offline.py --help`; the work is in chitu_like/bench/offline.py."""

import sys

from chitu_like.bench.offline import run
from chitu_like.cli.command_line import run_reporting

if __name__ == "__main__":
    sys.exit(
        run_reporting("benchmark_offline.py", lambda: run("benchmark_offline.py", sys.argv[1:]))
    )

"""Cost of telling a token: `python benchmarks/benchmark_front_end.py --help`; the work is in chitu_like/bench/front_end.py."""

import sys

from chitu_like.bench.front_end import run
from chitu_like.cli.command_line import run_reporting

if __name__ == "__main__":
    sys.exit(
        run_reporting("benchmark_front_end.py", lambda: run("benchmark_front_end.py", sys.argv[1:]))
    )

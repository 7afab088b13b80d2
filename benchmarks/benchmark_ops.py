"""Every op beside the device's roof: `python benchmarks/benchmark_ops.py --help`; the work is in chitu_like/bench/ops.py."""

import sys

from chitu_like.bench.ops import run
from chitu_like.cli.command_line import run_reporting

if __name__ == "__main__":
    sys.exit(run_reporting("benchmark_ops.py", lambda: run("benchmark_ops.py", sys.argv[1:])))

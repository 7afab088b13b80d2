"""All-reduces between CUDA devices: `torchrun --nproc_per_node 2 benchmarks/benchmark_all_reduce.py --help`; the work is in chitu_like/bench/all_reduce.py."""

import sys

from chitu_like.bench.all_reduce import run
from chitu_like.cli.command_line import run_reporting

if __name__ == "__main__":
    sys.exit(
        run_reporting(
            "benchmark_all_reduce.py", lambda: run("benchmark_all_reduce.py", sys.argv[1:])
        )
    )

"""One layout of ranks: `torchrun --nproc_per_node 2 benchmarks/benchmark_parallel.py --help`; the work is in chitu_like/bench/parallel.py."""

import sys

from chitu_like.bench.parallel import run
from chitu_like.cli.command_line import run_reporting

if __name__ == "__main__":
    sys.exit(
        run_reporting("benchmark_parallel.py", lambda: run("benchmark_parallel.py", sys.argv[1:]))
    )

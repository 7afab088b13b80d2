"""The engine beside transformers on this CPU: `python benchmarks/benchmark_cpu_transformers.py --help`; the work is in chitu_like/bench/cpu_transformers.py."""

import sys

from chitu_like.bench.cpu_transformers import run
from chitu_like.cli.command_line import run_reporting

if __name__ == "__main__":
    sys.exit(
        run_reporting(
            "benchmark_cpu_transformers.py",
            lambda: run("benchmark_cpu_transformers.py", sys.argv[1:]),
        )
    )

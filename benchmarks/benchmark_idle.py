"""How idle the GPU is while it decodes: `python benchmarks/benchmark_idle.py --help`; the work is in chitu_like/bench/gpu_idle.py."""

import sys

from chitu_like.bench.gpu_idle import run
from chitu_like.cli.command_line import run_reporting

if __name__ == "__main__":
    sys.exit(run_reporting("benchmark_idle.py", lambda: run("benchmark_idle.py", sys.argv[1:])))

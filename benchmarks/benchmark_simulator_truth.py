"""A real instance beside a simulated one: `python benchmarks/benchmark_simulator_truth.py --help`; the work is in chitu_like/bench/simulator_truth.py."""

import sys

from chitu_like.bench.simulator_truth import run
from chitu_like.cli.command_line import run_reporting

if __name__ == "__main__":
    prog = "benchmark_simulator_truth.py"
    sys.exit(run_reporting(prog, lambda: run(prog, sys.argv[1:])))

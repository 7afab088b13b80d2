"""Speed of simulations: `python benchmarks/benchmark_simulator.py --help`; the work is in chitu_like/bench/simulator.py."""

import sys

from chitu_like.bench.simulator import run
from chitu_like.cli.command_line import run_reporting

if __name__ == "__main__":
    sys.exit(
        run_reporting("benchmark_simulator.py", lambda: run("benchmark_simulator.py", sys.argv[1:]))
    )

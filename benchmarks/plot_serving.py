"""Sweeps of several servers in one picture: `python benchmarks/plot_serving.py --help`; the work is in chitu_like/bench/plot_serving.py."""

import sys

from chitu_like.bench.plot_serving import run
from chitu_like.cli.command_line import run_reporting

if __name__ == "__main__":
    sys.exit(run_reporting("plot_serving.py", lambda: run("plot_serving.py", sys.argv[1:])))

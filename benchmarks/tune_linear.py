"""The table of linear layers of few tokens: `python benchmarks/tune_linear.py --help`; the work is in chitu_like/bench/linear_tuning.py."""

import sys

from chitu_like.bench.linear_tuning import run
from chitu_like.cli.command_line import run_reporting

if __name__ == "__main__":
    sys.exit(run_reporting("tune_linear.py", lambda: run("tune_linear.py", sys.argv[1:])))

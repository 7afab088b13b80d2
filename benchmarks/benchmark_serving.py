"""Load on any OpenAI-compatible server: `python benchmarks/benchmark_serving.py --help`; the work is in chitu_like/bench/serving.py."""

import sys

from chitu_like.bench.serving import run
from chitu_like.cli.command_line import run_reporting

if __name__ == "__main__":
    sys.exit(
        run_reporting("benchmark_serving.py", lambda: run("benchmark_serving.py", sys.argv[1:]))
    )

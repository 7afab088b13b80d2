"""How busy each stage is: `torchrun ... benchmarks/benchmark_pipeline.py --help`; the work is in chitu_like/bench/pipeline.py."""

import sys

from chitu_like.bench.pipeline import run
from chitu_like.cli.command_line import run_reporting

if __name__ == "__main__":
    sys.exit(
        run_reporting("benchmark_pipeline.py", lambda: run("benchmark_pipeline.py", sys.argv[1:]))
    )

"""Search the attention kernels' tiles: `python benchmarks/tune_attention.py --help`; the work is in chitu_like/bench/attention_tuning.py."""

import sys

from chitu_like.bench.attention_tuning import run
from chitu_like.cli.command_line import run_reporting

if __name__ == "__main__":
    sys.exit(run_reporting("tune_attention.py", lambda: run("tune_attention.py", sys.argv[1:])))

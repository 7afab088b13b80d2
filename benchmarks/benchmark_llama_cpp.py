"""The engine beside llama.cpp on this CPU: `python benchmarks/benchmark_llama_cpp.py --help`; the work is in chitu_like/bench/llama_cpp.py."""

import sys

from chitu_like.bench.llama_cpp import run
from chitu_like.cli.command_line import run_reporting

if __name__ == "__main__":
    sys.exit(
        run_reporting("benchmark_llama_cpp.py", lambda: run("benchmark_llama_cpp.py", sys.argv[1:]))
    )

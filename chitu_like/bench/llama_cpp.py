"""This engine beside llama.cpp on this machine's CPU: decode at batch 1 and 8, prefill of 512.

bench/cpu_comparison.py says how it is kept fair. llama.cpp runs its own `llama-batched-bench` with its
defaults, a process for each measurement; only what the tool itself times counts, after its warm-up.
It draws its own random token ids and samples nothing: its steps end with the logits, ours with the
token, in Python. The GGUF file is written here, in bfloat16 as ours computes; none is downloaded.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from chitu_like.bench.cpu_comparison import Case, add_options, compare
from chitu_like.bench.dummy_gguf import write_dummy_gguf
from chitu_like.bench.llama_cpp_run import LlamaCppRun
from chitu_like.cli.command_line import Parser, positive_int
from chitu_like.config.architecture import read_model_spec
from chitu_like.config.schema import ModelsConfig
from chitu_like.core.errors import UnsupportedError

TOOL = "llama-batched-bench"


def run(prog: str, arguments: Sequence[str]) -> int:
    """Measure, print the table, write it where asked to.

    Raises: UnsupportedError, one line, where the peer or the writer of its file is absent.
    """
    options = _parser(prog).parse_args(arguments)
    tool = shutil.which(options.tool)
    if tool is None:
        raise UnsupportedError(
            f"skipped: {options.tool} is no program here; build or install llama.cpp (packages of "
            f"it bring {TOOL}) and name it with --tool PATH"
        )
    if importlib.util.find_spec("gguf") is None:
        raise UnsupportedError("skipped: what writes GGUF is not installed: pip install gguf")
    with tempfile.TemporaryDirectory(prefix="chitu-llama-cpp-") as folder:
        path = Path(folder) / f"{options.model}.gguf"

        def open_peer(models: ModelsConfig, num_threads: int) -> LlamaCppRun:
            write_dummy_gguf(path, read_model_spec(models), options.seed)
            return LlamaCppRun(tool, path, num_threads)

        return compare(prog, arguments, options, _cases(options), open_peer)


def _cases(options: argparse.Namespace) -> list[Case]:
    steps, length = options.decode_steps, options.prompt_len
    every = {
        "decode1": Case(name="decode, batch 1", batch_size=1, prompt_len=length, num_steps=steps),
        "decode8": Case(name="decode, batch 8", batch_size=8, prompt_len=length, num_steps=steps),
        "prefill512": Case(name="prefill, 512 tokens", batch_size=1, prompt_len=512, num_steps=0),
    }
    return [every[name] for name in options.cases]


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog,
        f"Compare this engine with llama.cpp's own {TOOL} on this machine's CPU: the same shapes "
        "with random weights in bfloat16, the same lengths, in alternating rounds of one sitting. "
        "Prints a table for benchmarks/RESULTS.md. Leave the machine alone meanwhile.",
        [prog, f"{prog} --tool build/bin/{TOOL} --threads 1 --json result.json"],
    )
    add_options(parser, ("decode1", "decode8", "prefill512"))
    parser.add_argument(
        "--tool", default=TOOL, metavar="PATH", help=f"llama.cpp's {TOOL} (default: on PATH)"
    )
    parser.add_argument("--decode-steps", type=positive_int, default=64, metavar="N")
    parser.add_argument("--prompt-len", type=positive_int, default=32, metavar="N")
    return parser

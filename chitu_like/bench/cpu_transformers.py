"""This engine beside `transformers` on this machine's CPU: decode at batch 1 and 16, prefill of 512.

bench/cpu_comparison.py says how it is kept fair. transformers runs in this process as its
documentation says: AutoModelForCausalLM, SDPA attention, its default (dynamic) cache, `generate` under
torch.inference_mode, greedy. Batch 16 is a static batch of equally long prompts, its best case: no
padding, nobody waits. With no end-of-text token set it pays for no stop check either.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence

import torch

from chitu_like.bench.cpu_comparison import Case, add_options, compare
from chitu_like.bench.transformers_run import TransformersRun
from chitu_like.cli.command_line import Parser, positive_int
from chitu_like.config.architecture import read_hf_config
from chitu_like.config.schema import ModelsConfig
from chitu_like.core.errors import UnsupportedError


def run(prog: str, arguments: Sequence[str]) -> int:
    """Measure, print the table, write it where asked to."""
    options = _parser(prog).parse_args(arguments)
    if importlib.util.find_spec("transformers") is None:
        raise UnsupportedError(
            "the peer of this benchmark is not installed: pip install 'chitu-like[test]'"
        )
    return compare(prog, arguments, options, _cases(options), _open)


def _open(models: ModelsConfig, num_threads: int) -> TransformersRun:
    del num_threads  # it runs in this process, whose threads ours has set
    return TransformersRun(read_hf_config(models), torch.bfloat16)


def _cases(options: argparse.Namespace) -> list[Case]:
    steps, length = options.decode_steps, options.prompt_len
    every = {
        "decode1": Case(
            name="decode, batch 1", batch_size=1, prompt_len=length, num_steps=steps, target=1.3
        ),
        "decode16": Case(
            name="decode, batch 16", batch_size=16, prompt_len=length, num_steps=steps, target=1.5
        ),
        "prefill512": Case(
            name="prefill, 512 tokens", batch_size=1, prompt_len=512, num_steps=0, target=1.0
        ),
    }
    return [every[name] for name in options.cases]


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog,
        "Compare this engine with transformers' generate on this machine's CPU: the same shapes "
        "with random weights in bfloat16, the same token ids, in alternating rounds of one "
        "sitting. Prints a table for benchmarks/RESULTS.md. Leave the machine alone meanwhile.",
        [prog, f"{prog} --model qwen3-0.6b --rounds 7 --json result.json"],
    )
    add_options(parser, ("decode1", "decode16", "prefill512"))
    parser.add_argument("--decode-steps", type=positive_int, default=48, metavar="N")
    parser.add_argument("--prompt-len", type=positive_int, default=32, metavar="N")
    return parser

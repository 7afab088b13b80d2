"""A few requests of fixed lengths through the engine, answers and times on the screen.

Not collected by pytest (its name is Chitu's); run it by hand::

    torchrun --nproc_per_node 1 test/single_req_test.py models=tiny-chat request.max_new_tokens=64
    python test/single_req_test.py models=qwen3-0.6b models.load_format=dummy \
        request.prompt_tokens_len=128 request.max_new_tokens=64 infer.stop_with_eos=False

`request.prompt_tokens_len=-1` asks the questions below; otherwise each prompt is that many random
token ids. With `infer.stop_with_eos=False` each answer has exactly `request.max_new_tokens` tokens.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console

from chitu_like import LLM
from chitu_like.bench.random_prompts import random_prompts
from chitu_like.cli.command_line import run_reporting
from chitu_like.config.load import load_config
from chitu_like.core.ending import DONE, FAILED
from chitu_like.core.errors import ConfigError, UnsupportedError
from chitu_like.core.output import RequestOutput

QUESTIONS = (
    "Hello!",
    "What is a paged KV cache?",
    "Tell me a short story about a dog.",
    "Which command starts the service?",
)
NUM_RANDOM_PROMPTS = 4


def run(overrides: Sequence[str]) -> int:
    """Run the requests together; returns the exit code."""
    config = load_config(overrides)
    console = Console(soft_wrap=True, highlight=False)
    with LLM(*overrides) as llm:
        length, max_new_tokens = config.request.prompt_tokens_len, config.request.max_new_tokens
        if length > 0 and length + max_new_tokens > llm.info.max_seq_len:
            raise ConfigError(
                f"request.prompt_tokens_len={length} and request.max_new_tokens={max_new_tokens} "
                f"exceed infer.max_seq_len={llm.info.max_seq_len}"
            )
        prompts = _prompts(llm, length, config.infer.seed)
        params = replace(
            llm.default_params(),
            max_tokens=max_new_tokens,
            ignore_eos=not config.infer.stop_with_eos,
        )
        start_s = time.perf_counter()
        outputs = llm.generate(prompts, params)
        elapsed_s = time.perf_counter() - start_s
    for number, output in enumerate(outputs):
        question = QUESTIONS[number] if length < 0 else f"{length} random tokens"
        console.print(f"[bold]{question}[/bold]")
        console.print(_answer(output), markup=False)
        console.print(f"[dim]{_times(output)}[/dim]\n")
    num_tokens = sum(len(output.outputs[0].token_ids) for output in outputs if output.outputs)
    console.print(
        f"{len(outputs)} requests, {num_tokens} output tokens in {elapsed_s:.2f} s: "
        f"{num_tokens / elapsed_s:.1f} tokens/s"
    )
    return FAILED if any(output.error for output in outputs) else DONE


def _prompts(llm: LLM, length: int, seed: int) -> list[list[int]]:
    if length > 0:
        lengths = [length] * NUM_RANDOM_PROMPTS
        return random_prompts(random.Random(seed), lengths, llm.info.vocab_size)
    try:
        return [llm.render_chat([{"role": "user", "content": text}]) for text in QUESTIONS]
    except UnsupportedError:
        # A model without a chat template goes on with the text; one without a tokenizer says so.
        return [llm.tokenizer.encode(text) for text in QUESTIONS]


def _answer(output: RequestOutput) -> str:
    if output.error is not None:
        return f"error: {output.error}"
    completion = output.outputs[0]
    return completion.text or " ".join(map(str, completion.token_ids))


def _times(output: RequestOutput) -> str:
    if output.times is None or not output.outputs:
        return "no times"
    num_in, num_out = len(output.prompt_token_ids), len(output.outputs[0].token_ids)
    times = output.times
    words = [f"{num_in} tokens in, {num_out} out, prefill {times.prefill_s * 1e3:.1f} ms"]
    if num_out > 1:
        words.append(f"{times.decode_s / (num_out - 1) * 1e3:.2f} ms per later token")
    return ", ".join(words)


if __name__ == "__main__":
    sys.exit(run_reporting("single_req_test.py", lambda: run(sys.argv[1:])))

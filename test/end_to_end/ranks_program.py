"""What every rank of test_ranks.py runs under torchrun: one LLM after the other, no rank checks.

Usage: ranks_program.py JOB.json OUT.json. Each item of the job has `keys`, `prompts` and
`asked`, names of ASKED.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict
from unittest import mock

from chitu_like import LLM, SamplingParams
from chitu_like.core.output import RequestOutput

NUM_TOKENS = 8
_BASE = {"max_tokens": NUM_TOKENS, "ignore_eos": True}
ASKED = {
    "greedy": SamplingParams(temperature=0.0, **_BASE),
    "sampled": SamplingParams(temperature=0.9, top_p=0.95, top_k=50, seed=1234, **_BASE),
    "logprobs": SamplingParams(temperature=0.0, logprobs=3, prompt_logprobs=2, **_BASE),
    "penalised": SamplingParams(
        temperature=0.7,
        repetition_penalty=1.3,
        presence_penalty=0.4,
        frequency_penalty=0.2,
        logit_bias={5: 3.0, 7: -100.0},
        min_tokens=4,
        stop_token_ids=(11, 12),
        seed=7,
        **_BASE,
    ),
}


class Answer(TypedDict):
    """Of one prompt."""

    tokens: list[int]
    logprobs: list[float]


class Result(TypedDict):
    """Of one LLM: name of the parameters -> answers by prompt."""

    answers: dict[str, list[Answer]]
    num_preemptions: int
    prefix_cache_hits: int


def run(keys: Sequence[str], prompts: list[list[int]], asked: Sequence[str]) -> Result:
    """Ask every prompt in all these ways at once; in the last again, from the cache."""
    # A collection of all that torch made costs half as much as the rest of so tiny an LLM.
    with mock.patch.object(gc, "collect"), LLM(*keys, progress=False) as llm:
        questions = [prompt for _ in asked for prompt in prompts]
        ways = [ASKED[name] for name in asked for _ in prompts]
        each = _answers(llm.generate(questions, ways))
        answers = {
            name: each[i * len(prompts) : (i + 1) * len(prompts)] for i, name in enumerate(asked)
        }
        answers["again"] = _answers(llm.generate(prompts, ASKED[asked[-1]]))
        stats = llm.stats()
    assert stats.num_running == stats.num_waiting == 0
    assert stats.kv_usage == 0.0
    return Result(
        answers=answers,
        num_preemptions=stats.num_preemptions,
        prefix_cache_hits=stats.prefix_cache_hits,
    )


def _answers(outputs: list[RequestOutput]) -> list[Answer]:
    assert [output.error for output in outputs] == [None] * len(outputs)
    found = []
    for output in outputs:
        (choice,) = output.outputs
        positions = [*(output.prompt_logprobs or [])[1:], *(choice.logprobs or [])]
        values = [max(entry.logprob for entry in position.values()) for position in positions]
        found.append(Answer(tokens=choice.token_ids, logprobs=values))
    return found


def main(job_file: str, out_file: str) -> None:
    results = []
    for index, item in enumerate(json.loads(Path(job_file).read_text())):
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(index)  # they meet anew, as after a restart
        try:
            results.append(run(item["keys"], item["prompts"], item["asked"]))
        except SystemExit as end:  # not rank 0
            if end.code != 0:
                raise
    if results:
        Path(out_file).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])

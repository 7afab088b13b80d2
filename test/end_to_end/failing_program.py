"""What the ranks of test_failure.py run under torchrun, in place of a service.

Usage: failing_program.py meet|break|idle|leave KEY=VALUE...; rank 0 prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

from chitu_like import LLM, SamplingParams, rank
from chitu_like.core.batch import ScheduledBatch
from chitu_like.core.errors import PeerError
from chitu_like.distributed.rendezvous import Joined
from chitu_like.worker.model_runner import ModelRunner
from chitu_like.worker.pending_step import PendingStep

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
BROKEN_STEP = 5
COLLECTIVE_TIMEOUT_S = 6.0


def break_rank_1() -> None:
    """Its computation fails in the middle of an answer."""
    launch = ModelRunner.launch

    def failing(self: ModelRunner, batch: ScheduledBatch) -> PendingStep:
        if batch.step_id == BROKEN_STEP:
            raise ArithmeticError("two and two are five\nand more")
        return launch(self, batch)

    if os.environ["RANK"] == "1":
        ModelRunner.launch = failing  # type: ignore[method-assign]


def shorten_collectives() -> None:
    """Less patience once the ranks have met, and all of it before."""
    join = rank.join

    def impatient(*where: Any, timeout_s: float, **how: Any) -> Joined:
        return join(*where, timeout_s=COLLECTIVE_TIMEOUT_S, **how)

    rank.join = impatient  # type: ignore[assignment]


def main(what: str, *keys: str) -> None:
    if what == "meet" and os.environ["RANK"] == "1":
        os.environ["GLOO_SOCKET_IFNAME"] = "nowhere0"
    if what == "break" and os.environ["RANK"] == "0":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, as soon as rank 1 has ended
    if what == "break":
        break_rank_1()
    if what == "idle":
        shorten_collectives()
    llm = LLM(*keys, progress=False)
    prompts = [[5, 6, 7], [8, 9]]
    try:
        answers = [llm.generate(prompts, GREEDY)]
        if what == "idle":
            time.sleep(COLLECTIVE_TIMEOUT_S + 1.0)
            answers.append(llm.generate(prompts, GREEDY))
    except PeerError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        raise
    tokens = [[output.outputs[0].token_ids for output in outputs] for outputs in answers]
    print(json.dumps({"tokens": tokens}), flush=True)
    if what == "leave":
        left_open = llm.stream([3, 4], SamplingParams(max_tokens=40, ignore_eos=True))
        next(left_open)  # and the program ends without a word


if __name__ == "__main__":
    main(*sys.argv[1:])

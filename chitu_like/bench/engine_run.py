"""Timed runs of the engine in this process: fixed token ids in, a fixed number of tokens out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from chitu_like.config.overrides import parse_overrides
from chitu_like.core.errors import CapacityError, PeerError
from chitu_like.core.output import RequestOutput
from chitu_like.core.sampling_params import SamplingParams
from chitu_like.llm import LLM

NO_PREFIX_CACHE = "infer.enable_prefix_caching=false"


def with_defaults(overrides: Sequence[str], *defaults: str) -> list[str]:
    """The overrides, and each default whose key they leave alone."""
    given = {override.name for override in parse_overrides(overrides)}
    return [
        *(text for text in defaults if parse_overrides([text])[0].name not in given),
        *overrides,
    ]


class EngineRun:
    """Runs batches through an LLM and takes the time.

    Args:
        llm: loaded; owned by the caller.
        clock: seconds that never go back.
    """

    def __init__(self, llm: LLM, clock: Callable[[], float] = time.perf_counter) -> None:
        self._llm = llm
        self._clock = clock

    def seconds(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> float:
        """Seconds to answer all prompts at once with num_tokens tokens each, greedily."""
        return self.outputs(prompts, [num_tokens] * len(prompts))[0]

    def outputs(
        self, prompts: Sequence[Sequence[int]], num_tokens: Sequence[int]
    ) -> tuple[float, list[RequestOutput]]:
        """Seconds to answer each prompt with its own number of tokens, and the answers.

        Raises:
            PeerError: an answer is not as long as was asked; its time would say nothing.
        """
        params = [
            SamplingParams(temperature=0.0, max_tokens=number, ignore_eos=True)
            for number in num_tokens
        ]
        start_s = self._clock()
        outputs = self._llm.generate(prompts, params, progress=False)
        elapsed_s = self._clock() - start_s
        for output, number in zip(outputs, num_tokens, strict=True):
            if output.error is not None:
                raise PeerError(f"a request of the benchmark failed: {output.error}")
            if len(output.outputs[0].token_ids) != number:
                raise PeerError(
                    f"{len(output.outputs[0].token_ids)} tokens came back, {number} were asked for"
                )
        return elapsed_s, outputs

    def check_room(self, batch_size: int, length: int) -> None:
        """Make sure that a batch runs at once, each request `length` tokens long.

        Raises: CapacityError if some of it would wait or be preempted; the time of such a batch is
            not the time of a batch of that size.
        """
        info = self._llm.info
        if length > info.max_seq_len:
            raise CapacityError(
                f"{length} tokens a request exceed infer.max_seq_len={info.max_seq_len}: shorten "
                "the lengths or raise it"
            )
        if batch_size > info.max_reqs:
            raise CapacityError(
                f"a batch of {batch_size} exceeds infer.max_reqs={info.max_reqs}: set "
                f"infer.max_reqs={batch_size}"
            )
        needed = batch_size * -(-length // info.block_size)
        if needed > info.num_blocks:
            raise CapacityError(
                f"{batch_size} requests of {length} tokens need {needed} KV blocks, there are "
                f"{info.num_blocks} (infer.num_blocks): use a smaller batch or shorter lengths"
            )

"""Which steps are measured to know what any step costs: a grid to fit, random ones to check."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from chitu_like.core.batch import SAMPLED_LAST, SamplingRow, ScheduledBatch, SlotRow
from chitu_like.core.errors import ConfigError

LEAST_CONTEXT, LEAST_CHUNK = 16, 8
MOST_DRAWS = 1000  # for each step that is found
_GREEDY = SamplingRow(
    seed=0,
    temperature=0.0,
    top_p=1.0,
    top_k=0,
    min_p=0.0,
    repetition_penalty=1.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
    logit_bias=[],
    min_tokens=0,
    stop_ids=[],
    num_logprobs=-1,
    num_prompt_logprobs=-1,
)


@dataclass(frozen=True, kw_only=True)
class Room:
    """What a step of the instance may hold.

    Attributes:
        max_reqs: requests.
        max_seq_len: tokens of one request.
        max_chunk: prompt tokens.
        max_tokens: of the step.
        num_blocks, block_size: of the KV cache.
    """

    max_reqs: int
    max_seq_len: int
    max_chunk: int
    max_tokens: int
    num_blocks: int
    block_size: int

    def holds(self, step: StepShape) -> bool:
        """Whether a step fits."""
        lengths = step.lengths
        blocks = sum(-(-length // self.block_size) for length in lengths)
        new = sum(tokens for tokens, _ in step.chunks)
        return (
            len(lengths) <= self.max_reqs
            and max(lengths) <= self.max_seq_len
            and new <= self.max_chunk
            and new + len(step.contexts) <= self.max_tokens
            and blocks <= self.num_blocks
        )


@dataclass(frozen=True, kw_only=True)
class StepShape:
    """A step to measure.

    Attributes:
        contexts: of each decode, the tokens that it attends to.
        chunks: (tokens, tokens before them) of each chunk.
    """

    contexts: tuple[int, ...] = ()
    chunks: tuple[tuple[int, int], ...] = ()

    @property
    def kind(self) -> str:
        """decodes, prompts or mixed."""
        if not self.chunks:
            return "decodes"
        return "mixed" if self.contexts else "prompts"

    @property
    def lengths(self) -> list[int]:
        """Tokens of each request after the step."""
        return [*self.contexts, *(new + before for new, before in self.chunks)]

    def batches(self, block_size: int) -> tuple[ScheduledBatch, ScheduledBatch]:
        """The step when its requests come, and when it is made again and again.

        A prompt's first chunk brings its row each time, as a new request does; all others are known
        by then, and a decode's input is what its slot sampled last.
        """
        lengths, num_decodes = self.lengths, len(self.contexts)
        num_tokens = [1] * num_decodes + [new for new, _ in self.chunks]
        num_computed = [n - new for n, new in zip(lengths, num_tokens, strict=True)]
        rows = list(_rows(lengths, num_computed, num_decodes, block_size))
        first = ScheduledBatch(
            step_id=0,
            slots=list(range(len(lengths))),
            num_tokens=num_tokens,
            num_computed=num_computed,
            samples=[True] * len(lengths),
            token_ids=[0] * sum(num_tokens),
            new_blocks=[[] for _ in lengths],
            rows=rows,
            swap_out=[],
            swap_in=[],
            num_decodes=num_decodes,
        )
        token_ids = [SAMPLED_LAST] * num_decodes + [0] * sum(num_tokens[num_decodes:])
        fresh = [row for row, before in zip(rows, num_computed, strict=True) if not before]
        again = {"token_ids": token_ids, "rows": fresh, "step_id": 1}
        fields = {name: getattr(first, name) for name in first.__struct_fields__}
        return first, ScheduledBatch(**{**fields, **again})


def _rows(
    lengths: list[int], num_computed: list[int], num_decodes: int, block_size: int
) -> Iterator[SlotRow]:
    """Every request has blocks of its own, wherever: after a while of service none lie in order."""
    counts = [-(-length // block_size) for length in lengths]
    blocks = list(range(sum(counts)))
    random.Random(len(blocks)).shuffle(blocks)
    used = 0
    for slot, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        # A decode stands behind its prompt, a chunk is the prompt's end.
        prompt_len = num_computed[slot] if slot < num_decodes else length
        yield SlotRow(
            slot=slot,
            prompt_len=prompt_len,
            block_ids=blocks[used : used + count],
            sampling=_GREEDY,
            history=[],
        )
        used += count


def grid(room: Room, seed: int = 0) -> list[StepShape]:
    """Steps that cover what the instance may be asked for: decodes, prompts, both.

    No size is a round one, but for the largest, and contexts differ: what is served is not round either,
    and on some devices round sizes and equal lengths are faster.
    """
    rng = random.Random(seed)
    counts = _ladder(1, room.max_reqs, 2.0)
    contexts = _ladder(4 * LEAST_CONTEXT, room.max_seq_len, 6.0)
    chunks = _ladder(LEAST_CHUNK, room.max_chunk, 2.0)
    before = [0, *_ladder(room.block_size * 8, room.max_seq_len // 2, 8.0)]
    drawn: list[tuple[list[int], int, list[int], list[int]]]
    drawn = [([n], c, [], []) for n in counts for c in contexts]
    drawn += [([], 0, [new], [b]) for new in chunks for b in before]
    drawn += [([], 0, [total // n] * n, [0] * n) for total in chunks for n in (2, 4, 16)]
    decodes = _ladder(1, room.max_reqs - 1, 4.0)
    drawn += [
        ([n], contexts[(row + column) % len(contexts)], [new], [before[column % len(before)]])
        for row, n in enumerate(decodes)
        for column, new in enumerate(chunks)
    ]
    steps = [
        StepShape(
            contexts=tuple(
                _near(rng, c, room.max_seq_len)
                for n in ns
                for _ in range(_near(rng, n, room.max_reqs - len(news)))
            ),
            chunks=tuple(
                (_near(rng, new, room.max_chunk), _near(rng, b, room.max_seq_len) if b else 0)
                for new, b in zip(news, befores, strict=True)
            ),
        )
        for ns, c, news, befores in drawn
        if not news or news[0] >= LEAST_CHUNK
    ]
    return [step for step in dict.fromkeys(steps) if room.holds(step)]


def held_out(room: Room, count: int, seed: int) -> list[StepShape]:
    """Steps that no grid has: everything drawn log-uniformly, each request of its own length.

    Raises: ConfigError for an instance that holds no decodes beside a chunk, or hardly any.
    """
    rng = random.Random(seed)
    found: list[StepShape] = []
    for _ in range(MOST_DRAWS * count):
        kind = ("decodes", "prompts", "mixed")[len(found) % 3]
        step = _draw(room, rng, kind)
        if room.holds(step):
            found.append(step)
        if len(found) == count:
            return found
    raise ConfigError(
        f"the instance has no room for steps to measure: {room.max_reqs} requests, {room.max_chunk} "
        f"prompt tokens, {room.num_blocks} KV blocks: raise infer.max_reqs (2 at least) or the others"
    )


def _draw(room: Room, rng: random.Random, kind: str) -> StepShape:
    contexts: tuple[int, ...] = ()
    chunks: tuple[tuple[int, int], ...] = ()
    if kind != "prompts":
        most = _log_uniform(rng, 4 * LEAST_CONTEXT, room.max_seq_len)
        number = _log_uniform(rng, 1, room.max_reqs)
        contexts = tuple(_log_uniform(rng, LEAST_CONTEXT, most) for _ in range(number))
    if kind != "decodes":
        number = rng.choice((1, 1, 1, 2, 3))
        total = _log_uniform(rng, number * LEAST_CHUNK, room.max_chunk)
        before = [rng.choice((0, _log_uniform(rng, 1, room.max_seq_len))) for _ in range(number)]
        chunks = tuple((total // number, b // room.block_size * room.block_size) for b in before)
    return StepShape(contexts=contexts, chunks=chunks)


def _log_uniform(rng: random.Random, low: int, high: int) -> int:
    return round(math.exp(rng.uniform(math.log(low), math.log(max(low, high)))))


def _near(rng: random.Random, value: int, most: int) -> int:
    """Within 30 % of a value; the largest and 1 stay."""
    if value >= most or value == 1:
        return min(value, most)
    return min(most, max(1, round(value * rng.uniform(0.7, 1.3))))


def _ladder(low: int, high: int, ratio: float) -> list[int]:
    """From low to high, each about `ratio` times the last; both ends included."""
    if high <= low:
        return [max(1, high)]
    count = max(1, math.ceil(math.log(high / low) / math.log(ratio)))
    step = (high / low) ** (1 / count)
    return sorted({round(low * step**i) for i in range(count + 1)})

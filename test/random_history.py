"""Histories drawn at random: requests that come, end, fail and are aborted under any policy and any room."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from hashlib import blake2b

from fake_executor import expected_output
from scheduling import Rig, make_rig

from chitu_like.scheduler.policy import SORT_KEYS


@dataclass
class History:
    """A history that ran to its end, and what should have come of it.

    Attributes:
        rig: everything has finished there.
        policy: of the scheduler.
        prompts, expected: token ids by request id.
        wants_logprobs: requests whose prompt log-probabilities were asked for.
        aborted: request ids.
    """

    rig: Rig
    policy: str
    prompts: dict[str, list[int]] = field(default_factory=dict)
    expected: dict[str, list[int]] = field(default_factory=dict)
    wants_logprobs: set[str] = field(default_factory=set)
    aborted: set[str] = field(default_factory=set)

    def digest(self) -> str:
        """Equal for histories whose batches were the same."""
        whole = blake2b(digest_size=8)
        for batch in self.rig.executor.batches:
            parts = (batch.slots, batch.num_tokens, batch.num_computed, batch.token_ids)
            blocks = (batch.new_blocks, batch.swap_out, batch.swap_in)
            rows = [(row.slot, row.block_ids) for row in batch.rows]
            whole.update(repr((batch.step_id, parts, blocks, rows)).encode())
        return whole.hexdigest()


def random_history(seed: int, *, num_stages: int = 1, policy: str | None = None) -> History:
    """Thirty requests at most, under limits that `seed` draws, and a policy where none is given."""
    rng = random.Random(seed)
    drawn = ",".join(rng.sample(sorted(SORT_KEYS), rng.randint(1, 3)))
    policy = drawn if policy is None else policy
    num_blocks = rng.choice([12, 20, 60])
    rig = make_rig(
        policy=policy,
        num_blocks=num_blocks,
        block_size=rng.choice([1, 3, 4]) if num_blocks > 12 else 4,
        num_host_blocks=rng.choice([0, 5, 60]),
        max_in_flight=rng.choice([1, 2, 3]) + num_stages - 1,
        num_stages=num_stages,
        prefix_caching=rng.random() < 0.7,
        max_reqs=rng.choice([1, 3, 8]),
        max_seq_len=num_blocks if num_blocks > 12 else 40,
        budget=rng.choice([2, 7, 64]),
        chunk=rng.choice([1, 5, 64]),
        starvation_s=rng.choice([5.0, 1e9]),
    )
    history = History(rig, policy)
    for step in range(120):
        if rng.random() < 0.4 and len(history.prompts) < 30:
            _add(history, f"r{step}", rng)
        if rng.random() < 0.05 and history.prompts:
            name = rng.choice(sorted(history.prompts))
            if name in rig.scheduler.open_requests():
                rig.engine.abort(name)
                history.aborted.add(name)
        rig.step()
    rig.run(20000)
    return history


def _add(history: History, name: str, rng: random.Random) -> None:
    most = history.rig.engine.info.max_seq_len // 2
    prompt = [rng.randrange(3) for _ in range(rng.randint(1, most))]
    num_tokens = rng.randint(1, most)
    expected = expected_output(prompt, num_tokens)
    eos = rng.choice(expected) if rng.random() < 0.5 else None
    if eos is not None:
        expected = expected[: expected.index(eos) + 1]
    wants = rng.choice([None, None, 0])
    if wants is not None:
        history.wants_logprobs.add(name)
    history.prompts[name] = prompt
    history.expected[name] = expected
    history.rig.add(
        name,
        prompt,
        max_tokens=num_tokens,
        eos=[] if eos is None else [eos],
        prompt_logprobs=wants,
        priority=rng.randint(-3, 3),
        timeout_s=rng.choice([None, 5.0, 50.0]),
    )

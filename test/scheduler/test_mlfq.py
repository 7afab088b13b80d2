"""The queues of mlfq against FastServe's own words, played one piece of service after the other."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction

import pytest
from scheduling import Rig, make_request, make_rig

from chitu_like.core.request import Request
from chitu_like.scheduler.mlfq import Quanta


class Job:
    """A job of FastServe: it skip-joins a queue, spends its quantum, sinks to the next."""

    def __init__(self, quantum: int, prefill_time: Fraction) -> None:
        self.queue = 0
        while quantum * 2**self.queue < prefill_time:
            self.queue += 1
        self.quantum = quantum
        self.left = Fraction(quantum * 2**self.queue)

    def serve(self, time: Fraction) -> None:
        """Let it run; a piece that is longer than what is left spends the next quantum too."""
        self.left -= time
        while self.left <= 0:
            self.queue += 1
            self.left += self.quantum * 2**self.queue


def serve(request: Request, num_tokens: int, *, samples: bool) -> None:
    request.num_served_tokens += num_tokens
    if samples:
        request.output_token_ids.append(0)


@pytest.mark.parametrize("seed", range(30))
def test_a_request_stands_where_the_job_of_the_paper_does(seed: int):
    rng = random.Random(seed)
    steps, per_step = rng.choice([1, 3, 8, 20]), rng.choice([1, 7, 64])
    quanta = Quanta(first_steps=steps, prompt_tokens_per_step=per_step)
    prompt_len = rng.randint(1, 40 * per_step * steps)
    request = make_request("a", [1] * prompt_len)
    job = Job(steps, Fraction(prompt_len, per_step))
    assert quanta.queue(request) == job.queue
    left = prompt_len
    while left:
        chunk = min(left, rng.randint(1, prompt_len))
        left -= chunk
        serve(request, chunk, samples=not left)
        job.serve(Fraction(chunk, per_step))
        assert quanta.queue(request) == job.queue
    for _ in range(500):
        serve(request, 1, samples=True)
        job.serve(Fraction(1))
        assert quanta.queue(request) == job.queue


def finish_order(rig: Rig) -> list[str]:
    rig.run(20000)
    return list(rig.ends)


def one_at_a_time(**limits: object) -> Rig:
    """A single slot, and room on the host for who lost it."""
    rig = make_rig(
        policy="mlfq",
        max_reqs=1,
        num_blocks=400,
        num_host_blocks=400,
        max_seq_len=1000,
        quanta=Quanta(first_steps=4, prompt_tokens_per_step=8),
        **limits,  # type: ignore[arg-type]
    )
    return rig


def test_a_newcomer_takes_the_place_of_a_sunken_request_at_the_next_step():
    rig = one_at_a_time()
    rig.add("old", [1], max_tokens=60)
    for _ in range(10):
        rig.step()
    rig.add("new", [2], max_tokens=3)
    rig.step()
    assert "new" in rig.tokens
    assert finish_order(rig) == ["new", "old"]
    assert rig.scheduler.num_preemptions == 1


def test_a_newcomer_with_a_long_prompt_does_not():
    rig = one_at_a_time()
    rig.add("old", [1], max_tokens=60)
    for _ in range(10):
        rig.step()
    rig.add("new", [2] * 300, max_tokens=3)  # 37 steps: queue 4
    assert finish_order(rig) == ["old", "new"]


def test_within_a_queue_nobody_is_preempted():
    rig = one_at_a_time()
    for name in "abc":
        rig.add(name, [ord(name)], max_tokens=4)
        rig.clock[0] += 0.01
    assert finish_order(rig) == ["a", "b", "c"]
    assert rig.scheduler.num_preemptions == 0


def test_shortest_jobs_finish_first_although_nobody_said_which_they_are():
    """Mean completion under mlfq is below first come, first served, where the long one came first."""

    def mean_completion(policy: str) -> float:
        rig = make_rig(policy=policy, max_reqs=1, num_blocks=400, num_host_blocks=400)
        rig.scheduler.limits = replace(
            rig.scheduler.limits,
            max_seq_len=1000,
            quanta=Quanta(first_steps=4, prompt_tokens_per_step=8),
        )
        rig.add("long", [1], max_tokens=50)
        for i in range(5):
            rig.add(f"short {i}", [2, i], max_tokens=4)
        done: dict[str, float] = {}
        while rig.engine.has_requests:
            rig.step()
            done.update({name: rig.clock[0] for name in rig.ends if name not in done})
        return sum(done.values()) / len(done)

    assert mean_completion("mlfq") < 0.5 * mean_completion("fcfs")


def test_a_starving_request_is_promoted():
    rig = one_at_a_time(starvation_s=20.0)
    rig.add("old", [1], max_tokens=40)
    for _ in range(10):
        rig.step()
    for i in range(200):
        rig.add(f"new {i}", [2, i], max_tokens=3)
        rig.step()
        rig.step()
        rig.step()
        if "old" in rig.ends:
            break
    assert "old" in rig.ends
    assert i < 40

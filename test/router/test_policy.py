"""Policies: what each promises, and that a wrong name is told in one line."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from chitu_like.core.errors import ConfigError
from chitu_like.core.sampling_params import SamplingParams
from chitu_like.engine.messages import AddRequest
from chitu_like.router.policy import POLICIES, InstanceLoad, Policy, least_loaded, make_policy
from chitu_like.router.prefix_memory import BLOCK_TOKENS, MAX_BLOCKS_PER_PROMPT, PrefixMemory

MAX_REQS = 16


def load(instance: int, num_open: int = 0, tokens: int = 0, max_reqs: int = 4) -> InstanceLoad:
    return InstanceLoad(
        instance=instance, num_open=num_open, num_waiting_tokens=tokens, max_reqs=max_reqs
    )


def prompt(token_ids: list[int]) -> AddRequest:
    return AddRequest("r", token_ids, SamplingParams())


def play(policy: Policy, num_instances: int, num_requests: int, seed: int = 0) -> Counter[int]:
    """Requests of unlike lengths come and go; returns how many each instance was given."""
    chance = random.Random(seed)
    num_open = [0] * num_instances
    given: Counter[int] = Counter()
    for _ in range(num_requests):
        loads = [load(i, n, max_reqs=MAX_REQS) for i, n in enumerate(num_open) if n < MAX_REQS]
        chosen = loads[policy.choose(loads, prompt([chance.randrange(99)] * 80))].instance
        num_open[chosen] += 1
        given[chosen] += 1
        for i in range(num_instances):  # each open request ends with this chance
            num_open[i] -= sum(chance.random() < 0.08 for _ in range(num_open[i]))
    return given


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_uses_every_instance_about_alike(name: str) -> None:
    given = play(make_policy(name, seed=1), num_instances=4, num_requests=2000)
    assert sum(given.values()) == 2000
    assert min(given.values()) > 2000 / 4 * 0.6, given


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_chooses_the_same_with_the_same_seed(name: str) -> None:
    first, second = (play(make_policy(name, seed=7), 3, 300) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_takes_the_one_that_is_left(name: str) -> None:
    policy = make_policy(name)
    policy.choose([load(0), load(1), load(2)], prompt([1] * 200))
    assert policy.choose([load(2, 3)], prompt([1] * 200)) == 0


def test_an_unknown_policy_is_told_with_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"^router.policy=roundrobin: .* did you mean round_robin"
    ):
        make_policy("roundrobin")
    with pytest.raises(ConfigError, match="use one of least_loaded, round_robin"):
        make_policy("?")


def test_least_loaded_looks_at_room_first_then_at_prefill() -> None:
    assert least_loaded([load(0, 2, 0), load(1, 1, 900)]) == 1
    assert least_loaded([load(0, 1, 50), load(1, 1, 10)]) == 1
    assert least_loaded([load(0, 3, max_reqs=4), load(1, 4, max_reqs=8)]) == 1
    assert least_loaded([load(0), load(1)]) == 0


def test_round_robin_passes_over_who_is_missing_and_keeps_its_turn() -> None:
    policy = make_policy("round_robin")
    every = [load(i) for i in range(3)]
    assert [policy.choose(every, prompt([1])) for _ in range(4)] == [0, 1, 2, 0]
    assert policy.choose([load(0), load(2)], prompt([1])) == 1
    assert policy.choose(every, prompt([1])) == 0


def test_power_of_two_never_takes_the_busiest_and_is_not_always_the_least_loaded() -> None:
    policy = make_policy("power_of_two", seed=3)
    loads = [load(0, 3), load(1, 1), load(2, 0)]
    drawn = Counter(policy.choose(loads, prompt([1])) for _ in range(600))
    assert drawn[0] == 0
    assert drawn[1] == pytest.approx(200, abs=60)  # when 0 and 1 are drawn


def test_prefix_aware_follows_the_longest_prefix() -> None:
    policy = make_policy("prefix_aware")
    system, question = [1] * (2 * BLOCK_TOKENS), [2] * BLOCK_TOKENS
    assert policy.choose([load(0, 1), load(1), load(2, 1)], prompt(system)) == 1
    assert policy.choose([load(0), load(2)], prompt(system + question)) == 0  # 1 was full
    every = [load(i, 1) for i in range(3)]
    assert policy.choose(every, prompt([9] * 300)) == 0  # unknown: the least loaded
    assert policy.choose(every, prompt([*system, *question, 5])) == 0
    assert policy.choose([load(1), load(2)], prompt([*system[:-1], 7])) == 0


def test_prefix_aware_leaves_an_instance_that_is_much_busier_and_takes_the_prefix_along() -> None:
    policy = make_policy("prefix_aware")
    text = prompt([3] * 200)
    assert policy.choose([load(0), load(1, 1)], text) == 0
    assert policy.choose([load(0, 2, max_reqs=16), load(1, max_reqs=16)], text) == 0
    assert policy.choose([load(0, 9, max_reqs=16), load(1, max_reqs=16)], text) == 1
    assert policy.choose([load(0, 3, max_reqs=16), load(1, 4, max_reqs=16)], text) == 1
    # Full beside one with room: it would wait there.
    assert policy.choose([load(0, 15, max_reqs=16), load(1, 16, max_reqs=16)], text) == 0


def test_short_prompts_have_no_prefix_worth_a_detour() -> None:
    policy = make_policy("prefix_aware")
    short = prompt([1] * (BLOCK_TOKENS - 1))
    assert policy.choose([load(0, 1), load(1)], short) == 1
    assert policy.choose([load(0), load(1, 1)], short) == 0


def test_the_memory_of_prefixes_is_bounded_and_forgets_the_oldest() -> None:
    memory = PrefixMemory(max_blocks=6)
    texts = [[i] * (3 * BLOCK_TOKENS) for i in range(3)]
    for instance, text in enumerate(texts):
        memory.remember(memory.names(text), instance)
        assert len(memory) <= 6
    assert [memory.find(memory.names(text)) for text in texts] == [None, 1, 2]
    memory.remember(memory.names(texts[0])[:1], 0)
    # What is forgotten of a prompt is its end: what is left can still be found.
    assert memory.find(memory.names(texts[1])) == 1
    assert len(memory.names([1] * (BLOCK_TOKENS * MAX_BLOCKS_PER_PROMPT * 2))) == (
        MAX_BLOCKS_PER_PROMPT
    )

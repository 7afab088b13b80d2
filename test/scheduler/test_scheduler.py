"""The scheduler over an executor that notices every lie of a block table."""

from __future__ import annotations

import dataclasses
import time
from hashlib import blake2b

import msgspec
import pytest
from fake_executor import expected_output
from random_history import random_history
from scheduling import Rig, make_rig

from chitu_like.core.batch import SAMPLED_LAST, ScheduledBatch
from chitu_like.core.output import FinishReason
from chitu_like.scheduler import step
from chitu_like.scheduler.policy import SORT_KEYS


def test_a_step_carries_decodes_and_a_prefill_chunk_together():
    rig = make_rig(chunk=6, max_reqs=3)
    rig.add("a", [1, 2, 3], max_tokens=10)
    rig.step()
    rig.add("b", list(range(14)), max_tokens=2)
    rig.step()
    batch = rig.executor.batches[-1]
    assert batch.num_tokens == [1, 6]
    assert batch.num_decodes == 1
    assert batch.samples == [True, False]
    rig.run()
    assert rig.tokens["b"] == expected_output(list(range(14)), 2)


def test_the_last_token_of_a_prompt_is_no_decode():
    rig = make_rig(chunk=6)
    rig.add("b", list(range(7)), max_tokens=3)
    rig.step()
    rig.add("a", [5], max_tokens=3)
    rig.step()
    rig.step()
    batches = rig.executor.batches
    assert [batch.num_tokens for batch in batches] == [[6], [1, 1], [1, 1]]
    assert [batch.num_decodes for batch in batches] == [0, 0, 2]


def test_a_long_prompt_never_holds_up_decodes():
    rig = make_rig(budget=8, chunk=8, num_blocks=200, max_seq_len=400)
    for name in "abc":
        rig.add(name, [ord(name)], max_tokens=60)
    rig.step()
    rig.add("long", list(range(200)), max_tokens=1)
    for _ in range(20):
        rig.step()
        assert rig.executor.batches[-1].num_decodes == 3
    assert sum(rig.executor.batches[-1].num_tokens) == 8


def test_whole_rows_travel_once_and_then_only_new_blocks():
    rig = make_rig()
    rig.add("a", [1, 2, 3], max_tokens=8)
    rig.run()
    batches = rig.executor.batches
    assert [len(batch.rows) for batch in batches] == [1] + [0] * 7
    assert [batch.new_blocks[0] != [] for batch in batches[1:]] == [False, True] + [False] * 3 + [
        True,
        False,
    ]


@pytest.mark.parametrize("num_host_blocks", [0, 64])
def test_the_histories_that_travel_with_one_batch_are_bounded(
    monkeypatch: pytest.MonkeyPatch, num_host_blocks: int
):
    """They share a prompt, so all could join at once; later some are preempted and come back."""
    monkeypatch.setattr(step, "MAX_HISTORY_TOKENS", 100)
    rig = make_rig(num_blocks=24, num_host_blocks=num_host_blocks, max_in_flight=2)
    prompt = list(range(1, 38))
    for name in "abcdefgh":
        rig.add(name, prompt, max_tokens=20, repetition_penalty=1.1)
    rig.run()
    assert rig.scheduler.num_preemptions > 0
    assert all(rig.tokens[name] == expected_output(prompt, 20) for name in "abcdefgh")
    sizes = [sum(len(row.history) for row in batch.rows) for batch in rig.executor.batches]
    assert 37 < max(sizes) <= 100


def test_a_batch_survives_msgpack_unchanged():
    rig = make_rig(max_in_flight=2, num_blocks=6, num_host_blocks=8)
    for name in "abc":
        rig.add(name, [ord(name)] * 5, max_tokens=9, logit_bias={3: 1.5})
    rig.run()
    for batch in rig.executor.batches:
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(batch), type=ScheduledBatch) == batch


def test_with_overlap_the_newest_token_is_known_to_the_device_alone():
    rig = make_rig(max_in_flight=2)
    rig.add("a", [1, 2, 3], max_tokens=5)
    rig.run()
    assert [batch.token_ids for batch in rig.executor.batches][1:] == [[SAMPLED_LAST]] * 4
    assert rig.tokens["a"] == expected_output([1, 2, 3], 5)


def test_a_length_finish_is_foreseen_and_an_eos_costs_one_dropped_token():
    prompt = [1, 2, 3]
    rig = make_rig(max_in_flight=2)
    rig.add("a", prompt, max_tokens=3)
    rig.run()
    assert len(rig.executor.batches) == 3
    rig.add("b", prompt, max_tokens=9, eos=[expected_output(prompt, 2)[1]])
    rig.run()
    assert rig.tokens["b"] == expected_output(prompt, 2)
    assert rig.ends["b"] == [FinishReason.STOP]
    assert len(rig.executor.batches) == 3 + 3
    assert rig.blocks.usage == 0.0


def test_stop_token_min_tokens_and_ignore_eos():
    prompt = [4, 5]
    first, second, third = expected_output(prompt, 3)
    rig = make_rig()
    rig.add("stop", prompt, stop_token_ids=[second], max_tokens=9)
    rig.add("ignore", prompt, ignore_eos=True, max_tokens=3, eos=[first])
    rig.add("min", prompt, min_tokens=3, max_tokens=9, eos=[first, second, third])
    rig.run()
    assert rig.tokens["stop"] == [first, second]
    assert rig.tokens["ignore"] == [first, second, third]
    assert rig.tokens["min"] == [first, second, third]
    assert rig.ends["ignore"] == [FinishReason.LENGTH]


def test_a_prefix_is_computed_once_even_within_one_step():
    rig = make_rig(chunk=64)
    prompt = list(range(20))
    rig.add("a", prompt)
    rig.add("b", prompt)
    rig.step()
    assert rig.executor.batches[0].num_tokens == [20, 4]
    rig.run()
    assert rig.tokens["a"] == rig.tokens["b"] == expected_output(prompt, 4)


def test_a_second_turn_finds_the_first_answer_cached():
    rig = make_rig()
    rig.add("a", list(range(8)), max_tokens=9)
    rig.run()
    rig.add("b", list(range(8)) + rig.tokens["a"] + [7], max_tokens=1)
    rig.run()
    assert rig.executor.batches[-1].num_computed == [16]


def test_aborting_frees_blocks_within_one_step():
    rig = make_rig(max_in_flight=2)
    rig.add("a", list(range(10)), max_tokens=40)
    rig.add("b", [1], max_tokens=40)
    rig.step()
    rig.step()
    held = rig.blocks.num_free
    rig.engine.abort("a")
    rig.step()
    rig.step()
    assert rig.blocks.num_free >= held + 2
    rig.engine.abort("b")
    rig.engine.abort("never heard of")
    rig.run()
    assert rig.blocks.num_free == 64
    assert "a" not in rig.ends


def test_aborting_a_waiting_request_leaves_no_trace():
    rig = make_rig(max_reqs=1)
    rig.add("a", [1], max_tokens=5)
    rig.add("b", [2], max_tokens=5)
    rig.step()
    rig.engine.abort("b")
    rig.run()
    assert rig.scheduler.num_waiting == 0
    assert "b" not in rig.tokens


@pytest.mark.parametrize(
    ("prompt", "params", "says"),
    [
        ([], {}, "empty"),
        ([1, 5000], {}, "token id 5000"),
        ([1], {"stop_token_ids": (1000,)}, "stop_token_ids: token id 1000"),
        ([1], {"logit_bias": {5000: 1.0}}, "logit_bias: token id 5000"),
        (list(range(64)), {}, "64 tokens"),
    ],
)
def test_an_impossible_request_is_refused_at_once(prompt, params, says):
    rig = make_rig()
    rig.add("good", [1, 2])
    rig.add("bad", prompt, **params)
    rig.step()
    assert says in rig.errors["bad"]
    rig.run()
    assert rig.tokens["good"] == expected_output([1, 2], 4)


def test_a_request_larger_than_the_pool_is_refused():
    rig = make_rig(num_blocks=4, max_seq_len=64)
    rig.add("big", list(range(15)), max_tokens=10)
    rig.step()
    assert "need 7 KV blocks of 4" in rig.errors["big"]


def test_a_full_queue_is_refused_and_the_rest_goes_on():
    rig = make_rig(max_reqs=1, max_queued_requests=2)
    rig.add("a", [1])
    rig.step()
    for name in "bcd":
        rig.add(name, [1])
    rig.run()
    assert "max_queued_requests=2" in rig.errors["d"]
    assert len(rig.tokens["c"]) == 4


def test_an_open_id_is_refused_without_touching_its_owner():
    rig = make_rig()
    rig.add("a", [1, 2])
    rig.add("a", [3, 4])
    rig.run()
    assert rig.tokens["a"] == expected_output([1, 2], 4)


def test_max_tokens_is_cut_to_the_context():
    rig = make_rig(max_seq_len=10)
    rig.add("a", [1, 2, 3], max_tokens=100)
    rig.run()
    assert len(rig.tokens["a"]) == 7
    assert rig.ends["a"] == [FinishReason.LENGTH]


def test_small_requests_pass_a_large_one_only_so_often():
    rig = make_rig(num_blocks=10, block_size=4, max_seq_len=40, max_reqs=4, prefix_caching=False)
    for i in range(3):
        rig.add(f"s{i}", [i], max_tokens=8 * i + 8)
    rig.step()
    rig.add("large", list(range(30)), max_tokens=4)
    for i in range(60):
        rig.add(f"t{i}", [i, i], max_tokens=12)
    rig.run()
    order = list(rig.ends)
    assert 4 < order.index("large") <= 3 + 16 + 4
    assert rig.tokens["large"] == expected_output(list(range(30)), 4)


@pytest.mark.parametrize("num_host_blocks", [0, 64])
@pytest.mark.parametrize("max_in_flight", [1, 2])
def test_a_preempted_request_gives_the_tokens_of_an_undisturbed_one(num_host_blocks, max_in_flight):
    rig = make_rig(
        num_blocks=9, num_host_blocks=num_host_blocks, max_in_flight=max_in_flight, max_seq_len=36
    )
    prompts = {name: [ord(name)] * 6 for name in "abcd"}
    for name, prompt in prompts.items():
        rig.add(name, prompt, max_tokens=20)
    rig.run()
    assert rig.scheduler.num_preemptions > 0
    for name, prompt in prompts.items():
        assert rig.tokens[name] == expected_output(prompt, 20)
    swapped = any(batch.swap_in for batch in rig.executor.batches)
    assert swapped == bool(num_host_blocks)


@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(40))
def test_random_histories_answer_every_request_once_with_its_own_tokens(seed, num_stages):
    history = random_history(seed, num_stages=num_stages)
    rig, told = history.rig, (seed, num_stages, history.policy)
    for name, prompt in history.prompts.items():
        tokens, expected = rig.tokens.get(name, []), history.expected[name]
        if name in history.aborted:
            assert name not in rig.ends, told
            assert tokens == expected[: len(tokens)], told
            continue
        assert tokens == expected, (name, told)
        assert len(rig.ends[name]) == 1, told
        entries = list(enumerate(prompt))[1:] if name in history.wants_logprobs else []
        found = [(entry.logprob, entry.token_id) for entry in rig.prompt_logprobs[name]]
        assert found == entries, (name, told)
    assert rig.blocks.usage == 0.0
    assert rig.scheduler.num_running == rig.scheduler.num_waiting == 0


def test_one_stage_is_scheduled_as_it_ever_was():
    """The batches of forty histories; what schedules them differently on purpose brings a new digest."""
    digests = "".join(random_history(seed).digest() for seed in range(40))
    assert blake2b(digests.encode(), digest_size=8).hexdigest() == "7d5afa35fd57be4d"


@pytest.mark.parametrize("policy", [name for name, key in SORT_KEYS.items() if key.is_settled])
@pytest.mark.parametrize("seed", [0, 1, 3, 11])  # where an order kept wrongly (stride) would show
def test_an_order_that_is_kept_is_the_one_sorting_would_give(seed, policy, monkeypatch):
    """Settled keys are sorted only when somebody joins or starts decoding."""
    kept = random_history(seed, policy=policy).digest()
    unsettled = dataclasses.replace(SORT_KEYS[policy], is_settled=False)
    monkeypatch.setitem(SORT_KEYS, policy, unsettled)
    assert random_history(seed, policy=policy).digest() == kept


def test_an_answer_is_shared_block_by_block_while_it_grows():
    """Steady decodes ask the block manager nothing, but for a block when the last one is full."""
    rig = make_rig(max_in_flight=2, block_size=4, max_seq_len=64)
    rig.add("a", [1, 2, 3, 4], max_tokens=20)
    for _ in range(12):
        rig.step()
    second = [1, 2, 3, 4, *rig.tokens["a"]]
    rig.add("b", second, max_tokens=2)
    rig.step()
    num_cached = rig.executor.batches[-1].num_computed[-1]
    assert num_cached == (len(second) - 1) // 4 * 4 == 12  # every full block of the first answer
    rig.run()
    assert rig.tokens["a"] == expected_output([1, 2, 3, 4], 20)


def test_free_slots_do_not_count_against_the_queue():
    rig = make_rig(max_reqs=4, max_queued_requests=1)
    for name in "abcdef":  # between two steps, as a burst arrives
        rig.add(name, [1])
    rig.run()
    assert [name for name, error in rig.errors.items() if error] == ["f"]
    assert "max_queued_requests=1" in rig.errors["f"]


def test_a_preempted_request_takes_nobody_s_place_in_the_token_queue():
    rig = make_rig(policy="request_preset", max_reqs=1, max_queued_tokens=12)
    rig.add("slow", [1] * 10, max_tokens=30, priority=5)
    rig.step()
    rig.add("urgent", [2] * 10, max_tokens=20, priority=-5)
    rig.step()
    assert rig.scheduler.num_preemptions == 1
    rig.add("next", [3] * 10)
    rig.run()
    assert rig.errors == {"slow": None, "urgent": None, "next": None}


def test_an_output_of_another_batch_is_never_taken_for_this_one_s():
    rig = make_rig(max_in_flight=2)
    rig.add("a", [1, 2], max_tokens=9)
    rig.step()
    rig.executor.collect()  # an interrupted caller lost it
    with pytest.raises(RuntimeError, match="batch 1 came with the output of batch 2"):
        rig.step()


def test_adding_costs_the_same_however_many_wait():
    """A burst of a thousand requests was answered only after a second of sums over all of them."""

    def seconds_to_add(rig: Rig, count: int) -> float:
        start = time.process_time()
        for _ in range(count):
            rig.add(str(rig.scheduler.num_waiting), [1])
        return time.process_time() - start

    rig = make_rig(max_queued_requests=10**6)
    first = seconds_to_add(rig, 500)
    seconds_to_add(rig, 4000)
    assert seconds_to_add(rig, 500) < 5 * first + 0.01


@pytest.mark.parametrize("max_in_flight", [1, 2])
def test_nobody_is_preempted_in_vain(max_in_flight: int):
    """Who still would not fit beside those it does not outrank takes nobody's place."""
    rig = make_rig(
        policy="request_preset", num_blocks=20, max_seq_len=80, max_in_flight=max_in_flight
    )
    rig.add("high", [1] * 40, max_tokens=12, priority=-5)
    rig.add("low", [2] * 8, max_tokens=8, priority=5)
    rig.step()
    rig.add("middle", [3] * 40, max_tokens=8)
    rig.run()
    assert rig.scheduler.num_preemptions == 0
    assert list(rig.ends) == ["low", "high", "middle"]


def test_prompt_logprobs_are_admitted_by_the_blocks_they_take():
    """They recompute a cached prefix, in blocks of their own: counting it as shared broke the engine."""
    rig = make_rig(num_blocks=16, max_seq_len=60)
    prompt = list(range(32))
    rig.add("a", prompt, max_tokens=6)
    rig.step()
    rig.add("b", prompt, prompt_logprobs=0)
    rig.run()
    assert rig.tokens["b"] == expected_output(prompt, 4)

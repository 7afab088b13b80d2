"""Every sort key on a clock that the test turns."""

from __future__ import annotations

import pytest
from scheduling import Rig, make_rig

from chitu_like.config.keys import known_keys
from chitu_like.core.errors import ConfigError
from chitu_like.scheduler.policy import SORT_KEYS, Ordering


def finish_order(rig: Rig) -> list[str]:
    rig.run(20000)
    return list(rig.ends)


def served(rig: Rig, steps: int) -> dict[int, int]:
    """Tokens computed for each slot over the next steps."""
    counts: dict[int, int] = {}
    for _ in range(steps):
        rig.step()
        batch = rig.executor.batches[-1]
        for slot, num_tokens in zip(batch.slots, batch.num_tokens, strict=True):
            counts[slot] = counts.get(slot, 0) + num_tokens
    return counts


@pytest.mark.parametrize("policy", ["fcfs", "fifo", "prefill_first"])
def test_first_come_first_served(policy):
    rig = make_rig(policy=policy, max_reqs=1)
    for name in "cab":
        rig.add(name, [1, 2])
        rig.clock[0] += 1
    assert finish_order(rig) == ["c", "a", "b"]


def test_request_preset_runs_lower_priority_values_first():
    rig = make_rig(policy="request_preset", max_reqs=1)
    for name, priority in [("late", 5), ("early", -5), ("middle", 0)]:
        rig.add(name, [1, 2], priority=priority)
    assert finish_order(rig) == ["early", "middle", "late"]


def test_request_preset_takes_the_place_of_a_less_urgent_request():
    rig = make_rig(policy="request_preset", max_reqs=1)
    rig.add("slow", [1, 2], max_tokens=30, priority=5)
    rig.step()
    rig.add("urgent", [3], priority=-5)
    assert finish_order(rig) == ["urgent", "slow"]
    assert rig.scheduler.num_preemptions == 1


def test_deadline_runs_the_earliest_deadline_first():
    rig = make_rig(policy="deadline", max_reqs=1)
    rig.add("none", [1])
    rig.add("far", [2], timeout_s=100.0)
    rig.add("near", [3], timeout_s=10.0)
    assert finish_order(rig) == ["near", "far", "none"]


def test_stride_serves_in_proportion_to_the_weights():
    rig = make_rig(policy="stride", max_reqs=3, budget=1, max_seq_len=4000, num_blocks=3000)
    for name, priority in [("whole", 0), ("half", 1), ("quarter", 2)]:
        rig.add(name, [1], max_tokens=2000, priority=priority)
    for _ in range(20):
        rig.step()
    counts = served(rig, 700)
    assert sorted(counts.values()) == pytest.approx([100, 200, 400], rel=0.05)


def test_stride_does_not_let_a_newcomer_catch_up_on_the_past():
    rig = make_rig(policy="stride", max_reqs=2, budget=1, max_seq_len=4000, num_blocks=3000)
    rig.add("old", [1], max_tokens=2000)
    for _ in range(300):
        rig.step()
    rig.add("new", [2], max_tokens=2000)
    rig.step()
    counts = served(rig, 100)
    assert sorted(counts.values()) == pytest.approx([50, 50], abs=2)


def test_prefix_align_runs_requests_of_one_prefix_after_each_other():
    rig = make_rig(policy="prefix_align", max_reqs=1, num_blocks=16)
    first, second = [1] * 24, [2] * 24
    for i in range(3):
        rig.add(f"x{i}", [*first, i], max_tokens=1)
        rig.add(f"y{i}", [*second, i], max_tokens=1)
    assert finish_order(rig) == ["x0", "x1", "x2", "y0", "y1", "y2"]


def test_balance_gives_prefill_and_decode_equal_tokens_under_a_small_budget():
    rig = make_rig(policy="balance", max_reqs=4, budget=2, max_seq_len=600, num_blocks=600)
    for name in "ab":
        rig.add(name, [ord(name)], max_tokens=400)
    rig.step()
    rig.step()
    rig.add("long", list(range(300)), max_tokens=1)
    counts = served(rig, 200)
    prefill = max(counts.values())
    assert prefill == pytest.approx(sum(counts.values()) / 2, rel=0.15)


def test_mlfq_finishes_a_short_request_before_long_ones_that_came_first():
    rig = make_rig(
        policy="mlfq", max_reqs=1, num_blocks=1000, max_seq_len=2000, num_host_blocks=1000
    )
    rig.add("long", [1], max_tokens=1500)
    for _ in range(600):
        rig.step()
    rig.add("short", [2], max_tokens=10)
    assert finish_order(rig) == ["short", "long"]


def test_mlfq_lets_a_long_prompt_skip_the_first_queues():
    rig = make_rig(policy="mlfq", max_reqs=1, num_blocks=1000, max_seq_len=2000)
    rig.add("long prompt", list(range(900)), max_tokens=1)
    rig.add("short prompt", [2], max_tokens=1)
    assert finish_order(rig) == ["short prompt", "long prompt"]


@pytest.mark.parametrize("policy", sorted(SORT_KEYS))
def test_no_policy_starves_a_request(policy):
    """A stream of requests that every key prefers cannot keep one waiting for ever."""
    rig = make_rig(policy=policy, max_reqs=1, starvation_s=50.0, prefix_caching=True)
    for i in range(8):
        rig.add(f"favourite {i}", [7] * 8, max_tokens=2, priority=-9, timeout_s=5.0)
    rig.add("outsider", [9] * 30, max_tokens=2, priority=9)
    for i in range(200):
        rig.add(f"later {i}", [7] * 8, max_tokens=2, priority=-9, timeout_s=5.0)
        rig.step()
        rig.step()
        if "outsider" in rig.ends:
            break
    assert "outsider" in rig.ends


def test_keys_combine_in_the_order_given():
    rig = make_rig(policy="request_preset,deadline", max_reqs=1)
    rig.add("b", [1], priority=1, timeout_s=1.0)
    rig.add("a2", [1], priority=0, timeout_s=9.0)
    rig.add("a1", [1], priority=0, timeout_s=5.0)
    assert finish_order(rig) == ["a1", "a2", "b"]


@pytest.mark.parametrize("bad", ["fastest", "fcfs,fcfs", "", "fifo,fcfs"])
def test_an_unknown_or_repeated_key_names_the_known_ones(bad):
    with pytest.raises(ConfigError, match=r"scheduler\.type=.*fcfs, prefill_first"):
        Ordering(bad)


def test_explain_names_every_sort_key():
    meaning = known_keys()["scheduler.type"].setting.meaning
    assert [name for name in SORT_KEYS if name not in meaning] == []

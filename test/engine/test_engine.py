"""The engine loop over a fake executor: order, refusal, failure, statistics."""

from __future__ import annotations

import pytest
from fake_executor import expected_output
from scheduling import make_rig


@pytest.mark.parametrize("max_in_flight", [1, 2, 3])
def test_overlap_changes_no_token(max_in_flight):
    rig = make_rig(max_in_flight=max_in_flight)
    for i in range(12):
        rig.add(f"r{i}", [i] * (i + 1), max_tokens=i + 1)
    rig.run()
    for i in range(12):
        assert rig.tokens[f"r{i}"] == expected_output([i] * (i + 1), i + 1)


def test_the_engine_keeps_batches_in_flight():
    rig = make_rig(max_in_flight=2)
    rig.add("a", [1], max_tokens=9)
    rig.step()
    assert len(rig.executor.batches) == 2
    rig.step()
    assert len(rig.executor.batches) == 3


def test_times_add_up_to_the_life_of_a_request():
    rig = make_rig(max_reqs=1)
    rig.add("a", [1], max_tokens=3)
    rig.add("b", [2], max_tokens=5)
    times = {}
    while rig.engine.has_requests:
        for delta in rig.engine.step():
            if delta.times:
                times[delta.request_id] = delta.times
        rig.clock[0] += 1
    assert (times["a"].queue_s, times["a"].decode_s) == (0.0, 2.0)
    assert (times["b"].queue_s, times["b"].prefill_s, times["b"].decode_s) == (3.0, 0.0, 4.0)


def test_stats_count_tokens_preemptions_and_cache_hits():
    rig = make_rig(num_blocks=9, max_seq_len=36)
    for name in "aab":
        rig.add(name * (rig.engine.stats().num_prompt_tokens + 1), [ord(name)] * 9, max_tokens=20)
    rig.step()
    assert rig.engine.stats().num_running == 3
    rig.run()
    stats = rig.engine.stats()
    assert stats.num_prompt_tokens == 27
    assert stats.num_output_tokens == 60
    assert stats.num_preemptions > 0
    assert stats.prefix_cache_hits >= 8
    assert (stats.num_running, stats.num_waiting, stats.kv_usage) == (0, 0, 0.0)


def test_requests_without_a_seed_draw_different_ones_and_the_engine_seed_repeats_them():
    def seeds() -> list[int]:
        rig = make_rig()
        for name in "ab":
            rig.add(name, [1])
        rig.add("c", [1], seed=-1)
        rig.step()
        return [row.sampling.seed for row in rig.executor.batches[0].rows]

    first = seeds()
    assert first[0] != first[1]
    assert first[2] == 2**64 - 1
    assert first == seeds()


def test_a_broken_executor_surfaces():
    rig = make_rig()
    rig.add("a", [1], max_tokens=9)
    rig.add("b", [2], max_tokens=9)
    rig.executor.fails_at_step = 2
    rig.step()
    rig.step()
    with pytest.raises(RuntimeError, match="caught fire"):
        rig.step()

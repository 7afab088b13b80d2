from __future__ import annotations

import random

import pytest

from chitu_like.bench.busy_intervals import Span, activity, busiest, device_spans, short_name


def spans(*found: tuple[float, float, str]) -> list[Span]:
    return sorted(Span(start_us=start, end_us=end, name=name) for start, end, name in found)


def test_a_device_that_always_works_is_never_idle() -> None:
    found = activity(spans((0, 2, "a"), (2, 5, "b"), (5, 6, "a")))
    assert (found.busy_us, found.elapsed_us, found.idle_share, found.gaps) == (6, 6, 0.0, [])


def test_overlapping_kernels_count_once() -> None:
    found = activity(spans((0, 10, "long"), (2, 4, "inside"), (9, 12, "late"), (15, 16, "last")))
    assert found.busy_us == 13
    assert found.elapsed_us == 16
    gap = found.gaps[0]
    assert (gap.before, gap.after, gap.total_us) == ("late", "last", 3)


def test_a_gap_belongs_to_the_kernel_that_ended_last() -> None:
    found = activity(spans((0, 10, "long"), (1, 2, "short"), (12, 13, "next")))
    assert [(gap.before, gap.after) for gap in found.gaps] == [("long", "next")]


def test_gaps_between_the_same_kernels_are_one_kind_and_the_largest_sum_comes_first() -> None:
    found = activity(
        spans((0, 1, "a"), (2, 3, "b"), (10, 11, "a"), (12, 13, "b"), (20, 21, "a"), (26, 27, "c"))
    )
    kinds = [(g.before, g.after, g.count, g.total_us, g.longest_us) for g in found.gaps]
    assert kinds == [("b", "a", 2, 14, 7), ("a", "c", 1, 5, 5), ("a", "b", 2, 2, 1)]
    assert found.idle_share == pytest.approx(21 / 27)


def test_busy_and_idle_time_are_all_the_time() -> None:
    rng = random.Random(3)
    for _ in range(200):
        drawn = [(rng.randint(0, 60), rng.randint(0, 9)) for _ in range(rng.randint(1, 12))]
        found = activity(spans(*((start, start + length, "k") for start, length in drawn)))
        covered = {tick for start, length in drawn for tick in range(start, start + length)}
        assert found.busy_us == len(covered)
        assert found.busy_us + sum(gap.total_us for gap in found.gaps) == found.elapsed_us


def test_nothing_at_all_is_not_idle() -> None:
    assert activity([]).idle_share == 0.0


def test_only_work_of_the_device_counts() -> None:
    events = [
        {"ph": "X", "cat": "kernel", "name": "k", "ts": 5.0, "dur": 2.0},
        {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "ts": 0.0, "dur": 50.0},
        {"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy", "ts": 1, "dur": 1},
        {"ph": "i", "cat": "kernel", "name": "instant", "ts": 90.0},
        {"ph": "M", "name": "process_name", "args": {"name": "python"}},
    ]
    assert device_spans(events) == spans((1, 2, "Memcpy"), (5, 7, "k"))


def test_the_kernel_that_took_longest_comes_first() -> None:
    found = busiest(spans((0, 1, "a"), (1, 2, "a"), (2, 5, "b")))
    assert found == [("b", 1, 3), ("a", 2, 2)]


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("_rope_store_kernel", "_rope_store_kernel"),
        ("Memcpy DtoH (Device -> Pinned)", "Memcpy DtoH (Device -> Pinned)"),
        (
            "void cublasLt::splitKreduce_kernel<32, 16, int, std::less<int>>(int)",
            "splitKreduce_kernel",
        ),
        ("void at::native::(anonymous namespace)::gather<at::Half>(at::Half*)", "gather"),
    ],
)
def test_a_kernel_has_a_short_name(name: str, short: str) -> None:
    assert short_name(name) == short

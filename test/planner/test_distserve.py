from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from known_capacity import Known

from chitu_like.cluster.placement import Role
from chitu_like.core.errors import CapacityError, ConfigError
from chitu_like.planner.distserve import (
    Candidate,
    Found,
    SearchOptions,
    SearchSpace,
    best,
    search_high_affinity,
    search_low_affinity,
)
from chitu_like.planner.instance_plan import (
    InstanceGroup,
    InstancePlan,
    Parallelism,
    read_instance_plan,
    write_instance_plan,
)

SPACE = SearchSpace(num_heads=8, num_layers=12, devices_per_machine=4, num_devices=16, max_pp=4)


def per_device(candidate: Candidate) -> float:
    return Known().capacity(candidate) / candidate.num_devices


def test_tp_divides_heads_and_pp_divides_layers() -> None:
    assert SPACE.tps() == [1, 2, 4]
    assert SPACE.pps() == [1, 2, 3, 4]
    grouped = SearchSpace(
        num_heads=24, num_kv_heads=3, num_layers=5, devices_per_machine=8, num_devices=8
    )
    assert grouped.tps() == [1, 3, 6]
    assert grouped.pps() == [1]


def test_high_affinity_is_the_best_of_all_cuts_of_each_phase() -> None:
    found = search_high_affinity(Known(), SPACE, "H200", SearchOptions(precision=1e-3))
    cuts = [Parallelism(tp=tp, pp=pp) for tp in (1, 2, 4) for pp in (1, 2, 3, 4)]
    cuts = [cut for cut in cuts if cut.num_devices <= 16]
    assert len(found.tried) == 2 * len(cuts)
    prefill = max(cuts, key=lambda cut: per_device(Candidate(prefill=cut)))
    decode = max(cuts, key=lambda cut: per_device(Candidate(decode=cut)))
    assert [(group.role, group.parallelism) for group in found.plan.groups] == [
        (Role.PREFILL, prefill),
        (Role.DECODE, decode),
    ]


def test_instances_are_replicated_to_the_rate() -> None:
    options = SearchOptions(precision=1e-3, rate=20.0)
    found = search_high_affinity(Known(), SPACE, "H200", options)
    prefill, decode = found.plan.groups
    assert prefill.parallelism == Parallelism(tp=1, pp=4)
    assert (prefill.count, decode.count) == (2, 3)  # 12.86 and 7 requests/s each
    assert found.plan.goodput is not None
    assert found.plan.goodput >= 20.0


def test_low_affinity_tries_every_pair_whose_segments_fit_a_machine() -> None:
    found = search_low_affinity(Known(), SPACE, "H200", SearchOptions(precision=1e-3))
    expected = set()
    degrees = (1, 2, 3, 4)
    for cross, pp_p, pp_d in itertools.product(degrees, repeat=3):
        for tp_p, tp_d in itertools.product((1, 2, 4), repeat=2):
            divides = 12 % (cross * pp_p) == 0 == 12 % (cross * pp_d)
            within = cross * pp_p <= 4 and cross * pp_d <= 4
            if divides and within and tp_p * pp_p + tp_d * pp_d <= 4:
                expected.add(
                    Candidate(
                        prefill=Parallelism(tp=tp_p, pp=cross * pp_p),
                        decode=Parallelism(tp=tp_d, pp=cross * pp_d),
                    )
                )
    assert {one.candidate for one in found.tried} == expected
    top = max(expected, key=per_device)
    assert per_device(found.tried[0].candidate) == pytest.approx(per_device(top), rel=2e-3)


def test_of_equal_goodput_a_device_fewer_devices_win() -> None:
    small = Found(candidate=Candidate(decode=Parallelism(tp=1, pp=1)), goodput=2.0)
    large = Found(candidate=Candidate(decode=Parallelism(tp=2, pp=2)), goodput=8.0)
    assert best([large, small]) is small


def test_what_does_not_fit_is_not_tried() -> None:
    found = search_high_affinity(Known(memory=4), SPACE, "H200", SearchOptions())
    assert min(one.candidate.num_devices for one in found.tried) == 4
    with pytest.raises(CapacityError, match="the model fits no instance of the 24 tried"):
        search_high_affinity(Known(memory=99), SPACE, "H200", SearchOptions())


def test_a_promise_nobody_can_keep_is_told() -> None:
    with pytest.raises(CapacityError, match="no parallelism keeps the SLO at any rate"):
        best([Found(candidate=Candidate(decode=Parallelism(tp=1, pp=1)), goodput=0.0)])


def test_more_devices_than_there_are_is_told() -> None:
    with pytest.raises(CapacityError, match=r"devices and the cluster has 16: lower plan.rate"):
        search_high_affinity(Known(), SPACE, "H200", SearchOptions(rate=500.0))


def test_processes_change_nothing_but_the_time() -> None:
    alone = search_low_affinity(Known(), SPACE, "H200", SearchOptions())
    told: list[Found] = []
    together = search_low_affinity(Known(), SPACE, "H200", SearchOptions(processes=2), told.append)
    assert together == alone
    assert together.tried == alone.tried
    assert sorted(map(str, told)) == sorted(map(str, alone.tried))


PLAN = InstancePlan(
    device="H200",
    groups=(
        InstanceGroup(role=Role.PREFILL, parallelism=Parallelism(tp=2, pp=1), count=3),
        InstanceGroup(role=Role.DECODE, parallelism=Parallelism(tp=1, pp=4), count=2),
    ),
    goodput=1 / 3,
)


def test_a_plan_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    write_instance_plan(PLAN, path, "found by a test")
    assert read_instance_plan(path) == PLAN
    assert PLAN.num_devices == 14


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("device: x\ninstances: [{role: both}]\n", "role='both': must be one of unified, prefill"),
        ("device: x\ninstances: [{role: prefill}]\n", "instances are prefill: use unified ones"),
        ("device: x\ninstances: []\n", "instances are none"),
        ("device: x\ninstances: [{role: unified, tp: 0}]\n", "tp=0: must be a whole number"),
        ("device: x\ninstances: [{role: unified, tpp: 1}]\n", "unknown key 'tpp'"),
    ],
)
def test_a_broken_plan_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        read_instance_plan(path)
    assert message in str(raised.value)
    assert str(raised.value).startswith(str(path))

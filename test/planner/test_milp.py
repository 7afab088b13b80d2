"""The exact method: it reaches what brute force finds, and says the truth about how far it came."""

from __future__ import annotations

import _thread
import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
from planner.brute_force import best_flow, networkx_flow
from planner.toy_clusters import Toy, toy

from chitu_like.cluster.layer_placement import LayerPlacement
from chitu_like.cluster.topology import SINK, SOURCE, Cluster, Link, Node
from chitu_like.core.errors import CapacityError, UnsupportedError
from chitu_like.planner.milp import MilpLimits, MilpSolution, Report, place_by_milp, solve
from chitu_like.planner.milp_model import PlacementProblem

TO_THE_END = MilpLimits(gap=1e-6, threads=1)


def place(
    toy: Toy,
    *,
    limits: MilpLimits = TO_THE_END,
    partial: bool = True,
    start: LayerPlacement | None = None,
    report: Report | None = None,
) -> MilpSolution:
    return place_by_milp(
        toy.cluster,
        toy.model,
        toy.throughput,
        limits=limits,
        partial=partial,
        start=start,
        report=report,
    )


def check_optimum(toy: Toy) -> None:
    best, held = best_flow(toy)
    if best == 0:
        with pytest.raises(CapacityError):
            place(toy)
        return
    for start in (None, LayerPlacement(toy.model.num_layers, held)):
        found = place(toy, start=start)
        assert found.stopped_by == "proof"
        assert found.flow == pytest.approx(networkx_flow(toy, found.placement.held), rel=1e-9)
        assert found.flow == pytest.approx(best, rel=1e-6)
        assert found.bound == pytest.approx(best, rel=1e-5)


def check_optimum_without_overlap(toy: Toy) -> None:
    best, held = best_flow(toy, partial=False)
    problem = PlacementProblem.of(toy.cluster, toy.model, toy.throughput, partial=False)
    start = LayerPlacement(toy.model.num_layers, held)
    found = solve(problem, start=start, limits=TO_THE_END)
    assert found.stopped_by == "proof"
    assert found.flow == pytest.approx(best, rel=1e-5, abs=1e-5)
    if best > 0:  # what was placed without overlap is evaluated with
        served = place(toy, partial=False)
        assert served.flow == pytest.approx(networkx_flow(toy, served.placement.held), rel=1e-9)


def test_it_reaches_the_best_of_all_placements_of_three_nodes() -> None:
    for seed in (0, 3, 4, 7):
        small = toy(seed, num_nodes=3, num_layers=4, max_layers=3)
        check_optimum(small)
        check_optimum_without_overlap(small)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2, 3, 5, 9])
def test_it_reaches_the_best_of_all_placements_of_five_nodes(seed: int) -> None:
    check_optimum(toy(seed, num_nodes=5, num_layers=6, max_layers=4))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 4, 35])
def test_without_overlap_it_reaches_the_best_of_all_such_placements(seed: int) -> None:
    check_optimum_without_overlap(toy(seed, num_nodes=5, num_layers=6, max_layers=4))


def test_taking_over_in_the_middle_is_worth_something() -> None:
    pays = toy(5, num_nodes=4, num_layers=6, max_layers=4)
    assert place(pays).flow > best_flow(pays, partial=False)[0] * 1.07


def test_nodes_that_nothing_comes_through_hold_nothing() -> None:
    served = toy(7, num_nodes=4, num_layers=4)
    cut_off = [link for link in served.cluster.links if "n1" not in (link.source, link.target)]
    alone = Toy(
        cluster=Cluster(served.cluster.nodes, tuple(cut_off)),
        model=served.model,
        speed=served.speed,
    )
    found = place(alone)
    assert found.flow == pytest.approx(best_flow(alone)[0])
    assert "n1" not in found.placement.held


def test_the_same_seed_gives_the_same_placement() -> None:
    drawn = toy(3, num_nodes=4, num_layers=5)
    assert place(drawn).placement == place(drawn).placement


def test_nodes_that_are_alike_may_be_given_in_any_order() -> None:
    """Which of them comes first is settled beforehand; a start in another order is as good."""
    drawn = toy(5, num_nodes=4, num_layers=6, max_layers=4)
    names = [node.name for node in drawn.cluster.nodes]
    ends = [(a, b) for a in (SOURCE, *names) for b in (*names, SINK) if a != b]
    links = (Link(source=a, target=b, bandwidth=1e3) for a, b in ends if (a, b) != (SOURCE, SINK))
    nodes = tuple(Node(name=name, device="slow", memory_bytes=100.0) for name in names)
    even = Toy(cluster=Cluster(nodes, tuple(links)), model=drawn.model, speed=drawn.speed)
    assert PlacementProblem.of(even.cluster, even.model, even.throughput).interchangeable() == [
        names
    ]
    best, held = best_flow(even)
    backwards = dict(zip(reversed(names), held.values(), strict=True))
    found = place(even, start=LayerPlacement(6, backwards))
    assert found.flow == pytest.approx(best, rel=1e-6)


def large_toy() -> tuple[Toy, LayerPlacement]:
    """One that takes HiGHS minutes, and a pipeline to begin from."""
    large = toy(8, num_nodes=9, num_layers=24, max_layers=9)
    _, held = pipeline(large)
    return large, LayerPlacement(24, held)


def pipeline(toy: Toy) -> tuple[float, dict[str, range]]:
    """The first chain of nodes that holds all layers, each node as many as it can."""
    links = toy.cluster.link_between
    most = {n.name: len(toy.throughput.rates(n)) for n in toy.cluster.nodes}

    def extend(held: dict[str, range], name: str) -> dict[str, range] | None:
        start = max((layers.stop for layers in held.values()), default=0)
        held = {**held, name: range(start, min(start + most[name], toy.model.num_layers))}
        if held[name].stop == toy.model.num_layers:
            return held if (name, SINK) in links else None
        after = (n for n in most if n not in held and (name, n) in links)
        return next(filter(None, (extend(held, n) for n in after)), None)

    first = (n for n in most if ("source", n) in links)
    held = next(filter(None, (extend({}, name) for name in first)))
    return networkx_flow(toy, held), held


def check_early_end(found: MilpSolution, large: Toy, start: LayerPlacement) -> None:
    """It kept something at least as good as it began with, and says how far it may be off."""
    assert found.flow >= networkx_flow(large, start.held) * (1 - 1e-6) > 0
    assert found.flow == pytest.approx(networkx_flow(large, found.placement.held), rel=1e-9)
    assert found.gap == pytest.approx(1 - found.flow / found.bound)
    assert found.gap > 0.005


def test_the_time_limit_keeps_the_best_and_reports_the_gap() -> None:
    large, start = large_toy()
    found = place(large, start=start, limits=MilpLimits(time_s=1.0, threads=1))
    assert found.stopped_by == "time"
    assert found.seconds < 5
    check_early_end(found, large, start)


def test_without_any_time_the_start_is_what_is_kept() -> None:
    large, start = large_toy()
    found = place(large, start=start, limits=MilpLimits(time_s=0.0, threads=1))
    assert found.stopped_by == "time"
    check_early_end(found, large, start)
    with pytest.raises(CapacityError, match="found no placement that serves in 0 s"):
        place(large, limits=MilpLimits(time_s=0.0, threads=1))


def test_ctrl_c_keeps_the_best() -> None:
    large, start = large_toy()
    pressed = []

    def press(seconds: float, best: float, bound: float) -> None:
        if best > 0 and not pressed:
            pressed.append((seconds, best, bound))
            _thread.interrupt_main()

    found = place(large, start=start, limits=MilpLimits(threads=1), report=press)
    assert found.stopped_by == "Ctrl-C"
    assert len(pressed) == 1
    assert 0 < pressed[0][1] < pressed[0][2]
    check_early_end(found, large, start)


def test_a_good_solution_without_gain_is_enough() -> None:
    large, start = large_toy()
    limits = MilpLimits(stale_gap=0.999, stale_s=0.5, threads=1)
    found = place(large, start=start, limits=limits)
    assert found.stopped_by == "no gain"
    check_early_end(found, large, start)


def test_a_model_that_does_not_fit_and_links_that_lead_nowhere_are_told_apart() -> None:
    with pytest.raises(CapacityError, match="holds"):
        place(toy(1, num_nodes=2, num_layers=30, max_layers=3))
    served = toy(7, num_nodes=3, num_layers=4)
    no_exit = tuple(link for link in served.cluster.links if link.target != SINK)
    with pytest.raises(CapacityError, match="no placement of toy lets a request through all 4"):
        place(
            Toy(
                cluster=Cluster(served.cluster.nodes, no_exit),
                model=served.model,
                speed=served.speed,
            )
        )


def test_without_highspy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing(importlib.abc.MetaPathFinder):
        def find_spec(
            self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
        ) -> ModuleSpec | None:
            if name == "highspy":
                raise ModuleNotFoundError(name)
            return None

    monkeypatch.delitem(sys.modules, "highspy", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    with pytest.raises(UnsupportedError, match=r"pip install 'chitu-like\[planner\]'"):
        place(toy(7, num_nodes=3, num_layers=4))

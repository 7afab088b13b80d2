"""When a plan is no longer the right one, and when it only looks like that."""

from __future__ import annotations

import math
import random

import pytest

from chitu_like.core.errors import ConfigError
from chitu_like.planner.drift import (
    Demand,
    DemandWindow,
    DriftLimits,
    DriftState,
    DriftVerdict,
    look_for_drift,
)

PLANNED = Demand(rate_per_s=2.0, prompt_tokens=1000.0, output_tokens=200.0)
LIMITS = DriftLimits(leave=1.5, back=1.2, hold_s=100.0, rest_s=1000.0, min_requests=50)


def seen(
    rate: float = 2.0, prompt: float = 1000.0, output: float = 200.0, window_s: float = 60.0
) -> Demand:
    return Demand(rate_per_s=rate, prompt_tokens=prompt, output_tokens=output, window_s=window_s)


def look_on(
    looks: list[tuple[float, Demand]], *, limits: DriftLimits = LIMITS, planned_s: float = -1e6
) -> list[DriftVerdict]:
    """Verdicts of one look after the other, at these times."""
    state = DriftState(planned_s=planned_s)
    verdicts = []
    for now_s, demand in looks:
        verdicts.append(look_for_drift(PLANNED, demand, state, now_s, limits))
        state = verdicts[-1].state
    return verdicts


def replans(looks: list[tuple[float, Demand]], *, planned_s: float = -1e6) -> list[bool]:
    return [verdict.replan for verdict in look_on(looks, planned_s=planned_s)]


@pytest.mark.parametrize(
    "drifted",
    [
        seen(rate=3.0),
        seen(rate=2 / 1.5),
        seen(rate=0.0),
        seen(prompt=1500.0),
        seen(prompt=600.0),
        seen(output=300.0),
        seen(output=100.0),
    ],
)
def test_a_figure_that_left_and_stays_away_asks_for_a_plan_once_it_has_lasted(
    drifted: Demand,
) -> None:
    assert replans([(0.0, drifted), (99.0, drifted), (100.0, drifted)]) == [False, False, True]


@pytest.mark.parametrize("near", [seen(), seen(rate=2.9), seen(prompt=680.0), seen(output=299.0)])
def test_what_is_near_the_plan_never_does(near: Demand) -> None:
    verdicts = look_on([(t, near) for t in (0.0, 100.0, 10_000.0)])
    assert not any(verdict.replan for verdict in verdicts)
    assert verdicts[-1].why == "demand is as planned"


def test_a_figure_that_left_counts_until_it_is_nearly_back() -> None:
    between, back = seen(rate=2.6), seen(rate=2.3)
    assert replans([(0.0, between), (200.0, between)]) == [False, False], "it never left"
    assert replans([(0.0, seen(rate=4.0)), (50.0, between), (100.0, between)])[-1]
    looks = [(0.0, seen(rate=4.0)), (50.0, back), (100.0, between), (300.0, between)]
    assert not any(replans(looks)), "it came back and did not leave again"


def test_a_burst_restarts_the_count() -> None:
    burst = seen(rate=9.0)
    looks = [(0.0, burst), (60.0, seen()), (120.0, burst), (200.0, burst), (220.0, burst)]
    assert replans(looks) == [False, False, False, False, True]


def test_other_figures_do_not_add_up_to_one_that_lasts() -> None:
    looks = [(0.0, seen(rate=9.0)), (60.0, seen(prompt=9e3)), (120.0, seen(output=9e3))]
    assert not any(replans(looks))


def test_a_fresh_plan_rests() -> None:
    drifted = seen(rate=9.0)
    verdicts = look_on([(0.0, drifted), (500.0, drifted), (1000.0, drifted)], planned_s=0.0)
    assert [verdict.replan for verdict in verdicts] == [False, False, True]
    assert verdicts[1].why.endswith("the plan is 500 s old and rests until 1000 s")


def test_too_few_requests_say_nothing_unless_they_should_have_been_many() -> None:
    few = seen(rate=0.1, prompt=9e3, output=9e3)  # 6 in a minute, where 120 were planned
    verdict = look_on([(0.0, few), (100.0, few)])[-1]
    assert verdict.replan
    assert verdict.why == "0.1 requests a second instead of 2 for 100 s"
    early = seen(rate=9.0, prompt=9e3, window_s=5.0)
    assert not any(replans([(0.0, early), (100.0, early)]))


def test_the_reason_names_each_figure_with_its_values() -> None:
    drifted = seen(rate=4.0, prompt=250.0)
    assert look_on([(0.0, drifted), (130.0, drifted)])[-1].why == (
        "4 requests a second instead of 2 for 130 s; "
        "250 prompt tokens a request instead of 1000 for 130 s"
    )
    assert look_on([(0.0, drifted)])[-1].why.endswith("for 0 s: not yet 100 s")


def test_looking_changes_nothing() -> None:
    state = DriftState(planned_s=0.0, away_since_s={"rate_per_s": 5.0})
    first, second = (look_for_drift(PLANNED, seen(9.0), state, 2000.0, LIMITS) for _ in range(2))
    assert first == second
    assert state == DriftState(planned_s=0.0, away_since_s={"rate_per_s": 5.0})


@pytest.mark.parametrize("seed", range(5))
def test_poisson_arrivals_with_scattered_lengths_stay_planned_and_a_doubled_rate_does_not(
    seed: int,
) -> None:
    draw = random.Random(seed)

    def run(rate: float) -> list[bool]:
        window, state, now_s, found = DemandWindow(300.0, 0.0), DriftState(planned_s=-1e6), 0.0, []
        next_look_s = 30.0
        while now_s < 4000.0:
            now_s += draw.expovariate(rate)
            window.arrived(now_s, round(draw.expovariate(1 / 1000)) + 1)
            window.finished(now_s, round(draw.expovariate(1 / 200)) + 1)
            if now_s >= next_look_s:
                verdict = look_for_drift(PLANNED, window.demand(now_s), state, now_s, LIMITS)
                state, next_look_s = verdict.state, now_s + 30.0
                found.append(verdict.replan)
        return found

    assert not any(run(2.0))
    assert any(run(4.0)[:15]), "seen within window, hold and some looks"
    assert any(run(1.0))


def test_the_window_counts_arrivals_and_forgets() -> None:
    window = DemandWindow(100.0, 1000.0)
    assert window.demand(1000.0) == Demand(
        rate_per_s=0.0, prompt_tokens=0.0, output_tokens=0.0, window_s=0.0
    )
    for t in range(50):
        window.arrived(1000.0 + t, 10 if t < 25 else 30)
    window.finished(1049.0, 7)
    assert window.demand(1050.0) == Demand(
        rate_per_s=1.0, prompt_tokens=20.0, output_tokens=7.0, window_s=50.0
    )
    later = window.demand(1124.5)
    assert (later.rate_per_s, later.prompt_tokens) == (0.25, 30.0)
    assert window.demand(2000.0).rate_per_s == 0.0


@pytest.mark.parametrize(
    ("limits", "fault"),
    [
        ({"back": 1.6}, "drift back=1.6, leave=1.5"),
        ({"back": 1.0}, "drift back=1.0"),
        ({"leave": math.inf}, "leave=inf"),
        ({"hold_s": -1.0}, "drift hold_s=-1.0"),
        ({"rest_s": math.nan}, "drift rest_s=nan"),
        ({"min_requests": 0}, "drift min_requests=0"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits: dict[str, float], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        DriftLimits(**limits)  # type: ignore[arg-type]

"""How many instances a load needs, by hand; and what a tick does about it, by invariants."""

from __future__ import annotations

import random

import pytest

from chitu_like.autoscale.controller import (
    Drain,
    Load,
    Member,
    Release,
    Serve,
    State,
    decide,
)
from chitu_like.autoscale.monitor import Monitor, Signals
from chitu_like.autoscale.policy import Band, ScalingPolicy, towards
from chitu_like.cluster.placement import Role
from chitu_like.core.errors import ConfigError

POLICY = ScalingPolicy(
    prefill_tokens_per_s=1000.0,
    decode_kv_tokens=10_000.0,
    prefill_wait_s=Band(low=0.5, high=2.0),
    decode_fill=Band(low=0.4, high=0.8),
)
QUIET = Signals()


def test_the_bands_of_the_paper_by_hand():
    waiting = Signals(waiting_prefill_tokens=7000.0)
    assert POLICY.num_prefill(1, waiting, waiting) == 9  # needs ceil(3.5) = 4 to 14
    assert POLICY.num_prefill(5, waiting, waiting) == 5
    assert POLICY.num_prefill(20, waiting, waiting) == 19
    held = Signals(used_kv_tokens=9000.0, migrating_tokens=8000.0)
    assert POLICY.num_decode(1, held, held) == 4  # needs ceil(17 / 8) = 3 to ceil(17 / 4) = 5
    assert POLICY.num_decode(1, QUIET, QUIET) == 1


def test_never_below_one_and_never_above_what_is_allowed():
    assert towards(1, 1, 1) == towards(2, 1, 1) == 1
    bounded = ScalingPolicy(prefill_tokens_per_s=1.0, decode_kv_tokens=1.0, max_prefill=3)
    flood = Signals(waiting_prefill_tokens=1e9)
    assert bounded.num_prefill(1, flood, flood) == 3


def test_a_lull_within_the_window_takes_nobody_down():
    monitor = Monitor(window_s=10.0)
    monitor.observe(0.0, Signals(waiting_prefill_tokens=4000.0))
    monitor.observe(5.0, QUIET)
    assert POLICY.num_prefill(4, monitor.newest, monitor.peak) == 4
    monitor.observe(10.5, QUIET)
    assert POLICY.num_prefill(4, monitor.newest, monitor.peak) == 3


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (2.0, 1.0), (1.0, float("inf"))])
def test_a_band_that_makes_no_sense_is_refused(low: float, high: float):
    with pytest.raises(ConfigError, match="0 < low <= high"):
        Band(low=low, high=high)


def members(*states: tuple[State, Role]) -> list[Member]:
    return [
        Member(name=f"s{i}", state=state, role=role, load=float(i))
        for i, (state, role) in enumerate(states)
    ]


def tick(found: list[Member], signals: Signals, now_s: float = 0.0):
    return decide(found, POLICY, signals, signals, now_s=now_s, keep_s=60.0)


P, D = Role.PREFILL, Role.DECODE
FLOOD = Signals(waiting_prefill_tokens=3500.0)  # 2 to 7: 5 prefill instances


def test_cheapest_first_drained_then_kept_then_free():
    found = members(
        (State.SERVING, P),
        (State.SERVING, D),
        (State.FREE, P),
        (State.KEPT, D),
        (State.DRAINING, P),
        (State.FREE, P),
        (State.FREE, P),
    )
    assert tick(found, FLOOD) == [
        Serve(name="s4", role=P),
        Serve(name="s3", role=P),
        Load(name="s2", role=P),
        Load(name="s5", role=P),
    ]


def test_missing_decodes_are_flipped_from_prefill_which_is_then_filled_up():
    found = members((State.SERVING, P), (State.SERVING, P), (State.SERVING, D), (State.FREE, P))
    signals = Signals(used_kv_tokens=8100.0, waiting_prefill_tokens=4000.0)  # 2 to 3 decodes
    actions = tick(found, signals)
    assert actions == [
        Serve(name="s0", role=D),
        Load(name="s3", role=D),
    ]


def test_the_last_prefill_instance_is_never_flipped():
    found = members((State.SERVING, P), (State.SERVING, D))
    assert tick(found, Signals(used_kv_tokens=1e6)) == []


def test_loading_instances_count_so_nobody_is_asked_twice():
    found = members((State.SERVING, P), (State.SERVING, D), *[(State.LOADING, P)] * 4)
    assert tick([*found, Member(name="x", state=State.FREE)], FLOOD) == []


def test_one_down_a_tick_and_weights_are_released_after_a_while():
    found = members((State.SERVING, P), (State.SERVING, P), (State.SERVING, P), (State.SERVING, D))
    assert tick(found, QUIET) == [Drain(name="s0")]
    kept = [*members((State.SERVING, P), (State.SERVING, D)), Member(name="k", state=State.KEPT)]
    assert tick(kept, QUIET, now_s=59.0) == []
    assert tick(kept, QUIET, now_s=60.0) == [Release(name="k")]


@pytest.mark.parametrize("seed", range(50))
def test_any_tick_touches_a_spot_once_and_leaves_one_of_each_role(seed: int):
    rng = random.Random(seed)
    for _ in range(100):
        found = members(
            (State.SERVING, P),
            (State.SERVING, D),
            *((rng.choice(list(State)), rng.choice([P, D])) for _ in range(rng.randint(0, 8))),
        )
        signals = Signals(
            waiting_prefill_tokens=rng.uniform(0, 9000),
            used_kv_tokens=rng.uniform(0, 50_000),
            migrating_tokens=rng.uniform(0, 9000),
        )
        actions = tick(found, signals, now_s=rng.uniform(0, 100))
        names = [action.name for action in actions]
        assert len(names) == len(set(names))
        state = {m.name: (m.state, m.role) for m in found}
        for action in actions:
            before = state[action.name][0]
            if isinstance(action, Serve):
                assert before in {State.SERVING, State.DRAINING, State.KEPT}
                state[action.name] = (State.SERVING, action.role)
            elif isinstance(action, Load):
                assert before is State.FREE
                state[action.name] = (State.LOADING, action.role)
            elif isinstance(action, Drain):
                assert before is State.SERVING
                state[action.name] = (State.DRAINING, state[action.name][1])
            else:
                assert before is State.KEPT
                state[action.name] = (State.FREE, P)
        assert (State.SERVING, P) in state.values()
        assert (State.SERVING, D) in state.values()

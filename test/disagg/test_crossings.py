"""Requests cross while messages are late, copies break and instances die: nothing leaks, nothing lies."""

from __future__ import annotations

import random

import pytest
from crossings import World
from fake_executor import expected_output

from chitu_like.core.sampling_params import SamplingParams
from chitu_like.disagg.handoff import AT_PREFILL, NEXT, Handoff, Leases, Phase
from chitu_like.engine.messages import AddRequest
from chitu_like.scheduler.policy import SORT_KEYS

LONG = Leases(waiting_s=1e6, prefill_s=1e6, bridge_s=1e6, pull_s=1e6)
PROMPT = list(range(9))


def check_nothing_is_held(world: World) -> None:
    for instance in world.instances.values():
        if not instance.is_lost:
            instance.rig.blocks.check_integrity()
            assert instance.rig.blocks.usage == 0.0, instance.name
            assert instance.rig.scheduler.num_crossing == 0, instance.name
    assert world.coordinator.num_open == 0


def check_answers(world: World, asked: dict[str, tuple[list[int], int]], aborted: set[str]) -> None:
    """Every token heard was right, and all of them were, unless somebody was told why not."""
    for name, (prompt, num_tokens) in asked.items():
        expected = expected_output(prompt, num_tokens)
        tokens = world.tokens.get(name, [])
        assert tokens == expected[: len(tokens)], name
        whole = name in world.ended and tokens == expected
        assert whole or name in world.failed or name in aborted, name


def two_and_two(leases: Leases, rng: random.Random, break_rate: float = 0.0) -> World:
    world = World(leases, break_rate=break_rate)
    for name in ("p0", "p1"):
        world.add_prefill(name, num_blocks=rng.choice([16, 64]), max_in_flight=rng.choice([1, 2]))
    for name in ("d0", "d1"):
        world.add_decode(
            name,
            num_blocks=rng.choice([18, 64]),
            max_in_flight=rng.choice([1, 2]),
            num_host_blocks=rng.choice([0, 32]),
        )
    return world


def add_some(world: World, rng: random.Random, count: int) -> dict[str, tuple[list[int], int]]:
    asked = {}
    for i in range(count):
        prompt = [rng.randrange(3) for _ in range(rng.randint(1, 30))]
        num_tokens = rng.randint(1, 20)
        world.add(f"r{i}", prompt, max_tokens=num_tokens)
        asked[f"r{i}"] = (prompt, num_tokens)
        for _ in range(rng.randint(0, 30)):
            world.turn(rng)
    return asked


@pytest.mark.parametrize("seed", range(20))
def test_undisturbed_every_request_gets_its_own_tokens(seed: int):
    rng = random.Random(seed)
    world = two_and_two(LONG, rng)
    asked = add_some(world, rng, 25)
    world.run(rng)
    assert world.failed == {}
    for name, (prompt, num_tokens) in asked.items():
        assert world.tokens[name] == expected_output(prompt, num_tokens)
    check_nothing_is_held(world)


@pytest.mark.parametrize("seed", range(60))
def test_aborts_broken_copies_leases_and_lost_peers_leak_nothing(seed: int):
    rng = random.Random(seed)
    short = Leases(waiting_s=300, prefill_s=900, bridge_s=600, pull_s=rng.choice([40, 400]))
    world = two_and_two(short, rng, break_rate=0.05)
    asked = add_some(world, rng, 10)
    aborted = set()
    for name in asked:
        if rng.random() < 0.3:
            aborted.add(name)
            world.coordinator.abort(name)
        for _ in range(rng.randint(0, 60)):
            world.turn(rng)
        if rng.random() < 0.1:
            alive = [i.name for i in world.instances.values() if not i.is_lost]
            if len(alive) > 2:
                world.lose(rng.choice(alive))
    world.run(rng)
    check_answers(world, asked, aborted)
    check_nothing_is_held(world)


@pytest.mark.parametrize("seed", range(60))
def test_roles_that_change_under_any_policy_leak_nothing(seed: int):
    """Offers are withdrawn and made again while news of earlier ones are late."""
    rng = random.Random(seed)
    world = World(Leases(pull_s=rng.choice([40, 400])), break_rate=0.05)
    for name in ("p0", "p1", "d0", "d1"):
        join = world.add_prefill if name.startswith("p") else world.add_decode
        join(
            name,
            policy=rng.choice(list(SORT_KEYS)),
            num_blocks=rng.choice([18, 64]),
            max_in_flight=rng.choice([1, 2, 3]),
            num_host_blocks=rng.choice([0, 32]),
            max_reqs=rng.choice([1, 8]),
        )
    asked: dict[str, tuple[list[int], int]] = {}
    aborted: set[str] = set()
    for i in range(30):
        prompt = [rng.randrange(3) for _ in range(rng.randint(1, 30))]
        asked[f"r{i}"] = (prompt, rng.randint(1, 20))
        world.add(f"r{i}", prompt, max_tokens=asked[f"r{i}"][1], priority=rng.randint(0, 5))
        for _ in range(rng.randint(0, 60)):
            world.turn(rng)
        if rng.random() < 0.15:
            aborted.add(f"r{i}")
            world.coordinator.abort(f"r{i}")
        if rng.random() < 0.2:
            instance = rng.choice(list(world.instances.values()))
            world.coordinator.drain(instance.name)
            coordinator = world.coordinator
            join_as = rng.choice([coordinator.add_prefill, coordinator.add_decode])
            join_as(instance.name, instance)
    world.run(rng)
    check_answers(world, asked, aborted)
    check_nothing_is_held(world)


ENDINGS = [(phase, how) for phase in Phase for how in ("abort", "expire") if NEXT[phase]]
ENDINGS += [(phase, "lose prefill") for phase in sorted(AT_PREFILL | {Phase.DECODE}, key=str)]
ENDINGS += [(phase, "lose decode") for phase in (Phase.PULL, Phase.DECODE)]


@pytest.mark.parametrize(("phase", "event"), ENDINGS)
def test_whatever_ends_a_phase_frees_what_was_held_in_it(phase: Phase, event: str):
    rng = random.Random(0)
    world = World(LONG)
    if phase is not Phase.WAITING:
        world.add_prefill("p")
    if phase in {Phase.PULL, Phase.DECODE}:
        world.add_decode("d")
    world.add("a", PROMPT, max_tokens=40)
    for _ in range(500):
        if world.coordinator.phase("a") is phase:
            break
        world.turn(rng)
    assert world.coordinator.phase("a") is phase
    if event == "abort":
        world.coordinator.abort("a")
    elif event == "expire":
        world.now_s += 1e7
        world.coordinator.expire()
        assert (world.coordinator.phase("a") is Phase.ENDED) == (
            phase not in {Phase.PULL, Phase.DECODE}
        )
        world.coordinator.abort("a")
    else:
        name = {"lose prefill": "p", "lose decode": "d"}[event]
        world.lose(name)
        if phase is Phase.PULL and name == "d":
            assert world.coordinator.phase("a") is Phase.BRIDGE
            world.add_decode("d2")
            world.run(rng)
            assert world.tokens["a"] == expected_output(PROMPT, 40)
            check_nothing_is_held(world)
            return
        assert (phase is Phase.DECODE and name == "p") != ("a" in world.failed)
    world.run(rng)
    check_nothing_is_held(world)


def test_what_nobody_pulls_stops_prefill_admission():
    """Back-pressure: the decode side takes nothing, so the prefill side fills up and then waits."""
    rng = random.Random(0)
    world = World(LONG)
    prefill = world.add_prefill("p", num_blocks=12, block_size=4, prefix_caching=0, max_seq_len=40)
    for i in range(6):
        world.add(f"r{i}", [i] * 12, max_tokens=3)
    for _ in range(400):
        world.turn(rng)
    assert world.coordinator.count(Phase.BRIDGE) == 4  # of 3 blocks each
    assert world.coordinator.count(Phase.PREFILL) == 2
    assert world.coordinator.num_tokens(Phase.BRIDGE) == 48
    assert prefill.rig.scheduler.num_waiting == 2
    world.add_decode("d")
    world.run(rng)
    assert len(world.ended) == 6
    check_nothing_is_held(world)


def test_the_only_decode_instance_pulls_again_when_nothing_is_written_any_more():
    """Its first copy takes too long and is given up, but goes on writing for a while."""
    rng = random.Random(0)
    world = World(Leases(pull_s=50.0))
    prefill, decode = world.add_prefill("p"), world.add_decode("d")
    world.add("a", PROMPT, max_tokens=5)

    def turn(*, copies: bool) -> None:
        for instance in (prefill, decode):
            instance.step()
            instance.to.deliver()
            instance.back.deliver()
        if copies:
            decode.advance(rng)
        world.now_s += 1.0
        world.coordinator.expire()

    for _ in range(80):
        turn(copies=False)
    assert world.coordinator.phase("a") is Phase.BRIDGE
    assert decode.receiver.num_pulls == decode.receiver.num_offers == 1
    for _ in range(40):
        turn(copies=True)
    assert world.tokens["a"] == expected_output(PROMPT, 5)
    check_nothing_is_held(world)


def test_requests_wait_for_the_first_prefill_instance():
    rng = random.Random(0)
    world = World(LONG)
    world.add("a", PROMPT)
    assert world.coordinator.phase("a") is Phase.WAITING
    world.add_prefill("p")
    world.add_decode("d")
    world.run(rng)
    assert world.tokens["a"] == expected_output(PROMPT, 6)


def test_a_draining_instance_gets_nothing_new_and_becomes_idle():
    rng = random.Random(1)
    world = two_and_two(LONG, rng)
    add_some(world, rng, 10)
    for name in ("p0", "d0"):
        world.coordinator.drain(name)
    for i in range(5):
        world.add(f"late {i}", PROMPT)
    world.run(rng)
    assert world.failed == {}
    assert world.coordinator.is_idle("p0")
    assert world.coordinator.is_idle("d0")
    num_batches = len(world.instances["p0"].rig.executor.batches)
    world.add("more", PROMPT)
    world.run(rng)
    assert len(world.instances["p0"].rig.executor.batches) == num_batches


def test_an_instance_that_changes_its_role_decodes_what_it_prefilled_itself():
    rng = random.Random(2)
    world = World(LONG)
    prefill = world.add_prefill("p", num_blocks=40, max_in_flight=2)
    for i in range(8):
        world.add(f"r{i}", [i] * 12, max_tokens=5)
    while world.coordinator.count(Phase.BRIDGE) < 4:
        world.turn(rng)
    world.add_prefill("q")
    world.coordinator.drain("p")
    world.coordinator.add_decode("p", prefill)
    for i in range(8, 12):
        world.add(f"r{i}", [i] * 12, max_tokens=5)
    world.run(rng)
    assert world.failed == {}
    for i in range(12):
        assert world.tokens[f"r{i}"] == expected_output([i] * 12, 5)
    check_nothing_is_held(world)


def test_a_request_too_long_for_the_decode_side_fails_with_its_reason():
    rng = random.Random(0)
    world = World(LONG)
    world.add_prefill("p")
    world.add_decode("d", max_seq_len=16)
    world.add("a", PROMPT, max_tokens=40)
    world.run(rng)
    assert "infer.max_seq_len=16" in world.failed["a"]
    check_nothing_is_held(world)


def test_no_crossing_goes_backwards_but_one():
    order = list(Phase)
    backwards = [
        (a, b)
        for a, following in NEXT.items()
        for b in following
        if order.index(b) < order.index(a)
    ]
    assert backwards == [(Phase.PULL, Phase.BRIDGE)]


def test_a_step_that_no_crossing_takes_is_refused():
    handoff = Handoff(AddRequest("a", PROMPT, SamplingParams()), 0.0)
    with pytest.raises(RuntimeError, match="cannot go from waiting to decode"):
        handoff.enter(Phase.DECODE, 0.0)


def test_an_abort_reaches_a_receiver_before_the_blocks_it_would_keep_are_let_go():
    """An instance that changed its role may step between the two messages."""
    rng = random.Random(0)
    world = World(LONG)
    both = world.add_prefill("p", num_blocks=8, block_size=4, prefix_caching=0, max_seq_len=32)
    world.add("a", [1] * 12, max_tokens=9)
    while world.coordinator.phase("a") is not Phase.BRIDGE:
        world.turn(rng)
    world.coordinator.add_decode("p", both)
    while both.receiver.num_offers == 0:
        both.to.deliver()
    world.coordinator.abort("a")
    while both.to.queue:
        both.to.deliver()
        both.step()
    world.run(rng)
    check_nothing_is_held(world)


def test_an_instance_keeps_its_own_although_one_that_lacks_their_blocks_came_first():
    """Otherwise neither could go on."""
    rng = random.Random(0)
    world = World(LONG)
    world.add_prefill("p")
    world.add("large", [7] * 30, max_tokens=3)
    world.coordinator.drain("p")
    both = world.add_prefill("both", num_blocks=12, block_size=4, prefix_caching=0, max_seq_len=40)
    for i in range(2):
        world.add(f"own{i}", [i] * 13, max_tokens=3)
    while world.coordinator.count(Phase.BRIDGE) < 3:
        world.turn(rng)
    world.coordinator.add_decode("both", both)
    world.run(rng)
    assert world.failed == {}
    assert world.tokens["own1"] == expected_output([1] * 13, 3)
    check_nothing_is_held(world)

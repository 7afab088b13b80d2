"""Who leaves and who comes back first where blocks are short."""

from __future__ import annotations

import pytest
from fake_executor import expected_output
from scheduling import Rig, make_rig


def crowded(num_host_blocks: int, max_in_flight: int = 1) -> Rig:
    """Three requests that fit while they are short, and not when they have grown."""
    rig = make_rig(
        policy="fcfs",
        num_blocks=13,
        block_size=4,
        num_host_blocks=num_host_blocks,
        max_in_flight=max_in_flight,
        max_seq_len=48,
        prefix_caching=False,
    )
    for name in "abc":
        rig.add(name, [ord(name)] * 11, max_tokens=25)
        rig.clock[0] += 0.001
    return rig


def step_until_preempted(rig: Rig) -> None:
    while not rig.scheduler.num_preemptions:
        rig.step()


@pytest.mark.parametrize("num_host_blocks", [0, 64])
def test_the_last_in_policy_order_leaves(num_host_blocks: int):
    rig = crowded(num_host_blocks)
    step_until_preempted(rig)
    rig.run()
    assert list(rig.ends) == ["a", "b", "c"]


@pytest.mark.parametrize("num_host_blocks", [0, 64])
@pytest.mark.parametrize("max_in_flight", [1, 2, 3])
def test_nobody_new_passes_who_was_preempted(num_host_blocks: int, max_in_flight: int):
    """Small newcomers would fit into what is left, and keep the large one out for long."""
    rig = crowded(num_host_blocks, max_in_flight)
    step_until_preempted(rig)
    for i in range(20):
        rig.add(f"new {i}", [i], max_tokens=2)
    while rig.scheduler.num_preempted:
        assert not any(name.startswith("new") for name in rig.tokens)
        rig.step()
    rig.run()
    assert rig.tokens["c"] == expected_output([ord("c")] * 11, 25)
    assert len(rig.ends) == 23

"""One rank of test_rendezvous.py: `python rendezvous_rank.py CHECK`, under torchrun or RANK=... alone."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest
import torch
import torch.distributed as dist

from chitu_like.cluster.placement import Placement
from chitu_like.core.errors import PeerError
from chitu_like.distributed.collectives import SoloGroup
from chitu_like.distributed.interface import interface_of
from chitu_like.distributed.rendezvous import (
    Backend,
    Joined,
    PrefixStore,
    Store,
    address_among,
    find_address,
    job_secret,
    join,
    open_store,
    publish_address,
)

RANK, WORLD_SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
WAIT_S = 60.0
SHORT_S = 4.0  # of a group that runs into its timeout

BACKEND: Backend = "nccl" if os.environ.get("ON_CUDA") else "gloo"
DEVICE = torch.device("cuda", RANK) if BACKEND == "nccl" else torch.device("cpu")

# Ranks -> (instances, tp_size, layers of each stage).
LAYOUTS: dict[int, list[tuple[int, int, list[int]]]] = {
    2: [(1, 2, [3]), (1, 1, [2, 1]), (2, 1, [3])],
    4: [
        (1, 4, [3]),
        (1, 2, [3, 1]),
        (1, 1, [1, 1, 1, 2]),
        (2, 2, [3]),
        (2, 1, [1, 2]),
        (4, 1, [3]),
    ],
}


def join_as(store: Store, placement: Placement, timeout_s: float = WAIT_S) -> Joined:
    """Join the instance of this rank."""
    index = placement.seat(RANK).instance
    return join(
        store,
        placement.instances[index],
        index,
        RANK,
        backend=BACKEND,
        device=DEVICE,
        timeout_s=timeout_s,
    )


def pair(num_instances: int = 1) -> Placement:
    return Placement.uniform(num_instances=num_instances, tp_size=2, layer_partition=[1])


def meet(store: Store, name: str) -> None:
    """From here on no rank is late by what it takes to start a process."""
    publish_address(store, f"{name}-{RANK}", "here")
    for rank in range(WORLD_SIZE):
        find_address(store, f"{name}-{rank}", WAIT_S)


def check_every_layout() -> None:
    store = open_store(WAIT_S)
    secret = job_secret(store, RANK)
    publish_address(store, f"secret-of-{RANK}", secret)
    assert {find_address(store, f"secret-of-{r}", WAIT_S) for r in range(WORLD_SIZE)} == {secret}
    for number, (num_instances, tp_size, partition) in enumerate(LAYOUTS[WORLD_SIZE]):
        placement = Placement.uniform(
            num_instances=num_instances, tp_size=tp_size, layer_partition=partition
        )
        corner = PrefixStore(f"layout-{number}", store)
        joined = join_as(corner, placement)
        check_coordinates(joined, placement)
        check_tensor_parallel(joined, placement)
        check_pipeline(joined, placement)
        joined.leave()
        assert not dist.is_initialized()
        meet(corner, "left")


def check_coordinates(joined: Joined, placement: Placement) -> None:
    seat = placement.seat(RANK)
    instance = placement.instances[seat.instance]
    parallel = joined.parallel
    assert (parallel.pp_rank, parallel.tp_rank) == (seat.pp_rank, seat.tp_rank)
    assert parallel.num_ranks == len(instance.ranks)
    if len(instance.ranks) == 1:
        assert not dist.is_initialized()
        assert parallel.layers is None
    else:
        assert parallel.layers == instance.stages[seat.pp_rank].layers
        assert os.environ["GLOO_SOCKET_IFNAME"] == interface_of("127.0.0.1")
    assert isinstance(parallel.tp, SoloGroup) == (parallel.tp_size == 1)
    assert (joined.pipeline is None) == (parallel.pp_size == 1)


def check_tensor_parallel(joined: Joined, placement: Placement) -> None:
    """The group is that of the stage, ordered by place."""
    seat = placement.seat(RANK)
    stage = placement.instances[seat.instance].stages[seat.pp_rank]
    tp = joined.parallel.tp
    assert tp.all_gather(torch.tensor([RANK], device=DEVICE)).flatten().tolist() == list(
        stage.ranks
    )
    assert tp.all_reduce(torch.tensor([float(RANK)], device=DEVICE)).item() == sum(stage.ranks)


def check_pipeline(joined: Joined, placement: Placement) -> None:
    """Hidden states pass through all stages of one place; what the last sends reaches the first."""
    if joined.pipeline is None:
        return
    seat = placement.seat(RANK)
    stages = placement.instances[seat.instance].stages
    line = [stage.ranks[seat.tp_rank] for stage in stages]
    last = len(stages) - 1
    passed = torch.zeros(len(stages), dtype=torch.int64, device=DEVICE)
    returned = torch.zeros(len(stages), dtype=torch.int64, device=DEVICE)
    links = joined.pipeline
    if seat.pp_rank > 0:
        dist.recv(passed, group=links.hidden_states, group_src=seat.pp_rank - 1)
    passed[seat.pp_rank] = RANK
    # In the product's order: NCCL's first message between two ranks makes both hosts wait.
    if seat.pp_rank < last:
        dist.send(passed, group=links.hidden_states, group_dst=seat.pp_rank + 1)
    else:
        dist.send(passed, group=links.token_ids, group_dst=0)
    if seat.pp_rank == 0:
        dist.recv(returned, group=links.token_ids, group_src=last)
        assert returned.tolist() == line


def check_idle_longer_than_the_timeout() -> None:
    store = open_store(WAIT_S)
    meet(store, "started")
    joined = join_as(store, pair(), timeout_s=SHORT_S)
    time.sleep(SHORT_S + 1.0)
    assert joined.parallel.tp.all_reduce(torch.ones(1, device=DEVICE)).item() == 2.0
    joined.leave()


def check_leaving_a_dead_peer() -> None:
    store = open_store(WAIT_S)
    joined = join_as(store, pair())
    joined.parallel.tp.all_reduce(torch.ones(1, device=DEVICE))
    meet(store, "reduced")
    if RANK == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(RuntimeError):
        joined.parallel.tp.all_reduce(torch.ones(1, device=DEVICE))
    leave_within(joined, WAIT_S / 4)


def check_leaving_a_stopped_peer() -> None:
    store = open_store(WAIT_S)
    meet(store, "started")
    joined = join_as(store, pair(), timeout_s=SHORT_S)
    joined.parallel.tp.all_reduce(torch.ones(1, device=DEVICE))
    publish_address(store, f"pid-{RANK}", str(os.getpid()))
    if RANK == 1:
        time.sleep(WAIT_S)
    peer = int(find_address(store, "pid-1", WAIT_S))
    os.kill(peer, signal.SIGSTOP)
    with pytest.raises(RuntimeError):  # after the group's timeout
        joined.parallel.tp.all_reduce(torch.ones(1, device=DEVICE))
    leave_within(joined, SHORT_S)
    os.kill(peer, signal.SIGKILL)


def leave_within(joined: Joined, timeout_s: float) -> None:
    """Leave sooner than a group that waits for its peer would."""
    started = time.monotonic()
    joined.leave()
    assert time.monotonic() - started < timeout_s
    assert not dist.is_initialized()


def check_a_peer_that_does_not_come() -> None:
    store = open_store(WAIT_S)
    if RANK == 0:
        with pytest.raises(PeerError, match=r"^the 2 ranks of instance 0 did not meet: "):
            join_as(store, pair(), timeout_s=1.0)
        publish_address(store, "tried", "yes")
    else:
        find_address(store, "tried", WAIT_S)


def check_a_restart_forgets() -> None:
    store = open_store(WAIT_S)
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        publish_address(store, f"leader-{RANK}", "of the first life")
        find_address(store, f"leader-{1 - RANK}", WAIT_S)
        sys.exit(3)
    with pytest.raises(PeerError, match=r"no rank told 'address/leader-0' .* within 0\.3 s"):
        find_address(store, "leader-0", 0.3)
    store.set(f"looked-{RANK}", "yes")
    store.wait(["looked-0", "looked-1"])
    publish_address(store, f"leader-{RANK}", "of the second life")
    assert find_address(store, f"leader-{1 - RANK}", WAIT_S) == "of the second life"


def check_two_nodes() -> None:
    """On each node both ranks of one instance, and one rank each of the other two."""
    store = open_store(WAIT_S)
    assert address_among(store, range(RANK // 2 * 2, RANK // 2 * 2 + 2), WAIT_S) == "127.0.0.1"
    address = address_among(store, range(4), WAIT_S)
    assert address == os.environ["OWN_ADDRESS"], address
    joined = join_as(store, Placement.uniform(num_instances=1, tp_size=4, layer_partition=[1]))
    assert os.environ["GLOO_SOCKET_IFNAME"] == interface_of(address) != "lo"
    assert joined.parallel.tp.all_reduce(torch.ones(1, device=DEVICE)).item() == 4.0
    joined.leave()


if __name__ == "__main__":
    if BACKEND == "nccl":
        torch.cuda.set_device(DEVICE)
    globals()[f"check_{sys.argv[1]}"]()

"""How ranks find each other: torchrun's store, what is said through it, and an instance's groups."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, TypeAlias

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.distributed_c10d import Store as Store  # for those who hand it on
from torch.distributed.rendezvous import rendezvous

from chitu_like.cluster.placement import InstancePlacement
from chitu_like.core.errors import PeerError
from chitu_like.distributed.collectives import Group, SoloGroup
from chitu_like.distributed.interface import (
    LOOPBACK,
    is_loopback,
    local_address_towards,
    local_ranks,
    pin_interface,
)
from chitu_like.distributed.parallel_context import ParallelContext
from chitu_like.distributed.symmetric import make_tp_group

Backend: TypeAlias = Literal["gloo", "nccl"]


@dataclass(frozen=True, kw_only=True)
class PipelineGroups:
    """Ranks of equal place in their stages; in each group a rank's number is its pp_rank.

    Two groups, so that a rank which sends hidden states and one which sends tokens never wait for
    each other.

    Attributes:
        hidden_states: from each stage to the next.
        token_ids: from the last stage to the first.
    """

    hidden_states: dist.ProcessGroup
    token_ids: dist.ProcessGroup


@dataclass(frozen=True, kw_only=True)
class Joined:
    """This rank among the ranks of its instance.

    Attributes:
        parallel: its coordinates and groups.
        pipeline: None where there is one stage.
    """

    parallel: ParallelContext
    pipeline: PipelineGroups | None

    def leave(self) -> None:
        """Drop the groups, waiting for nobody: peers may be dead."""
        if not dist.is_initialized():  # alone
            return
        if dist.get_backend() == "nccl":
            # Destroying NCCL's communicators is a collective of its own; aborting them is not.
            dist.distributed_c10d._abort_process_group()
        else:
            dist.destroy_process_group()


def open_store(timeout_s: float) -> Store:
    """The store of torchrun, or one on world rank 0 where RANK, WORLD_SIZE and MASTER_* say so.

    A restarted job sees none of the keys of the one before. Whoever keeps this object keeps the
    store alive where it is world rank 0's own.

    Args:
        timeout_s: for connecting, and for every wait that names no other.

    Raises: PeerError where it is not reached.
    """
    try:
        store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=timeout_s)))
    except (dist.DistError, ValueError) as error:
        raise PeerError(f"cannot reach the store of this job: {_first_line(error)}") from error
    run = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"chitu_like/{run}/{restart}", store)


def job_secret(store: Store, rank: int, *, timeout_s: float = 300.0) -> str:
    """The secret that every rank of this job knows and nobody else; world rank 0 draws it.

    Raises: PeerError where world rank 0 did not in time.
    """
    if rank == 0:
        store.set("secret", secrets.token_hex(32))
    return _find(store, "secret", timeout_s)


def publish_address(store: Store, name: str, address: str) -> None:
    """Tell all ranks an address, e.g. that of 'leader-0'."""
    store.set(f"address/{name}", address)


def find_address(store: Store, name: str, timeout_s: float) -> str:
    """Wait for an address. Raises: PeerError where nobody published it in time."""
    return _find(store, f"address/{name}", timeout_s)


def address_among(store: Store, ranks: Sequence[int], timeout_s: float) -> str:
    """The address of this machine's one interface that reaches the given world ranks.

    Loopback where they are all on this node. Else the interface towards the master; where the master
    is this very machine and its name means loopback here, the one towards a rank of another node,
    which has told its own. Every one of the ranks calls this.

    Raises: PeerError where there is none, or the other rank tells nothing in time.
    """
    here = local_ranks(os.environ)
    if set(ranks) <= set(here):
        return LOOPBACK
    address = local_address_towards(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    if is_loopback(address) and "LOCAL_WORLD_SIZE" in os.environ:
        other = next(rank for rank in ranks if rank not in here)
        return local_address_towards(find_address(store, f"rank-{other}", timeout_s), 1)
    publish_address(store, f"rank-{os.environ['RANK']}", address)
    return address


def join(
    store: Store,
    placement: InstancePlacement,
    index: int,
    rank: int,
    *,
    backend: Backend,
    device: torch.device,
    timeout_s: float,
) -> Joined:
    """Make the groups of this rank's instance; all its ranks call this, and no other rank does.

    Args:
        store: of the job; the instance keeps to a corner of it.
        placement: of the instance.
        index: of the instance.
        rank: this process's world rank.
        backend: nccl for CUDA devices, gloo for CPUs.
        device: of this rank; for nccl with its index.
        timeout_s: for the meeting, and from then on for each collective (not for idle time).

    Raises: PeerError where the other ranks do not come.
    """
    members = placement.ranks
    if len(members) == 1:
        return Joined(parallel=ParallelContext.single(), pipeline=None)
    pin_interface(os.environ, address_among(store, members, timeout_s))
    # NCCL's multicast over NVLink is left out wherever this runs, unless the user asks for it.
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
    try:
        dist.init_process_group(
            backend,
            store=PrefixStore(f"instance-{index}", store),
            rank=members.index(rank),
            world_size=len(members),
            timeout=timedelta(seconds=timeout_s),
            device_id=device if backend == "nccl" else None,
        )
        return _make_groups(placement, rank, device, timedelta(seconds=timeout_s))
    except RuntimeError as error:  # gloo and NCCL say in their own words what lacks
        raise PeerError(
            f"the {len(members)} ranks of instance {index} did not meet: {_first_line(error)}"
        ) from error


def _make_groups(
    placement: InstancePlacement, rank: int, device: torch.device, timeout: timedelta
) -> Joined:
    """Every rank makes all groups in one order, as torch wants it, and keeps its own."""
    num_stages, tp_size = len(placement.stages), len(placement.stages[0].ranks)
    pp_rank, tp_rank = divmod(placement.ranks.index(rank), tp_size)
    stages = [range(s * tp_size, (s + 1) * tp_size) for s in range(num_stages)]
    tp: Group = SoloGroup()
    pipeline = None
    if num_stages == 1:
        world = dist.group.WORLD
        assert world is not None, "there is none before init_process_group"
        tp = make_tp_group(world, device)
    else:
        if tp_size > 1:
            tp = make_tp_group(_groups(stages, timeout)[pp_rank], device)
        lines = list(zip(*stages, strict=True))
        pipeline = PipelineGroups(
            hidden_states=_groups(lines, timeout)[tp_rank],
            token_ids=_groups(lines, timeout)[tp_rank],
        )
    return Joined(
        parallel=ParallelContext(
            pp_rank=pp_rank,
            pp_size=num_stages,
            tp=tp,
            layers=placement.stages[pp_rank].layers,
        ),
        pipeline=pipeline,
    )


def _groups(members: Sequence[Sequence[int]], timeout: timedelta) -> list[dist.ProcessGroup]:
    """One group for each list of ranks in the instance; only the one this rank is in is of use."""
    return [dist.new_group(list(ranks), timeout=timeout) for ranks in members]


def _find(store: Store, key: str, timeout_s: float) -> str:
    try:
        store.wait([key], timedelta(seconds=timeout_s))
        value: bytes = store.get(key)
    except dist.DistError as error:
        raise PeerError(
            f"no rank told {key!r} in this job's store within {timeout_s:g} s: {_first_line(error)}"
        ) from error
    return value.decode()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]

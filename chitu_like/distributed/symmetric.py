"""The tensor-parallel group of a stage: NCCL or gloo, and peers' memory where that is possible."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import torch
import torch.distributed as dist

from chitu_like.distributed.collectives import Group, TorchGroup

logger = logging.getLogger(__name__)


def make_tp_group(process_group: dist.ProcessGroup, device: torch.device) -> Group:
    """The group that a stage's layers reduce through. All its ranks call this at once.

    Args:
        process_group: this process is in it; gloo for a CPU, NCCL for a CUDA device.
        device: of this rank, with its index.
    """
    group = TorchGroup(process_group)
    if device.type != "cuda":
        return group
    reason = _why_not_symmetric(group, device)
    if reason is None:
        from chitu_like.distributed.symmetric_group import SymmetricGroup

        # Nothing here needs NVLink multicast, and where a driver mishandles it, it harms the host.
        os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
        try:
            with torch.cuda.device(device):
                symmetric: Group | None = SymmetricGroup(process_group, device)
        except RuntimeError as error:
            symmetric, reason = None, f"torch cannot map the peers' memory: {error}"
        if _all_say_yes(group, symmetric is not None, device) and symmetric is not None:
            logger.info("short all-reduces go through the peers' memory")
            return symmetric
    logger.info("all-reduces go through NCCL: %s", reason or "another rank cannot map its peers")
    return group


def _why_not_symmetric(group: TorchGroup, device: torch.device) -> str | None:
    """Why this stage cannot use peers' memory; None: it can. All ranks agree on which it is."""
    if group.size not in (2, 4, 8):
        return f"{group.size} ranks are not 2, 4 or 8"
    here = torch.tensor([_node_id(), _device_id(device.index)], device=device)
    everyone = [tuple(place) for place in group.all_gather(here).tolist()]
    is_one_node = len({node for node, _ in everyone}) == 1
    peers = {device_id for _, device_id in everyone}
    reach = is_one_node and len(peers) == group.size and _reaches(device.index, peers)
    if _all_say_yes(group, reach, device):
        return None
    if not is_one_node:
        return "the ranks are on several nodes"
    return "a device cannot read another's memory"


def _all_say_yes(group: TorchGroup, answer: bool, device: torch.device) -> bool:
    """Whether every rank's answer is yes."""
    no = torch.tensor([not answer], dtype=torch.int32, device=device)
    return int(group.all_reduce(no)) == 0


def _reaches(index: int, device_ids: set[int]) -> bool:
    """Whether the device sees all of these, and reads the memory of each."""
    visible = {_device_id(other): other for other in range(torch.cuda.device_count())}
    return all(
        device_id in visible
        and (
            visible[device_id] == index
            or torch.cuda.can_device_access_peer(index, visible[device_id])
        )
        for device_id in device_ids
    )


def _device_id(index: int) -> int:
    """A number that is the same for a physical device in every process of the node."""
    return _number_of(str(torch.cuda.get_device_properties(index).uuid))


def _node_id() -> int:
    """A number that processes share if they can hand each other memory: one boot, one container."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return _number_of(" ".join([boot, *(os.readlink(f"/proc/self/ns/{ns}") for ns in _NAMESPACES)]))


_NAMESPACES = ("mnt", "pid")  # torch passes descriptors through a socket in /tmp, named by pid


def _number_of(text: str) -> int:
    """63 bits of a text's hash: as many as fit in a tensor."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

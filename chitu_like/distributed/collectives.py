"""What ranks do together: a Group is handed down to whoever needs one, and is never fetched.

Every rank of a group must make the same calls in the same order with the same shapes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch.distributed as dist
from torch import Tensor

from chitu_like.ops.norm import add_rms_norm_op

# torch 2.13 gave it a new name and warns of the old one.
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


class Group(ABC):
    """Ranks that compute one thing together.

    Args:
        rank: of this process in the group.
        size: of the group.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size

    @abstractmethod
    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of every rank's x, on every rank; x may be overwritten and may be the result."""

    def all_reduce_add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> Tensor:
        """`add_rms_norm` of ops/norm.py on the all-reduced x; in one kernel where a group has one.

        Args:
            x: [num_tokens, hidden_size], the rank's part of a sum; may be overwritten.
            residual: the same shape and dtype, equal on all ranks; MODIFIED.
            weight: [hidden_size].
            eps: added to the mean square.

        Returns: [num_tokens, hidden_size], equal on all ranks; may be x.
        """
        add_rms_norm = add_rms_norm_op.resolve(x.device, x.dtype)
        return add_rms_norm(self.all_reduce(x), residual, weight, eps)

    @abstractmethod
    def all_gather(self, x: Tensor) -> Tensor:
        """[size, *x.shape]: every rank's x by rank, on every rank; x is not modified."""

    @abstractmethod
    def broadcast(self, x: Tensor, source: int) -> Tensor:
        """Overwrite x with that of rank `source` of the group, and return it."""


class SoloGroup(Group):
    """One rank alone: nothing to do."""

    def __init__(self) -> None:
        super().__init__(0, 1)

    def all_reduce(self, x: Tensor) -> Tensor:
        """See Group."""
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """See Group."""
        return x.unsqueeze(0)

    def broadcast(self, x: Tensor, source: int) -> Tensor:
        """See Group."""
        return x


class DetachedGroup(Group):
    """A place in a group whose other ranks are not there: enough to load and to save, not to compute."""

    def all_reduce(self, x: Tensor) -> Tensor:
        """Raise: there is nobody."""
        raise self._alone()

    def all_gather(self, x: Tensor) -> Tensor:
        """Raise: there is nobody."""
        raise self._alone()

    def broadcast(self, x: Tensor, source: int) -> Tensor:
        """Raise: there is nobody."""
        raise self._alone()

    def _alone(self) -> RuntimeError:
        return RuntimeError(f"rank {self.rank} of {self.size} is not connected to the others")


class TorchGroup(Group):
    """A group of torch.distributed: gloo on CPUs, NCCL on CUDA.

    Args:
        group: this process is in it.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__(group.rank(), group.size())
        self._group = group

    def all_reduce(self, x: Tensor) -> Tensor:
        """See Group."""
        dist.all_reduce(x, group=self._group)
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """See Group."""
        out = x.new_empty((self.size, *x.shape))
        # gloo wants the ranks' tensors end to end, not stacked
        _all_gather(out.flatten(0, 1), x.contiguous(), group=self._group)
        return out

    def broadcast(self, x: Tensor, source: int) -> Tensor:
        """See Group."""
        dist.broadcast(x, group=self._group, group_src=source)
        return x

"""What benchmark_ops measures: a piece of work of a model's step, and who can do it.

A case is a function from a Setting (which model, how many tokens) and an implementation to Work: calls
on fresh data, and the bytes and operations that no implementation can avoid. The table of all cases is
in op_cases.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from chitu_like.bench.device_timing import Call
from chitu_like.core.model_spec import ModelSpec
from chitu_like.ops.registry import REFERENCE, Op

F = TypeVar("F", bound=Callable[..., object])


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One point of a sweep.

    Attributes:
        model: its name in config/models.
        spec: its shape.
        num_reqs: requests of the batch.
        query_len: tokens of each in this step: 1 for decodes.
        context: tokens each has in the cache, this step's included.
        shortest: of decodes whose contexts are anything from this to `context`; None: all are alike.
        is_first_context: no other point of the sweep has the same tokens and comes before.
        block_size: tokens a KV block.
        device: that computes.
        dtype: of weights and activations.
    """

    model: str
    spec: ModelSpec
    num_reqs: int
    query_len: int
    context: int
    is_first_context: bool
    block_size: int
    device: torch.device
    dtype: torch.dtype
    shortest: int | None = None

    @property
    def num_tokens(self) -> int:
        """Of the batch."""
        return self.num_reqs * self.query_len

    @property
    def is_decode(self) -> bool:
        """One token a request."""
        return self.query_len == 1

    @property
    def q_size(self) -> int:
        """Width of a token's queries."""
        return self.spec.num_heads * self.spec.head_dim

    @property
    def kv_size(self) -> int:
        """Width of a token's keys."""
        return self.spec.num_kv_heads * self.spec.head_dim

    def random(self, *shape: int) -> Tensor:
        """Random numbers of variance 1 in the setting's dtype: zeros would be faster than work."""
        return torch.randn(shape, device=self.device, dtype=torch.float32).to(self.dtype)

    def bytes_of(self, num_elements: int) -> int:
        """Bytes of so many numbers in the setting's dtype."""
        return num_elements * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is timed.

    Attributes:
        fresh: makes a call on data of its own.
        num_bytes: read and written at least, in or out of the cache.
        num_flops: computed at least by the matrix units; 0 where others do the work.
        streamed_bytes: of one call, what comes from memory in service because a whole model passes
            between two uses of it: weights, keys and values.
        in_graph: it can be captured in a CUDA graph, as in service.
    """

    fresh: Callable[[], Call]
    num_bytes: int
    num_flops: int = 0
    streamed_bytes: int = 0
    in_graph: bool = True


@dataclass(frozen=True, kw_only=True)
class Case:
    """A kind of work.

    Attributes:
        name: as `--op` knows it.
        kinds: implementations that serve a setting, the one `auto` takes first; none where the
            model has no such work.
        make: the work, by one of them.
        needs_context: the context length matters; else one of them is enough.
    """

    name: str
    kinds: Callable[[Setting], list[str]]
    make: Callable[[Setting, str], Work]
    needs_context: bool = False


@dataclass(frozen=True, kw_only=True)
class OpWork:
    """Work of an Op, whoever does it.

    Attributes:
        arguments: makes arguments of its own for a call.
        num_bytes, streamed_bytes: see Work.
        reference_waits: the reference looks at values on the host, which no graph can.
        options: of every call, by name.
    """

    arguments: Callable[[], tuple[object, ...]]
    num_bytes: int
    streamed_bytes: int = 0
    reference_waits: bool = False
    options: Mapping[str, object] = field(default_factory=dict)


Describe = Callable[[Setting], OpWork]


def op_case(
    op: Op[F],
    describe: Describe,
    *,
    name: str | None = None,
    applies: Callable[[Setting], bool] = lambda at: True,
) -> Case:
    """A case of an op and each of its implementations.

    Args:
        op: whose twins are compared.
        describe: its arguments and bytes.
        name: of the case, where the op has several.
        applies: whether the model has this work.
    """

    def kinds(at: Setting) -> list[str]:
        return op.kinds(at.device, at.dtype) if applies(at) else []

    def make(at: Setting, kind: str) -> Work:
        function, work = op.resolve(at.device, at.dtype, kind), describe(at)

        def fresh() -> Call:
            arguments = work.arguments()
            return lambda: function(*arguments, **work.options)

        return Work(
            fresh=fresh,
            num_bytes=work.num_bytes,
            streamed_bytes=work.streamed_bytes,
            in_graph=not (work.reference_waits and kind == REFERENCE),
        )

    return Case(name=name or op.name, kinds=kinds, make=make)

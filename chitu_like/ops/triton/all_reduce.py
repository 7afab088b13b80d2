"""All-reduce of small messages by stores into the peers' memory, with or without the norm behind it.

A rank stores its message into a slot that each peer keeps for it, and a peer reads the slot until
everything has come. What has not come yet reads EMPTY, all bits one: a NaN that no message contains,
since the sender turns it into another NaN. So each element is its own flag. There is no barrier and
no fence; a call costs one trip over NVLink, where barrier, read and barrier would cost three
(the idea of NCCL's LL protocol and of TensorRT-LLM's Lamport kernels).

A buffer is [2 parities, ranks that send, capacity of a slot]. Whoever reads an element makes it EMPTY
again at once, and calls take the parities in turn. Why two are enough: a rank stores into a parity
for call k + 2 only when its call k + 1 is done. That needed data which each peer sent IN call k + 1,
hence after the peer's kernel of call k had ended, with all it read and emptied. This needs of the
caller: all ranks make the same calls in the same order, each on one stream at a time.

Each program keeps the parity of its next call in device memory, so that calls are right inside CUDA
graphs, replayed in any order. Every call launches the same programs, with or without work for each,
and no more than run at once: programs that wait for a peer's must not keep their own from starting.

One shot: every rank gets every message and adds them up. Two shots: the owner of a row gets the
messages, adds, and sends out the sum; less travels once there are more than two ranks, at the cost of
a second trip. Both add in float32 in the order of the ranks and round once, so all ranks get the same
bits, in one shot or two, with the norm or without.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
import triton
import triton.language as tl
from torch import Tensor

EMPTY = tl.constexpr(-1)
EMPTY_BYTE = 0xFF
NUM_PARITIES = 2
VECTOR_BYTES = 16  # of one load or store; messages are whole vectors
MAX_PROGRAMS = 128
MAX_WARPS = 16
WARP_BYTES = 32 * VECTOR_BYTES
MAX_WIDTH = 8192  # a wider row needs more registers than a program has
_BITS = {torch.bfloat16: tl.int16, torch.float16: tl.int16, torch.float32: tl.int32}


@triton.jit
def _other_nan(bits, BITS: tl.constexpr):
    """Bits that are never EMPTY: the largest integer is a NaN as well, in each float dtype."""
    largest: tl.constexpr = 0x7FFF if BITS.primitive_bitwidth == 16 else 0x7FFFFFFF
    return tl.where(bits == EMPTY, tl.full((), largest, BITS), bits)


@triton.jit
def _memory_of(peers, rank, BITS: tl.constexpr):
    """Start of a rank's buffer."""
    return tl.multiple_of(tl.load(peers + rank).to(tl.pointer_type(BITS)), 16)


@triton.jit
def _wait_for(pointers, mask):
    """Bits that have come, all of them; leave EMPTY behind. Masked elements are 0.

    Each element must be one thread's: two could see it at different times, and only one is asked.
    """
    bits = tl.load(pointers, mask=mask, other=0, volatile=True)
    while tl.max(tl.ravel(bits == EMPTY).to(tl.int32), axis=0) != 0:
        bits = tl.load(pointers, mask=mask, other=0, volatile=True)
    tl.store(pointers, EMPTY, mask=mask)
    return bits


@triton.jit
def _sum_of_ranks(own, pointers, mask, SLOT: tl.constexpr, RANK: tl.constexpr, WORLD: tl.constexpr):
    """Float32 sum of [BLOCK] elements in the order of the ranks; pointers lead to rank 0's slot."""
    ranks = tl.arange(0, WORLD)[:, None]
    come = _wait_for(pointers[None, :] + ranks * SLOT, mask[None, :] & (ranks != RANK))
    own_bits = own.to(come.dtype, bitcast=True)
    values = tl.where(ranks == RANK, own_bits[None, :], come).to(own.dtype, bitcast=True)
    values = values.to(tl.float32)
    total = tl.zeros_like(own).to(tl.float32)
    for rank in tl.static_range(WORLD):  # tl.sum over all would choose an order of its own
        total += tl.sum(tl.where(ranks == rank, values, 0.0), axis=0)
    return total


@triton.jit
def _write(
    x, residual, weight, out, at, lane, mask, eps, WIDTH: tl.constexpr, HAS_NORM: tl.constexpr
):
    """Store a row of the reduced message, or what the norm makes of it."""
    if HAS_NORM:
        stream = tl.load(residual + at, mask=mask, other=0.0)
        scale = tl.load(weight + lane, mask=mask, other=0.0).to(tl.float32)
        stream = (stream.to(tl.float32) + x.to(tl.float32)).to(x.dtype)
        tl.store(residual + at, stream, mask=mask)
        stream = stream.to(tl.float32)
        mean_square = tl.sum(stream * stream, axis=0) / WIDTH
        x = (stream * tl.rsqrt(mean_square + eps) * scale).to(x.dtype)
    tl.store(out + at, x, mask=mask)


@triton.jit(do_not_specialize=["numel"])
def _kernel(
    x,
    residual,
    weight,
    out,
    peers,
    parities,
    numel,
    eps,
    WIDTH: tl.constexpr,  # elements of a row
    BLOCK: tl.constexpr,  # the power of two that holds them
    SLOT: tl.constexpr,  # elements of a slot
    RANK: tl.constexpr,
    WORLD: tl.constexpr,
    BITS: tl.constexpr,  # integer as wide as an element
    TWO_SHOTS: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    num_rows = tl.cdiv(numel, WIDTH)
    lane = tl.arange(0, BLOCK)
    parity = tl.load(parities + program)
    slots = parity * (WORLD * SLOT)  # of this call
    own_slot = slots + RANK * SLOT
    memory = _memory_of(peers, RANK, BITS)

    if TWO_SHOTS:
        # All rows of a program have one owner, since num_programs is a multiple of WORLD.
        owner = program % WORLD
        sums = SLOT // 2  # the second half of a slot is for sums
        if owner == RANK:
            for row in range(program, num_rows, num_programs):
                at = row * WIDTH + lane
                mask = tl.max_constancy((lane < WIDTH) & (at < numel), 8)
                own = tl.load(x + at, mask=mask, other=0.0)
                in_slot = row // WORLD * WIDTH + lane
                total = _sum_of_ranks(own, memory + slots + in_slot, mask, SLOT, RANK, WORLD)
                total = total.to(own.dtype)
                bits = _other_nan(total.to(BITS, bitcast=True), BITS)
                for peer in tl.static_range(WORLD):
                    if peer != RANK:
                        slot = _memory_of(peers, peer, BITS) + own_slot + sums
                        tl.store(slot + in_slot, bits, mask=mask)
                _write(total, residual, weight, out, at, lane, mask, eps, WIDTH, HAS_NORM)
        else:
            slot = _memory_of(peers, owner, BITS) + own_slot
            for row in range(program, num_rows, num_programs):
                at = row * WIDTH + lane
                mask = tl.max_constancy((lane < WIDTH) & (at < numel), 8)
                own = tl.load(x + at, mask=mask, other=0.0)
                bits = _other_nan(own.to(BITS, bitcast=True), BITS)
                tl.store(slot + row // WORLD * WIDTH + lane, bits, mask=mask)
            slot = memory + slots + owner * SLOT + sums
            for row in range(program, num_rows, num_programs):
                at = row * WIDTH + lane
                mask = tl.max_constancy((lane < WIDTH) & (at < numel), 8)
                bits = _wait_for(slot + row // WORLD * WIDTH + lane, mask)
                total = bits.to(x.dtype.element_ty, bitcast=True)
                _write(total, residual, weight, out, at, lane, mask, eps, WIDTH, HAS_NORM)
    else:
        for row in range(program, num_rows, num_programs):
            at = row * WIDTH + lane
            mask = tl.max_constancy((lane < WIDTH) & (at < numel), 8)
            own = tl.load(x + at, mask=mask, other=0.0)
            bits = _other_nan(own.to(BITS, bitcast=True), BITS)
            for peer in tl.static_range(WORLD):
                if peer != RANK:
                    slot = _memory_of(peers, peer, BITS) + own_slot
                    tl.store(slot + at, bits, mask=mask)
        for row in range(program, num_rows, num_programs):
            at = row * WIDTH + lane
            mask = tl.max_constancy((lane < WIDTH) & (at < numel), 8)
            own = tl.load(x + at, mask=mask, other=0.0)
            total = _sum_of_ranks(own, memory + slots + at, mask, SLOT, RANK, WORLD)
            total = total.to(own.dtype)
            _write(total, residual, weight, out, at, lane, mask, eps, WIDTH, HAS_NORM)
    tl.store(parities + program, 1 - parity)


@dataclass(frozen=True, kw_only=True)
class PeerMemory:
    """What a rank knows of its peers' buffers, and they of its own.

    Attributes:
        peers: [world_size] int64, the address of each rank's buffer as this device sees it; a buffer
            is NUM_PARITIES * world_size * slot_bytes long, 16-byte aligned, and full of EMPTY_BYTE at
            first.
        parities: [number of programs] int32, zeros at first; as many on all ranks, a multiple of
            world_size, and no more than run at once on any of them.
        rank, world_size: of this process in the group; 2, 4 or 8 ranks.
        slot_bytes: the longest message of one shot; a power of two.
    """

    peers: Tensor
    parities: Tensor
    rank: int
    world_size: int
    slot_bytes: int


class Shots(Enum):
    """How often data travels."""

    ONE = 1
    TWO = 2


def max_message_bytes(shots: Shots, world_size: int, slot_bytes: int) -> int:
    """The longest message: in two shots a slot holds only its owner's rows, in half of it."""
    if shots is Shots.ONE:
        return slot_bytes
    return slot_bytes // 2 * (world_size - 1)  # one share less: rows are not cut


def supports(x: Tensor) -> bool:
    """Whether these kernels take a message, whatever its length."""
    return (
        x.dtype in _BITS
        and x.is_contiguous()
        and x.nbytes % VECTOR_BYTES == 0
        and x.data_ptr() % VECTOR_BYTES == 0
    )


def supports_norm(x: Tensor) -> bool:
    """Whether a norm of x's rows may follow in the same kernel."""
    width, row_bytes = x.shape[-1], x.shape[-1] * x.itemsize
    is_row_taken = row_bytes >= WARP_BYTES and row_bytes % VECTOR_BYTES == 0 and width <= MAX_WIDTH
    return supports(x) and is_row_taken


def all_reduce(x: Tensor, shots: Shots, memory: PeerMemory) -> Tensor:
    """Replace x, which is the same shape on all ranks, by the sum over them, and return it.

    Args:
        x: `supports` it, and it is no longer than max_message_bytes.
        shots: the same on all ranks.
        memory: of the group.
    """
    # A row is what a program takes at once. Short ones spread a message over many programs, long
    # ones have them wait less often: on H200s, 2 KiB were best up to 256 KiB and 4 KiB beyond.
    row_bytes = 2048 if x.nbytes <= 2048 * MAX_PROGRAMS else 4096
    _launch(x, None, None, x, 0.0, row_bytes // x.itemsize, shots, memory)
    return x


def all_reduce_add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, shots: Shots, memory: PeerMemory
) -> Tensor:
    """`add_rms_norm` of ops/norm.py on the sum of x over the ranks, rounded to its dtype.

    Args:
        x: [num_tokens, hidden_size], `supports_norm` it; modified.
        residual: the same shape and dtype, contiguous; MODIFIED, the same on all ranks.
        weight: [hidden_size], that dtype.
        eps: added to the mean square.
        shots: as in all_reduce.
        memory: of the group.

    Returns: x.
    """
    _launch(x, residual, weight, x, eps, x.shape[-1], shots, memory)
    return x


def _launch(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    out: Tensor,
    eps: float,
    width: int,
    shots: Shots,
    memory: PeerMemory,
) -> None:
    if x.nbytes > max_message_bytes(shots, memory.world_size, memory.slot_bytes):
        raise ValueError(f"{x.nbytes} bytes are more than {shots} takes")
    block = triton.next_power_of_2(width)
    num_warps = min(MAX_WARPS, block * x.itemsize // WARP_BYTES)  # a vector a thread, or several
    _kernel[(len(memory.parities),)](
        x,
        residual,
        weight,
        out,
        memory.peers,
        memory.parities,
        x.numel(),
        eps,
        WIDTH=width,
        BLOCK=block,
        SLOT=memory.slot_bytes // x.itemsize,
        RANK=memory.rank,
        WORLD=memory.world_size,
        BITS=_BITS[x.dtype],
        TWO_SHOTS=shots is Shots.TWO,
        HAS_NORM=residual is not None,
        num_warps=num_warps,
    )

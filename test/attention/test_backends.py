"""Every attention backend against one token at a time, on random paged layouts."""

import dataclasses
import math
import random
from collections.abc import Sequence

import pytest
import torch
from tolerance import assert_op_close
from torch import Tensor

from chitu_like.attention.base import (
    AttentionSpec,
    ForwardBatch,
    LayerKVCache,
    attention_backends,
)
from chitu_like.attention.sdpa import SdpaBackend
from chitu_like.attention.sdpa_plan import SdpaMetadata

WINDOWS = (None, 1, 6, 1000)
# (query tokens, context tokens) of each request, decodes first.
BATCHES: dict[str, list[tuple[int, int]]] = {
    "one decode": [(1, 37)],
    "first token": [(1, 1)],
    "decodes of one length": [(1, 16)] * 3,
    "decodes of many lengths": [(1, n) for n in (3, 40, 4, 41, 1, 90, 17)],
    "prompt": [(23, 23)],
    "chunk with prefix": [(9, 33)],
    "prompts and chunks": [(5, 5), (9, 33), (2, 64), (33, 33)],
    "mixed": [(1, 20), (1, 7), (1, 21), (8, 8), (3, 50)],
}
SHAPES = {"grouped": (6, 2, 12), "all heads": (3, 3, 16), "one key head": (4, 1, 8)}


def make_spec(
    shape: tuple[int, int, int], block_size: int, dtype: torch.dtype, device: str = "cpu"
) -> AttentionSpec:
    num_heads, num_kv_heads, head_dim = shape
    return AttentionSpec(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        windows=WINDOWS,
        block_size=block_size,
        dtype=dtype,
        device=torch.device(device),
    )


def make_batch(
    spec: AttentionSpec, requests: Sequence[tuple[int, int]], *, scattered: bool
) -> tuple[ForwardBatch, Tensor]:
    """A batch over a cache whose unused slots are NaN, and its queries."""
    num_blocks = [-(-context // spec.block_size) for _, context in requests]
    free = list(range(2 * sum(num_blocks) + 1))
    if scattered:
        random.shuffle(free)
    tables = [[free.pop(0) for _ in range(count)] for count in num_blocks]
    shape = (2 * sum(num_blocks) + 1, spec.block_size, spec.num_kv_heads, spec.head_dim)
    cache = LayerKVCache(*(torch.full(shape, torch.nan, dtype=spec.dtype) for _ in range(2)))
    positions: list[int] = []
    for table, (queries, context) in zip(tables, requests, strict=True):
        for position in range(context):
            where = table[position // spec.block_size], position % spec.block_size
            for part in cache:
                part[where] = torch.randn(shape[2:])
        positions += range(context - queries, context)
    padded = [table + [0] * (max(num_blocks) - len(table)) for table in tables]
    num_tokens = len(positions)
    batch = ForwardBatch(
        input_ids=torch.zeros(num_tokens, dtype=torch.long),
        positions=torch.tensor(positions),
        slot_mapping=torch.zeros(num_tokens, dtype=torch.long),  # backends do not look at it
        block_tables=torch.tensor(padded, dtype=torch.int32),
        query_lens=[queries for queries, _ in requests],
        context_lens=[context for _, context in requests],
        device_context_lens=torch.tensor([context for _, context in requests], dtype=torch.int32),
        num_decodes=sum(queries == 1 for queries, _ in requests),
        logits_indices=torch.arange(num_tokens),
        kv_caches={0: cache},
    )
    return batch, torch.randn(num_tokens, spec.num_heads, spec.head_dim).to(spec.dtype)


def token_by_token(
    spec: AttentionSpec, batch: ForwardBatch, q: Tensor, scale: float, window: int | None
) -> Tensor:
    """Attention as its definition says, in float64."""
    group_size = spec.num_heads // spec.num_kv_heads
    out = torch.zeros(q.shape, dtype=torch.float64)
    requests = [row for row, count in enumerate(batch.query_lens) for _ in range(count)]
    for token, (row, position) in enumerate(zip(requests, batch.positions.tolist(), strict=True)):
        first = 0 if window is None else max(0, position + 1 - window)
        table = batch.block_tables[row].tolist()
        slots = [divmod(p, spec.block_size) for p in range(first, position + 1)]
        for head in range(spec.num_heads):
            k, v = (
                torch.stack([part[table[b], offset, head // group_size] for b, offset in slots])
                for part in batch.kv_caches[0]
            )
            weights = (k.double() @ q[token, head].double() * scale).softmax(0)
            out[token, head] = weights @ v.double()
    return out


@pytest.mark.parametrize("scattered", [True, False])
@pytest.mark.parametrize("block_size", [1, 16, 128])
@pytest.mark.parametrize("requests", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("name", ["ref", "sdpa"])
def test_backends_attend_as_defined(
    name: str, requests: list[tuple[int, int]], block_size: int, scattered: bool
) -> None:
    spec = make_spec(SHAPES["grouped"], block_size, torch.float32)
    backend = attention_backends.get(name)(spec)
    batch, q = make_batch(spec, requests, scattered=scattered)
    metadata = backend.plan(batch)
    kept = q.clone()
    for window in WINDOWS:
        out = backend.run(q, batch.kv_caches[0], metadata, scale=0.3, window=window)
        assert_op_close(out, token_by_token(spec, batch, q, 0.3, window))
    assert torch.equal(q, kept)


@pytest.mark.gpu
@pytest.mark.parametrize("requests", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("name", ["ref", "sdpa", "triton"])  # on a CPU: test_triton.py
def test_backends_attend_the_same_on_cuda(name: str, requests: list[tuple[int, int]]) -> None:
    on_cpu = make_spec(SHAPES["grouped"], 16, torch.float32)
    on_cuda = make_spec(SHAPES["grouped"], 16, torch.float32, "cuda")
    batch, q = make_batch(on_cpu, requests, scattered=True)
    cache = LayerKVCache(*(part.cuda() for part in batch.kv_caches[0]))
    moved = dataclasses.replace(batch, block_tables=batch.block_tables.cuda())
    backend = attention_backends.get(name)(on_cuda)
    metadata = backend.plan(moved)
    for window in WINDOWS:
        out = backend.run(q.cuda(), cache, metadata, scale=0.3, window=window)
        assert_op_close(out.cpu(), token_by_token(on_cpu, batch, q, 0.3, window))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", ["ref", "sdpa"])
def test_backends_serve_every_dtype_and_grouping(
    name: str, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    spec = make_spec(shape, 16, dtype)
    backend = attention_backends.get(name)(spec)
    batch, q = make_batch(spec, BATCHES["mixed"], scattered=True)
    q = torch.cat((q, q), 1)[:, : spec.num_heads]  # a slice, as queries of a merged qkv are
    scale = 1 / math.sqrt(spec.head_dim)
    out = backend.run(q, batch.kv_caches[0], backend.plan(batch), scale=scale, window=None)
    assert out.dtype == dtype
    assert_op_close(out, token_by_token(spec, batch, q, scale, None))


def plan_of(requests: list[tuple[int, int]], *, scattered: bool) -> SdpaMetadata:
    spec = make_spec(SHAPES["grouped"], 16, torch.float32)
    batch, _ = make_batch(spec, requests, scattered=scattered)
    return SdpaBackend(spec).plan(batch)


def test_sdpa_copies_nothing_of_a_lone_decode_and_of_chunks_whose_blocks_lie_in_a_row() -> None:
    plan = plan_of([(1, 50), (7, 40)], scattered=False)
    assert [piece.keys for piece in plan.decodes[None]] == [slice(0, 50)]
    assert [piece.keys for piece in plan.decodes[6]] == [slice(44, 50)]
    assert [chunk.keys for chunk in plan.chunks[None]] == [slice(64, 104)]
    assert [chunk.keys for chunk in plan.chunks[6]] == [slice(92, 104)]


def test_sdpa_gathers_decodes_that_stand_together_wherever_their_blocks_lie() -> None:
    plan = plan_of([(1, 50), (1, 48)], scattered=False)
    assert [piece.num_reqs for piece in plan.decodes[None]] == [2]


def test_sdpa_gathers_requests_of_similar_length_together() -> None:
    plan = plan_of([(1, 90), (1, 20), (1, 88), (1, 85), (1, 21)], scattered=True)
    groups = [(piece.num_reqs, len(piece.keys)) for piece in plan.decodes[None]]
    assert groups == [(2, 2 * 21), (3, 3 * 90)]

"""Batches over paged caches, and what attention to them is by its definition."""

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from chitu_like.attention.base import AttentionSpec, ForwardBatch, LayerKVCache

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
    "chunks of one token": [(1, 20), (8, 8), (1, 1), (1, 33)],
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


def assert_writes_out(run: Callable[..., Tensor], out: Tensor) -> None:
    """`run`, which gave `out`, gives the same where it is told a place for it."""
    place = torch.full(out.shape, torch.nan, dtype=out.dtype, device=out.device)
    assert run(out=place) is place
    assert torch.equal(place, out)


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
        num_decodes=next(
            (row for row, (queries, _) in enumerate(requests) if queries > 1), len(requests)
        ),
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

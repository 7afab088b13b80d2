"""The `triton` backend against `ref`; test_kernels.py runs this file in Triton's interpreter.

By hand: `TRITON_INTERPRET=1 pytest test/attention/triton_cases.py --slow` on a CPU, and without the
variable on a CUDA device, where the same cases run compiled.
"""

import dataclasses
import random
from functools import partial

import pytest
import torch
from attention.paged_batches import assert_writes_out
from tolerance import assert_op_close
from torch import Tensor

from chitu_like.attention.base import AttentionSpec, ForwardBatch, LayerKVCache
from chitu_like.attention.ref import RefBackend
from chitu_like.attention.triton import TritonBackend
from chitu_like.ops.attention_tiles import Tile, Tiling, tiling_for
from chitu_like.ops.triton.paged_attention import is_interpreted

DEVICE = torch.device("cpu" if is_interpreted() else "cuda")
# Small tiles: several of them, and several splits, on contexts that an interpreter can walk.
TILE = Tile(rows=16, keys=16, num_warps=4, num_stages=2)
TILING = Tiling(decode=TILE, prefill=TILE)

Requests = list[tuple[int, int]]  # (query tokens, context tokens) of each, decodes first
BATCHES: dict[str, Requests] = {
    "first token": [(1, 1)],
    "one decode": [(1, 83)],
    "a decode of less than its splits": [(1, 17), (1, 16)],
    "uneven decodes": [(1, 3), (1, 97), (1, 32), (1, 1)],
    "prompt": [(37, 37)],
    "chunk with prefix": [(9, 70)],
    "mixed": [(1, 20), (1, 51), (8, 8), (21, 50), (1, 5)],
}
WINDOWS = (None, 1, 6, 40)


def make_spec(
    num_heads: int = 6,
    num_kv_heads: int = 2,
    head_dim: int = 16,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
) -> AttentionSpec:
    return AttentionSpec(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        windows=WINDOWS,
        block_size=block_size,
        dtype=dtype,
        device=DEVICE,
    )


def leading_ones(counts: list[int]) -> int:
    return next((row for row, count in enumerate(counts) if count > 1), len(counts))


def make_batch(
    spec: AttentionSpec, requests: Requests, num_decodes: int | None = None
) -> tuple[ForwardBatch, Tensor]:
    """A batch whose blocks lie anywhere, and its queries, a slice of a wider tensor.

    Decodes are the leading requests of one token, or `num_decodes` of them.

    What no token of it is stored in is NaN: blocks, and the rest of the last ones.
    """
    num_blocks = [-(-context // spec.block_size) for _, context in requests]
    free = random.sample(range(2 * sum(num_blocks) + 1), sum(num_blocks))
    shape = (2 * sum(num_blocks) + 1, spec.block_size, spec.num_kv_heads, spec.head_dim)
    k, v = (torch.full(shape, torch.nan, dtype=spec.dtype) for _ in range(2))
    tables = torch.zeros(len(requests), max(num_blocks), dtype=torch.int32)
    for row, (_, context) in enumerate(requests):
        for index in range(num_blocks[row]):
            block = tables[row, index] = free.pop()
            length = min(spec.block_size, context - index * spec.block_size)
            for part in (k, v):
                part[block, :length] = torch.randn(length, *shape[2:]).to(spec.dtype)
    query_lens = [queries for queries, _ in requests]
    empty = torch.empty(0, dtype=torch.int64)
    batch = ForwardBatch(
        input_ids=empty,  # backends look at neither these nor where tokens are stored
        positions=empty,
        slot_mapping=empty,
        block_tables=tables.to(DEVICE),
        query_lens=query_lens,
        context_lens=[context for _, context in requests],
        device_context_lens=torch.tensor(
            [context for _, context in requests], dtype=torch.int32, device=DEVICE
        ),
        num_decodes=leading_ones(query_lens) if num_decodes is None else num_decodes,
        logits_indices=empty,
        kv_caches={0: LayerKVCache(k.to(DEVICE), v.to(DEVICE))},
    )
    merged = torch.randn(sum(query_lens), spec.num_heads + 3, spec.head_dim).to(spec.dtype)
    return batch, merged.to(DEVICE)[:, 1 : 1 + spec.num_heads]


def check(
    spec: AttentionSpec,
    requests: Requests,
    *,
    windows: tuple[int | None, ...] = (None,),
    num_splits: int = 4,
    tiling: Tiling | None = TILING,
    num_decodes: int | None = None,
) -> None:
    """Compare with `ref`, which is given zeros for NaN: it reads whole blocks."""
    batch, q = make_batch(spec, requests, num_decodes)
    num_programs = num_splits * batch.num_decodes * spec.num_kv_heads
    backend = TritonBackend(spec, tiling=tiling, num_programs=num_programs)
    ref = RefBackend(spec)
    metadata = backend.plan(batch)
    kept = q.clone()
    cache = batch.kv_caches[0]
    for window in windows:
        run = partial(backend.run, q, cache, metadata, scale=0.3, window=window)
        out = run()
        expected = ref.run(
            q.float(),
            LayerKVCache(*(part.float().nan_to_num() for part in cache)),
            ref.plan(batch),
            scale=0.3,
            window=window,
        )
        assert out.dtype == spec.dtype
        assert_op_close(out, expected)
    assert_writes_out(run, out)
    assert torch.equal(q, kept)


def test_a_mixed_batch_is_attended_as_ref_does() -> None:
    check(make_spec(), BATCHES["mixed"], windows=(None, 6))


@pytest.mark.slow
@pytest.mark.parametrize(("block_size", "num_splits"), [(1, 4), (16, 1), (24, 8), (128, 2)])
@pytest.mark.parametrize("requests", BATCHES.values(), ids=BATCHES)
def test_any_block_size_window_and_number_of_splits(
    requests: Requests, block_size: int, num_splits: int
) -> None:
    spec = make_spec(3, 1, head_dim=8, block_size=block_size)
    check(spec, requests, windows=WINDOWS, num_splits=num_splits)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads"), [(1, 1), (5, 5), (5, 1), (14, 2), (20, 1), (9, 3)]
)
def test_any_grouping_and_dtype(num_heads: int, num_kv_heads: int, dtype: torch.dtype) -> None:
    check(make_spec(num_heads, num_kv_heads, 12, dtype=dtype), BATCHES["mixed"], num_splits=2)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
def test_the_tiles_of_the_table_serve_their_head_dims(head_dim: int, dtype: torch.dtype) -> None:
    spec = make_spec(4, 2, head_dim, dtype=dtype)
    requests = [(1, 300), (1, 64), (40, 40), (70, 200)]
    tiling = tiling_for(head_dim, dtype)
    check(spec, requests, windows=(None, 70), num_splits=2, tiling=tiling)


@pytest.mark.skipif(DEVICE.type == "cpu", reason="an interpreter takes minutes")
@pytest.mark.parametrize("num_splits", [1, 4])
def test_a_batch_as_large_and_uneven_as_in_service(num_splits: int) -> None:
    spec = make_spec(32, 8, head_dim=128, dtype=torch.bfloat16)
    requests = [(1, random.randint(1, 1500)) for _ in range(200)]
    check(spec, requests, windows=(None, 700), num_splits=num_splits, tiling=None)


@pytest.mark.slow
def test_random_batches() -> None:
    for _ in range(8):
        num_kv_heads = random.randint(1, 8)
        spec = make_spec(
            num_kv_heads * random.randint(1, 4),
            num_kv_heads,
            random.choice((4, 16, 20)),
            random.choice((1, 8, 16, 32, 100)),
        )
        requests = [(1, random.randint(1, 150)) for _ in range(random.randint(0, 3))]
        for _ in range(random.randint(0 if requests else 1, 2)):
            num_tokens = random.randint(1, 40)
            requests.append((num_tokens, num_tokens + random.randint(0, 90)))
        num_decodes = random.randint(0, leading_ones([count for count, _ in requests]))
        check(
            spec,
            requests,
            windows=(None, random.randint(1, 60)),
            num_splits=random.randint(1, 8),
            num_decodes=num_decodes,
        )


@pytest.mark.slow
def test_a_request_without_context_gets_zeros_and_changes_nothing() -> None:
    spec = make_spec()
    for num_programs in (16, 1):
        backend = TritonBackend(spec, tiling=TILING, num_programs=num_programs)
        batch, q = make_batch(spec, [(1, 45), (1, 33)])
        plan = backend.plan(batch)
        padded = backend.plan(
            dataclasses.replace(
                batch,
                block_tables=torch.cat((batch.block_tables, torch.zeros_like(batch.block_tables))),
                device_context_lens=torch.cat(
                    (batch.device_context_lens, torch.zeros_like(batch.device_context_lens))
                ),
                query_lens=[1] * 4,
                context_lens=[45, 33, 0, 0],
                num_decodes=4,
            )
        )
        cache = batch.kv_caches[0]
        out = backend.run(torch.cat((q, q)), cache, padded, scale=0.3, window=None)
        assert_op_close(out[:2], backend.run(q, cache, plan, scale=0.3, window=None))
        assert torch.equal(out[2:], torch.zeros_like(out[2:]))


@pytest.mark.parametrize(
    ("num_programs", "split_tokens", "as_chunks"),
    [
        (16, 0, False),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((1, 0, False), (1, 32, False), (1, 0, True))
        ),
    ],
)
def test_a_captured_batch_serves_other_lengths_and_tables_in_the_same_memory(
    num_programs: int, split_tokens: int, as_chunks: bool
) -> None:
    """The last row is padding: one token, in block 0. On a CUDA device the capture is a real one."""
    spec = make_spec()
    backend = TritonBackend(
        spec,
        tiling=TILING,
        num_programs=num_programs,
        split_tokens=split_tokens,
        decodes_as_chunks=as_chunks,
    )
    batch, q = make_batch(spec, [(1, 90), (1, 70), (1, 33), (1, 1)])
    batch.decode_order = torch.zeros(4, dtype=torch.int32, device=DEVICE)
    cache = LayerKVCache(*(part.nan_to_num() for part in batch.kv_caches[0]))
    plan = backend.plan_capture(batch)

    def run() -> Tensor:
        backend.prepare(plan)
        return backend.run(q, cache, plan, scale=0.3, window=40)

    replay = run
    if DEVICE.type == "cuda":
        run()  # compiled before the capture
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = run()

        def replay() -> Tensor:
            graph.replay()
            return out

    ref = RefBackend(spec)
    for context_lens in ([90, 70, 33, 1], [1, 64, 20, 1], [17, 1, 33, 1]):
        batch.device_context_lens.copy_(torch.tensor(context_lens))
        batch.decode_order.copy_(torch.randperm(4))
        batch.block_tables.copy_(batch.block_tables.roll(1, 0))
        now = dataclasses.replace(batch, context_lens=context_lens)
        backend.replan(plan, now)
        expected = ref.run(q, cache, ref.plan(now), scale=0.3, window=40)
        assert_op_close(replay(), expected)


@pytest.mark.parametrize("num_programs", [1, 64])
def test_who_begins_first_changes_no_bit(num_programs: int) -> None:
    spec = make_spec()
    batch, q = make_batch(spec, [(1, 90), (1, 3), (1, 33), (1, 70), (4, 9)])
    backend = TritonBackend(spec, tiling=TILING, num_programs=num_programs)
    run = partial(backend.run, q, batch.kv_caches[0], scale=0.3, window=None)
    expected = run(backend.plan(batch))
    batch.decode_order = torch.tensor([0, 3, 2, 1], dtype=torch.int32, device=DEVICE)
    assert torch.equal(run(backend.plan(batch)), expected)


@pytest.mark.skipif(DEVICE.type == "cpu", reason="the interpreter launches nothing early")
def test_kernels_that_start_early_compute_the_same() -> None:
    """Layer after layer in one graph, each of which reads what the one before wrote."""
    spec = make_spec(32, 8, head_dim=128, dtype=torch.bfloat16)
    batch, q = make_batch(spec, [(1, random.randint(1, 3000)) for _ in range(4)])

    def layers(pdl: bool) -> Tensor:
        backend = TritonBackend(spec, pdl=pdl)
        plan = backend.plan_capture(batch)

        def run() -> Tensor:
            hidden = q
            for _ in range(50):
                hidden = backend.run(hidden, batch.kv_caches[0], plan, scale=0.1, window=None)
            return hidden

        run()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = run()
        graph.replay()
        torch.cuda.synchronize()
        return out

    assert torch.equal(layers(pdl=True), layers(pdl=False))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_reqs", "window"),
    [(16, None), (64, None), (64, 40)],
)
def test_a_decode_with_fixed_splits_has_the_same_bits_in_every_batch(
    num_reqs: int, window: int | None
) -> None:
    spec = make_spec(3, 1, head_dim=8)
    backend = TritonBackend(spec, tiling=TILING, num_programs=1, split_tokens=32)
    batch, q = make_batch(spec, [(1, random.randint(1, 110)) for _ in range(num_reqs)])

    def attend(rows: list[int], extra_blocks: int) -> Tensor:
        plan = backend.plan(decodes_of(spec, batch, rows, extra_blocks))
        return backend.run(q[rows], batch.kv_caches[0], plan, scale=0.3, window=window)

    few = random.sample(range(num_reqs), 7)
    alone = torch.cat([attend([row], 0) for row in few])
    for extra_blocks in (0, 9):  # a captured batch has tables for the longest request there may be
        assert torch.equal(attend(few, extra_blocks), alone)
        assert torch.equal(attend(list(range(num_reqs)), extra_blocks)[few], alone)


def decodes_of(
    spec: AttentionSpec, batch: ForwardBatch, rows: list[int], extra_blocks: int = 0
) -> ForwardBatch:
    """Some requests of a batch of decodes, with tables as long as they need, and more."""
    context_lens = [batch.context_lens[row] for row in rows]
    num_blocks = -(-max(context_lens) // spec.block_size)
    tables = batch.block_tables[rows, :num_blocks]
    return dataclasses.replace(
        batch,
        block_tables=torch.nn.functional.pad(tables, (0, extra_blocks)).contiguous(),
        query_lens=[1] * len(rows),
        context_lens=context_lens,
        device_context_lens=batch.device_context_lens[rows],
        num_decodes=len(rows),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_heads", "window"),
    [(3, None), (3, 40), (2, None)],
)
def test_a_prompt_has_the_same_bits_however_it_is_cut_and_whatever_stands_beside_it(
    num_heads: int, window: int | None
) -> None:
    spec = make_spec(num_heads, 1, head_dim=8)
    backend = TritonBackend(spec, tiling=TILING, num_programs=1)
    prompt_len = 100
    batch, q = make_batch(spec, [(prompt_len, prompt_len), (30, 77), (1, 1)])
    cache = batch.kv_caches[0]
    neighbours = [[], [(1, 30, 77)], [(1, 30, 77), (2, 1, 1)]]  # request, tokens, context

    def attend(requests: list[tuple[int, int, int]], queries: Tensor) -> Tensor:
        rows = [row for row, _, _ in requests]
        part = dataclasses.replace(
            batch,
            block_tables=batch.block_tables[rows],
            query_lens=[query_len for _, query_len, _ in requests],
            context_lens=[context_len for _, _, context_len in requests],
            num_decodes=0,
        )
        return backend.run(queries, cache, backend.plan(part), scale=0.3, window=window)

    whole = attend([(0, prompt_len, prompt_len)], q[:prompt_len])
    for ends in ([100], [1, 2, 100], [50, 99, 100], [7, 39, 71, 100], [16, 48, 96, 100]):
        for start, end in zip([0, *ends], ends, strict=False):
            beside = random.choice(neighbours)
            others = q[prompt_len : prompt_len + sum(tokens for _, tokens, _ in beside)]
            chunk = (0, end - start, end)
            out = attend([*beside, chunk], torch.cat((others, q[start:end])))
            assert torch.equal(out[len(others) :], whole[start:end])


@pytest.mark.parametrize("num_heads", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("window", [None, pytest.param(40, marks=pytest.mark.slow)])
def test_a_decode_as_a_chunk_has_the_bits_of_its_prompt(window: int | None, num_heads: int) -> None:
    spec = make_spec(num_heads, 1, head_dim=8)
    backend = TritonBackend(spec, tiling=TILING, num_programs=1, decodes_as_chunks=True)
    batch, q = make_batch(spec, [(75, 75), (60, 60)], num_decodes=0)
    cache = batch.kv_caches[0]
    whole = backend.run(q, cache, backend.plan(batch), scale=0.3, window=window)
    starts = (0, 75)
    for positions in ((74, 59), (0, 40), (15, 16), (52, 1)):
        decodes = dataclasses.replace(
            batch,
            query_lens=[1, 1],
            context_lens=[position + 1 for position in positions],
            device_context_lens=torch.tensor(positions, dtype=torch.int32, device=DEVICE) + 1,
            num_decodes=2,
        )
        rows = [start + position for start, position in zip(starts, positions, strict=True)]
        out = backend.run(q[rows], cache, backend.plan(decodes), scale=0.3, window=window)
        assert torch.equal(out, whole[rows])

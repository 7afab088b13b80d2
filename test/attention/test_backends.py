"""Every attention backend against one token at a time, on random paged layouts."""

import dataclasses
import math
from functools import partial

import pytest
import torch
from attention.paged_batches import (
    BATCHES,
    SHAPES,
    WINDOWS,
    assert_writes_out,
    make_batch,
    make_spec,
    token_by_token,
)
from tolerance import assert_op_close

from chitu_like.attention.base import LayerKVCache, attention_backends
from chitu_like.attention.sdpa import SdpaBackend
from chitu_like.attention.sdpa_plan import SdpaMetadata


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
        run = partial(backend.run, q, batch.kv_caches[0], metadata, scale=0.3, window=window)
        out = run()
        assert_op_close(out, token_by_token(spec, batch, q, 0.3, window))
        assert_writes_out(run, out)
    assert torch.equal(q, kept)


@pytest.mark.gpu
@pytest.mark.parametrize("requests", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("name", ["ref", "sdpa", "triton"])  # on a CPU: test_kernels.py
def test_backends_attend_the_same_on_cuda(name: str, requests: list[tuple[int, int]]) -> None:
    on_cpu = make_spec(SHAPES["grouped"], 16, torch.float32)
    on_cuda = make_spec(SHAPES["grouped"], 16, torch.float32, "cuda")
    batch, q = make_batch(on_cpu, requests, scattered=True)
    cache = LayerKVCache(*(part.cuda() for part in batch.kv_caches[0]))
    moved = dataclasses.replace(
        batch,
        block_tables=batch.block_tables.cuda(),
        device_context_lens=batch.device_context_lens.cuda(),
    )
    backend = attention_backends.get(name)(on_cuda)
    metadata = backend.plan(moved)
    for window in WINDOWS:
        run = partial(backend.run, q.cuda(), cache, metadata, scale=0.3, window=window)
        out = run()
        assert_op_close(out.cpu(), token_by_token(on_cpu, batch, q, 0.3, window))
        assert_writes_out(run, out)


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

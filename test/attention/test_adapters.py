"""The backends of third-party packages, and pairs: over fakes that attend as the packages document.

A fake computes from the very arrays that our adapter passes, so a wrong index, length, scale or window
is a wrong result. Against the packages themselves: the tests marked gpu.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import random
import sys
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import pytest
import torch
from attention import fake_flash_attn, fake_flashinfer
from attention.paged_batches import (
    BATCHES,
    SHAPES,
    WINDOWS,
    assert_writes_out,
    make_batch,
    make_spec,
    token_by_token,
)
from tiny_model import tiny_options
from tolerance import assert_op_close
from torch import Tensor

from chitu_like.attention.base import (
    AttentionBackend,
    AttentionMetadata,
    AttentionSpec,
    ForwardBatch,
    GraphBackend,
    LayerKVCache,
    attention_backends,
)
from chitu_like.attention.composed import ComposedMetadata, compose
from chitu_like.attention.flash_attn import FlashAttnBackend
from chitu_like.attention.flashinfer import FlashInferBackend
from chitu_like.attention.package import import_package
from chitu_like.attention.ref import RefBackend, RefMetadata
from chitu_like.attention.sdpa import SdpaBackend
from chitu_like.attention.sdpa_plan import SdpaMetadata
from chitu_like.attention.xqa import XqaBackend
from chitu_like.config.attention_choice import choose_attention
from chitu_like.config.device_facts import DeviceFacts
from chitu_like.core.errors import UnsupportedError
from chitu_like.worker.options import make_backend

Build = Callable[[AttentionSpec], AttentionBackend]


ADAPTERS: dict[str, Build] = {
    "flashinfer": lambda spec: FlashInferBackend(spec, num_sms=4, use_tensor_cores=True),
    "flashinfer, cores": lambda spec: FlashInferBackend(spec, num_sms=4, use_tensor_cores=False),
    "flash_attn 2": lambda spec: FlashAttnBackend(spec, version=2),
    "flash_attn 3": FlashAttnBackend,
    "flashinfer+xqa": lambda spec: compose(FlashInferBackend(spec, num_sms=4), XqaBackend(spec)),
    "sdpa+flashinfer": lambda spec: compose(SdpaBackend(spec), FlashInferBackend(spec, num_sms=4)),
    "sdpa+flash_attn": lambda spec: compose(SdpaBackend(spec), FlashAttnBackend(spec)),
}
OTHERS: dict[str, Build] = {
    "ref+sdpa": lambda spec: compose(RefBackend(spec), SdpaBackend(spec)),
    "flashinfer+ref": lambda spec: compose(FlashInferBackend(spec, num_sms=4), RefBackend(spec)),
}


@pytest.fixture(autouse=True)
def fakes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fakes stand where the packages would, except in tests of the packages themselves."""
    if request.node.get_closest_marker("gpu"):
        return
    flashinfer = fake_flashinfer.make_module()
    monkeypatch.setitem(sys.modules, "flashinfer", flashinfer)
    monkeypatch.setitem(sys.modules, "flashinfer.decode", flashinfer.decode)
    monkeypatch.setitem(sys.modules, "flash_attn", fake_flash_attn.make_module(2))
    monkeypatch.setitem(sys.modules, "flash_attn_interface", fake_flash_attn.make_module(3))


@pytest.mark.parametrize("requests", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("name", [*ADAPTERS, *OTHERS])
def test_they_attend_as_defined(name: str, requests: list[tuple[int, int]]) -> None:
    spec = make_spec(SHAPES["grouped"], 256 if "2" in name else 16, torch.float32)
    backend = (ADAPTERS | OTHERS)[name](spec)
    batch, q = make_batch(spec, requests, scattered=True)
    q = torch.cat((q, q), 1)[:, : spec.num_heads]  # a slice, as queries of a merged qkv are
    kept = q.clone()
    metadata = backend.plan(batch)
    for window in WINDOWS:
        run = partial(backend.run, q, batch.kv_caches[0], metadata, scale=0.3, window=window)
        out = run()
        assert_op_close(out, token_by_token(spec, batch, q, 0.3, window))
        assert_writes_out(run, out)
    assert torch.equal(q, kept)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", ADAPTERS)
def test_they_serve_every_grouping(name: str, shape: tuple[int, int, int]) -> None:
    spec = make_spec(shape, 256 if "2" in name else 16, torch.bfloat16)
    backend = ADAPTERS[name](spec)
    batch, q = make_batch(spec, BATCHES["mixed"], scattered=True)
    out = backend.run(q, batch.kv_caches[0], backend.plan(batch), scale=0.3, window=None)
    assert out.dtype == torch.bfloat16
    assert_op_close(out, token_by_token(spec, batch, q, 0.3, None))


def by_ref(spec: AttentionSpec, batch: ForwardBatch, q: Tensor, window: int | None) -> Tensor:
    """What `ref` gives, which reads whole blocks."""
    cache = LayerKVCache(*(part.nan_to_num() for part in batch.kv_caches[0]))
    ref = RefBackend(spec)
    return ref.run(q, cache, ref.plan(batch), scale=0.3, window=window)


class CapturedStep:
    """A step of decodes as worker/decode_steps.py records it; without a graph it is called again.

    Args:
        backend: captured.
        spec: the model's attention.
        tables: of the slots, from which a step takes its requests'.
        size: requests of the step; those it does not need are padding.
        padding_block: what a padding row has its one token in.
    """

    def __init__(
        self,
        backend: GraphBackend,
        spec: AttentionSpec,
        tables: Tensor,
        size: int,
        padding_block: int,
    ) -> None:
        self.backend, self.spec, self.tables = backend, spec, tables
        self.size, self.padding_block = size, padding_block
        device = spec.device
        empty = torch.empty(0, dtype=torch.int64, device=device)
        self.q = torch.zeros(size, spec.num_heads, spec.head_dim, dtype=spec.dtype, device=device)
        shape = (size, tables.shape[1])
        self.batch = ForwardBatch(
            input_ids=empty,
            positions=empty,
            slot_mapping=empty,
            block_tables=torch.full(shape, padding_block, dtype=torch.int32, device=device),
            query_lens=[1] * size,
            context_lens=[1] * size,
            device_context_lens=torch.ones(size, dtype=torch.int32, device=device),
            num_decodes=size,
            logits_indices=empty,
            kv_caches={},
        )
        self.next_tables = self.batch.block_tables.clone()
        self.next_lens = self.batch.device_context_lens.clone()
        self.metadata: AttentionMetadata = backend.plan_capture(self.batch)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.outs: list[Tensor] = []

    def work(self, cache: LayerKVCache) -> None:
        self.batch.block_tables.copy_(self.next_tables)
        self.batch.device_context_lens.copy_(self.next_lens)
        self.backend.prepare(self.metadata)
        self.outs = [
            self.backend.run(self.q, cache, self.metadata, scale=0.3, window=window)
            for window in self.spec.windows
        ]

    def replay(self, q: Tensor, context_lens: list[int], cache: LayerKVCache) -> list[Tensor]:
        """What each window's layer gives, of `q` [num_reqs, num_heads, head_dim]."""
        num_reqs = len(context_lens)
        self.q[:num_reqs] = q
        self.next_tables.fill_(self.padding_block)
        self.next_tables[:num_reqs] = self.tables[:num_reqs]
        padded = context_lens + [1] * (self.size - num_reqs)
        self.next_lens.copy_(torch.tensor(padded))
        host = dataclasses.replace(self.batch, context_lens=padded)
        if self.graph is None and self.q.device.type == "cuda":
            self.backend.replan(self.metadata, host)
            self.work(cache)  # compiled before the capture
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.work(cache)
        self.backend.replan(self.metadata, host)
        if self.graph is None:
            self.work(cache)
        else:
            self.graph.replay()
        return [out[:num_reqs] for out in self.outs]


def check_captured(backend: AttentionBackend, spec: AttentionSpec, longest: int) -> None:
    """Steps of several sizes, by turns, on other requests each time."""
    assert isinstance(backend, GraphBackend)
    assert backend.supports_cuda_graph
    on_cpu = dataclasses.replace(spec, device=torch.device("cpu"))
    batch, q = make_batch(on_cpu, [(1, longest)] * 6, scattered=True)
    # NaN would do no harm, but for padding rows, whose block holds a token in service.
    cache = LayerKVCache(*(part.nan_to_num().to(spec.device) for part in batch.kv_caches[0]))
    padding = next(b for b in range(len(cache.k)) if not (batch.block_tables == b).any())
    tables = batch.block_tables.to(spec.device)
    steps = {size: CapturedStep(backend, spec, tables, size, padding) for size in (6, 4, 1)}
    for size, num_reqs in ((6, 5), (4, 4), (6, 6), (1, 1), (4, 3), (6, 5), (1, 1)):
        lens = [random.randint(1, longest) for _ in range(num_reqs)]
        outs = steps[size].replay(q[:num_reqs].to(spec.device), lens, cache)
        now = dataclasses.replace(
            batch,
            block_tables=batch.block_tables[:num_reqs],
            query_lens=[1] * num_reqs,
            context_lens=lens,
        )
        for window, out in zip(spec.windows, outs, strict=True):
            assert_op_close(out.cpu(), by_ref(on_cpu, now, q[:num_reqs], window))


@pytest.mark.parametrize("name", ADAPTERS)
def test_captured_decodes_follow_tables_and_lengths_that_change(name: str) -> None:
    is_2 = "2" in name
    spec = make_spec(SHAPES["grouped"], 256 if is_2 else 16, torch.float32)
    check_captured(ADAPTERS[name](spec), spec, longest=300 if is_2 else 70)


class WatchedMemory:
    """Stands for the memory of plans: says whether copies from it are queued when it is waited for."""

    all: ClassVar[list[WatchedMemory]] = []

    def __init__(self, _device: torch.device) -> None:
        self.is_copied_from = False
        self.all.append(self)

    def await_copies(self) -> None:
        assert not self.is_copied_from, "waits for what the step itself has queued"

    def note_copies(self) -> None:
        self.is_copied_from = True


def test_chunks_and_captured_decodes_of_a_step_are_planned_without_a_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A copy queued by this step stands behind the kernels of the one before."""
    monkeypatch.setattr("chitu_like.attention.flashinfer.PinnedMemory", WatchedMemory)
    monkeypatch.setattr(WatchedMemory, "all", [])
    spec = make_spec(SHAPES["grouped"], 16, torch.float32)
    backend = FlashInferBackend(spec, num_sms=4)
    decodes, _ = make_batch(spec, [(1, 20), (1, 30)], scattered=True)
    chunks, _ = make_batch(spec, [(3, 9)], scattered=True)
    metadata = backend.plan_capture(decodes)
    for memory in WatchedMemory.all:
        memory.is_copied_from = False  # the steps before have ended
    backend.plan(chunks)
    backend.replan(metadata, decodes)
    with pytest.raises(AssertionError, match="waits"):
        backend.replan(metadata, decodes)


def test_a_pair_is_captured_where_its_decodes_can_be() -> None:
    spec = make_spec(SHAPES["grouped"], 16, torch.float32)
    assert isinstance(OTHERS["flashinfer+ref"](spec), GraphBackend) is False
    assert OTHERS["flashinfer+ref"](spec).supports_cuda_graph is False
    assert ADAPTERS["sdpa+flash_attn"](spec).supports_cuda_graph is True


def test_options_name_one_backend_or_two() -> None:
    assert isinstance(make_backend(tiny_options(attn_type="sdpa")), SdpaBackend)
    options = tiny_options(attn_type="sdpa+ref")
    batch, _ = make_batch(options.attention_spec, BATCHES["mixed"], scattered=True)
    plan = make_backend(options).plan(batch)
    assert isinstance(plan, ComposedMetadata)
    assert (type(plan.prefill), type(plan.decode)) == (SdpaMetadata, RefMetadata)
    with pytest.raises(UnsupportedError) as refusal:
        make_backend(tiny_options(attn_type="sdpa+triton"))
    assert str(refusal.value) == (
        "infer.attn_type=sdpa+triton: triton cannot serve this model on cpu: its kernels need a "
        "CUDA device: use auto, or ref, which serves every model"
    )


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("flashinfer", "flashinfer", "flashinfer"),
        ("xqa", "flashinfer.decode", "flashinfer"),
        ("flash_attn", "flash_attn", "flash_attn"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    name: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "flash_attn_interface")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    spec = make_spec(SHAPES["grouped"], 16, torch.bfloat16)
    with pytest.raises(UnsupportedError, match=rf"{module}.*pip install chitu_like\[{extra}\]"):
        attention_backends.get(name)(spec)


@pytest.mark.parametrize("error", [RuntimeError("versions differ"), OSError("no libnvrtc.so")])
def test_a_package_that_cannot_be_imported_is_refused_in_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_module: str) -> None:
        raise error

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(UnsupportedError) as refusal:
        import_package("flashinfer", extra="flashinfer")
    assert str(refusal.value) == (
        f"flashinfer of infer.attn_type cannot import flashinfer ({error}): "
        "pip install chitu_like[flashinfer], or set infer.attn_type to triton or sdpa"
    )


def spec_of(**changes: object) -> AttentionSpec:
    spec = make_spec((8, 2, 64), 16, torch.bfloat16, "cuda")
    return dataclasses.replace(spec, **changes)


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("flashinfer", {"dtype": torch.float32}, "its kernels compute bfloat16 and float16"),
        ("flashinfer", {"head_dim": 80}, "head_dim 80 is none of 64, 128, 256"),
        ("flashinfer", {"device": torch.device("cpu")}, "its kernels need a CUDA device"),
        ("flash_attn", {"head_dim": 100}, "head_dim 100 is no multiple of 8 up to 256"),
        ("flash_attn", {"device": torch.device("cpu")}, "its kernels need a CUDA device"),
        ("xqa", {"block_size": 24}, "infer.block_size=24 is none of 16, 32, 64, 128"),
        ("xqa", {"num_heads": 128}, "more than 32 query heads share a key head"),
        ("xqa", {"device": torch.device("cpu")}, "its kernels need a CUDA device"),
    ],
)
def test_what_they_do_not_serve_is_said(name: str, changes: dict[str, object], reason: str) -> None:
    backend = attention_backends.get(name)
    refused = backend.supports(spec_of(**changes))
    assert refused is not None
    assert refused.startswith(reason)
    if not torch.cuda.is_available():
        assert backend.supports(spec_of()) is None


def test_flash_attention_2_asks_for_large_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert FlashAttnBackend.supports(spec_of()) is None
    monkeypatch.delitem(sys.modules, "flash_attn_interface")
    assert FlashAttnBackend.supports(spec_of(block_size=512)) is None
    assert FlashAttnBackend.supports(spec_of()) == (
        "FlashAttention 2 reads blocks of a multiple of 256 tokens, not of 16 "
        "(infer.block_size=256)"
    )


@pytest.mark.parametrize("head_dim", [16, 64, 80, 96, 128, 192, 256, 512])
@pytest.mark.parametrize(
    ("dtype", "torch_dtype"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)]
)
@pytest.mark.parametrize("has_flashinfer", [True, False])
def test_auto_takes_what_serves(
    has_flashinfer: bool, dtype: str, torch_dtype: torch.dtype, head_dim: int
) -> None:
    facts = DeviceFacts(
        device="cuda",
        name="NVIDIA H200",
        memory_bytes=1,
        free_bytes=1,
        host_free_bytes=1,
        num_devices=1,
        num_cpu_cores=1,
        supports_bf16=True,
        compute_capability=(9, 0),
        has_triton=True,
        has_flashinfer=has_flashinfer,
    )
    spec = spec_of(head_dim=head_dim, dtype=torch_dtype)
    there = ("flashinfer", "triton") if has_flashinfer else ("triton",)
    serving = [name for name in there if attention_backends.get(name).supports(spec) is None]
    assert choose_attention(facts, head_dim, dtype)[0] == "+".join(serving or ["sdpa"])
    without = dataclasses.replace(facts, has_triton=False, has_flashinfer=False)
    assert choose_attention(without, head_dim, dtype)[0] == "sdpa"
    on_cpu = dataclasses.replace(facts, device="cpu")
    assert choose_attention(on_cpu, head_dim, dtype) == ("sdpa", "fast on cpu")


def build_on_cuda(attn_type: str, spec: AttentionSpec) -> AttentionBackend:
    """A backend, or a pair; the test is skipped where its package is not here."""
    parts = []
    for name in attn_type.split("+"):
        package = {"xqa": "flashinfer", "flash_attn": "flash_attn"}.get(name, name)
        packages = [package, *(["flash_attn_interface"] if name == "flash_attn" else [])]
        if not any(importlib.util.find_spec(package) for package in packages):
            pytest.skip(f"needs {' or '.join(packages)}: pip install chitu_like[{packages[0]}]")
        backend = attention_backends.get(name)
        if reason := backend.supports(spec):
            pytest.skip(reason)
        parts.append(backend(spec))
    return parts[0] if len(parts) == 1 else compose(*parts)


CUDA_TYPES = ["triton", "flashinfer", "flash_attn", "flashinfer+triton", "flashinfer+xqa"]
CUDA_SHAPES = [(8, 8, 64), (8, 2, 128), (14, 2, 64), (16, 2, 128)]


@pytest.mark.gpu
@pytest.mark.parametrize("shape", CUDA_SHAPES)
@pytest.mark.parametrize("attn_type", CUDA_TYPES)
def test_the_packages_attend_as_ref_does(attn_type: str, shape: tuple[int, int, int]) -> None:
    block_size = 256 if attn_type == "flash_attn" else 16
    on_cpu = make_spec(shape, block_size, torch.bfloat16)
    on_cuda = dataclasses.replace(on_cpu, device=torch.device("cuda"))
    backend = build_on_cuda(attn_type, on_cuda)
    for requests in BATCHES.values():
        batch, q = make_batch(on_cpu, requests, scattered=True)
        moved = dataclasses.replace(
            batch,
            block_tables=batch.block_tables.cuda(),
            device_context_lens=batch.device_context_lens.cuda(),
        )
        cache = LayerKVCache(*(part.nan_to_num().cuda() for part in batch.kv_caches[0]))
        metadata = backend.plan(moved)
        for window in WINDOWS:
            out = backend.run(q.cuda(), cache, metadata, scale=0.3, window=window)
            assert_op_close(out.cpu(), by_ref(on_cpu, batch, q, window))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", CUDA_SHAPES)
@pytest.mark.parametrize("attn_type", CUDA_TYPES)
def test_captured_graphs_of_the_packages_follow_tables_and_lengths_that_change(
    attn_type: str, shape: tuple[int, int, int]
) -> None:
    block_size = 256 if attn_type == "flash_attn" else 16
    spec = make_spec(shape, block_size, torch.bfloat16, "cuda")
    check_captured(build_on_cuda(attn_type, spec), spec, longest=600)

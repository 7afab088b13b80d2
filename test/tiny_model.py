"""A tiny hand-made transformer for tests of the worker: written to be read, not to be fast.

`TinyModel` computes a ForwardBatch through the paged cache, `recompute` whole sequences without any
cache; they share nothing but the weights. Its logits lie far apart, so greedy tokens do not hang on
the last bit.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from tape import Tape
from torch import Tensor

from chitu_like.attention.base import (
    AttentionMetadata,
    AttentionSpec,
    ForwardBatch,
    PlannedByTensors,
)
from chitu_like.core.batch import SamplingRow
from chitu_like.core.model_spec import ModelSpec
from chitu_like.worker.model_runner import ModelRunner
from chitu_like.worker.options import RunnerOptions
from chitu_like.worker.recording import CudaGraphRecorder, Cut, Recorder, Recording

VOCAB_SIZE, HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 53, 16, 2, 4, 2, 4
MAX_SEQ_LEN, BLOCK_SIZE, MAX_REQS, NUM_BLOCKS, NUM_HOST_BLOCKS = 64, 4, 6, 80, 20


class PlainBackend(PlannedByTensors):
    """TinyModel reads block tables itself: nothing to plan."""

    supports_cuda_graph = True

    @classmethod
    def supports(cls, spec: AttentionSpec) -> str | None:
        return None

    def plan(self, batch: ForwardBatch) -> AttentionMetadata:
        return AttentionMetadata()

    def run(self, *_arguments: object, **_options: object) -> Tensor:
        raise AssertionError("TinyModel attends itself")

    def plan_capture(self, batch: ForwardBatch) -> AttentionMetadata:
        return AttentionMetadata()


@dataclass(frozen=True)
class Again:
    """Work that is called instead of replayed."""

    replay: Callable[[], object]


class Rerun:
    """A recorder without graphs: what was recorded is called again, pieces are on a tape."""

    def record(self, work: Callable[[], None]) -> Again:
        return Again(work)

    def record_each(self, works: Sequence[Callable[[], object]]) -> list[Recording]:
        return [Again(work) for work in works]

    def record_pieces(self, work: Callable[[Cut], None]) -> Tape:
        return Tape(work)


class TinyModel:
    """Two layers, four heads over two KV heads, learned positions."""

    def __init__(self, device: str = "cpu", seed: int = 3) -> None:
        generator = torch.Generator().manual_seed(seed)

        def weight(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(device)

        self.embedding = weight(VOCAB_SIZE, HIDDEN)
        self.position = weight(MAX_SEQ_LEN, HIDDEN)
        self.q = weight(LAYERS, HIDDEN, HEADS * HEAD_DIM) / 2
        self.k = weight(LAYERS, HIDDEN, KV_HEADS * HEAD_DIM) / 2
        self.v = weight(LAYERS, HIDDEN, KV_HEADS * HEAD_DIM) / 2
        self.o = weight(LAYERS, HEADS * HEAD_DIM, HIDDEN) / 2
        self.head = weight(HIDDEN, VOCAB_SIZE)

    def forward(self, batch: ForwardBatch, hidden_states: Tensor | None = None) -> Tensor:
        hidden = self.embedding[batch.input_ids] + self.position[batch.positions]
        for layer in range(LAYERS):
            x = hidden.tanh()
            q = (x @ self.q[layer]).view(-1, HEADS, HEAD_DIM)
            cache = batch.kv_caches[layer]
            for part, matrix in ((cache.k, self.k), (cache.v, self.v)):
                flat = part.view(-1, KV_HEADS, HEAD_DIM)
                flat[batch.slot_mapping] = (x @ matrix[layer]).view(-1, KV_HEADS, HEAD_DIM)
            attend_here = partial(attend_paged, layer)
            mixed = batch.seam(attend_here, q) if batch.seam else attend_here(q, batch)
            hidden = hidden + mixed.view(-1, HEADS * HEAD_DIM) @ self.o[layer]
        return hidden

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        return hidden_states @ self.head

    def recompute(self, token_ids: list[int]) -> Tensor:
        """Logits after every position of one sequence: [len(token_ids), VOCAB_SIZE]."""
        positions = torch.arange(len(token_ids))
        hidden = self.embedding[token_ids] + self.position[positions]
        for layer in range(LAYERS):
            x = hidden.tanh()
            q = (x @ self.q[layer]).view(-1, HEADS, HEAD_DIM)
            k = (x @ self.k[layer]).view(-1, KV_HEADS, HEAD_DIM)
            v = (x @ self.v[layer]).view(-1, KV_HEADS, HEAD_DIM)
            mixed = attend(q, k, v, positions).reshape(-1, HEADS * HEAD_DIM)
            hidden = hidden + mixed @ self.o[layer]
        return hidden @ self.head


class Seeing(TinyModel):
    """Remembers the first layer's cache."""

    def forward(self, batch: ForwardBatch, hidden_states: Tensor | None = None) -> Tensor:
        self.keys = batch.kv_caches[0].k
        return super().forward(batch, hidden_states)


def attend_paged(layer: int, q: Tensor, batch: ForwardBatch, out: Tensor | None = None) -> Tensor:
    cache, mixed = batch.kv_caches[layer], []
    starts = torch.tensor([0, *batch.query_lens]).cumsum(0).tolist()
    for i, blocks in enumerate(batch.block_tables.long()):
        # What stands behind the context is masked, as no query has come so far.
        k = cache.k[blocks].reshape(-1, KV_HEADS, HEAD_DIM)
        v = cache.v[blocks].reshape(-1, KV_HEADS, HEAD_DIM)
        rows = slice(starts[i], starts[i + 1])
        mixed.append(attend(q[rows], k, v, batch.positions[rows]))
    return torch.cat(mixed, out=out)


def attend(q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
    k = k.repeat_interleave(HEADS // KV_HEADS, dim=1)
    v = v.repeat_interleave(HEADS // KV_HEADS, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q, k)
    hidden = torch.arange(k.shape[0], device=q.device)[None, :] > positions[:, None]
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v)


def tiny_spec() -> ModelSpec:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "intermediate_size": 32,
        "max_position_embeddings": MAX_SEQ_LEN,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "torch_dtype": "float32",
    }
    return ModelSpec.from_hf_config(config)


def tiny_options(**changes: object) -> RunnerOptions:
    values: dict[str, object] = {
        "spec": tiny_spec(),
        "dtype": "float32",
        "device": "cpu",
        "max_seq_len": MAX_SEQ_LEN,
        "block_size": BLOCK_SIZE,
        "max_reqs": MAX_REQS,
    }
    return RunnerOptions(**(values | changes))


def tiny_runner(
    model: TinyModel | None = None, *, records: bool = False, **changes: object
) -> ModelRunner:
    """A runner that is ready; with `records`, its decodes are replayed: on CUDA as graphs."""
    options = tiny_options(**changes)
    make_recorder: Callable[[], Recorder] | None = None
    if records:
        on_cuda = options.torch_device.type == "cuda"
        make_recorder = partial(CudaGraphRecorder, options.torch_device) if on_cuda else Rerun
    model = model or TinyModel(options.device)
    runner = ModelRunner(options, model, PlainBackend(), make_recorder=make_recorder)
    runner.allocate(NUM_BLOCKS, num_host_blocks=NUM_HOST_BLOCKS)
    return runner


GREEDY = {
    "seed": 0,
    "temperature": 0.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logit_bias": [],
    "min_tokens": 0,
    "stop_ids": [],
    "num_logprobs": -1,
    "num_prompt_logprobs": -1,
}


def sampling_row(**changes: object) -> SamplingRow:
    return SamplingRow(**(GREEDY | changes))


def random_row(rng: random.Random) -> SamplingRow:
    """Any mixture of parameters."""
    tokens = rng.sample(range(VOCAB_SIZE), 6)
    return sampling_row(
        seed=rng.getrandbits(64),
        temperature=rng.choice([0.0, 0.3, 1.0, 3.0]),
        top_p=rng.choice([1.0, 1.0, 0.8]),
        top_k=rng.choice([0, 0, 5, 10**6]),
        min_p=rng.choice([0.0, 0.0, 0.05]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.4]),
        presence_penalty=rng.choice([0.0, 0.0, 1.1]),
        frequency_penalty=rng.choice([0.0, 0.0, 0.6]),
        logit_bias=rng.choice([[], [(tokens[0], 4.5), (tokens[1], -100.0)]]),
        min_tokens=rng.choice([0, 0, 4]),
        stop_ids=tokens[2:],
    )

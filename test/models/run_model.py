"""Run a model over a small paged cache, any cut of the work; and families' tiny random twins."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from chitu_like.attention.base import (
    AttentionBackend,
    AttentionSpec,
    ForwardBatch,
    LayerKVCache,
    attention_backends,
)
from chitu_like.checkpoint.dummy import load_dummy_weights
from chitu_like.checkpoint.loader import finish_loading
from chitu_like.core.model_spec import ModelSpec
from chitu_like.distributed.parallel_context import ParallelContext
from chitu_like.layers.linear import num_local_kv_heads
from chitu_like.models.base import Model
from chitu_like.models.build import build_model
from chitu_like.models.weight_map import IGNORED

CPU = torch.device("cpu")


def attention_spec(
    spec: ModelSpec,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device = CPU,
    tp_size: int = 1,
) -> AttentionSpec:
    return AttentionSpec(
        num_heads=spec.num_heads // tp_size,
        num_kv_heads=num_local_kv_heads(spec.num_kv_heads, tp_size),
        head_dim=spec.head_dim,
        windows=tuple(dict.fromkeys(spec.layer_windows)),
        block_size=block_size,
        dtype=dtype,
        device=device,
    )


def make_model(
    spec: ModelSpec,
    backend: AttentionBackend,
    dtype: torch.dtype,
    weights: dict[str, Tensor] | int,
    device: torch.device = CPU,
    parallel: ParallelContext | None = None,
    op_impl: str = "auto",
) -> Model:
    """A model filled with dummy weights of a seed, or from a state dict of transformers."""
    model = build_model(spec, backend, dtype, device, parallel=parallel, op_impl=op_impl)
    if isinstance(weights, int):
        load_dummy_weights(model, weights)
        return model
    fill(model, weights)
    finish_loading(model)
    return model


def fill(model: Model, weights: dict[str, Tensor]) -> None:
    """Fill the parameters by the rules of the loader."""
    weight_map, parameters = model.weight_map(), dict(model.named_parameters())
    missing = set(weight_map.expected)
    for name, tensor in weights.items():
        target = weight_map.resolve(name)
        if target is IGNORED:
            continue
        assert target is not None, f"left over: {name}"
        parameters[target.parameter].load(name, tensor, target.part)
        missing.remove(target)
    assert not missing, f"missing: {[weight_map.source_name(target) for target in missing]}"


class PagedModel:
    """A model with its cache; requests are named by any number.

    With several ranks each has one, and all make the same steps.

    Args:
        spec: the model.
        weights: of transformers, or the seed of dummy ones.
        backend: name of an attention backend.
        block_size: tokens a block.
        shuffle: hand out blocks in a random order, so that contexts lie scattered.
        num_blocks: of the cache.
        dtype: to compute in.
        device: to compute on; logits come back to the host.
        parallel: this rank's place; None: the only one. Stages are neighbours in the default group.
        op_impl: kind of implementation of the ops.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: dict[str, Tensor] | int,
        *,
        backend: str = "sdpa",
        block_size: int = 4,
        shuffle: bool = True,
        num_blocks: int = 128,
        dtype: torch.dtype = torch.float32,
        device: torch.device = CPU,
        parallel: ParallelContext | None = None,
        op_impl: str = "auto",
    ) -> None:
        self.device = device
        self.dtype = dtype
        self.parallel = parallel = parallel or ParallelContext.single()
        self.spec = spec
        self.block_size = block_size
        local = attention_spec(spec, block_size, dtype, device, parallel.tp_size)
        self.backend = attention_backends.get(backend)(local)
        self.model = make_model(spec, self.backend, dtype, weights, device, parallel, op_impl)
        shape = (num_blocks, block_size, local.num_kv_heads, spec.head_dim)
        # NaN: reading a slot that nothing was stored in shows in the result.
        self.caches = {
            layer: LayerKVCache(
                *(torch.full(shape, torch.nan, dtype=dtype, device=device) for _ in range(2))
            )
            for layer in self.model.layer_indices
        }
        self.free = list(range(num_blocks))
        if shuffle:
            random.Random(7).shuffle(self.free)
        self.tables: dict[int, list[int]] = {}
        self.lens: dict[int, int] = {}

    @torch.inference_mode()
    def step(self, work: Sequence[tuple[int, Sequence[int]]]) -> list[Tensor]:
        """Logits of every token of each (request, next tokens); decodes must stand in front.

        Stages before the last return nothing.
        """
        for request, tokens in work:
            self._grow(request, len(tokens))
        batch = self._batch(work)
        batch.attn_metadata = self.backend.plan(batch)
        hidden_states = self.model.forward(batch, self._receive(len(batch.positions)))
        if not self.parallel.is_last_stage:
            dist.send(hidden_states, dist.get_rank() + self.parallel.tp_size)
            return []
        logits = self.model.compute_logits(hidden_states).cpu()
        assert logits.isfinite().all()
        return list(logits.split([len(tokens) for _, tokens in work]))

    def generate(self, prompt: Sequence[int], num_tokens: int, request: int = 0) -> list[int]:
        """Greedy tokens after a prompt computed in one step."""
        logits = self.step([(request, prompt)])[0]
        tokens = [int(logits[-1].argmax())]
        while len(tokens) < num_tokens:
            tokens.append(int(self.step([(request, tokens[-1:])])[0][-1].argmax()))
        return tokens

    def _receive(self, num_tokens: int) -> Tensor | None:
        if self.parallel.is_first_stage:
            return None
        hidden_states = torch.empty(num_tokens, self.spec.hidden_size, dtype=self.dtype)
        dist.recv(hidden_states, dist.get_rank() - self.parallel.tp_size)
        return hidden_states

    def _grow(self, request: int, num_tokens: int) -> None:
        self.lens[request] = self.lens.get(request, 0) + num_tokens
        table = self.tables.setdefault(request, [])
        while len(table) * self.block_size < self.lens[request]:
            table.append(self.free.pop())

    def _batch(self, work: Sequence[tuple[int, Sequence[int]]]) -> ForwardBatch:
        slots, positions = [], []
        for request, tokens in work:
            end = self.lens[request]
            for position in range(end - len(tokens), end):
                block = self.tables[request][position // self.block_size]
                slots.append(block * self.block_size + position % self.block_size)
                positions.append(position)
        query_lens = [len(tokens) for _, tokens in work]
        tables = [torch.tensor(self.tables[request]) for request, _ in work]
        input_ids = [token for _, tokens in work for token in tokens]
        block_tables = torch.nn.utils.rnn.pad_sequence(tables, batch_first=True).int()
        return ForwardBatch(
            input_ids=torch.tensor(input_ids, device=self.device),
            positions=torch.tensor(positions, device=self.device),
            slot_mapping=torch.tensor(slots, device=self.device),
            block_tables=block_tables.to(self.device),
            query_lens=query_lens,
            context_lens=[self.lens[request] for request, _ in work],
            device_context_lens=torch.tensor(
                [self.lens[request] for request, _ in work], dtype=torch.int32, device=self.device
            ),
            num_decodes=next((i for i, n in enumerate(query_lens) if n > 1), len(work)),
            logits_indices=torch.arange(len(positions), device=self.device),
            kv_caches=self.caches,
        )

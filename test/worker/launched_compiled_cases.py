"""How often Triton compiles a step's kernels: as often whatever a batch holds; test_kernels.py runs this.

What Triton compiles anew while a service runs, its clients wait for.
"""

import pytest
import torch
from compiled import variants_of
from tiny_model import sampling_row, tiny_runner

from chitu_like.attention.base import AttentionSpec, ForwardBatch, LayerKVCache
from chitu_like.attention.composed import compose
from chitu_like.attention.triton import TritonBackend
from chitu_like.core.batch import SAMPLED_LAST, ScheduledBatch, SlotRow
from chitu_like.ops.attention_tiles import tiling_for
from chitu_like.ops.decode_inputs import DecodeInputs
from chitu_like.ops.flat_tables import FlatTables
from chitu_like.ops.rope_store import HeadNorms
from chitu_like.ops.triton.activation import act_and_mul
from chitu_like.ops.triton.decode_inputs import decode_inputs
from chitu_like.ops.triton.draw import draw_tokens
from chitu_like.ops.triton.embedding import embed_rms_norm
from chitu_like.ops.triton.flat_tables import flatten_tables
from chitu_like.ops.triton.invariant_linear import invariant_linear
from chitu_like.ops.triton.norm import add_rms_norm, rms_norm
from chitu_like.ops.triton.rope_store import qk_norm_rope_store
from chitu_like.ops.triton.rotary import rotation
from chitu_like.worker.batch_builder import build_forward_batch
from chitu_like.worker.early_draws import draws_beside
from chitu_like.worker.profile_batch import make_profile_batch
from chitu_like.worker.sampler import SampledRows, Sampler
from chitu_like.worker.slots import Slots

CPU, DTYPE = torch.device("cpu"), torch.bfloat16
HEADS, KV_HEADS, HEAD_DIM, HIDDEN, VOCAB_SIZE = 4, 2, 64, 256, 3000
MAX_REQS, MAX_BLOCKS, BLOCK_SIZE = 8, 6, 16

NORM = torch.ones(HIDDEN, dtype=DTYPE)
HEAD_NORM = torch.ones(HEAD_DIM, dtype=DTYPE)
TABLE = torch.zeros(VOCAB_SIZE, HIDDEN, dtype=DTYPE)
QKV = torch.zeros((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN, dtype=DTYPE)
GATE_UP = torch.zeros(2 * HIDDEN, HIDDEN, dtype=DTYPE)
CACHE = torch.zeros(99, BLOCK_SIZE, KV_HEADS, HEAD_DIM, dtype=DTYPE)
SPEC = AttentionSpec(
    num_heads=HEADS,
    num_kv_heads=KV_HEADS,
    head_dim=HEAD_DIM,
    windows=(None,),
    block_size=BLOCK_SIZE,
    dtype=DTYPE,
    device=CPU,
)


def make_slots() -> Slots:
    return Slots(max_reqs=MAX_REQS, max_blocks=MAX_BLOCKS, vocab_size=VOCAB_SIZE, device=CPU)


def make_batch(num_decodes: int, chunks: list[int]) -> ScheduledBatch:
    """Decodes behind a context of 17, and chunks of so many tokens."""
    num_reqs = num_decodes + len(chunks)
    num_tokens = [1] * num_decodes + chunks
    return ScheduledBatch(
        step_id=0,
        slots=list(range(num_reqs)),
        num_tokens=num_tokens,
        num_computed=[17] * num_decodes + [0] * len(chunks),
        samples=[True] * num_reqs,
        token_ids=[SAMPLED_LAST] * num_decodes + [1] * sum(chunks),
        new_blocks=[[]] * num_reqs,
        rows=[
            SlotRow(slot, 17, list(range(5)), sampling_row(), [1] * 17) for slot in range(num_reqs)
        ],
        swap_out=[],
        swap_in=[],
        num_decodes=num_decodes,
    )


def run_layer(batch: ForwardBatch, backend: TritonBackend) -> None:
    """The kernels of a decoder's first layer, and attention by itself and beside another backend."""
    angles = rotation(
        batch.positions, torch.ones(HEAD_DIM // 2), interleaved=False, scale=1.0, dtype=DTYPE
    )
    residual, x = embed_rms_norm(batch.input_ids, TABLE, NORM, 1e-6)
    norms = HeadNorms(HEAD_NORM, HEAD_NORM, 1e-6)
    qkv = invariant_linear(x, QKV)
    q = qk_norm_rope_store(qkv, norms, angles, False, CACHE, CACHE, batch.slot_mapping)
    for each in (backend, compose(backend, backend)):
        each.run(q, LayerKVCache(CACHE, CACHE), each.plan(batch), scale=0.1, window=None)
    act_and_mul(invariant_linear(add_rms_norm(x, residual, NORM, 1e-6), GATE_UP), "silu")
    rms_norm(residual[batch.logits_indices], NORM, 1e-6)


def step(num_decodes: int, chunks: list[int]) -> None:
    slots, batch = make_slots(), make_batch(num_decodes, chunks)
    slots.apply(batch)
    forward = build_forward_batch(batch, slots, {}, block_size=BLOCK_SIZE, device=CPU)
    backend = TritonBackend(SPEC, tiling=tiling_for(HEAD_DIM, DTYPE), num_programs=1)
    run_layer(forward, backend)
    sampler = Sampler(CPU)
    sampler._draw = draw_tokens
    rows = SampledRows.of(batch, slots)
    sampler.sample(torch.zeros(len(rows.slots), VOCAB_SIZE, dtype=DTYPE), rows, slots)


def recorded_step(size: int) -> None:
    """As worker/decode_steps.py has its tensors."""
    slots, rows = make_slots(), torch.zeros(4, size, dtype=torch.int32)
    inputs = DecodeInputs.empty(MAX_REQS, MAX_BLOCKS, CPU).head(size)
    tables = torch.zeros(MAX_REQS + 1, MAX_BLOCKS, dtype=torch.int32)
    decode_inputs(rows[:3], tables, slots.last_sampled, BLOCK_SIZE, inputs)
    batch = ForwardBatch(
        input_ids=inputs.input_ids,
        positions=inputs.positions,
        slot_mapping=inputs.slot_mapping,
        block_tables=inputs.block_tables,
        query_lens=[1] * size,
        context_lens=[1] * size,
        device_context_lens=inputs.context_lens,
        num_decodes=size,
        logits_indices=torch.arange(size),
        kv_caches={},
    )
    run_layer(batch, TritonBackend(SPEC, tiling=tiling_for(HEAD_DIM, DTYPE), num_programs=1))
    logits = torch.zeros(MAX_REQS, VOCAB_SIZE, dtype=DTYPE)[:size]
    draw_tokens(logits, slots.device_sampling.params, rows[0], rows[3], slots.last_sampled)


def test_a_recording_and_one_prompt_launch_every_kernel_of_every_batch() -> None:
    one, several = variants_of(lambda: recorded_step(1)), variants_of(lambda: recorded_step(4))
    before = one | variants_of(lambda: step(0, [6]))
    for launched in (before, several):  # drawing is cut otherwise for several rows
        assert len(launched) == len({name for name, _ in launched})
    before |= several
    for size in range(1, MAX_REQS + 1):
        assert variants_of(lambda size=size: recorded_step(size)) <= before, size  # type: ignore[misc]
    for num_decodes in range(5):
        for chunks in ([1], [5], [8], [3, 4], [2, 7, 16]):
            launched = variants_of(lambda n=num_decodes, c=chunks: step(n, c))  # type: ignore[misc]
            assert launched <= before, (num_decodes, chunks)


@pytest.mark.parametrize("num_reqs", [5, 6, 7, 8])  # one next power of two: the kernel's constant
def test_flat_tables_are_compiled_once_a_size(num_reqs: int) -> None:
    def flatten(count: int) -> None:
        batch = make_batch(0, [3] * count)
        slots = make_slots()
        slots.apply(batch)
        forward = build_forward_batch(batch, slots, {}, block_size=BLOCK_SIZE, device=CPU)
        room = FlatTables.empty(count, count * MAX_BLOCKS, CPU)
        flatten_tables(forward.block_tables, forward.device_context_lens, BLOCK_SIZE, room)

    assert variants_of(lambda: flatten(num_reqs)) == variants_of(lambda: flatten(8))


def test_what_is_compiled_beside_loading_is_what_batches_draw_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def launch(logits: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        draw_tokens(logits, *others)  # whose outputs nothing wrote
        return torch.zeros(len(logits), dtype=torch.int64), torch.zeros(len(logits)).bool()

    def init(self: Sampler, *_arguments: object) -> None:
        self._draw, self.is_capturable = launch, True

    runner = tiny_runner(max_reqs=MAX_REQS + 1, dtype="bfloat16")
    monkeypatch.setattr(Sampler, "__init__", init)

    def load() -> None:
        with draws_beside(runner):
            pass

    def sample() -> None:
        vocab_size = runner.options.spec.vocab_size
        slots = Slots(max_reqs=MAX_REQS + 1, max_blocks=1, vocab_size=vocab_size, device=CPU)
        for num_reqs in range(1, MAX_REQS + 2):
            for is_simple in (True, False):
                batch = make_profile_batch(num_reqs, 1, 4, is_simple=is_simple)
                slots.apply(batch)
                logits = torch.zeros(num_reqs, vocab_size, dtype=DTYPE)
                Sampler(CPU).sample(logits, SampledRows.of(batch, slots), slots)

    early = variants_of(load)
    assert len({name for name, _ in early}) == 4
    assert early == variants_of(sample)

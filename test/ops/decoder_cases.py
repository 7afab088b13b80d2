"""The decoder's Triton kernels against their references; test_kernels.py runs this file.

By hand: `TRITON_INTERPRET=1 pytest test/ops/decoder_cases.py` on a CPU, and without the variable on a
CUDA device, where the same cases run compiled.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from models.families import VOCAB_SIZE, twin_of
from models.run_model import PagedModel
from tolerance import assert_logits_close, assert_op_close
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from chitu_like.ops import activation, embedding, kv_store, norm, rope_store, rotary
from chitu_like.ops.registry import Op
from chitu_like.ops.rope_store import HeadNorms
from chitu_like.ops.rotary import Rotation
from chitu_like.ops.triton import activation as activation_kernel
from chitu_like.ops.triton import embedding as embedding_kernel
from chitu_like.ops.triton import kv_store as kv_store_kernel
from chitu_like.ops.triton import norm as norm_kernel
from chitu_like.ops.triton import rope_store as rope_store_kernel
from chitu_like.ops.triton import rotary as rotary_kernel
from chitu_like.ops.triton.launch import serves

CPU = torch.device("cpu")
DEVICE = CPU if serves(CPU, torch.float32) else torch.device("cuda")
NUM_TOKENS = [*(pytest.param(count, marks=pytest.mark.slow) for count in (0, 1)), 5]
EPS = 1e-3

every_dtype = pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in (torch.bfloat16, torch.float16)),
    ],
    ids=lambda dtype: str(dtype)[6:],
)


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    return (torch.randn(shape) * 2).to(DEVICE, dtype)


def wider(x: Tensor) -> Tensor:
    """The same numbers as the left part of rows that are longer."""
    return torch.cat((x, x.new_full((len(x), 4), torch.nan)), 1)[:, : x.shape[1]]


@pytest.mark.parametrize("size", [1, 60, 1100])
@pytest.mark.parametrize("num_tokens", NUM_TOKENS)
@every_dtype
def test_rms_norm(dtype: torch.dtype, num_tokens: int, size: int) -> None:
    weight = random(size, dtype=dtype)
    x = random(num_tokens, size, dtype=dtype)
    expected = norm.rms_norm(x.float(), weight.float(), EPS)
    for rows in (x, wider(x), x.unsqueeze(0).unsqueeze(0)):
        kept = rows.clone()
        found = norm_kernel.rms_norm(rows, weight, EPS)
        assert (found.shape, found.dtype) == (rows.shape, dtype)
        assert_op_close(found.view(x.shape), expected)
        assert torch.equal(rows, kept)


@pytest.mark.parametrize("num_tokens", NUM_TOKENS)
@every_dtype
def test_rms_norm_of_heads_in_a_merged_qkv(dtype: torch.dtype, num_tokens: int) -> None:
    weight = random(20, dtype=dtype)
    merged = random(num_tokens, 7, 28, dtype=dtype)
    for heads in (merged[..., :20].contiguous()[:, 2:5], merged[:, 2:5, :20]):
        assert_op_close(
            norm_kernel.rms_norm(heads, weight, EPS),
            norm.rms_norm(heads.float(), weight.float(), EPS),
        )


@pytest.mark.parametrize("size", [60, 1100])
@pytest.mark.parametrize("num_tokens", NUM_TOKENS)
@every_dtype
def test_add_rms_norm_updates_the_residual(dtype: torch.dtype, num_tokens: int, size: int) -> None:
    weight = random(size, dtype=dtype)
    x, before = (random(num_tokens, size, dtype=dtype) for _ in range(2))
    for rows, residual in ((x, before.clone()), (wider(x), wider(before))):
        kept = rows.clone()
        found = norm_kernel.add_rms_norm(rows, residual, weight, EPS)
        assert_op_close(residual, before.float() + x.float())
        assert_op_close(found, norm.rms_norm(residual.float(), weight.float(), EPS))
        assert torch.equal(rows, kept)


@pytest.mark.parametrize("has_weights", [True, False])
@pytest.mark.parametrize("num_tokens", NUM_TOKENS)
@every_dtype
def test_layer_norm(dtype: torch.dtype, num_tokens: int, has_weights: bool) -> None:
    x = wider(random(num_tokens, 60, dtype=dtype) + 3)
    weight, bias = (random(60, dtype=dtype) if has_weights else None for _ in range(2))
    exact = (None if part is None else part.float() for part in (weight, bias))
    assert_op_close(
        norm_kernel.layer_norm(x, weight, bias, EPS), norm.layer_norm(x.float(), *exact, EPS)
    )


@pytest.mark.parametrize("num_tokens", NUM_TOKENS)
@every_dtype
def test_embedding_with_its_norm(dtype: torch.dtype, num_tokens: int) -> None:
    table, weight = random(9, 60, dtype=dtype), random(60, dtype=dtype)
    ids = torch.tensor([8, 0, 3, 3, 7], device=DEVICE)[:num_tokens]
    embedded, normed = embedding_kernel.embed_rms_norm(ids, table, weight, EPS)
    assert torch.equal(embedded, table[ids])
    assert_op_close(normed, norm.rms_norm(embedded.float(), weight.float(), EPS))


@pytest.mark.parametrize("name", activation.ACTIVATIONS)
@pytest.mark.parametrize("num_tokens", NUM_TOKENS)
@every_dtype
def test_act_and_mul(dtype: torch.dtype, num_tokens: int, name: str) -> None:
    for width in (37, activation_kernel.BLOCK + 6):
        x = wider(random(num_tokens, 2 * width, dtype=dtype))
        found = activation_kernel.act_and_mul(x, name)
        assert (found.shape, found.dtype) == ((num_tokens, width), dtype)
        assert_op_close(found, activation.act_and_mul(x.float(), name))


def test_silu_far_from_zero_is_the_number_or_nothing() -> None:
    x = torch.tensor([[1e4, -1e4, 90.0, -90.0, 1.0, 1.0, 1.0, 1.0]], device=DEVICE)
    found = activation_kernel.act_and_mul(x, "silu")
    torch.testing.assert_close(found, torch.tensor([[1e4, 0.0, 90.0, 0.0]], device=DEVICE))


@pytest.mark.parametrize("own_frequencies", [True, False])
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("num_tokens", NUM_TOKENS)
@every_dtype
def test_rotation(
    dtype: torch.dtype, num_tokens: int, interleaved: bool, own_frequencies: bool
) -> None:
    for half in (1, 6, 64):
        shape = (num_tokens, half) if own_frequencies else (half,)
        frequencies = torch.rand(shape).to(DEVICE)
        positions = torch.tensor([0, 131071, 7, 1, 40000], device=DEVICE)[:num_tokens]
        found, expected = (
            compute(positions, frequencies, interleaved=interleaved, scale=1.3, dtype=dtype)
            for compute in (rotary_kernel.rotation, rotary.rotation)
        )
        for part, expected_part in zip(found, expected, strict=True):
            assert part.shape == expected_part.shape
            assert_op_close(part, expected_part)


def random_rotation(
    num_tokens: int, rotary_dim: int, interleaved: bool, dtype: torch.dtype
) -> Rotation:
    return rotary.rotation(
        torch.arange(3, 3 + num_tokens, device=DEVICE),
        torch.rand(rotary_dim // 2).to(DEVICE),
        interleaved=interleaved,
        scale=1.2,
        dtype=dtype,
    )


@pytest.mark.parametrize("has_norms", [True, False])
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "rotary_dim"),
    [(1, 1, 2, 2), (6, 2, 12, 12), (14, 2, 20, 8), (9, 9, 64, 64)],
)
@pytest.mark.parametrize("num_tokens", NUM_TOKENS)
@every_dtype
def test_rope_store(
    dtype: torch.dtype,
    num_tokens: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    rotary_dim: int,
    interleaved: bool,
    has_norms: bool,
) -> None:
    shape = (3, 4, num_kv_heads, head_dim)
    qkv = wider(random(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim, dtype=dtype))
    kept = qkv.clone()
    norms = None
    if has_norms:
        norms = HeadNorms(random(head_dim, dtype=dtype), random(head_dim, dtype=dtype), EPS)
    angles = random_rotation(num_tokens, rotary_dim, interleaved, dtype)
    slots = torch.tensor([11, 0, 5, 6, 2], device=DEVICE)[:num_tokens]
    caches = [torch.full(shape, torch.nan, device=DEVICE, dtype=dtype) for _ in range(2)]
    q = rope_store_kernel.qk_norm_rope_store(qkv, norms, angles, interleaved, *caches, slots)
    assert torch.equal(qkv, kept)

    expected_caches = [torch.full(shape, torch.nan, device=DEVICE) for _ in range(2)]
    exact = Rotation(angles.cos.float(), angles.sin.float())
    if norms is not None:
        norms = HeadNorms(norms.q.float(), norms.k.float(), EPS)
    expected_q = rope_store.qk_norm_rope_store(
        qkv.float(), norms, exact, interleaved, *expected_caches, slots
    )
    assert q.dtype == dtype
    assert_op_close(q, expected_q)
    for cache, expected in zip(caches, expected_caches, strict=True):
        assert torch.equal(cache.isnan(), expected.isnan())  # no other slot
        assert_op_close(cache.nan_to_num(), expected.nan_to_num())


@every_dtype
def test_padding_rows_may_share_a_slot(dtype: torch.dtype) -> None:
    shape = (2, 4, 2, 12)
    qkv = random(3, 10 * 12, dtype=dtype)
    angles = random_rotation(3, 12, False, dtype)
    caches = [torch.zeros(shape, device=DEVICE, dtype=dtype) for _ in range(2)]
    slots = torch.tensor([5, 0, 0], device=DEVICE)
    q = rope_store_kernel.qk_norm_rope_store(qkv, None, angles, False, *caches, slots)
    alone = [torch.zeros(shape, device=DEVICE, dtype=dtype) for _ in range(2)]
    first = Rotation(angles.cos[:1], angles.sin[:1])
    expected_q = rope_store_kernel.qk_norm_rope_store(
        qkv[:1], None, first, False, *alone, slots[:1]
    )
    assert torch.equal(q[:1], expected_q)
    for cache, expected in zip(caches, alone, strict=True):
        assert torch.equal(cache.flatten(0, 1)[1:], expected.flatten(0, 1)[1:])


@pytest.mark.parametrize("num_kv_heads", [1, 3, 17])
@pytest.mark.parametrize("num_tokens", NUM_TOKENS)
@every_dtype
def test_kv_store(dtype: torch.dtype, num_tokens: int, num_kv_heads: int) -> None:
    k = random(num_tokens, num_kv_heads + 3, 12, dtype=dtype)[:, 3:]
    v = random(num_tokens, num_kv_heads, 16, dtype=dtype)[..., :12]
    slots = torch.tensor([11, 0, 5, 6, 2], device=DEVICE)[:num_tokens]
    found, expected = (
        [torch.zeros(3, 4, num_kv_heads, 12, device=DEVICE, dtype=dtype) for _ in range(2)]
        for _ in range(2)
    )
    kv_store_kernel.kv_store(k, v, *found, slots)
    kv_store.kv_store(k, v, *expected, slots)
    for cache, expected_cache in zip(found, expected, strict=True):
        assert torch.equal(cache, expected_cache)


@pytest.mark.slow
def test_a_token_gets_the_same_bits_in_any_company() -> None:
    """What infer.deterministic builds on."""
    dtype, width, count = torch.bfloat16, 9 * 64, 200
    x, residual = (random(count, width, dtype=dtype) for _ in range(2))
    weight, head_weight = random(width, dtype=dtype), random(64, dtype=dtype)
    ids = torch.arange(count, device=DEVICE)
    positions, frequencies = ids * 7, torch.rand(32).to(DEVICE)
    norms = HeadNorms(head_weight, head_weight, EPS)

    def compute(rows: slice) -> list[Tensor]:
        part, stream = x[rows], residual[rows].clone()
        caches = [torch.zeros(count, 1, 2, 64, dtype=dtype, device=DEVICE) for _ in range(2)]
        angles = rotary_kernel.rotation(
            positions[rows], frequencies, interleaved=False, scale=1.0, dtype=dtype
        )
        q = rope_store_kernel.qk_norm_rope_store(part, norms, angles, False, *caches, ids[rows])
        return [
            norm_kernel.rms_norm(part, weight, EPS),
            norm_kernel.add_rms_norm(part, stream, weight, EPS),
            norm_kernel.layer_norm(part, weight, None, EPS),
            embedding_kernel.embed_rms_norm(ids[rows], x, weight, EPS)[1],
            activation_kernel.act_and_mul(part, "silu"),
            q,
            *(cache[rows] for cache in caches),
        ]

    together = compute(slice(None))
    for token in (0, 1, count - 1):
        alone = compute(slice(token, token + 1))
        for found, expected in zip(alone, together, strict=True):
            assert torch.equal(found[0], expected[token])


@pytest.mark.slow
def test_slots_beyond_2_to_the_31_elements_are_reached() -> None:
    num_blocks = 2**31 // (16 * 2 * 64) + 2
    # Never filled: on a CPU only what is written takes memory.
    k_cache = torch.empty(num_blocks, 16, 2, 64, dtype=torch.float16, device=DEVICE)
    v_cache = torch.empty_like(k_cache)
    slots = torch.tensor([num_blocks * 16 - 1], device=DEVICE)
    qkv = random(1, 6 * 64, dtype=torch.float16)
    v = qkv.view(1, 6, 64)[:, 4:]
    angles = random_rotation(1, 64, False, torch.float16)
    rope_store_kernel.qk_norm_rope_store(qkv, None, angles, False, k_cache, v_cache, slots)
    assert torch.equal(v_cache[-1, -1], v[0])
    turned = rotary.apply_rotary(qkv.view(1, 6, 64)[:, 2:4], angles, False)
    assert_op_close(k_cache[-1, -1], turned[0])
    kv_store_kernel.kv_store(v, v, k_cache, v_cache, slots)
    assert torch.equal(k_cache[-1, -1], v[0])

    table = k_cache.view(-1, 1024)
    table[-1] = 2.0
    ids = torch.tensor([len(table) - 1], device=DEVICE)
    weight = torch.ones(1024, dtype=torch.float16, device=DEVICE)
    embedded, _ = embedding_kernel.embed_rms_norm(ids, table, weight, EPS)
    assert torch.equal(embedded, table[-1:])


def test_the_kernels_of_every_op_are_taken() -> None:
    ops: tuple[Op, ...] = (
        norm.rms_norm_op,
        norm.add_rms_norm_op,
        norm.layer_norm_op,
        embedding.embed_rms_norm_op,
        activation.act_and_mul_op,
        rotary.rotation_op,
        rope_store.qk_norm_rope_store_op,
        kv_store.kv_store_op,
    )
    for op in ops:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            assert op.kinds(DEVICE, dtype) == ["triton", "torch"]
        assert op.kinds(DEVICE, torch.float64) == ["torch"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "llama-biases",
        "llama-gelu",
        "llama-dynamic",
        "qwen3-tied-yarn",
        "glm-partial",
        "glm4",
        "opt",
    ],
)
def test_a_model_computes_the_same_with_kernels_and_without(name: str) -> None:
    spec, _, weights = twin_of(name)
    tokens = torch.randint(3, VOCAB_SIZE, (12,)).tolist()
    fused, plain = (
        PagedModel(spec, weights, device=DEVICE, op_impl=op_impl) for op_impl in ("triton", "torch")
    )
    for part in (tokens[:10], tokens[10:11], tokens[11:]):
        assert_logits_close(fused.step([(0, part)])[0], plain.step([(0, part)])[0])


class CountOps(TorchDispatchMode):
    """Counts what torch computes, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        self.counts[str(func).split(".")[1]] += 1
        return func(*args, **(kwargs or {}))


Forward = Callable[..., Tensor]
FUSED_AWAY = {"addcmul", "cos", "embedding", "index_put_", "mul", "rms_norm", "silu"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-biases", "qwen3", "glm-partial"])
def test_a_layer_is_its_products_attention_and_kernels(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, _, weights = twin_of(name)
    counts = {}
    for op_impl in ("torch", "triton"):
        runner = PagedModel(spec, weights, device=DEVICE, op_impl=op_impl)
        runner.step([(0, [3, 4, 5])])
        mode, forward = CountOps(), runner.model.forward

        # The model alone: on a CUDA device sdpa's plan multiplies too.
        def counted(*args: object, mode: CountOps = mode, forward: Forward = forward) -> Tensor:
            with mode:
                return forward(*args)

        monkeypatch.setattr(runner.model, "forward", counted)
        runner.step([(0, [6])])
        counts[op_impl] = mode.counts
    assert counts["torch"].keys() >= FUSED_AWAY
    assert not counts["triton"].keys() & FUSED_AWAY
    assert counts["triton"]["add_"] == 1  # behind the last layer

"""A GGUF file of a model's shape with random weights: what llama.cpp reads, without a download."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from chitu_like.core.errors import UnsupportedError
from chitu_like.core.model_spec import ModelSpec

FAMILIES = ("llama", "qwen2", "qwen3")
"""Model types whose GGUF architecture has the same name and the tensors written here."""
STD = 0.02  # of a weight, so that activations stay finite
NO_VOCABULARY = "no_vocab"  # token ids alone; llama.cpp then takes the vocabulary's size as stated

Shape = tuple[int, ...]


def write_dummy_gguf(path: Path, spec: ModelSpec, seed: int = 0) -> None:
    """Write matrices in bfloat16, vectors in float32 as llama.cpp's own converter does.

    Extensions of the context are left out: they cost no time.

    Raises: UnsupportedError for a model of another family.
    """
    import gguf  # only in the extra "test"

    if spec.model_type not in FAMILIES or spec.rope is None:
        raise UnsupportedError(
            f"no GGUF is written for model type {spec.model_type}: use a model of {FAMILIES}"
        )
    writer = gguf.GGUFWriter(path, spec.model_type)
    writer.add_block_count(spec.num_layers)
    writer.add_context_length(spec.max_position_embeddings)
    writer.add_embedding_length(spec.hidden_size)
    writer.add_feed_forward_length(spec.intermediate_size)
    writer.add_head_count(spec.num_heads)
    writer.add_head_count_kv(spec.num_kv_heads)
    writer.add_key_length(spec.head_dim)
    writer.add_value_length(spec.head_dim)
    writer.add_layer_norm_rms_eps(spec.norm_eps)
    writer.add_rope_freq_base(spec.rope.theta)
    writer.add_rope_dimension_count(spec.rope.rotary_dim)
    writer.add_vocab_size(spec.vocab_size)
    writer.add_tokenizer_model(NO_VOCABULARY)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    generator = torch.Generator().manual_seed(seed)
    for name, shape in tensor_shapes(spec):
        weight = torch.empty(shape).normal_(0.0, STD, generator=generator)
        if len(shape) == 1:
            writer.add_tensor(name, weight.numpy())
        else:  # numpy has no bfloat16: [rows, 2 * columns] bytes
            in_bytes = weight.bfloat16().view(torch.uint8).numpy()
            writer.add_tensor(name, in_bytes, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensor_shapes(spec: ModelSpec) -> Iterator[tuple[str, Shape]]:
    """Every tensor by GGUF's name; matrices are [out, in]."""
    yield "token_embd.weight", (spec.vocab_size, spec.hidden_size)
    for layer in range(spec.num_layers):
        for name, shape in _layer_shapes(spec):
            yield f"blk.{layer}.{name}", shape
    yield "output_norm.weight", (spec.hidden_size,)
    if not spec.tie_word_embeddings:
        yield "output.weight", (spec.vocab_size, spec.hidden_size)


def _layer_shapes(spec: ModelSpec) -> Iterator[tuple[str, Shape]]:
    hidden, inner = spec.hidden_size, spec.intermediate_size
    q_size, kv_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    yield "attn_norm.weight", (hidden,)
    for name, size in (("attn_q", q_size), ("attn_k", kv_size), ("attn_v", kv_size)):
        yield f"{name}.weight", (size, hidden)
        if spec.qkv_bias:
            yield f"{name}.bias", (size,)
    if spec.qk_norm:
        yield "attn_q_norm.weight", (spec.head_dim,)
        yield "attn_k_norm.weight", (spec.head_dim,)
    yield "attn_output.weight", (hidden, q_size)
    if spec.o_bias:
        yield "attn_output.bias", (hidden,)
    yield "ffn_norm.weight", (hidden,)
    yield "ffn_gate.weight", (inner, hidden)
    yield "ffn_up.weight", (inner, hidden)
    yield "ffn_down.weight", (hidden, inner)

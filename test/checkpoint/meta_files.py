"""Meta's files of Llama, made by the inverse of what chitu_like/checkpoint/meta_llama.py does."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

# Hugging Face's name in a layer, Meta's, and along which dimension Meta cuts it.
LAYER = [
    ("self_attn.q_proj", "attention.wq", 0),
    ("self_attn.k_proj", "attention.wk", 0),
    ("self_attn.v_proj", "attention.wv", 0),
    ("self_attn.o_proj", "attention.wo", 1),
    ("mlp.gate_proj", "feed_forward.w1", 0),
    ("mlp.up_proj", "feed_forward.w3", 0),
    ("mlp.down_proj", "feed_forward.w2", 1),
    ("input_layernorm", "attention_norm", None),
    ("post_attention_layernorm", "ffn_norm", None),
]
TOP = [
    ("model.embed_tokens", "tok_embeddings", 0),
    ("model.norm", "norm", None),
    ("lm_head", "output", 0),
]


def write_meta(
    folder: Path,
    tensors: dict[str, Tensor],
    params: dict[str, int],
    num_ranks: int,
    *,
    embedding_dim: int = 0,
) -> None:
    """Write consolidated.NN.pth and params.json of tensors under Hugging Face's names."""
    folder.mkdir(exist_ok=True)
    head_dim = params["dim"] // params["n_heads"]
    rows = list(TOP)
    for layer in range(params["n_layers"]):
        rows += [(f"model.layers.{layer}.{a}", f"layers.{layer}.{b}", dim) for a, b, dim in LAYER]
    ranks = [{"rope.freqs": torch.ones(head_dim // 2)} for _ in range(num_ranks)]
    for here, there, dim in rows:
        weight = tensors[f"{here}.weight"]
        if there.endswith((".wq", ".wk")):
            weight = pairs_from_halves(weight, head_dim)
        if there == "tok_embeddings":
            dim = embedding_dim
        if there.endswith((".wk", ".wv")) and num_ranks > params["n_kv_heads"]:
            heads = weight.split(head_dim)
            parts = [heads[rank * len(heads) // num_ranks] for rank in range(num_ranks)]
        else:
            parts = [weight] * num_ranks if dim is None else list(weight.chunk(num_ranks, dim))
        for rank, part in zip(ranks, parts, strict=True):
            rank[f"{there}.weight"] = part.clone()
    for number, rank in enumerate(ranks):
        torch.save(rank, folder / f"consolidated.{number:02d}.pth")
    (folder / "params.json").write_text(json.dumps(params))


def pairs_from_halves(weight: Tensor, head_dim: int) -> Tensor:
    """Rows of each head from Hugging Face's order to Meta's."""
    heads = weight.view(-1, 2, head_dim // 2, weight.shape[1])
    return heads.transpose(1, 2).reshape(weight.shape)

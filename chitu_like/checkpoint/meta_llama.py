"""Meta's own files of Llama: `params.json` and one `consolidated.NN.pth` per model-parallel rank.

They differ from Hugging Face's in names, in being cut over the ranks (column-parallel weights along
the output, row-parallel ones along the input), and in the order of a query or key head's rows: Meta
rotates neighbouring rows (2i, 2i+1), Hugging Face row i with row i + head_dim/2.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from chitu_like.checkpoint.base import CheckpointReader
from chitu_like.checkpoint.files import WeightFiles
from chitu_like.checkpoint.shards import PickleShard
from chitu_like.core.errors import CheckpointError
from chitu_like.quantization.parameter import LazyTensor

PARAMS_FILE = "params.json"

# Meta's name -> Hugging Face's; within a layer, after "layers.<i>.".
_MODEL_NAMES = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attention.wq.weight": "self_attn.q_proj.weight",
    "attention.wk.weight": "self_attn.k_proj.weight",
    "attention.wv.weight": "self_attn.v_proj.weight",
    "attention.wo.weight": "self_attn.o_proj.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
}
_ROW_PARALLEL = (".wo.weight", ".w2.weight")
_DERIVED = ("rope.freqs",)  # a table that every implementation computes for itself


@dataclass(frozen=True, kw_only=True)
class MetaParams:
    """What cutting and ordering depend on, out of params.json.

    Attributes:
        dim: hidden size.
        n_heads: query heads.
        n_kv_heads: key and value heads.
        head_dim: of each.
    """

    dim: int
    n_heads: int
    n_kv_heads: int
    head_dim: int


class MetaLlamaReader(CheckpointReader):
    """Meta's files as if they were Hugging Face's, with the ranks' parts put together."""

    def __init__(self, ckpt_dir: Path, found: WeightFiles) -> None:
        super().__init__(ckpt_dir, found.num_bytes)
        self._params = read_params(found.files[0].parent / PARAMS_FILE)
        self._shards = [PickleShard(file) for file in found.files]

    def __iter__(self) -> Iterator[tuple[str, LazyTensor]]:
        """See CheckpointReader. All ranks' files are open at once."""
        first = self._shards[0].names()
        for shard in self._shards[1:]:
            if odd := sorted(set(first).symmetric_difference(shard.names())):
                raise CheckpointError(
                    f"{shard.path} and {self._shards[0].path.name} differ in {len(odd)} tensor(s), "
                    f"{odd[0]} among them: they are not of one model (models.ckpt_dir)"
                )
        for name in first:
            if name not in _DERIVED:
                parts = [shard.get(name) for shard in self._shards]
                yield hugging_face_name(name), self._joined(name, parts)

    def close(self) -> None:
        """See CheckpointReader."""
        for shard in self._shards:
            shard.close()

    def _joined(self, name: str, parts: Sequence[LazyTensor]) -> LazyTensor:
        if len(parts[0].shape) < 2:
            return parts[0]  # norms are the same on every rank
        params = self._params
        if name.endswith((".wk.weight", ".wv.weight")):
            # With more ranks than key heads, neighbouring ranks hold the same heads.
            num_rows = params.n_kv_heads * params.head_dim
            copies = max(1, len(parts) * parts[0].shape[0] // num_rows)
            parts = parts[::copies]
        reorder = None
        if name.endswith((".wq.weight", ".wk.weight")):
            reorder = _halves_from_pairs(params.head_dim)
        return JoinedTensor(parts, self._cut_dim(name, parts[0]), reorder)

    def _cut_dim(self, name: str, part: LazyTensor) -> int:
        # Llama 3 cuts the embedding along the vocabulary, Llama 1 and 2 along the hidden size.
        narrow_embedding = name.startswith("tok_embeddings") and part.shape[1] < self._params.dim
        return 1 if narrow_embedding or name.endswith(_ROW_PARALLEL) else 0


class JoinedTensor:
    """Parts of a matrix, one a rank, as the whole; put together when it is sliced."""

    def __init__(
        self, parts: Sequence[LazyTensor], dim: int, reorder: Callable[[Tensor], Tensor] | None
    ) -> None:
        shape = list(parts[0].shape)
        shape[dim] = sum(part.shape[dim] for part in parts)
        self.shape = torch.Size(shape)
        self.dtype = parts[0].dtype
        self._parts = parts
        self._dim = dim
        self._reorder = reorder

    def __getitem__(self, index: tuple[slice, ...], /) -> Tensor:
        """See LazyTensor. One part that needs no new order is a view of its file."""
        if len(self._parts) == 1:
            whole = self._parts[0][()]
        else:
            whole = torch.cat([part[()] for part in self._parts], dim=self._dim)
        return (self._reorder(whole) if self._reorder else whole)[index]


def _halves_from_pairs(head_dim: int) -> Callable[[Tensor], Tensor]:
    """Rows of each head from Meta's order (pairs beside each other) to Hugging Face's (halves)."""

    def reorder(weight: Tensor) -> Tensor:
        pairs = weight.view(-1, head_dim // 2, 2, weight.shape[1])
        return pairs.transpose(1, 2).reshape(weight.shape)

    return reorder


def hugging_face_name(name: str) -> str:
    """Hugging Face's name of Meta's tensor; a name not known stays, and is reported as left over."""
    if name in _MODEL_NAMES:
        return _MODEL_NAMES[name]
    head, _, tail = name.partition(".")
    layer, _, inner = tail.partition(".")
    if head == "layers" and inner in _LAYER_NAMES:
        return f"model.layers.{layer}.{_LAYER_NAMES[inner]}"
    return name


def read_params(path: Path) -> MetaParams:
    """Read params.json.

    Raises: CheckpointError if it is absent or lacks a size.
    """
    try:
        params = json.loads(path.read_text(encoding="utf-8"))
        dim, n_heads = int(params["dim"]), int(params["n_heads"])
        n_kv_heads = int(params.get("n_kv_heads") or n_heads)
        head_dim = dim // n_heads
    except OSError as error:
        raise CheckpointError(
            f"{path} is needed beside consolidated.*.pth: copy it there (models.ckpt_dir)"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise CheckpointError(f"{path} does not say dim and n_heads: download it again") from error
    return MetaParams(dim=dim, n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim)

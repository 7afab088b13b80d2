"""Meta's files are made here by the inverse of what the reader does."""

import json

import pytest
import torch
from torch import Tensor

from chitu_like.checkpoint.reader import open_checkpoint
from chitu_like.core.errors import CheckpointError

DIM, HEADS, KV_HEADS, FFN, VOCAB, LAYERS = 32, 4, 2, 48, 40, 2
HEAD_DIM = DIM // HEADS
PARAMS = {"dim": DIM, "n_heads": HEADS, "n_kv_heads": KV_HEADS, "n_layers": LAYERS}

# Hugging Face's name in a layer, Meta's, its shape, and along which dimension Meta cuts it.
LAYER = [
    ("self_attn.q_proj", "attention.wq", (HEADS * HEAD_DIM, DIM), 0),
    ("self_attn.k_proj", "attention.wk", (KV_HEADS * HEAD_DIM, DIM), 0),
    ("self_attn.v_proj", "attention.wv", (KV_HEADS * HEAD_DIM, DIM), 0),
    ("self_attn.o_proj", "attention.wo", (DIM, HEADS * HEAD_DIM), 1),
    ("mlp.gate_proj", "feed_forward.w1", (FFN, DIM), 0),
    ("mlp.up_proj", "feed_forward.w3", (FFN, DIM), 0),
    ("mlp.down_proj", "feed_forward.w2", (DIM, FFN), 1),
    ("input_layernorm", "attention_norm", (DIM,), None),
    ("post_attention_layernorm", "ffn_norm", (DIM,), None),
]
TOP = [
    ("model.embed_tokens", "tok_embeddings", (VOCAB, DIM), 0),
    ("model.norm", "norm", (DIM,), None),
    ("lm_head", "output", (VOCAB, DIM), 0),
]


def rows():
    yield from TOP
    for layer in range(LAYERS):
        for here, there, shape, dim in LAYER:
            yield f"model.layers.{layer}.{here}", f"layers.{layer}.{there}", shape, dim


def hugging_face_tensors() -> dict[str, Tensor]:
    return {f"{here}.weight": torch.randn(shape).bfloat16() for here, _, shape, _ in rows()}


def pairs_from_halves(weight: Tensor) -> Tensor:
    """Rows of each head from Hugging Face's order to Meta's."""
    heads = weight.view(-1, 2, HEAD_DIM // 2, DIM)
    return heads.transpose(1, 2).reshape(weight.shape)


def cut(name: str, weight: Tensor, dim: int | None, num_ranks: int) -> list[Tensor]:
    if dim is None:
        return [weight] * num_ranks
    if name.endswith((".wk", ".wv")) and num_ranks > KV_HEADS:
        heads = weight.split(HEAD_DIM)
        return [heads[rank * KV_HEADS // num_ranks].clone() for rank in range(num_ranks)]
    return [part.clone() for part in weight.chunk(num_ranks, dim)]


def write_meta(folder, tensors, num_ranks, *, embedding_dim=0) -> None:
    folder.mkdir(exist_ok=True)
    ranks = [{"rope.freqs": torch.ones(HEAD_DIM // 2)} for _ in range(num_ranks)]
    for here, there, _, dim in rows():
        weight = tensors[f"{here}.weight"]
        if there.endswith((".wq", ".wk")):
            weight = pairs_from_halves(weight)
        if there == "tok_embeddings":
            dim = embedding_dim
        for rank, part in zip(ranks, cut(there, weight, dim, num_ranks), strict=True):
            rank[f"{there}.weight"] = part
    for number, rank in enumerate(ranks):
        torch.save(rank, folder / f"consolidated.{number:02d}.pth")
    (folder / "params.json").write_text(json.dumps(PARAMS))


def assert_reads(folder, tensors) -> None:
    with open_checkpoint(folder) as reader:
        found = dict(reader)
    assert sorted(found) == sorted(tensors)
    for name, weight in tensors.items():
        assert (found[name].shape, found[name].dtype) == (weight.shape, weight.dtype), name
        assert torch.equal(found[name][()], weight), name
        assert torch.equal(found[name][(slice(1, 5),)], weight[1:5]), name


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
@pytest.mark.parametrize("below", [True, False], ids=["parent", "original itself"])
def test_ranks_join_to_hugging_faces_tensors(tmp_path, num_ranks, below):
    tensors = hugging_face_tensors()
    write_meta(tmp_path / "original", tensors, num_ranks)
    assert_reads(tmp_path if below else tmp_path / "original", tensors)


def test_llama_2_cuts_its_embedding_along_the_hidden_size(tmp_path):
    tensors = hugging_face_tensors()
    write_meta(tmp_path, tensors, 2, embedding_dim=1)
    assert_reads(tmp_path, tensors)


def test_hugging_face_files_win_over_original(tmp_path):
    write_meta(tmp_path / "original", hugging_face_tensors(), 1)
    torch.save({"x": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    with open_checkpoint(tmp_path) as reader:
        assert [name for name, _ in reader] == ["x"]


def test_an_unknown_name_is_passed_on_to_be_reported(tmp_path):
    write_meta(tmp_path, hugging_face_tensors(), 1)
    path = tmp_path / "consolidated.00.pth"
    torch.save(torch.load(path, weights_only=True) | {"vision.weight": torch.ones(2)}, path)
    with open_checkpoint(tmp_path) as reader:
        assert "vision.weight" in dict(reader)


def test_ranks_of_different_models_are_refused(tmp_path):
    write_meta(tmp_path, hugging_face_tensors(), 2)
    torch.save({"norm.weight": torch.ones(DIM)}, tmp_path / "consolidated.01.pth")
    with (
        open_checkpoint(tmp_path) as reader,
        pytest.raises(CheckpointError, match=r"consolidated.01.pth and consolidated.00.pth differ"),
    ):
        list(reader)


@pytest.mark.parametrize("content", [None, "{}", "not json", '{"dim": 8, "n_heads": 0}'])
def test_params_json_must_say_the_sizes(tmp_path, content):
    write_meta(tmp_path, hugging_face_tensors(), 1)
    (tmp_path / "params.json").unlink()
    if content is not None:
        (tmp_path / "params.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"params.json (is needed|does not say)"):
        open_checkpoint(tmp_path)

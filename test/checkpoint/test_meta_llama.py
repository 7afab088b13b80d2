import pytest
import torch
from checkpoint.meta_files import write_meta
from torch import Tensor

from chitu_like.checkpoint.reader import open_checkpoint
from chitu_like.core.errors import CheckpointError

DIM, HEADS, KV_HEADS, FFN, VOCAB, LAYERS = 32, 4, 2, 48, 40, 2
PARAMS = {"dim": DIM, "n_heads": HEADS, "n_kv_heads": KV_HEADS, "n_layers": LAYERS}
KV_SIZE = DIM // HEADS * KV_HEADS

SHAPES = {
    "self_attn.q_proj": (DIM, DIM),
    "self_attn.k_proj": (KV_SIZE, DIM),
    "self_attn.v_proj": (KV_SIZE, DIM),
    "self_attn.o_proj": (DIM, DIM),
    "mlp.gate_proj": (FFN, DIM),
    "mlp.up_proj": (FFN, DIM),
    "mlp.down_proj": (DIM, FFN),
    "input_layernorm": (DIM,),
    "post_attention_layernorm": (DIM,),
}


def hugging_face_tensors() -> dict[str, Tensor]:
    shapes = {
        "model.embed_tokens": (VOCAB, DIM),
        "model.norm": (DIM,),
        "lm_head": (VOCAB, DIM),
    }
    for layer in range(LAYERS):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in SHAPES.items()}
    return {f"{name}.weight": torch.randn(shape).bfloat16() for name, shape in shapes.items()}


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
    write_meta(tmp_path / "original", tensors, PARAMS, num_ranks)
    assert_reads(tmp_path if below else tmp_path / "original", tensors)


def test_llama_2_cuts_its_embedding_along_the_hidden_size(tmp_path):
    tensors = hugging_face_tensors()
    write_meta(tmp_path, tensors, PARAMS, 2, embedding_dim=1)
    assert_reads(tmp_path, tensors)


def test_hugging_face_files_win_over_original(tmp_path):
    write_meta(tmp_path / "original", hugging_face_tensors(), PARAMS, 1)
    torch.save({"x": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    with open_checkpoint(tmp_path) as reader:
        assert [name for name, _ in reader] == ["x"]


def test_an_unknown_name_is_passed_on_to_be_reported(tmp_path):
    write_meta(tmp_path, hugging_face_tensors(), PARAMS, 1)
    path = tmp_path / "consolidated.00.pth"
    torch.save(torch.load(path, weights_only=True) | {"vision.weight": torch.ones(2)}, path)
    with open_checkpoint(tmp_path) as reader:
        assert "vision.weight" in dict(reader)


def test_ranks_of_different_models_are_refused(tmp_path):
    write_meta(tmp_path, hugging_face_tensors(), PARAMS, 2)
    torch.save({"norm.weight": torch.ones(DIM)}, tmp_path / "consolidated.01.pth")
    with (
        open_checkpoint(tmp_path) as reader,
        pytest.raises(CheckpointError, match=r"consolidated.01.pth and consolidated.00.pth differ"),
    ):
        list(reader)


@pytest.mark.parametrize("content", [None, "{}", "not json", '{"dim": 8, "n_heads": 0}'])
def test_params_json_must_say_the_sizes(tmp_path, content):
    write_meta(tmp_path, hugging_face_tensors(), PARAMS, 1)
    (tmp_path / "params.json").unlink()
    if content is not None:
        (tmp_path / "params.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"params.json (is needed|does not say)"):
        open_checkpoint(tmp_path)

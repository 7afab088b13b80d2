"""Names of a checkpoint and parameters of a model, both ways."""

import pytest
import torch
from models.families import FAMILIES, twin_of
from models.run_model import attention_spec

from chitu_like.attention.ref import RefBackend
from chitu_like.models.base import Model
from chitu_like.models.build import build_model
from chitu_like.models.weight_map import IGNORED, Target


def model_of(name: str) -> Model:
    spec, _, _ = twin_of(name)
    backend = RefBackend(attention_spec(spec, 4, torch.float32))
    return build_model(spec, backend, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("name", FAMILIES)
def test_names_and_shapes_are_those_transformers_saves(name: str) -> None:
    model, weights = model_of(name), twin_of(name)[2]
    weight_map, parameters = model.weight_map(), dict(model.named_parameters())
    shapes = {}
    for target in weight_map.expected:
        source_name = weight_map.source_name(target)
        assert weight_map.resolve(source_name) == target
        shapes[source_name] = parameters[target.parameter].layouts[target.part].source_shape
    tied = {"lm_head.weight"} if twin_of(name)[0].tie_word_embeddings else set()
    assert shapes == {n: tuple(w.shape) for n, w in weights.items() if n not in tied}


def test_a_merged_parameter_has_parts() -> None:
    weight_map = model_of("llama").weight_map()
    key = weight_map.resolve("model.layers.2.self_attn.k_proj.weight")
    assert key == Target("layers.2.self_attn.qkv_proj.weight", "k")
    up = weight_map.resolve("model.layers.0.mlp.up_proj.weight")
    assert up == Target("layers.0.mlp.gate_up_proj.weight", 1)


def test_a_folder_saved_without_its_head_is_read_too() -> None:
    weight_map = model_of("opt").weight_map()
    for prefix in ("model.decoder.", "decoder."):
        found = weight_map.resolve(f"{prefix}layers.1.self_attn.out_proj.bias")
        assert found == Target("layers.1.self_attn.o_proj.bias")
    assert weight_map.resolve("decoder.version") is IGNORED


def test_only_what_no_model_needs_is_ignored() -> None:
    tied, untied = model_of("llama-tied").weight_map(), model_of("llama").weight_map()
    assert tied.resolve("lm_head.weight") is IGNORED
    assert untied.resolve("lm_head.weight") == Target("lm_head.weight")
    assert untied.resolve("model.layers.0.self_attn.rotary_emb.inv_freq") is IGNORED
    for unknown in ("model.layers.3.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.bias", ""):
        assert untied.resolve(unknown) is None

"""Every family and kind of rope computes what transformers computes."""

import copy
import random

import pytest
import torch
from models.families import FAMILIES, VOCAB_SIZE, hf_generate, hf_logits, tiny_config, twin_of
from models.run_model import PagedModel
from tolerance import assert_logits_close

from chitu_like.core.model_spec import ARCHITECTURES, ModelSpec
from chitu_like.models.base import model_classes

LONG = 60  # beyond the original 24 positions of the extended kinds, within 96


def random_tokens(count: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(3, VOCAB_SIZE), k=count)


def paged(name: str, **options: object) -> PagedModel:
    spec, _, weights = twin_of(name)
    return PagedModel(spec, weights, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_of_a_prompt_are_those_of_transformers(name: str) -> None:
    # dynamic: a prompt beyond the original length has no one right answer, see layers/rotary.py
    tokens = random_tokens(24 if "dynamic" in name else LONG)
    expected = hf_logits(twin_of(name)[1], tokens)
    assert_logits_close(paged(name).step([(0, tokens)])[0], expected)


@pytest.mark.parametrize("backend", ["ref", "sdpa"])
@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_tokens_are_those_of_transformers(name: str, backend: str) -> None:
    prompt = random_tokens(17, seed=1)
    expected = hf_generate(twin_of(name)[1], prompt, 24)
    assert paged(name, backend=backend).generate(prompt, 24) == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_any_cut_of_a_prompt_gives_the_same_logits(name: str) -> None:
    tokens = random_tokens(LONG, seed=2)
    whole = paged(name).step([(0, tokens)])[0]
    for cuts in ([1] * LONG, [7] * 8 + [4], [1, 30, 1, 1, 27]):
        runner, parts, done = paged(name), [], 0
        for cut in cuts:
            parts += runner.step([(0, tokens[done : done + cut])])
            done += cut
        assert_logits_close(torch.cat(parts), whole)


@pytest.mark.parametrize("name", FAMILIES)
def test_company_does_not_change_a_request(name: str) -> None:
    prompts = [random_tokens(count, seed=count) for count in (5, 31, 18, 1)]
    alone = [paged(name).generate(prompt, 6) for prompt in prompts]
    runner = paged(name)
    outputs: list[list[int]] = [[] for _ in prompts]
    for joining in range(len(prompts) + 6):
        decodes = [r for r in range(min(joining, len(prompts))) if len(outputs[r]) < 6]
        work = [(r, outputs[r][-1:]) for r in decodes]
        if joining < len(prompts):
            work.append((joining, prompts[joining]))
        if not work:
            break
        for (request, _), logits in zip(work, runner.step(work), strict=True):
            outputs[request].append(int(logits[-1].argmax()))
    assert outputs == alone


@pytest.mark.parametrize("name", ["llama", "mistral-window", "opt"])
@pytest.mark.parametrize("layout", [{"block_size": 96}, {"block_size": 16, "shuffle": False}])
def test_skew_and_paged_layouts_agree(name: str, layout: dict[str, object]) -> None:
    prompt = random_tokens(20, seed=3)
    assert paged(name, **layout).generate(prompt, 10) == paged(name).generate(prompt, 10)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["ref", "sdpa"])
@pytest.mark.parametrize("name", FAMILIES)
def test_cuda_gives_the_tokens_of_the_cpu(name: str, backend: str) -> None:
    prompts = [random_tokens(count, seed=count) for count in (21, 40)]
    expected = [paged(name).generate(prompt, 10) for prompt in prompts]
    runner = paged(name, backend=backend, device=torch.device("cuda"))
    found = [runner.generate(prompt, 10, request) for request, prompt in enumerate(prompts)]
    assert found == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "qwen3", "glm4", "opt-post-norm-projected"])
def test_half_precision_is_as_near_to_float32_as_transformers(
    name: str, dtype: torch.dtype
) -> None:
    tokens = random_tokens(LONG, seed=4)
    model = twin_of(name)[1]
    exact = hf_logits(model, tokens)
    theirs = hf_logits(copy.deepcopy(model).to(dtype), tokens).float() - exact
    ours = paged(name, dtype=dtype).step([(0, tokens)])[0].float() - exact
    # Both round, in different places: neither is nearer to the truth by much.
    assert ours.square().mean() < 2 * theirs.square().mean()


@pytest.mark.parametrize("name", FAMILIES)
def test_specs_count_the_parameters_of_transformers(name: str) -> None:
    spec, model, _ = twin_of(name)
    assert spec.num_parameters() == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_hand_written_config_reads_like_a_saved_one(name: str) -> None:
    spec, model, _ = twin_of(name)
    written = {**tiny_config(name), "architectures": [type(model).__name__]}
    read = ModelSpec.from_hf_config(written)
    assert (read.rope, read.layer_windows) == (spec.rope, spec.layer_windows)
    assert read.num_parameters() == spec.num_parameters()


def test_every_architecture_of_the_spec_has_a_model() -> None:
    assert model_classes.names() == list(ARCHITECTURES)

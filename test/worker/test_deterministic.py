"""infer.deterministic: who computes then; what it computes show deterministic_cases.py and end_to_end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_model import tiny_options

from chitu_like.attention.ref import RefBackend
from chitu_like.attention.triton import DETERMINISTIC_SPLIT, TritonBackend
from chitu_like.layers.linear import Linear
from chitu_like.models.base import Model
from chitu_like.models.build import build_model
from chitu_like.ops.linear import InvariantLinear
from chitu_like.worker import model_runner
from chitu_like.worker.model_runner import ModelRunner
from chitu_like.worker.options import make_backend


def kernels(monkeypatch: pytest.MonkeyPatch, *, deterministic: bool) -> list[bool]:
    """Whether each linear layer of a loaded runner's model has the invariant kernel."""
    built: list[Model] = []

    def build(*arguments: Any, **options: Any) -> Model:
        built.append(build_model(*arguments, **options))
        return built[-1]

    monkeypatch.setattr(model_runner, "build_model", build)
    monkeypatch.setattr(model_runner, "make_backend", lambda o: RefBackend(o.attention_spec))
    options = tiny_options(op_impl="torch", deterministic=deterministic)
    ModelRunner.build(options).load(load_format="dummy")
    (model,) = built
    assert isinstance(model, torch.nn.Module)
    linears = [module for module in model.modules() if isinstance(module, Linear)]
    assert len(linears) == 4 * options.spec.num_layers + 1  # the head
    return [isinstance(linear.kernel, InvariantLinear) for linear in linears]


def test_every_product_is_the_invariant_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    assert all(kernels(monkeypatch, deterministic=True))
    assert not any(kernels(monkeypatch, deterministic=False))


def test_attention_has_fixed_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, object]] = []
    monkeypatch.setattr(TritonBackend, "__init__", lambda _self, _spec, **given: made.append(given))
    monkeypatch.setattr(TritonBackend, "supports", lambda _spec: None)
    for deterministic in (True, False):
        make_backend(tiny_options(attn_type="triton", deterministic=deterministic))
    assert made == [{"split_tokens": DETERMINISTIC_SPLIT}, {}]

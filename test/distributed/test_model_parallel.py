"""Any layout of ranks computes the logits of one rank, for every dense family."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from distributed.parallel_models import LAYOUTS, NUM_RANKS, logits_of, run_layouts
from distributed.ranks import run_ranks
from models.families import FAMILIES, PARALLEL_SIZES, twin_of
from models.run_model import PagedModel
from tolerance import assert_logits_close
from torch import Tensor

from chitu_like.core.model_spec import ModelSpec

Found = list[dict[tuple[str, str], Tensor]]

# Nothing divides the vocabulary of 203; of five tokens the last of four ranks holds none.
NAMES = (*FAMILIES, "llama-tied of 5", "opt-bare of 5")


def twin(name: str) -> tuple[ModelSpec, dict[str, Tensor]]:
    family, _, vocab_size = name.partition(" of ")
    sizes = {**PARALLEL_SIZES, "vocab_size": int(vocab_size)} if vocab_size else PARALLEL_SIZES
    spec, _, weights = twin_of(family, **sizes)
    return spec, weights


def run(names: Sequence[str], folder: Path) -> Found:
    twins = {name: twin(name) for name in names}
    torch.save({name: weights for name, (_, weights) in twins.items()}, folder / "weights.pt")
    specs = {name: spec for name, (spec, _) in twins.items()}
    return run_ranks(run_layouts, NUM_RANKS, specs, folder / "weights.pt")


def check(name: str, found: Found) -> None:
    expected = logits_of(PagedModel(*twin(name)))
    for layout, (tp_size, _) in LAYOUTS.items():
        by_rank = [logits[layout, name] for logits in found if (layout, name) in logits]
        assert len(by_rank) == tp_size
        for logits in by_rank:
            assert torch.equal(logits, by_rank[0]), "ranks of a group differ"
        assert_logits_close(by_rank[0], expected)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return run(NAMES, tmp_path_factory.mktemp("all"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_one_rank(name: str, found: Found) -> None:
    check(name, found)

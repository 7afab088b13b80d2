"""What the ranks of test_model_parallel.py run: every layout, and every model in it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from models.run_model import PagedModel
from torch import Tensor

from chitu_like.cluster.placement import Placement
from chitu_like.core.model_spec import ModelSpec
from chitu_like.distributed.collectives import TorchGroup
from chitu_like.distributed.parallel_context import ParallelContext

NUM_RANKS = 4
NUM_LAYERS = 4
# ranks of a stage, layers of each stage
LAYOUTS: dict[str, tuple[int, tuple[int, ...]]] = {
    "tp 2": (2, (4,)),
    "tp 4 on 2 KV heads": (4, (4,)),
    "pp 2": (1, (3, 1)),
    "pp 3": (1, (1, 2, 1)),
    "tp 2 x pp 2": (2, (1, 3)),
}


def steps(vocab_size: int) -> list[list[tuple[int, list[int]]]]:
    """Prompts, chunks of prompts beside decodes, decodes alone."""
    rng = random.Random(3)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(vocab_size) for _ in range(count)]

    return [
        [(0, tokens(11)), (1, tokens(2))],
        [(0, tokens(1)), (1, tokens(6)), (2, tokens(20))],
        [(2, tokens(1)), (0, tokens(1)), (1, tokens(1))],
        [(1, tokens(1))],
    ]


def logits_of(model: PagedModel) -> Tensor:
    """Logits of every token of every step: [num_tokens, vocab_size]; empty before the last stage."""
    found = [logits for work in steps(model.spec.vocab_size) for logits in model.step(work)]
    return torch.cat(found) if found else torch.empty(0)


def run_layouts(
    rank: int, specs: Mapping[str, ModelSpec], weights_file: Path
) -> dict[tuple[str, str], Tensor]:
    """(layout, model) -> logits, of the layouts in whose last stage this rank is.

    Args:
        rank: of the default group.
        specs: by the models' names.
        weights_file: their state dicts of transformers, by the same names.
    """
    torch.set_num_threads(1)
    weights = torch.load(weights_file, weights_only=True)
    found = {}
    for layout, (tp_size, partition) in LAYOUTS.items():
        parallel = join(rank, tp_size, partition)
        for name, spec in specs.items() if parallel else ():
            logits = logits_of(PagedModel(spec, weights[name], parallel=parallel))
            if parallel.is_last_stage:
                found[layout, name] = logits
    return found


def join(rank: int, tp_size: int, partition: Sequence[int]) -> ParallelContext | None:
    """This rank's place in one instance on the first ranks; None where it has none."""
    placement = Placement.uniform(num_instances=1, tp_size=tp_size, layer_partition=partition)
    instance = placement.instances[0]
    groups = [dist.new_group(stage.ranks) for stage in instance.stages]  # every rank calls each
    if rank >= placement.num_ranks:
        return None
    seat = placement.seat(rank)
    parallel = ParallelContext.detached(instance, pp_rank=seat.pp_rank, tp_rank=seat.tp_rank)
    if tp_size == 1:
        return parallel
    return replace(parallel, tp=TorchGroup(groups[seat.pp_rank]))

"""A rank needs host memory for its share of a checkpoint, not for the whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoint.peak_memory import load_and_measure
from distributed.ranks import run_ranks
from models.run_model import CPU, attention_spec
from safetensors.torch import save_file

from chitu_like.attention.ref import RefBackend
from chitu_like.cluster.placement import Placement
from chitu_like.core.model_spec import ModelSpec
from chitu_like.distributed.parallel_context import ParallelContext
from chitu_like.models.build import build_model

SPEC = ModelSpec.from_hf_config(
    {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 8001,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 64,
        "torch_dtype": "float32",
    }
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """443 MB in one file, the worst case: a mapping ends with its file."""
    backend = RefBackend(attention_spec(SPEC, 4, torch.float32))
    model = build_model(SPEC, backend, torch.float32, CPU)
    weight_map, parameters = model.weight_map(), dict(model.named_parameters())
    tensors = {}
    for target in weight_map.expected:
        layout = parameters[target.parameter].layouts[target.part]
        tensors[weight_map.source_name(target)] = torch.randn(layout.source_shape)
    folder = tmp_path_factory.mktemp("checkpoint")
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("tp_size", "partition"), [(2, (6,)), (1, (3, 3)), (4, (6,))])
def test_a_rank_stays_near_its_share(folder: Path, tp_size: int, partition) -> None:
    whole_bytes = (folder / "model.safetensors").stat().st_size
    placement = Placement.uniform(num_instances=1, tp_size=tp_size, layer_partition=partition)
    num_read = 0
    for rank in range(placement.num_ranks):
        seat = placement.seat(rank)
        parallel = ParallelContext.detached(
            placement.instances[0], pp_rank=seat.pp_rank, tp_rank=seat.tp_rank
        )
        [(peak, report)] = run_ranks(load_and_measure, 1, folder, SPEC, parallel)
        # The rest: the mapped part of the file, and a layer in its old and its new order.
        assert peak / whole_bytes < 1 / placement.num_ranks + 0.25
        num_read += report.num_bytes
    # Norms are on every rank of a group, all else is read once.
    assert 0.99 < num_read / whole_bytes < 1.01

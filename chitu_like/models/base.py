"""What a model is to the rest of the package, and how families make themselves known."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from chitu_like.attention.base import AttentionBackend, ForwardBatch
from chitu_like.core.model_spec import ModelSpec
from chitu_like.core.registry import Registry
from chitu_like.distributed.parallel_context import ParallelContext
from chitu_like.layers.options import LayerOptions
from chitu_like.models.weight_map import NameTable, WeightMap


class Model(nn.Module, ABC):
    """A decoder-only transformer on one rank.

    Parameters are uninitialised WeightParameters. Once they are filled, every submodule that has a
    `process_after_load` is called once; then `forward` may be. What other stages hold is not there.

    Args:
        spec: the model.
        backend: computes attention.
        options: how layers are built.

    Attributes:
        layer_indices: GLOBAL indices of this rank's layers.
    """

    name_table: ClassVar[NameTable] = NameTable()

    @abstractmethod
    def __init__(self, spec: ModelSpec, backend: AttentionBackend, options: LayerOptions) -> None:
        super().__init__()
        own = options.parallel.layers
        self.layer_indices = range(spec.num_layers) if own is None else own
        self._parallel = options.parallel
        self._make_whole = partial(type(self), spec, backend, _whole_on_meta(options))

    @abstractmethod
    def forward(self, batch: ForwardBatch, hidden_states: Tensor | None = None) -> Tensor:
        """Run this rank's layers over a batch.

        Args:
            batch: planned by the backend; the layers' caches are written.
            hidden_states: [num_tokens, hidden_size] from the stage before, which may be modified;
                None where this rank embeds.

        Returns: [num_tokens, hidden_size] behind the last layer, not yet normalised:
            `compute_logits` or the next stage takes it.
        """

    @abstractmethod
    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """Logits [num_rows, vocab_size] in the model's dtype, of rows of what `forward` returned."""

    def weight_map(self) -> WeightMap:
        """Names in this family's checkpoints to the parameters of this rank."""
        names = [name for name, _ in self.named_parameters()]
        if self._parallel.num_ranks == 1:
            return WeightMap(self.name_table, names)
        return WeightMap(
            self.name_table, names, (name for name, _ in self._make_whole().named_parameters())
        )


def _whole_on_meta(options: LayerOptions) -> LayerOptions:
    """Options of the whole model without memory: whoever holds a part may ask what there is."""
    return replace(
        options, parallel=ParallelContext.single(), device=torch.device("meta"), op_impl="auto"
    )


model_classes: Registry[type[Model]] = Registry(
    "architecture", "chitu_like.models", "models.ckpt_dir"
)
"""config.json's `architectures` -> the class that computes it."""

register_model = model_classes.register

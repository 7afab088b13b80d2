"""WeightMap: names in a checkpoint to parameters of a model, both ways.

How the loader uses it (checkpoint/loader.py)::

    weight_map = model.weight_map()
    parameters = dict(model.named_parameters())         # of WeightParameter
    missing = set(weight_map.expected)
    for name, source in reader:                         # Hugging Face names
        target = weight_map.resolve(name)
        if target is IGNORED: continue
        if target is None: left_over.append(name); continue
        parameters[target.parameter].load(name, source, target.part)
        missing.discard(target)
    absent = [weight_map.source_name(target) for target in missing]

A family says only what differs from Hugging Face's spelling, as a `NameTable`.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from chitu_like.quantization.parameter import Part


class Ignored(enum.Enum):
    """The type of IGNORED."""

    IGNORED = "ignored"


IGNORED: Final = Ignored.IGNORED
"""A tensor that this rank does not need: a recomputed table, the copy of a tied head, what only other
ranks hold."""


class Target(NamedTuple):
    """Where a tensor of a checkpoint goes: a parameter, and which part of it."""

    parameter: str
    part: Part = None


@dataclass(frozen=True, kw_only=True)
class NameTable:
    """How a family's checkpoints spell what this package spells otherwise.

    Attributes:
        prefixes: of everything but the head, the usual one first ("model.", or "" in folders saved
            from the model without its head).
        parts: module in the checkpoint -> (module here, part), for merged parameters.
        renames: module in the checkpoint -> module here.
        ignored: patterns of whole names that are skipped.
    """

    prefixes: tuple[str, ...] = ("model.", "")
    parts: Mapping[str, tuple[str, Part]] = field(
        default_factory=lambda: {
            "q_proj": ("qkv_proj", "q"),
            "k_proj": ("qkv_proj", "k"),
            "v_proj": ("qkv_proj", "v"),
            "gate_proj": ("gate_up_proj", 0),
            "up_proj": ("gate_up_proj", 1),
        }
    )
    renames: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = (r".*\.rotary_emb\.inv_freq",)


class WeightMap:
    """The map of one model on one rank.

    Args:
        table: the family's spelling.
        parameter_names: as in `model.named_parameters()`; a tied head is not among them.
        whole_names: the same of the whole model, where this rank holds a part of it.
    """

    HEAD = "lm_head"

    def __init__(
        self,
        table: NameTable,
        parameter_names: Iterable[str],
        whole_names: Iterable[str] = (),
    ) -> None:
        self._table = table
        self._ignored = [re.compile(pattern) for pattern in table.ignored]
        self._source_names = _source_names(table, parameter_names)
        self._targets = {source: target for target, source in self._source_names.items()}
        self._known = set(_source_names(table, whole_names).values())

    @property
    def expected(self) -> frozenset[Target]:
        """Every target that a complete checkpoint fills."""
        return frozenset(self._source_names)

    def resolve(self, name: str) -> Target | Literal[Ignored.IGNORED] | None:
        """Where the tensor called `name` goes; None if no such tensor is known."""
        for bare in self._without_prefix(name):
            if bare in self._targets:
                return self._targets[bare]
            if bare in self._known:
                return IGNORED
        if any(pattern.fullmatch(name) for pattern in self._ignored):
            return IGNORED
        # Only a tied head can be absent from the targets: it is the embedding once more.
        return IGNORED if name == f"{self.HEAD}.weight" else None

    def source_name(self, target: Target) -> str:
        """What a checkpoint calls the tensor that fills `target`; inverse of `resolve`."""
        bare = self._source_names[target]
        return bare if bare.startswith(self.HEAD) else self._table.prefixes[0] + bare

    def _without_prefix(self, name: str) -> Iterable[str]:
        if name.startswith(self.HEAD):
            return (name,)
        return (name.removeprefix(p) for p in self._table.prefixes if name.startswith(p))


def _source_names(table: NameTable, parameter_names: Iterable[str]) -> dict[Target, str]:
    """Target -> what a checkpoint calls it, without prefix."""
    merged: dict[str, list[tuple[str, Part]]] = {}
    for source, (module, part) in table.parts.items():
        merged.setdefault(module, []).append((source, part))
    back = {here: source for source, here in table.renames.items()}
    names: dict[Target, str] = {}
    for name in parameter_names:
        path, module, leaf = _split(name)
        for source, part in merged.get(module, [(back.get(module, module), None)]):
            names[Target(name, part)] = _join(path, source, leaf)
    return names


def _split(name: str) -> tuple[str, str, str]:
    """'layers.3.mlp.down_proj.weight' -> ('layers.3.mlp', 'down_proj', 'weight')."""
    stem, _, leaf = name.rpartition(".")
    path, _, module = stem.rpartition(".")
    return path, module, leaf


def _join(path: str, module: str, leaf: str) -> str:
    return ".".join(filter(None, (path, module, leaf)))

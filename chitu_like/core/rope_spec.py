"""RopeSpec: how a model turns positions into rotations, read from config.json, torch-free."""

from __future__ import annotations

import math
from dataclasses import dataclass

from chitu_like.core.config_reader import ConfigReader
from chitu_like.core.errors import UnsupportedError

ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn")


@dataclass(frozen=True, kw_only=True)
class RopeSpec:
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864) and its long-context kinds.

    Attributes:
        kind: default; linear (positions / factor); dynamic (NTK: the base grows with the
            position); llama3 (long waves / factor); yarn (Peng et al. 2023, arXiv:2309.00071).
        theta: base of the wavelengths.
        rotary_dim: leading components of each head that are rotated; even.
        interleaved: pairs are (0, 1), (2, 3) ... rather than (i, i + rotary_dim / 2).
        factor: how many times longer the context becomes; 1 for default.
        original_max_position_embeddings: context length before the extension.
        attention_factor: multiplies cos and sin (yarn).
        low_freq_factor, high_freq_factor: llama3's band edges, in waves per original context.
        beta_fast, beta_slow: yarn's band edges, in rotations per original context.
        truncate: yarn's band edges are rounded outwards to whole components.
    """

    kind: str
    theta: float
    rotary_dim: int
    interleaved: bool = False
    factor: float = 1.0
    original_max_position_embeddings: int = 1
    attention_factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    @classmethod
    def from_config(
        cls,
        config: ConfigReader,
        *,
        head_dim: int,
        max_position_embeddings: int,
        interleaved: bool = False,
        partial_rotary_factor: float = 1.0,
    ) -> RopeSpec:
        """Read the old spelling (rope_theta beside rope_scaling) or the new (rope_parameters).

        Args:
            config: the whole config.json.
            head_dim: components of a head.
            max_position_embeddings: of the model; what a missing original length falls back to.
            interleaved: how the family pairs components.
            partial_rotary_factor: the family's share of rotated components where none is stated.

        Raises: CheckpointError for a broken key, UnsupportedError for an unknown kind.
        """
        rope = config.section("rope_parameters", "rope_scaling")
        kind = rope.text("rope_type", "type", default="default")
        if kind not in ROPE_KINDS:
            raise UnsupportedError(
                f"{rope.source}: rope_type={kind!r} is not known: use {', '.join(ROPE_KINDS)}"
            )
        stated = config.number("partial_rotary_factor", default=partial_rotary_factor)
        rotary_dim = int(head_dim * rope.number("partial_rotary_factor", default=stated))
        if rotary_dim % 2 or not 2 <= rotary_dim <= head_dim:
            raise config.broken("partial_rotary_factor", rotary_dim / head_dim, "an even part")
        spec = cls(
            kind=kind,
            theta=rope.number("rope_theta", default=config.number("rope_theta", default=10000.0)),
            rotary_dim=rotary_dim,
            interleaved=interleaved,
        )
        if kind == "default":
            return spec
        return spec._extended(config, rope, max_position_embeddings)

    def _extended(
        self, config: ConfigReader, rope: ConfigReader, max_position_embeddings: int
    ) -> RopeSpec:
        if self.kind in ("linear", "dynamic"):
            original = max_position_embeddings  # as transformers does, whatever the file says
        else:
            original = config.integer(
                "original_max_position_embeddings",
                default=rope.integer(
                    "original_max_position_embeddings", default=max_position_embeddings
                ),
            )
        stretch = max_position_embeddings / original if self.kind == "yarn" else None
        factor = rope.number("factor", **({} if stretch is None else {"default": stretch}))
        bands = {}
        if self.kind == "llama3":
            bands = {name: rope.number(name) for name in ("low_freq_factor", "high_freq_factor")}
            if bands["low_freq_factor"] >= bands["high_freq_factor"]:
                raise rope.broken("low_freq_factor", bands["low_freq_factor"], "the lower factor")
        return RopeSpec(
            kind=self.kind,
            theta=self.theta,
            rotary_dim=self.rotary_dim,
            interleaved=self.interleaved,
            factor=factor,
            original_max_position_embeddings=original,
            attention_factor=_attention_factor(rope, factor) if self.kind == "yarn" else 1.0,
            beta_fast=rope.number("beta_fast", default=32.0),
            beta_slow=rope.number("beta_slow", default=1.0),
            truncate=rope.flag("truncate", default=True),
            **bands,
        )

    def max_seq_len(self, max_position_embeddings: int) -> int:
        """Tokens the rotations are made for.

        Files of extended models state either the length before the extension (then the factor
        applies) or the one after it (then they also state the original length).
        """
        if self.kind in ("default", "llama3"):
            return max_position_embeddings
        reach = int(self.original_max_position_embeddings * self.factor)
        return max(max_position_embeddings, reach)


def _attention_factor(rope: ConfigReader, factor: float) -> float:
    """What yarn multiplies cos and sin by: stated, from two mscales, or from the factor."""
    if rope.find("attention_factor") is not None:
        return rope.number("attention_factor")
    mscale, mscale_all_dim = rope.find("mscale"), rope.find("mscale_all_dim")
    if mscale and mscale_all_dim:
        return _mscale(factor, rope.number("mscale")) / _mscale(
            factor, rope.number("mscale_all_dim")
        )
    return _mscale(factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

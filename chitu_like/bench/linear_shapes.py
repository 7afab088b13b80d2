"""The linear layers of a model: their shapes on one rank, and what a decoder layer fuses with each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from chitu_like.core.errors import ConfigError
from chitu_like.core.model_spec import ModelSpec
from chitu_like.layers.fused_decode import LINEAR_ADD, NORM_GATE_UP, NORM_LINEAR
from chitu_like.layers.linear import num_local_kv_heads
from chitu_like.ops.linear_tiles import LinearWork


@dataclass(frozen=True, kw_only=True)
class LinearShape:
    """A weight.

    Attributes:
        out_features, in_features: of one rank.
        works: what is computed with it, the plain product first.
    """

    out_features: int
    in_features: int
    works: tuple[LinearWork, ...]


def linear_shapes(spec: ModelSpec, tp_size: int) -> list[LinearShape]:
    """Weights of a decoder layer and the head, as one of `tp_size` ranks holds them.

    Only a layer that is whole on its rank, gated by SiLU and without norms behind its halves has
    fused work.

    Raises: ConfigError if the ranks cannot share the heads or the MLP.
    """
    if spec.num_heads % tp_size or spec.intermediate_size % tp_size:
        raise ConfigError(
            f"--tp-sizes {tp_size} does not divide {spec.num_heads} heads and an inner width of "
            f"{spec.intermediate_size}"
        )
    hidden, inner = spec.hidden_size, spec.intermediate_size // tp_size
    q_size = spec.num_heads // tp_size * spec.head_dim
    kv_size = num_local_kv_heads(spec.num_kv_heads, tp_size) * spec.head_dim
    is_fused = tp_size == 1 and spec.hidden_act in ("silu", "swish") and not spec.post_norms
    num_up = 1 if spec.opt else 2

    def shape(out_features: int, in_features: int, fused: LinearWork | None) -> LinearShape:
        works = (LinearWork(), fused) if fused and is_fused else (LinearWork(),)
        return LinearShape(out_features=out_features, in_features=in_features, works=works)

    return [
        shape(q_size + 2 * kv_size, hidden, NORM_LINEAR),
        shape(hidden, q_size, LINEAR_ADD),
        shape(num_up * inner, hidden, NORM_GATE_UP),
        shape(hidden, inner, LINEAR_ADD),
        shape(-(-spec.vocab_size // tp_size), hidden, None),
    ]


def merge_shapes(shapes: Iterable[LinearShape]) -> list[LinearShape]:
    """Each weight once, with all that is computed with it."""
    works: dict[tuple[int, int], dict[LinearWork, None]] = {}
    for shape in shapes:
        works.setdefault((shape.out_features, shape.in_features), {}).update(
            dict.fromkeys(shape.works)
        )
    return [
        LinearShape(out_features=out_features, in_features=in_features, works=tuple(found))
        for (out_features, in_features), found in works.items()
    ]

"""What a step costs: the questions that planner and simulator ask, whoever has the answer.

Answers come from measured tables (layer_tables.py), fitted formulas (step_fit.py) or a device's roofline
(roofline.py); a folder that holds them is a Profile (profile.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import msgspec

from chitu_like.core.batch import ScheduledBatch


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What placing a model takes to know of it.

    Attributes:
        name: as profiles call it.
        num_layers: of the decoder.
        layer_bytes: weights of a layer on one node.
        activation_bytes: of a token between two layers.
        token_bytes: of a token id on the wire.
        kv_bytes_per_token: keys and values of a token in ONE layer.
        num_heads, num_kv_heads: which tensor parallelism divides; 0 where nobody said.
        embedding_bytes: weights beside the layers: embeddings, head, last norm.
    """

    name: str
    num_layers: int
    layer_bytes: float
    activation_bytes: float
    token_bytes: float = 2.0
    kv_bytes_per_token: float = 0.0
    num_heads: int = 0
    num_kv_heads: int = 0
    embedding_bytes: float = 0.0


class LayerTimes(Protocol):
    """One layer of a model on one device: a batch costs prompt_s + decode_s for each layer it passes.

    Beyond what was measured both raise ConfigError: nothing is made up.
    """

    @property
    def max_layers(self) -> int:
        """That the device holds at most."""
        ...

    def prompt_s(self, num_tokens: float) -> float:
        """Seconds for so many prompt tokens together; 0 for none."""
        ...

    def decode_s(self, num_tokens: float) -> float:
        """Seconds for a token of each of so many requests; 0 for none."""
        ...

    def kv_tokens(self, num_layers: int) -> int:
        """Tokens whose keys and values fit beside so many layers, counted in each of these layers."""
        ...

    def max_prompt_requests(self, num_layers: int) -> int:
        """Prompts of one batch, at most."""
        ...

    def max_prompt_tokens(self, num_layers: int) -> float:
        """Tokens of the prompts of one batch, at most; inf where nothing but their number counts."""
        ...

    def max_decode_tokens(self, num_layers: int) -> int:
        """Decodes of one batch, at most."""
        ...


class BatchShape(msgspec.Struct, frozen=True, kw_only=True):
    """All of a batch that its time depends on. A struct: simulated steps make one each.

    Attributes:
        num_prefill_tokens: of chunks.
        prefill_pairs: sum over their tokens of the tokens each attends to, itself included.
        num_chunks: requests with a chunk.
        num_decodes: requests with one token.
        decode_context: tokens that those attend to, all together.
        prefill_context: tokens that stand before the chunks, in the cache already, all together.
    """

    num_prefill_tokens: int = 0
    prefill_pairs: int = 0
    num_chunks: int = 0
    num_decodes: int = 0
    decode_context: int = 0
    prefill_context: int = 0

    @classmethod
    def of(cls, batch: ScheduledBatch) -> BatchShape:
        """What the executor is given."""
        n = batch.num_decodes
        tokens, computed = batch.num_tokens, batch.num_computed
        if n == batch.num_reqs:  # most steps
            return cls(num_decodes=n, decode_context=sum(computed) + n)
        return cls(
            num_prefill_tokens=sum(tokens[n:]),
            prefill_pairs=sum(
                t * c + t * (t + 1) // 2 for t, c in zip(tokens[n:], computed[n:], strict=True)
            ),
            num_chunks=batch.num_reqs - n,
            num_decodes=n,
            decode_context=sum(computed[:n]) + n,
            prefill_context=sum(computed[n:]),
        )


class StepCost(Protocol):
    """One pipeline stage of an instance: so many layers on devices of one kind, tp of them."""

    def seconds(self, shape: BatchShape) -> float:
        """From the start of a batch on this stage to its end, launches and collectives included."""
        ...

"""The time below which a step of a model cannot fall on a device, whatever the program.

A decode step reads every weight and every cached key and value once; a prompt's tokens pass through
every matrix. The rates are those measured on the device (roof.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from chitu_like.bench.roof import Roof
from chitu_like.core.model_spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class ModelFloor:
    """Least times of a model's steps.

    Attributes:
        spec: its shape.
        roof: of the device.
        dtype_bytes: of a weight, a key and a value.
    """

    spec: ModelSpec
    roof: Roof
    dtype_bytes: int

    @property
    def _head_parameters(self) -> int:
        return self.spec.vocab_size * (
            self.spec.opt.word_embed_proj_dim if self.spec.opt else self.spec.hidden_size
        )

    @property
    def _read_parameters(self) -> int:
        """All but the embeddings, of which a step reads a few rows (a tied head is read whole)."""
        tied = self.spec.tie_word_embeddings
        return self.spec.num_parameters() - (0 if tied else self._head_parameters)

    def decode_s(self, batch_size: int, context: int) -> float:
        """Seconds of a step of so many requests with so many tokens each."""
        spec = self.spec
        cache_bytes = batch_size * context * spec.kv_bytes_per_token(self.dtype_bytes)
        num_bytes = self._read_parameters * self.dtype_bytes + cache_bytes
        attention_flops = 4 * self._q_size * spec.num_layers * batch_size * context
        return self.roof.floor_s(
            num_bytes, 2 * self._read_parameters * batch_size + attention_flops
        )

    def prefill_s(self, batch_size: int, length: int) -> float:
        """Seconds of so many prompts; the head sees the last token of each alone."""
        spec, num_tokens = self.spec, batch_size * length
        body = self._read_parameters - self._head_parameters
        num_pairs = batch_size * length * (length + 1) // 2
        num_flops = (
            2 * body * num_tokens
            + 2 * self._head_parameters * batch_size
            + 4 * self._q_size * spec.num_layers * num_pairs
        )
        return self.roof.floor_s(self._read_parameters * self.dtype_bytes, num_flops)

    @property
    def _q_size(self) -> int:
        return self.spec.num_heads * self.spec.head_dim

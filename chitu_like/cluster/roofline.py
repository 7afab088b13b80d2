"""What a step should take from a device's figures (Williams et al. 2009, the roofline model).

Every operator takes a launch and then max(flops / peak, bytes / bandwidth), peak and bandwidth being
those that its kernels reach; the figures of a device are fitted to tables of kernel times
(roofline_fit.py) or taken from its data sheet, and say which.
"""

from __future__ import annotations

import msgspec

from chitu_like.cluster.cost_model import BatchShape, ModelFacts
from chitu_like.core.errors import ConfigError
from chitu_like.core.model_spec import ModelSpec

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
SMALL_KERNELS = 5  # of a layer: two norms, rotation, storing keys and values, the activation
SMALL_PASSES = 12  # times that they read or write a token's hidden state, all together


class Rate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How fast one kind of kernel is.

    Attributes:
        overhead_s: of each call.
        flops_per_s: reached where arithmetic binds.
        bytes_per_s: reached where memory, or the link, binds.
    """

    overhead_s: float
    flops_per_s: float
    bytes_per_s: float

    def seconds(self, flops: float, num_bytes: float) -> float:
        """Of one call."""
        return self.overhead_s + max(flops / self.flops_per_s, num_bytes / self.bytes_per_s)


class DeviceFigures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device as the roofline sees it.

    Attributes:
        source: where the figures come from.
        memory_bytes: of the device.
        gemm: dense matrix products.
        prefill, decode: attention of prompts, of decodes.
        all_reduce: by the number of devices; bytes are those that each sends.
    """

    source: str
    memory_bytes: float
    gemm: Rate
    prefill: Rate
    decode: Rate
    all_reduce: dict[int, Rate] = {}

    def check(self, where: str) -> None:
        """Raise ConfigError for figures that no device has."""
        rates = {"gemm": self.gemm, "prefill": self.prefill, "decode": self.decode}
        rates |= {f"all_reduce[{n}]": rate for n, rate in self.all_reduce.items()}
        for key, rate in rates.items():
            if not (0 <= rate.overhead_s < 1 and rate.flops_per_s > 0 and rate.bytes_per_s > 0):
                raise ConfigError(
                    f"{where}: {key}={rate}: give rates above 0, an overhead under 1 s"
                )
        if not self.memory_bytes > 0:
            raise ConfigError(f"{where}: memory_bytes={self.memory_bytes}: give more than 0")


def model_facts(name: str, spec: ModelSpec, dtype_bytes: int | None = None) -> ModelFacts:
    """What placing takes to know, from a model's shape; dtype as the checkpoint's if not given."""
    size = dtype_bytes or DTYPE_BYTES[spec.dtype]
    layers = spec.num_layers * spec.layer_parameters()
    return ModelFacts(
        name=name,
        num_layers=spec.num_layers,
        layer_bytes=spec.layer_parameters() * size,
        activation_bytes=spec.hidden_size * size,
        kv_bytes_per_token=spec.kv_bytes_per_token(size) / spec.num_layers,
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        embedding_bytes=(spec.num_parameters() - layers) * size,
    )


class RooflineStep:
    """StepCost by the roofline.

    Args:
        figures: of the device.
        spec: of the model.
        tp: devices that share each layer.
        num_layers: of this stage.
        is_last: the head is computed here.
        device: its name, for messages.

    Raises: ConfigError where tp does not divide the heads, or nobody knows how fast so many devices
        reduce.
    """

    def __init__(
        self,
        figures: DeviceFigures,
        spec: ModelSpec,
        *,
        tp: int = 1,
        num_layers: int,
        is_last: bool = True,
        device: str = "the device",
    ) -> None:
        if spec.num_heads % tp:
            raise ConfigError(f"tp={tp} does not divide num_heads={spec.num_heads}")
        if tp > 1 and tp not in figures.all_reduce:
            known = ", ".join(map(str, sorted({1, *figures.all_reduce})))
            raise ConfigError(f"{device}: tp={tp}: all-reduce is known for tp = {known}")
        self._figures, self._num_layers, self._is_last = figures, num_layers, is_last
        self._size = size = DTYPE_BYTES[spec.dtype]
        self._hidden = hidden = spec.hidden_size
        q = spec.num_heads * spec.head_dim // tp
        kv = max(1, spec.num_kv_heads // tp) * spec.head_dim
        inner = -(-spec.intermediate_size // tp)
        num_up = 1 if spec.opt else 2
        self._products = (
            (q + 2 * kv, hidden),
            (hidden, q),
            (num_up * inner, hidden),
            (hidden, inner),
        )
        self._head = (-(-spec.vocab_size // tp), hidden)
        self._q, self._kv_bytes = q, 2 * kv * size
        self._reduce = figures.all_reduce[tp] if tp > 1 else None
        self._sent_share = 2 * (tp - 1) / tp
        self._parts: dict[int, tuple[float, float, float]] = {}
        self._head_s: dict[int, float] = {}

    def seconds(self, shape: BatchShape) -> float:
        """See StepCost."""
        tokens = shape.num_prefill_tokens + shape.num_decodes
        if not tokens:
            return 0.0
        products_s, small_s, reduce_s = self._parts.get(tokens) or self._remember_parts(tokens)
        layer_s = products_s + (self._attention_s(shape) + small_s) + reduce_s
        head_s = 0.0
        if self._is_last:
            rows = shape.num_chunks + shape.num_decodes
            head_s = self._head_s.get(rows) or self._remember_head(rows)
        return self._num_layers * layer_s + head_s

    def _remember_parts(self, tokens: int) -> tuple[float, float, float]:
        """A layer's products, small kernels and reductions: they hang on the number of tokens alone.

        A batch has few enough tokens for each number to be worked out once.
        """
        products_s = sum(self._product_s(tokens, n, k) for n, k in self._products)
        reduce_s = 0.0
        if self._reduce is not None:
            sent = self._sent_share * tokens * self._hidden * self._size
            reduce_s = 2 * self._reduce.seconds(0, sent)
        parts = self._parts[tokens] = products_s, self._small_s(tokens), reduce_s
        return parts

    def _remember_head(self, rows: int) -> float:
        """The head for so many tokens to be sampled."""
        head_s = self._head_s[rows] = self._product_s(rows, *self._head)
        return head_s

    def _product_s(self, m: int, n: int, k: int) -> float:
        return self._figures.gemm.seconds(2 * m * n * k, (m * k + k * n + m * n) * self._size)

    def _attention_s(self, shape: BatchShape) -> float:
        seconds = 0.0
        if tokens := shape.num_prefill_tokens:
            num_bytes = 2 * tokens * self._q * self._size
            num_bytes += (shape.prefill_context + tokens) * self._kv_bytes
            seconds += self._figures.prefill.seconds(4 * shape.prefill_pairs * self._q, num_bytes)
        if shape.num_decodes:
            context = shape.decode_context
            num_bytes = context * self._kv_bytes + 2 * shape.num_decodes * self._q * self._size
            seconds += self._figures.decode.seconds(4 * context * self._q, num_bytes)
        return seconds

    def _small_s(self, tokens: int) -> float:
        rate = self._figures.gemm
        moved = SMALL_PASSES * tokens * self._hidden * self._size
        return SMALL_KERNELS * rate.overhead_s + moved / rate.bytes_per_s

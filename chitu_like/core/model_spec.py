"""ModelSpec: a model's shape read from its config.json, torch-free.

The planner, the simulator, the doctor and the checks before loading need the shape and not the
weights. Nothing else in the package looks into config.json for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from chitu_like.core import meta_config
from chitu_like.core.config_reader import ConfigReader
from chitu_like.core.errors import CheckpointError, UnsupportedError
from chitu_like.core.families import FAMILIES, Family
from chitu_like.core.rope_spec import RopeSpec

ARCHITECTURES = tuple(sorted(FAMILIES))
"""Names in config.json's `architectures` that this version serves; models/ registers the same."""

ACTIVATIONS = ("gelu", "gelu_fast", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish")
DTYPES = ("bfloat16", "float16", "float32")
MAX_LAYERS = 10_000  # bound of what a config file may make us expand; real models have about 100


@dataclass(frozen=True, kw_only=True)
class OptSpec:
    """What only OPT (Zhang et al. 2022, arXiv:2205.01068) has.

    Attributes:
        word_embed_proj_dim: width of the embedding; hidden_size but for the 350m shape, which
            projects in and out.
        pre_norm: layers normalise their input (all but 350m), else what they give back.
        has_final_norm: a norm stands before the head.
        has_norm_weights: norms have weight and bias.
    """

    word_embed_proj_dim: int
    pre_norm: bool
    has_final_norm: bool
    has_norm_weights: bool


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A decoder-only transformer's shape.

    Attributes:
        architecture: one of ARCHITECTURES.
        model_type: the family as config.json spells it ("llama", "opt").
        num_heads, num_kv_heads: query heads, and the key-value heads they share.
        head_dim: components of a head, not always hidden_size / num_heads.
        intermediate_size: inner width of the MLP.
        hidden_act: activation of the MLP.
        max_position_embeddings: as stated; `max_seq_len` says what may be served.
        norm_eps: added to the mean square or variance.
        tie_word_embeddings: the head is the embedding.
        qkv_bias, o_bias, mlp_bias: which linear layers have a bias.
        qk_norm: queries and keys are normalised per head (Qwen3).
        post_norms: what attention and MLP give back is normalised too (GLM-4-0414).
        rope: None for learned positions (OPT).
        layer_windows: for each layer, tokens a query sees (itself included); None for all.
        dtype: of the checkpoint: bfloat16, float16 or float32.
        eos_token_ids: tokens that end an answer; may be empty.
        bos_token_id: None where the family has none.
        opt: OPT's own shape, None elsewhere.
    """

    architecture: str
    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    hidden_act: str
    max_position_embeddings: int
    norm_eps: float
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    post_norms: bool
    rope: RopeSpec | None
    layer_windows: tuple[int | None, ...]
    dtype: str
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    opt: OptSpec | None = None

    @classmethod
    def from_folder(cls, path: str | Path) -> ModelSpec:
        """Read `path`/config.json, or params.json of Meta's original/ layout (Llama 3).

        Raises: CheckpointError naming file and key, UnsupportedError for an unknown architecture.
        """
        folder = Path(path)
        if (folder / "config.json").is_file():
            return _read(ConfigReader.from_file(folder / "config.json"))
        for params in (folder / "params.json", folder / "original" / "params.json"):
            if params.is_file():
                converted = meta_config.to_hf_config(ConfigReader.from_file(params))
                return _read(ConfigReader(converted, str(params)))
        raise CheckpointError(
            f"{folder}: no config.json there: name a Hugging Face folder (models.ckpt_dir)"
        )

    @classmethod
    def from_hf_config(cls, config: Mapping[str, object], source: str = "config.json") -> ModelSpec:
        """Read a parsed config.json, in old or new spelling.

        Args:
            config: the parsed file; overrides already merged in.
            source: what it was read from, for messages.

        Raises: CheckpointError naming the key, UnsupportedError for an unknown architecture.
        """
        return _read(ConfigReader(config, source))

    @property
    def max_seq_len(self) -> int:
        """Tokens of one request the model is made for, context extension included."""
        if self.rope is None:
            return self.max_position_embeddings
        return self.rope.max_seq_len(self.max_position_embeddings)

    def num_parameters(self) -> int:
        """Weights of the whole model; tied embeddings are counted once."""
        hidden = self.hidden_size
        width = self.opt.word_embed_proj_dim if self.opt else hidden
        embeddings = self.vocab_size * width * (1 if self.tie_word_embeddings else 2)
        if self.opt is None:
            return embeddings + self.num_layers * self.layer_parameters() + hidden
        positions = (self.max_position_embeddings + 2) * hidden
        projections = 2 * width * hidden if width != hidden else 0
        final_norm = self._norm_parameters() if self.opt.has_final_norm else 0
        layers = self.num_layers * self.layer_parameters()
        return embeddings + positions + projections + layers + final_norm

    def layer_parameters(self) -> int:
        """Weights of one layer."""
        hidden, inner = self.hidden_size, self.intermediate_size
        q_size = self.num_heads * self.head_dim
        qkv_size = q_size + 2 * self.num_kv_heads * self.head_dim
        num_up = 1 if self.opt else 2  # a gate stands beside `up` in all families but OPT
        weights = hidden * qkv_size + q_size * hidden + (num_up + 1) * hidden * inner
        biases = self.qkv_bias * qkv_size + self.o_bias * hidden
        biases += self.mlp_bias * (num_up * inner + hidden)
        norms = (4 if self.post_norms else 2) * self._norm_parameters()
        return weights + biases + norms + (2 * self.head_dim if self.qk_norm else 0)

    def kv_bytes_per_token(self, dtype_bytes: int) -> int:
        """Bytes that one token's keys and values take over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * dtype_bytes

    def _norm_parameters(self) -> int:
        if self.opt is None:
            return self.hidden_size
        return 2 * self.hidden_size if self.opt.has_norm_weights else 0


def _read(config: ConfigReader) -> ModelSpec:
    architecture, family = _find_family(config)
    hidden_size = config.integer("hidden_size")
    num_heads = config.integer("num_attention_heads")
    num_layers = config.integer("num_hidden_layers", high=MAX_LAYERS)
    kv_heads = family.num_kv_heads or num_heads
    head_dim = config.integer(
        "head_dim", default=family.head_dim or max(1, hidden_size // num_heads)
    )
    max_positions = config.integer("max_position_embeddings", default=family.max_positions)
    spec = ModelSpec(
        architecture=architecture,
        model_type=config.text("model_type", default=family.model_type),
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=config.integer("num_key_value_heads", default=kv_heads),
        head_dim=head_dim,
        intermediate_size=config.integer(family.intermediate_key),
        hidden_act=config.text(family.activation_key, default=family.activation),
        max_position_embeddings=max_positions,
        norm_eps=config.number("rms_norm_eps", default=family.norm_eps),
        tie_word_embeddings=config.flag("tie_word_embeddings", default=family.is_tied),
        qkv_bias=family.qkv_bias(config),
        o_bias=family.o_bias(config),
        mlp_bias=family.mlp_bias(config),
        qk_norm=family.qk_norm,
        post_norms=family.post_norms,
        rope=_read_rope(config, family, head_dim, max_positions),
        layer_windows=family.windows(config, num_layers),
        dtype=_read_dtype(config),
        eos_token_ids=config.token_ids("eos_token_id"),
        bos_token_id=next(iter(config.token_ids("bos_token_id")), None),
        opt=_read_opt(config, hidden_size) if family.model_type == "opt" else None,
    )
    _check(spec, config)
    return spec


def _find_family(config: ConfigReader) -> tuple[str, Family]:
    names = config.find("architectures")
    if isinstance(names, list) and names:
        name = str(names[0])
    else:
        model_type = config.text("model_type")
        name = next((n for n, f in FAMILIES.items() if f.model_type == model_type), model_type)
    if name not in FAMILIES:
        raise UnsupportedError(
            f"{config.source}: architecture {name!r} is not served: use a model of "
            f"{', '.join(ARCHITECTURES)} (models.ckpt_dir)"
        )
    return name, FAMILIES[name]


def _read_rope(
    config: ConfigReader, family: Family, head_dim: int, max_positions: int
) -> RopeSpec | None:
    if family.model_type == "opt":
        return None
    return RopeSpec.from_config(
        config,
        head_dim=head_dim,
        max_position_embeddings=max_positions,
        interleaved=family.interleaved_rope,
        partial_rotary_factor=family.partial_rotary_factor,
    )


def _read_dtype(config: ConfigReader) -> str:
    name = config.text("dtype", "torch_dtype", default="float32").removeprefix("torch.")
    if name not in DTYPES:
        raise config.broken("torch_dtype", name, f"one of {', '.join(DTYPES)}")
    return name


def _read_opt(config: ConfigReader, hidden_size: int) -> OptSpec:
    pre_norm = config.flag("do_layer_norm_before", default=True)
    return OptSpec(
        word_embed_proj_dim=config.integer("word_embed_proj_dim", default=hidden_size),
        pre_norm=pre_norm,
        has_final_norm=pre_norm and not config.flag("_remove_final_layer_norm", default=False),
        has_norm_weights=config.flag("layer_norm_elementwise_affine", default=True),
    )


def _check(spec: ModelSpec, config: ConfigReader) -> None:
    if spec.num_heads % spec.num_kv_heads:
        raise config.broken(
            "num_key_value_heads",
            spec.num_kv_heads,
            f"a divisor of num_attention_heads={spec.num_heads}",
        )
    if spec.opt and spec.hidden_size % spec.num_heads:
        raise config.broken("num_attention_heads", spec.num_heads, "a divisor of hidden_size")
    if spec.hidden_act not in ACTIVATIONS:
        raise UnsupportedError(
            f"{config.source}: activation {spec.hidden_act!r} is not known: use "
            f"{', '.join(ACTIVATIONS)}"
        )

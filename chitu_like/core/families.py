"""What each dense family assumes where its config.json is silent, as transformers does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from chitu_like.core.config_reader import ConfigReader

WindowRule = Literal["none", "all_layers", "upper_layers"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """Defaults and fixed traits of one architecture. Field names are those of ModelSpec.

    Attributes:
        num_kv_heads, head_dim: defaults; 0 for num_heads and hidden_size / num_heads.
        bias_keys: config keys that switch the bias of (qkv, o, mlp) and the value where the key is
            absent; a fixed trait has no key.
        window_rule: which layers see a sliding window: none; all of them where one is stated
            (Mistral); those from max_window_layers on, or those that layer_types names (Qwen).
    """

    model_type: str
    num_kv_heads: int = 0
    head_dim: int = 0
    max_positions: int = 2048
    norm_eps: float = 1e-6
    is_tied: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    interleaved_rope: bool = False
    partial_rotary_factor: float = 1.0
    intermediate_key: str = "intermediate_size"
    activation_key: str = "hidden_act"
    activation: str = "silu"
    bias_keys: tuple[tuple[str, bool], tuple[str, bool], tuple[str, bool]] = (
        ("", False),
        ("", False),
        ("", False),
    )
    window_rule: WindowRule = "none"

    def qkv_bias(self, config: ConfigReader) -> bool:
        """Whether q_proj, k_proj and v_proj have a bias."""
        return self._bias(config, 0)

    def o_bias(self, config: ConfigReader) -> bool:
        """Whether o_proj has a bias."""
        return self._bias(config, 1)

    def mlp_bias(self, config: ConfigReader) -> bool:
        """Whether the linear layers of the MLP have biases."""
        return self._bias(config, 2)

    def windows(self, config: ConfigReader, num_layers: int) -> tuple[int | None, ...]:
        """For each layer, tokens a query sees (itself included); None for all of them."""
        if self.window_rule == "none":
            return (None,) * num_layers
        if self.window_rule == "all_layers":
            return (_stated_window(config),) * num_layers
        return _upper_windows(config, num_layers)

    def _bias(self, config: ConfigReader, which: int) -> bool:
        key, default = self.bias_keys[which]
        return config.flag(key, default=default) if key else default


def _stated_window(config: ConfigReader) -> int | None:
    """`sliding_window`; null means none, and an absent key what transformers assumes."""
    if config.has("sliding_window") and config.find("sliding_window") is None:
        return None
    return config.integer("sliding_window", default=4096)


def _upper_windows(config: ConfigReader, num_layers: int) -> tuple[int | None, ...]:
    window = None
    if config.flag("use_sliding_window", default=False):
        window = _stated_window(config)
    kinds = config.find("layer_types")
    if kinds is None:
        first = config.find("max_window_layers")
        first = 28 if first is None else first
        if not isinstance(first, int) or isinstance(first, bool) or first < 0:
            raise config.broken("max_window_layers", first, "a whole number from 0")
        return tuple(window if layer >= first else None for layer in range(num_layers))
    if not isinstance(kinds, list) or len(kinds) != num_layers:
        raise config.broken("layer_types", kinds, f"a list of {num_layers} kinds, one a layer")
    known = {"full_attention": None, "sliding_attention": window}
    if unknown := [kind for kind in kinds if kind not in known]:
        raise config.broken("layer_types", unknown[0], " or ".join(known))
    if window is None and "sliding_attention" in kinds:
        raise config.broken("sliding_window", None, "set where layer_types has sliding_attention")
    return tuple(known[kind] for kind in kinds)


_LLAMA = Family(
    model_type="llama",
    bias_keys=(("attention_bias", False), ("attention_bias", False), ("mlp_bias", False)),
)

FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": _LLAMA,
    "LLaMAForCausalLM": _LLAMA,  # how the first converted Llama folders spell it
    "MistralForCausalLM": Family(
        model_type="mistral", num_kv_heads=8, max_positions=131072, window_rule="all_layers"
    ),
    "Qwen2ForCausalLM": Family(
        model_type="qwen2",
        num_kv_heads=32,
        max_positions=32768,
        bias_keys=(("", True), ("", False), ("", False)),
        window_rule="upper_layers",
    ),
    "Qwen3ForCausalLM": Family(
        model_type="qwen3",
        num_kv_heads=32,
        head_dim=128,
        max_positions=32768,
        qk_norm=True,
        bias_keys=(("attention_bias", False), ("attention_bias", False), ("", False)),
        window_rule="upper_layers",
    ),
    "GlmForCausalLM": Family(
        model_type="glm",
        num_kv_heads=2,
        head_dim=128,
        max_positions=131072,
        norm_eps=1.5625e-07,
        interleaved_rope=True,
        partial_rotary_factor=0.5,
        bias_keys=(("attention_bias", True), ("", False), ("", False)),
    ),
    "Glm4ForCausalLM": Family(
        model_type="glm4",
        num_kv_heads=2,
        head_dim=128,
        max_positions=131072,
        norm_eps=1.5625e-07,
        post_norms=True,
        interleaved_rope=True,
        partial_rotary_factor=0.5,
        bias_keys=(("attention_bias", True), ("", False), ("", False)),
    ),
    "OPTForCausalLM": Family(
        model_type="opt",
        norm_eps=1e-5,
        is_tied=True,
        intermediate_key="ffn_dim",
        activation_key="activation_function",
        activation="relu",
        bias_keys=(("enable_bias", True), ("enable_bias", True), ("enable_bias", True)),
    ),
}

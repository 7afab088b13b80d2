"""The Qwen3 architecture in plain torch, just what training tiny-chat needs."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Shape = Mapping[str, int]


class RMSNorm(nn.Module):
    """Divide by the root mean square over the last dimension, then scale."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [..., size]."""
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight, 1e-6).to(x.dtype)


class Attention(nn.Module):
    """Grouped query attention with normalised queries and keys."""

    def __init__(self, config: Shape) -> None:
        super().__init__()
        hidden, self.head_dim = config["hidden_size"], config["head_dim"]
        q_size = config["num_attention_heads"] * self.head_dim
        kv_size = config["num_key_value_heads"] * self.head_dim
        self.q_proj = nn.Linear(hidden, q_size, bias=False)
        self.k_proj = nn.Linear(hidden, kv_size, bias=False)
        self.v_proj = nn.Linear(hidden, kv_size, bias=False)
        self.o_proj = nn.Linear(q_size, hidden, bias=False)
        self.q_norm = RMSNorm(self.head_dim)
        self.k_norm = RMSNorm(self.head_dim)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Attend causally: x [rows, length, hidden_size]; cos and sin [length, head_dim]."""
        split = (*x.shape[:2], -1, self.head_dim)
        q = rotate(self.q_norm(self.q_proj(x).view(split)).transpose(1, 2), cos, sin)
        k = rotate(self.k_norm(self.k_proj(x).view(split)).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(split).transpose(1, 2)
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        out = F.scaled_dot_product_attention(q, k, v.to(q.dtype), is_causal=True)
        return self.o_proj(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """The gated feed-forward network (SwiGLU)."""

    def __init__(self, config: Shape) -> None:
        super().__init__()
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token of x [..., hidden_size] alone."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, config: Shape, dropout: float) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config["hidden_size"])
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config["hidden_size"])
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Add attention and MLP to the residual stream x [rows, length, hidden_size]."""
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), cos, sin))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))  # type: ignore[no-any-return]


class TinyQwen3(nn.Module):
    """Qwen3ForCausalLM with tied embeddings; parameters are named as Hugging Face names them."""

    def __init__(self, config: Shape, dropout: float) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.layers = nn.ModuleList(
            Layer(config, dropout) for _ in range(config["num_hidden_layers"])
        )
        self.norm = RMSNorm(config["hidden_size"])
        self.theta, self.head_dim = config["rope_theta"], config["head_dim"]
        deep = (2 * config["num_hidden_layers"]) ** -0.5
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                # Weights that write to the residual stream start smaller, as in GPT-2.
                scale = deep if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                nn.init.normal_(weight, std=0.03 * scale)

    def forward(self, ids: Tensor) -> Tensor:
        """Give the logits [rows, length, vocab_size] of token ids [rows, length]."""
        frequencies = self.theta ** (
            -torch.arange(0, self.head_dim, 2, device=ids.device) / self.head_dim
        )
        angles = torch.arange(ids.shape[1], device=ids.device)[:, None] * frequencies
        angles = torch.cat((angles, angles), dim=-1)  # [length, head_dim]
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, angles.cos(), angles.sin())
        return F.linear(self.norm(x), self.embed_tokens.weight)

    def compile_layers(self) -> None:
        """Compile each layer; they share one compiled function for a row length."""
        for layer in self.layers:
            layer.compile(dynamic=False)

    def checkpoint(self) -> dict[str, Tensor]:
        """Give the weights in bfloat16 under Hugging Face's names."""
        weights = self.state_dict().items()
        return {f"model.{name}": w.to("cpu", torch.bfloat16).contiguous() for name, w in weights}


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary position embedding (split halves) to x [rows, heads, length, head_dim]."""
    left, right = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-right, left), dim=-1) * sin).to(x.dtype)

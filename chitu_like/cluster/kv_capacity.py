"""How many tokens' keys and values fit beside the weights: DistServe's formula."""

from __future__ import annotations

from chitu_like.cluster.cost_model import ModelFacts
from chitu_like.core.errors import ConfigError

UTILIZATION = 0.9  # of a device's memory
RESERVED = 0.01  # of it, for activations


def kv_tokens(
    facts: ModelFacts,
    *,
    memory_bytes: float,
    tp: int = 1,
    num_layers: int | None = None,
    weight_bytes: float | None = None,
    utilization: float = UTILIZATION,
) -> int:
    """Tokens of which a stage keeps keys and values; 0 where the weights do not fit.

    Args:
        facts: of the model.
        memory_bytes: of one device.
        tp: devices of the stage, which share its weights and heads.
        num_layers: of the stage; None: all.
        weight_bytes: of the stage, where they are not its layers'.
        utilization: share of the memory to plan for.

    Raises: ConfigError where nobody said how large keys and values are.
    """
    if not facts.kv_bytes_per_token > 0:
        raise ConfigError(f"{facts.name}: kv_bytes_per_token is not there: give it in model.json")
    held = facts.num_layers if num_layers is None else num_layers
    weights = held * facts.layer_bytes if weight_bytes is None else weight_bytes
    room = memory_bytes * (utilization - RESERVED) - weights / tp
    # A device keeps one head at least, however many share the layer.
    share = min(tp, facts.num_kv_heads) if facts.num_kv_heads else tp
    return max(0, int(room / (held * facts.kv_bytes_per_token / share)))

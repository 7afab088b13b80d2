"""Which node holds which layers: pipelines that requests find their own way through (Helix).

Unlike placement.py, where ranks form instances, every node here stands for itself: a request goes from
node to node, each of which runs the layers it holds that come next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from chitu_like.core.errors import ConfigError


@dataclass(frozen=True)
class LayerPlacement:
    """Layers of each node.

    Args:
        num_layers: of the model.
        held: node name -> consecutive layers; nodes that hold none are absent.

    Raises: ConfigError for empty ranges, or layers that the model does not have.
    """

    num_layers: int
    held: Mapping[str, range]

    def __post_init__(self) -> None:
        for name, layers in self.held.items():
            if not (0 <= layers.start < layers.stop <= self.num_layers and layers.step == 1):
                raise ConfigError(
                    f"node {name} holds layers {layers.start} to {layers.stop - 1}: the model has 0 "
                    f"to {self.num_layers - 1}, and a node that is used holds at least one"
                )

    def uncovered(self) -> list[int]:
        """Layers that no node holds: with any, nothing can be served."""
        held = {layer for layers in self.held.values() for layer in layers}
        return [layer for layer in range(self.num_layers) if layer not in held]

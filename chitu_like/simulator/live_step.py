"""What a step costs while another instance helps: ZigZag in the mean, batch by batch.

With layers [0, k) of L landed the new instance runs them ahead and the old one the rest, so that of
many batches each costs the old one (L - k) / L of its time; from half on both run half, for then each
has as much to do as the other. Passing activations is not counted: they are small beside weights.
"""

from __future__ import annotations

from collections.abc import Callable

from chitu_like.cluster.cost_model import BatchShape, StepCost


class HelpedStep:
    """A StepCost that is cheaper while somebody helps.

    Args:
        cost: alone.

    Attributes:
        share_ready: the share of the layers that the helper has by now; None without one.
    """

    def __init__(self, cost: StepCost) -> None:
        """Start without help."""
        self._cost = cost
        self.share_ready: Callable[[], float] | None = None

    def seconds(self, shape: BatchShape) -> float:
        """See StepCost."""
        seconds = self._cost.seconds(shape)
        if self.share_ready is not None:
            seconds *= 1.0 - min(0.5, self.share_ready())
        return seconds

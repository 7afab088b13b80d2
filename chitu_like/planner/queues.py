"""How long requests are at a node and on a link in a steady state: batches that follow each other, and queues.

Means of rates, in closed form: nothing is simulated, so that a search can ask for thousands a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chitu_like.cluster.cost_model import LayerTimes
from chitu_like.planner.throughput import TypicalLoad

POINTS = 16
"""Of a device's decode times, through which a straight line is laid."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerSpeed:
    """Of ONE layer on a node; a batch of d decodes takes fixed_s + d token_s.

    Attributes:
        fixed_s: of a batch, however small.
        token_s: of each decode.
        prompt_s: of a prompt of mean length.
        max_decodes: of a batch.
        kv_room: requests x layers that may be on the node.
    """

    fixed_s: float
    token_s: float
    prompt_s: float
    max_decodes: int
    kv_room: float

    @classmethod
    def of(
        cls, times: LayerTimes, num_layers: int, mean_input: float, kv_room: float
    ) -> LayerSpeed:
        """Lay a line of least relative error through batches from few decodes to the most."""
        most = times.max_decode_tokens(num_layers)
        first = min(2, most)  # tables say of a lone decode what half a batch of two takes
        xs = [first * (most / first) ** (i / (POINTS - 1)) for i in range(POINTS)]
        ys = [times.decode_s(x) for x in xs]
        weights = [1 / (y * y) for y in ys]  # long pipelines have small batches: all count alike
        total = sum(weights)
        mean_x = sum(w * x for w, x in zip(weights, xs, strict=True)) / total
        mean_y = sum(w * y for w, y in zip(weights, ys, strict=True)) / total
        spread = sum(w * (x - mean_x) ** 2 for w, x in zip(weights, xs, strict=True)) or 1.0
        both = sum(w * (x - mean_x) * (y - mean_y) for w, x, y in zip(weights, xs, ys, strict=True))
        # A batch of none takes no less than nothing.
        token_s = min(max(both / spread, 0.0), mean_y / mean_x)
        return cls(
            fixed_s=mean_y - token_s * mean_x,
            token_s=token_s,
            prompt_s=times.prompt_s(mean_input),
            max_decodes=most,
            kv_room=kv_room,
        )


class NodeQueue:
    """A node on which batches follow each other, each with all who came during the last.

    Requests that come `a` a second through n layers make batches of B seconds, each followed by one of
    n (fixed + a O B token) seconds; in the steady state that is B again: B = n fixed / (1 - n a O token).
    Who comes waits B/2 for the end of a batch, and is in the next. Prompts add n a B prompt in the mean,
    but one by one: the batches that others meet last a (n prompt)^2 longer.
    """

    __slots__ = ("_load", "layers", "rate", "speed")

    def __init__(self, speed: LayerSpeed, load: TypicalLoad) -> None:
        self._load = load
        self.speed = speed
        self.rate = 0.0
        self.layers = 0.0  # that a request runs here, on the average

    def add(self, rate: float, layers: int) -> None:
        """Count the requests of a route in."""
        self.layers = (self.layers * self.rate + layers * rate) / (self.rate + rate)
        self.rate += rate

    def delays(self, share: float) -> NodeDelay | None:
        """Seconds that a batch, a decode and a prompt take; None if the node cannot keep up.

        Args:
            share: of the requests a second that were added.
        """
        speed, rate, layers = self.speed, self.rate * share, self.layers
        decoding = rate * layers * self._load.mean_output * speed.token_s
        prompting = rate * layers * speed.prompt_s
        if decoding + prompting >= 1:
            return None
        fixed_s = layers * speed.fixed_s
        batch_s = fixed_s / (1 - decoding - prompting)
        if batch_s * rate * self._load.mean_output > speed.max_decodes:
            return None
        free_s = fixed_s / (1 - decoding)
        met_s = batch_s + prompting * layers * speed.prompt_s
        return NodeDelay(
            batch_s=batch_s,
            decode_s=1.5 * free_s,
            prompt_s=1.5 * met_s + layers * speed.prompt_s,
            prompts_per_s=rate,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeDelay:
    """What it takes to pass a node.

    Attributes:
        batch_s: of a batch on the average.
        decode_s: of a decode that meets no prompt.
        prompt_s: of a prompt.
        prompts_per_s: that pass.
    """

    batch_s: float
    decode_s: float
    prompt_s: float
    prompts_per_s: float


class LinkQueue:
    """A link that carries one message after the other, for its latency and its bytes.

    A batch ends for all its decodes at once: as many messages queue as go this way, and the last one waits
    for all others.

    Args:
        prompt_s: of a message with a prompt.
        decode_s: of a message with a token.
        sender: index of the node whose batches end here; None for the source, which sends one by one.

    Attributes:
        rate: requests a second that come this way.
    """

    __slots__ = ("_decode_s", "_prompt_s", "_sender", "rate")

    def __init__(self, prompt_s: float, decode_s: float, sender: int | None) -> None:
        self._prompt_s = prompt_s
        self._decode_s = decode_s
        self._sender = sender
        self.rate = 0.0

    def delays(
        self, share: float, output: float, batches_s: Sequence[float]
    ) -> tuple[float, float] | None:
        """Seconds of a prompt and a decode on this link; None if it cannot keep up.

        Args:
            share: of the requests a second.
            output: tokens of an answer.
            batches_s: seconds of a batch on each node.
        """
        rate = self.rate * share
        busy = rate * (self._prompt_s + output * self._decode_s)
        if busy >= 1:
            return None
        burst = 1.0 if self._sender is None else rate * output * batches_s[self._sender]
        queue_s = max(burst - 1, 0.0) / 2 * self._decode_s / (1 - busy)
        return queue_s + self._prompt_s, queue_s + self._decode_s

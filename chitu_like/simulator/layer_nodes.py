"""Nodes that hold some layers each, on a virtual clock (Helix, ASPLOS'25): batches of who waits at a layer.

Whatever happens is one event: a message arrives, or a batch reaches a layer where others may join it.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Mapping

from chitu_like.cluster.cost_model import LayerTimes
from chitu_like.simulator.clock import VirtualClock
from chitu_like.simulator.layer_wires import Passage

COPY_S_PER_BYTE = 1 / 4e9 + 1 / 5e9
"""What arrives is copied twice before it is computed: within the host's memory, then to the device."""
LONE_DECODE_FACTOR = 2.0
"""The only decode of a batch costs twice what the table says of one."""
MEMO_SIZE = 1 << 16
"""Batch times that a node remembers: looking one up in a table costs more than the event itself."""


class LayerQueue:
    """Who waits for a batch at one layer of a node: its first, or one where others end.

    Args:
        node: that runs them.
        num_layers: from here to the node's last.
        copy_s: that a token takes from the network into the device.
    """

    __slots__ = ("_node", "copy_s", "decodes", "num_layers", "prompts")

    def __init__(self, node: LayerNode, *, num_layers: int, copy_s: float) -> None:
        self._node = node
        self.num_layers = num_layers
        self.copy_s = copy_s
        self.prompts: deque[Passage] = deque()
        self.decodes: deque[Passage] = deque()

    def add(self, passage: Passage) -> None:
        """See Receiver."""
        node = self._node
        passage.since_s = node.clock.now_s
        (self.prompts if passage.is_prompt else self.decodes).append(passage)
        if not node.is_running:
            node.start()

    def release(self, num_tokens: int) -> None:
        """See Receiver."""
        self._node.kv_used -= num_tokens * self.num_layers

    @property
    def since_s(self) -> float:
        """When the first of those who wait came; inf if nobody does."""
        return min(
            (queue[0].since_s for queue in (self.prompts, self.decodes) if queue), default=math.inf
        )


class LayerNode:
    """A node that runs batch after batch through the layers it holds.

    A batch starts at the layer where somebody waits longest, with all who wait there, first come first
    served, up to a number of prompts, of their tokens and of decodes. At each layer further up where requests
    enter, those who wait join it as far as there is room. All leave behind the last layer.

    Args:
        clock: of the simulation.
        name: of the node.
        layers: that it holds.
        times: of a layer on it.
        entries: layer at which requests enter -> bytes of a token that arrives there.

    Attributes:
        is_running: whether a batch is under way.
        kv_used: tokens x layers whose keys and values it keeps.
        num_batches: that it has begun.
    """

    def __init__(
        self,
        clock: VirtualClock,
        name: str,
        layers: range,
        times: LayerTimes,
        entries: Mapping[int, float],
    ) -> None:
        self.clock = clock
        self.name = name
        self.queues = {
            entry: LayerQueue(
                self, num_layers=layers.stop - entry, copy_s=num_bytes * COPY_S_PER_BYTE
            )
            for entry, num_bytes in sorted(entries.items())
        }
        self.is_running = False
        self.kv_used = 0
        self.kv_capacity = times.kv_tokens(len(layers)) * len(layers)
        self.num_batches = 0
        self._prompt_s = functools.lru_cache(MEMO_SIZE)(times.prompt_s)
        self._decode_s = functools.lru_cache(MEMO_SIZE)(times.decode_s)
        self._max_prompts = times.max_prompt_requests(len(layers))
        self._max_prompt_tokens = times.max_prompt_tokens(len(layers))
        self._max_decodes = times.max_decode_tokens(len(layers))
        ends = [*list(self.queues)[1:], layers.stop]
        self._pieces = [
            (queue, end - entry)
            for (entry, queue), end in zip(self.queues.items(), ends, strict=True)
        ]
        self._piece = 0
        self._batch: list[Passage] = []
        self._num_prompts = self._prompt_tokens = self._num_decodes = 0
        self._busy_s = self._busy_until_s = 0.0

    @property
    def num_waiting(self) -> int:
        """See NodeLoad."""
        return sum(len(queue.prompts) + len(queue.decodes) for queue in self.queues.values())

    @property
    def num_waiting_tokens(self) -> int:
        """See NodeLoad."""
        return sum(
            len(queue.decodes) + sum(prompt.num_tokens for prompt in queue.prompts)
            for queue in self.queues.values()
        )

    @property
    def busy_s(self) -> float:
        """Seconds of running batches, up to now."""
        return self._busy_s - max(0.0, self._busy_until_s - self.clock.now_s)

    def start(self) -> None:
        """Begin a batch if anybody waits."""
        waiting = [queue.since_s for queue, _ in self._pieces]
        self._piece = min(range(len(waiting)), key=waiting.__getitem__)
        self.is_running = waiting[self._piece] < math.inf
        if self.is_running:
            self.num_batches += 1
            self._num_prompts = self._prompt_tokens = self._num_decodes = 0
            self._run_piece()

    def _run_piece(self) -> None:
        """Take in who waits at this layer, and run up to the next where somebody may wait."""
        queue, num_layers = self._pieces[self._piece]
        num_new = self._take_decodes(queue.decodes) + self._take_prompts(queue.prompts)
        self.kv_used += num_new * queue.num_layers
        decode_s = self._decode_s(self._num_decodes)
        if self._num_decodes == 1:
            decode_s *= LONE_DECODE_FACTOR
        layer_s = self._prompt_s(self._prompt_tokens) + decode_s
        seconds = num_new * queue.copy_s + num_layers * layer_s
        self._busy_s += seconds
        self._busy_until_s = self.clock.now_s + seconds
        self.clock.after(seconds, self._end_piece)

    def _take_decodes(self, waiting: deque[Passage]) -> int:
        """Tokens that join the batch."""
        room = self._max_decodes - self._num_decodes
        if len(waiting) <= room:
            num_taken = len(waiting)
            self._batch += waiting
            waiting.clear()
        else:
            num_taken = room
            self._batch += [waiting.popleft() for _ in range(room)]
        self._num_decodes += num_taken
        return num_taken

    def _take_prompts(self, waiting: deque[Passage]) -> int:
        """Tokens that join the batch."""
        before = self._prompt_tokens
        while waiting and self._num_prompts < self._max_prompts:
            num_tokens = self._prompt_tokens + waiting[0].num_tokens
            if self._num_prompts and num_tokens > self._max_prompt_tokens:
                break
            prompt = waiting.popleft()
            self._batch.append(prompt)
            self._num_prompts += 1
            self._prompt_tokens += prompt.num_tokens
        return self._prompt_tokens - before

    def _end_piece(self) -> None:
        self._piece += 1
        if self._piece < len(self._pieces):
            self._run_piece()
            return
        batch, self._batch = self._batch, []
        for passage in batch:
            passage.send_on()
        self.start()

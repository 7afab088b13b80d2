"""An executor with a memory of its own: it finds out when a block table lies.

Its KV "cache" holds the token ids themselves. A request's next token is a hash of every token that its
block table shows, so a block freed too early, shared wrongly or swapped to the wrong place changes the
output, and `expected_output` says what it should have been.
"""

from __future__ import annotations

from collections import deque
from hashlib import blake2b

from chitu_like.core.batch import SAMPLED_LAST, ScheduledBatch, SlotRow
from chitu_like.core.output import StepOutput, TokenLogprobs

VOCAB_SIZE = 1000


def next_token(tokens: list[int]) -> int:
    """The fake model: a pure function of the whole context."""
    digest = blake2b(",".join(map(str, tokens)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % VOCAB_SIZE


def expected_output(prompt: list[int], num_tokens: int) -> list[int]:
    """What any correct schedule gives for a prompt."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class FakeExecutor:
    """Computes at submit, answers at collect; remembers every batch.

    Args:
        num_blocks, block_size, num_host_blocks: of its cache.
        max_in_flight: see Executor.
        num_stages: a sampled token can be used so many batches later.
    """

    def __init__(
        self,
        *,
        num_blocks: int,
        block_size: int,
        num_host_blocks: int = 0,
        max_in_flight: int = 1,
        num_stages: int = 1,
    ) -> None:
        self.block_size = block_size
        self.batches: list[ScheduledBatch] = []
        self.is_shut_down = False
        self.fails_at_step: int | None = None
        self._max_in_flight = max_in_flight
        self._num_stages = num_stages
        self._device = [[-9] * block_size for _ in range(num_blocks)]
        self._host = [[-9] * block_size for _ in range(num_host_blocks)]
        self._rows: dict[int, SlotRow] = {}
        self._tables: dict[int, list[int]] = {}
        self._last: dict[int, tuple[int, int]] = {}  # slot -> (step id, token)
        self._outputs: deque[StepOutput] = deque()

    @property
    def max_in_flight(self) -> int:
        return self._max_in_flight

    def submit(self, batch: ScheduledBatch) -> None:
        assert len(self._outputs) < self._max_in_flight
        self.batches.append(batch)
        for source, target in batch.swap_out:
            self._host[target] = list(self._device[source])
        for source, target in batch.swap_in:
            self._device[target] = list(self._host[source])
        for row in batch.rows:
            self._rows[row.slot] = row
            self._tables[row.slot] = list(row.block_ids)
        for index, (slot, start) in enumerate(zip(batch.slots, batch.num_computed, strict=True)):
            decodes = batch.num_tokens[index] == 1 and start >= self._rows[slot].prompt_len
            assert decodes == (index < batch.num_decodes), f"slot {slot} stands in the wrong place"
        sampled: list[int] = []
        given = iter(batch.token_ids)
        seen: list[list[int]] = []
        for index, slot in enumerate(batch.slots):  # every store of a step happens before any read
            self._tables[slot] += batch.new_blocks[index]
            start = batch.num_computed[index]
            for position in range(start, start + batch.num_tokens[index]):
                token = next(given)
                token = self._sampled_last(slot, batch) if token == SAMPLED_LAST else token
                block = self._tables[slot][position // self.block_size]
                self._device[block][position % self.block_size] = token
        for index, slot in enumerate(batch.slots):
            length = batch.num_computed[index] + batch.num_tokens[index]
            seen.append([self._token(slot, position) for position in range(length)])
            if batch.samples[index]:
                sampled.append(next_token(seen[-1]))
                self._last[slot] = (batch.step_id, sampled[-1])
        self._outputs.append(
            StepOutput(batch.step_id, sampled, prompt_logprobs=self._prompt_logprobs(batch))
        )

    def copy_blocks(self, source: FakeExecutor, pairs: list[tuple[int, int]]) -> None:
        """Fill own blocks from those of another instance."""
        for there, here in pairs:
            self._device[here] = list(source._device[there])

    def _sampled_last(self, slot: int, batch: ScheduledBatch) -> int:
        """The slot's last token, if the last stage can have sent it to the first by now."""
        step_id, token = self._last[slot]
        assert batch.step_id - step_id >= self._num_stages, f"slot {slot} is used too early"
        return token

    def _prompt_logprobs(self, batch: ScheduledBatch) -> list[tuple[int, list[TokenLogprobs]]]:
        """Each prompt position says where it stands instead of a log-probability."""
        found = []
        for index, slot in enumerate(batch.slots):
            row, start = self._rows[slot], batch.num_computed[index] + 1
            successors = row.history[: row.prompt_len][start : start + batch.num_tokens[index]]
            if row.sampling.num_prompt_logprobs >= 0 and successors:
                found.append(
                    (index, [TokenLogprobs(t, start + i, 1, []) for i, t in enumerate(successors)])
                )
        return found

    def _token(self, slot: int, position: int) -> int:
        block = self._tables[slot][position // self.block_size]
        return self._device[block][position % self.block_size]

    def wait(self, timeout_s: float) -> bool:
        return True

    def collect(self) -> StepOutput:
        output = self._outputs.popleft()
        if output.step_id == self.fails_at_step:
            raise RuntimeError("the device caught fire")
        return output

    def shutdown(self) -> None:
        self.is_shut_down = True

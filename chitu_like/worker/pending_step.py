"""A batch on its way: what the device will have given, once somebody waits for it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from chitu_like.core.output import StepOutput, TokenLogprobs
from chitu_like.worker.logprobs import LogprobTensors, RowLogprobs
from chitu_like.worker.sampler import Sampled


class WarnOnce:
    """A logger that says one thing once, however often it happens."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._has_warned = False

    def __call__(self, message: str) -> None:
        """Log `message` as a warning, the first time."""
        if not self._has_warned:
            self._has_warned = True
            self._logger.warning(message)


class HostCopy:
    """Tensors crossing to the host behind the work queued so far, without stopping it."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = list(tensors)
        self._event: torch.cuda.Event | None = None
        if tensors and tensors[0].device.type == "cuda":
            self._tensors = [_start_copy(tensor) for tensor in tensors]
            self._event = torch.cuda.Event()
            self._event.record()

    def wait(self) -> list[Tensor]:
        """The tensors on the host, once they have arrived."""
        if self._event is not None:
            self._event.synchronize()
        return self._tensors


class PendingStep:
    """The output of a launched batch.

    Args:
        step_id: of the batch.
        sampled: None where no request sampled.
        prompt_logprobs: index in the batch -> consecutive prompt positions, in parts.
        warn: told when the model's logits were unsound.
    """

    def __init__(
        self,
        step_id: int,
        sampled: Sampled | None,
        prompt_logprobs: dict[int, list[RowLogprobs]],
        warn: WarnOnce,
    ) -> None:
        """Start the copies to the host."""
        self._step_id = step_id
        self._sampled = sampled
        self._prompt_logprobs = prompt_logprobs
        self._warn = warn
        tensors: list[Tensor] = []
        if sampled is not None:
            tensors += [sampled.token_ids, sampled.is_unsound]
            tensors += sampled.logprobs.tensors if sampled.logprobs else ()
        for parts in prompt_logprobs.values():
            tensors += [tensor for part in parts for tensor in part.tensors]
        self._copy = HostCopy(tensors)

    def result(self) -> StepOutput:
        """Wait for the device and take the output."""
        arrived = iter(self._copy.wait())
        token_ids: list[int] = []
        logprobs: list[TokenLogprobs | None] = []
        if self._sampled is not None:
            token_ids = next(arrived).tolist()
            self._check_soundness(next(arrived))
            if self._sampled.logprobs is not None:
                logprobs = [None] * len(token_ids)
                entries = _next_entries(self._sampled.logprobs, arrived)
                for row, entry in zip(self._sampled.logprob_rows.tolist(), entries, strict=True):
                    logprobs[row] = entry
        prompt_logprobs = [
            (index, [entry for part in parts for entry in _next_entries(part, arrived)])
            for index, parts in self._prompt_logprobs.items()
        ]
        return StepOutput(self._step_id, token_ids, logprobs, prompt_logprobs)

    def _check_soundness(self, is_unsound: Tensor) -> None:
        if num_unsound := int(is_unsound.sum()):
            self._warn(
                f"step {self._step_id}: the logits of {num_unsound} of {len(is_unsound)} requests "
                "hold NaN or infinity, so their tokens mean little: a damaged checkpoint, or a "
                "dtype too narrow for the model (try dtype=bfloat16 or float32); said once"
            )


def _next_entries(rows: RowLogprobs, arrived: Iterator[Tensor]) -> list[TokenLogprobs]:
    return rows.to_entries(LogprobTensors(*(next(arrived) for _ in LogprobTensors._fields)))


def _start_copy(tensor: Tensor) -> Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)

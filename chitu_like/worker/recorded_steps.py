"""All that a rank records: which sizes, and one recorder for them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chitu_like.attention.base import GraphBackend, LayerKVCache
from chitu_like.worker.decode_attention import decode_sizes
from chitu_like.worker.decode_steps import DecodeSteps, step_sizes
from chitu_like.worker.mixed_steps import MixedSteps, most_tokens, token_sizes
from chitu_like.worker.model import Model
from chitu_like.worker.options import RunnerOptions
from chitu_like.worker.recording import Recorder
from chitu_like.worker.sampler import Sampler
from chitu_like.worker.slots import Slots


@dataclass(frozen=True, kw_only=True)
class StepSizes:
    """What to record steps for, each in order; nothing where nothing is named.

    Attributes:
        num_reqs: of steps of decodes.
        num_tokens: of others.
        num_decodes: of decodes in those.
    """

    num_reqs: Sequence[int] = ()
    num_tokens: Sequence[int] = ()
    num_decodes: Sequence[int] = ()

    @classmethod
    def of(cls, options: RunnerOptions, max_reqs: int) -> StepSizes:
        """All that pay."""
        return cls(
            num_reqs=step_sizes(max_reqs),
            num_tokens=token_sizes(most_tokens(options)),
            num_decodes=decode_sizes(max_reqs),
        )

    def largest(self, count: int) -> StepSizes:
        """Only the `count` largest of each kind."""
        return StepSizes(
            num_reqs=self.num_reqs[-count:],
            num_tokens=self.num_tokens[-count:],
            num_decodes=self.num_decodes[-count:],
        )

    def __len__(self) -> int:
        """Sizes of the kind that has most."""
        return max(len(self.num_reqs), len(self.num_tokens), len(self.num_decodes))


class RecordedSteps:
    """The recorded steps of a rank; arguments as DecodeSteps and MixedSteps have them.

    Attributes:
        decodes: of decodes alone.
        mixed: of all other batches.
    """

    def __init__(
        self,
        model: Model,
        backend: GraphBackend,
        sampler: Sampler | None,
        options: RunnerOptions,
        slots: Slots,
        kv_caches: dict[int, LayerKVCache],
        padding_block: int,
        recorder: Recorder,
        sizes: StepSizes,
    ) -> None:
        self.mixed = MixedSteps(
            model,
            backend,
            options,
            slots,
            kv_caches,
            padding_block=padding_block,
            recorder=recorder,
            sizes=sizes.num_tokens,
            decode_sizes=sizes.num_decodes,
        )
        self.decodes = DecodeSteps(
            model, backend, sampler, options, slots, kv_caches, recorder, sizes.num_reqs
        )

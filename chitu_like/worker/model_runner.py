"""One rank's model, KV pool and sampler: a ScheduledBatch goes in, a StepOutput comes out.

Usable alone, without engine and scheduler. A prompt of three tokens and four more, greedily::

    from chitu_like.core.batch import SAMPLED_LAST, SamplingRow, ScheduledBatch, SlotRow
    from chitu_like.core.model_spec import ModelSpec
    from chitu_like.worker.model_runner import ModelRunner
    from chitu_like.worker.options import RunnerOptions

    spec = ModelSpec.from_folder(folder)
    runner = ModelRunner.build(RunnerOptions(spec=spec, dtype="float32", device="cpu", max_seq_len=64))
    runner.load(folder)
    runner.allocate(num_blocks=8)
    greedy = SamplingRow(0, 0.0, 1.0, 0, 0.0, 1.0, 0.0, 0.0, [], 0, [], -1, -1)
    row = SlotRow(slot=0, prompt_len=3, block_ids=[5], sampling=greedy, history=[])
    batch = ScheduledBatch(0, [0], [3], [0], [True], [11, 12, 13], [[]], [row], [], [], 0)
    tokens = runner.execute(batch).token_ids
    for step in range(1, 5):
        batch = ScheduledBatch(
            step, [0], [1], [2 + step], [True], [SAMPLED_LAST], [[]], [], [], [], 1
        )
        tokens += runner.execute(batch).token_ids
    print(tokens)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from chitu_like.attention.base import AttentionBackend, ForwardBatch, GraphBackend
from chitu_like.checkpoint.dummy import load_dummy_weights
from chitu_like.checkpoint.loader import LoadReport, finish_loading
from chitu_like.checkpoint.preprocessed import load_checkpoint
from chitu_like.core.batch import ScheduledBatch
from chitu_like.core.output import StepOutput
from chitu_like.distributed.rendezvous import PipelineGroups
from chitu_like.models.build import build_model
from chitu_like.ops.upload import upload
from chitu_like.quantization.base import Unquantized
from chitu_like.worker.batch_builder import build_forward_batch
from chitu_like.worker.kv_pool import KVPool
from chitu_like.worker.logprobs import RowLogprobs
from chitu_like.worker.model import Model
from chitu_like.worker.options import RunnerOptions, make_backend
from chitu_like.worker.pending_step import PendingStep, WarnOnce
from chitu_like.worker.pipeline import LinkedStage, Stage
from chitu_like.worker.prompt_logprobs import gather_prompt_logprobs
from chitu_like.worker.recorded_steps import RecordedSteps, StepSizes
from chitu_like.worker.recording import CudaGraphRecorder, Recorder
from chitu_like.worker.sampler import Sampled, SampledRows, Sampler
from chitu_like.worker.slots import Slots

logger = logging.getLogger(__name__)


class ModelRunner:
    """Computes batches, each after the one before it.

    In this order: `load`, `plan_memory` of memory_profile.py (where the size of the pool is not
    known), `allocate`, then any number of `launch` or `execute`. All ranks of an instance make the
    same calls in the same order, `load` excepted, which each may do in its own time.

    Args:
        options: what was decided.
        model: its parameters are on the device, not yet filled.
        backend: the one that the model's layers call.
        stage: what passes to and from other stages; None: there are none.
        make_recorder: makes what records steps, which the backend must allow; None: each step is
            launched kernel by kernel.

    Attributes:
        options: as given.
        device: where it computes.
        kv_spec: shape of a KV block on this rank.
        samples: whether this is the rank that draws the tokens; other ranks' outputs are empty.
        records_steps: whether steps are recorded.
        weight_bytes: of the parameters on this rank; 0 before `load`.
    """

    def __init__(
        self,
        options: RunnerOptions,
        model: Model,
        backend: AttentionBackend,
        stage: Stage | None = None,
        make_recorder: Callable[[], Recorder] | None = None,
    ) -> None:
        self.options = options
        self.device = options.torch_device
        self.kv_spec = options.kv_spec
        self.samples = options.parallel.is_last_stage and options.parallel.tp_rank == 0
        self._model = model
        self._backend = backend
        self._stage = stage or Stage()
        self._sampler = Sampler(self.device, options.op_impl)
        self._warn = WarnOnce(logger)
        self._make_recorder = make_recorder
        self.records_steps = make_recorder is not None
        self.weight_bytes = 0
        self._slots: Slots | None = None
        self._pool: KVPool | None = None
        self._steps: RecordedSteps | None = None

    @classmethod
    def build(cls, options: RunnerOptions, pipeline: PipelineGroups | None = None) -> ModelRunner:
        """The runner of a model that this package knows, its weights not yet filled.

        Args:
            options: what was decided.
            pipeline: leads to the other stages, where there are any.

        Raises: UnsupportedError if the attention backend cannot serve the model on this device.
        """
        backend = make_backend(options)
        model = build_model(
            options.spec,
            backend,
            options.torch_dtype,
            options.torch_device,
            parallel=options.parallel,
            quant_method=Unquantized(is_invariant=options.deterministic),
            op_impl=options.op_impl,
        )
        stage = None
        if pipeline is not None:
            stage = LinkedStage(
                pipeline,
                hidden_size=options.spec.hidden_size,
                dtype=options.torch_dtype,
                device=options.torch_device,
            )
        make_recorder = None
        if options.use_cuda_graph:
            make_recorder = partial(CudaGraphRecorder, options.torch_device)
        return cls(options, model, backend, stage, make_recorder)

    def load(
        self,
        ckpt_dir: str | Path | None = None,
        *,
        load_format: Literal["auto", "dummy", "none"] = "auto",
        seed: int = 0,
        progress: bool = False,
    ) -> LoadReport | None:
        """Fill the weights.

        Args:
            ckpt_dir: Hugging Face or preprocessed folder; not looked at unless load_format is auto.
            load_format: auto reads them, dummy draws them, none leaves zeros.
            seed: of dummy weights.
            progress: show a progress bar.

        Returns: what was read; None where nothing was.
        Raises: CheckpointError where the folder does not hold this model.
        """
        # Counted now: once loaded, a weight may live in another order beside its parameter.
        self.weight_bytes = sum(
            _size_of(parameter) for _, parameter in self._model.named_parameters()
        )
        if load_format == "dummy":
            return load_dummy_weights(self._model, seed)
        if load_format == "none":
            for _, parameter in self._model.named_parameters():
                parameter.data.zero_()
            finish_loading(self._model)
            return None
        assert ckpt_dir is not None, "load_format=auto reads a folder"
        parallel = self.options.parallel
        return load_checkpoint(self._model, Path(ckpt_dir), parallel, progress=progress)

    def allocate(
        self,
        num_blocks: int,
        *,
        num_host_blocks: int = 0,
        max_reqs: int | None = None,
        max_seq_len: int | None = None,
        sizes: StepSizes | None = None,
    ) -> None:
        """Make the KV pool and the slots, and record steps; whatever was there before is gone.

        Args:
            num_blocks: of the pool.
            num_host_blocks: in host memory, for swapping.
            max_reqs: slots, where fewer than the options say.
            max_seq_len: tokens of one request, where fewer than the options say.
            sizes: what to record steps for; None: all that pays.
        """
        self.free()
        max_reqs = max_reqs or self.options.max_reqs
        sizes = StepSizes.of(self.options, max_reqs) if sizes is None else sizes
        records = bool(self.records_steps and sizes)
        self._pool = KVPool(
            self.kv_spec,
            num_blocks=num_blocks + int(records),  # one for what pads a recorded step
            num_host_blocks=num_host_blocks,
            dtype=self.options.torch_dtype,
            device=self.device,
        )
        self._slots = Slots(
            max_reqs=max_reqs,
            max_blocks=self.kv_spec.blocks_for(max_seq_len or self.options.max_seq_len),
            vocab_size=self.options.spec.vocab_size,
            device=self.device,
            counts_tokens=self.samples,
            padding_block=num_blocks if records else None,
        )
        if records:
            self._record_steps(self._slots, self._pool, num_blocks, sizes)

    def free(self) -> None:
        """Give back what `allocate` took, so that both together need not fit."""
        self._stage.forget()
        self._steps = self._slots = self._pool = None

    def drop_steps(self) -> None:
        """Give up recorded steps: NCCL waits for graphs with its calls before it lets go of a group."""
        self._steps = None

    def most_sent_bytes(self) -> int:
        """Bytes of hidden states that wait to be sent to the next stage, at most."""
        return self._stage.kept_bytes(self.options.max_num_batched_tokens)

    @torch.inference_mode()
    def _record_steps(
        self, slots: Slots, pool: KVPool, padding_block: int, sizes: StepSizes
    ) -> None:
        assert self._make_recorder is not None, "there is nothing to record with"
        assert isinstance(self._backend, GraphBackend), f"{self.options.attn_type} records nothing"
        started = time.monotonic()
        self._steps = RecordedSteps(
            self._model,
            self._backend,
            self._sampler if self.samples else None,
            self.options,
            slots,
            pool.layers,
            padding_block,
            self._make_recorder(),  # a pool of their own: an earlier one may still hold a tensor
            sizes,
        )
        logger.debug(
            "recorded steps of %d numbers of requests and of %d numbers of tokens in %.2f s",
            len(sizes.num_reqs),
            len(sizes.num_tokens),
            time.monotonic() - started,
        )

    def execute(self, batch: ScheduledBatch) -> StepOutput:
        """Compute a batch and wait for it."""
        return self.launch(batch).result()

    @torch.inference_mode()
    def launch(self, batch: ScheduledBatch) -> PendingStep:
        """Queue a batch behind those launched before; on a CPU it is computed when this returns.

        Sampled tokens stay on the device, where the next batch's SAMPLED_LAST finds them.
        """
        slots, pool = self._slots, self._pool
        assert slots is not None, "launch comes after allocate"
        assert pool is not None, "launch comes after allocate"
        slots.apply(batch)
        pool.swap_out(batch.swap_out)
        pool.swap_in(batch.swap_in)
        if not batch.num_reqs:
            return PendingStep(batch.step_id, None, {}, self._warn)
        self._stage.await_tokens(batch, slots)
        received = self._stage.receive(len(batch.token_ids))
        rows = SampledRows.of(batch, slots)
        if self._steps is not None and (decodes := self._steps.decodes).takes(batch):
            computed = decodes.replay(batch, rows.output_positions, received)
            draw = partial(decodes.draw, batch.num_reqs) if Sampler.is_simple(rows, slots) else None
            return self._hand_on(batch, computed, rows, {}, slots, draw)
        forward_batch, computed = self._forward(batch, slots, pool, received)
        prompt_logprobs: dict[int, list[RowLogprobs]] = {}
        if self.options.parallel.is_last_stage:
            prompt_logprobs = gather_prompt_logprobs(
                batch, slots, computed, self._model.compute_logits
            )
            if any(batch.samples):
                computed = self._model.compute_logits(computed[forward_batch.logits_indices])
        return self._hand_on(batch, computed, rows, prompt_logprobs, slots)

    def _forward(
        self, batch: ScheduledBatch, slots: Slots, pool: KVPool, received: Tensor | None
    ) -> tuple[ForwardBatch, Tensor]:
        """The batch's tensors, and hidden states [num_tokens, hidden_size]."""
        mixed = None if self._steps is None else self._steps.mixed
        inputs = None if mixed is None else mixed.inputs_for(len(batch.token_ids))
        forward_batch = build_forward_batch(
            batch,
            slots,
            pool.layers,
            block_size=self.options.block_size,
            device=self.device,
            into=inputs,
        )
        if mixed is not None and inputs is not None:
            return forward_batch, mixed.forward(forward_batch, batch, inputs, received)
        forward_batch.attn_metadata = self._backend.plan(forward_batch)
        return forward_batch, self._model.forward(forward_batch, received)

    def _hand_on(
        self,
        batch: ScheduledBatch,
        computed: Tensor,
        rows: SampledRows,
        prompt_logprobs: dict[int, list[RowLogprobs]],
        slots: Slots,
        draw: Callable[[], Sampled] | None = None,
    ) -> PendingStep:
        """Draw tokens from logits [num_samples, vocab_size], or send hidden states to the next stage.

        A recorded step knows a faster `draw` for simple batches.
        """
        if not self.options.parallel.is_last_stage:
            self._stage.send(computed)
            self._stage.expect_tokens(batch)
            return PendingStep(batch.step_id, None, {}, self._warn)
        draw = draw or partial(self._sampler.sample, computed, rows, slots)
        sampled = self._sample(draw, rows, slots) if len(rows.slots) else None
        return PendingStep(
            batch.step_id, sampled, prompt_logprobs if self.samples else {}, self._warn
        )

    def _sample(
        self, draw: Callable[[], Sampled], rows: SampledRows, slots: Slots
    ) -> Sampled | None:
        """Draw on one rank of the stage and tell the others; None on those."""
        tp = self.options.parallel.tp
        sampled = None
        if self.samples:
            sampled = draw()
            token_ids = tp.broadcast(sampled.token_ids, source=0)
        else:
            drawn = torch.empty(len(rows.slots), dtype=torch.int64, device=self.device)
            token_ids = tp.broadcast(drawn, source=0)
            slots.last_sampled[upload(rows.slots, self.device)] = token_ids
        self._stage.return_tokens(token_ids)
        return sampled


def _size_of(parameter: nn.Parameter) -> int:
    return parameter.numel() * parameter.itemsize

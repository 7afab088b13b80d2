"""From a configuration to one loaded instance in this process: the common root of service and LLM."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

from chitu_like.checkpoint.loader import LoadReport
from chitu_like.config.resolve import resolve
from chitu_like.config.resolved import ResolvedConfig
from chitu_like.config.schema import ServeConfig
from chitu_like.config.settle import most_reqs, settle
from chitu_like.core.model_spec import ModelSpec
from chitu_like.core.sampling_params import SamplingParams
from chitu_like.engine.engine import Engine
from chitu_like.engine.messages import EngineInfo
from chitu_like.kvcache.block_manager import BlockManager
from chitu_like.model_files import ModelFiles, Text, load_text, read_model_files
from chitu_like.scheduler.limits import SchedulerLimits
from chitu_like.scheduler.policy import Ordering
from chitu_like.scheduler.scheduler import Scheduler
from chitu_like.worker.device import device_facts, set_thread_count
from chitu_like.worker.executor import LocalExecutor
from chitu_like.worker.memory import MemoryPlan
from chitu_like.worker.model_runner import ModelRunner
from chitu_like.worker.options import RunnerOptions


@dataclass(frozen=True, kw_only=True)
class LoadedEngine:
    """An engine that is ready to step, and what is worth telling about it.

    Attributes:
        engine: owns everything that was loaded.
        resolved: the configuration with every `auto` decided.
        memory: where the memory went.
        load_report: bytes and seconds of the weights; None where none were read.
        num_host_blocks: KV blocks in host memory.
    """

    engine: Engine
    resolved: ResolvedConfig
    memory: MemoryPlan
    load_report: LoadReport | None
    num_host_blocks: int


@dataclass(frozen=True, kw_only=True)
class Instance:
    """A loaded engine with its text and sampling defaults: all that `LLM` needs."""

    engine: Engine
    text: Text | None
    eos_token_ids: list[int]
    default_params: SamplingParams


def load_instance(config: ServeConfig, *, shows_progress: bool) -> Instance:
    """Load model and tokenizer into this process.

    Raises:
        ChituError: a mistake in the configuration or the checkpoint.
    """
    files = read_model_files(config)
    text = load_text(files.tokenizer_dir)
    loaded = load_engine(config, files, shows_progress=shows_progress, bounds_queue=False)
    return Instance(
        engine=loaded.engine,
        text=text,
        eos_token_ids=_eos_token_ids(config, files, text),
        default_params=SamplingParams(**files.sampling_defaults),  # type: ignore[arg-type]
    )


def load_engine(
    config: ServeConfig, files: ModelFiles, *, shows_progress: bool, bounds_queue: bool = True
) -> LoadedEngine:
    """Load the weights, plan the memory and put the engine together.

    Args:
        config: as loaded, every `auto` still in it.
        files: of the model.
        shows_progress: show a progress bar over the weights.
        bounds_queue: refuse what exceeds scheduler.max_queued_*, which protects from strangers;
            a caller in this process feeds the engine no faster than it wants to wait.

    Raises:
        ChituError: the checkpoint is not this model's, or something does not fit.
    """
    ordering = Ordering(config.scheduler.type)
    resolved = resolve(config, device_facts(config.infer.device), files.spec)
    options = runner_options(resolved, files.spec)
    set_thread_count(weight_bytes=files.spec.num_parameters() * options.torch_dtype.itemsize)
    runner = ModelRunner.build(options)
    report = runner.load(
        config.models.ckpt_dir,
        load_format=config.models.load_format,
        seed=config.infer.seed,
        progress=shows_progress,
    )
    fixed = config.infer.num_blocks
    memory = runner.plan_memory(
        config.infer.memory_utilization, num_blocks=None if fixed == "auto" else fixed
    )
    resolved = settle(resolved, memory.num_blocks)
    info = _engine_info(resolved, files.spec)
    num_host_blocks = resolved.swap_space_bytes // memory.bytes_per_block
    runner.allocate(
        info.num_blocks,
        num_host_blocks=num_host_blocks,
        max_reqs=info.max_reqs,
        max_seq_len=info.max_seq_len,
    )
    blocks = BlockManager(
        info.num_blocks,
        info.block_size,
        enable_prefix_caching=resolved.enable_prefix_caching,
        num_host_blocks=num_host_blocks,
    )
    limits = SchedulerLimits(
        max_reqs=info.max_reqs,
        max_seq_len=info.max_seq_len,
        max_num_batched_tokens=resolved.max_num_batched_tokens,
        prefill_chunk_size=resolved.prefill_chunk_size,
        max_queued_requests=resolved.max_queued_requests if bounds_queue else sys.maxsize,
        max_queued_tokens=resolved.max_queued_tokens if bounds_queue else sys.maxsize,
        starvation_s=config.scheduler.starvation_s,
    )
    engine = Engine(
        Scheduler(limits, blocks, ordering),
        LocalExecutor(runner, overlap=config.infer.schedule_overlap),
        info,
        seed=config.infer.seed,
        clock=time.monotonic,
    )
    return LoadedEngine(
        engine=engine,
        resolved=resolved,
        memory=memory,
        load_report=report,
        num_host_blocks=num_host_blocks,
    )


def runner_options(resolved: ResolvedConfig, spec: ModelSpec) -> RunnerOptions:
    """What the runner is built with; slots and lengths are bounds until the pool is planned."""
    return RunnerOptions(
        spec=spec,
        dtype=resolved.dtype,
        device=resolved.device,
        max_seq_len=resolved.max_seq_len,
        attn_type=resolved.attn_type,
        op_impl=resolved.op_impl,
        block_size=resolved.block_size,
        max_num_batched_tokens=resolved.max_num_batched_tokens,
        max_reqs=most_reqs(resolved),
    )


def _engine_info(resolved: ResolvedConfig, spec: ModelSpec) -> EngineInfo:
    if resolved.num_blocks is None or resolved.max_reqs is None:
        raise RuntimeError("the configuration was not settled")
    return EngineInfo(
        max_seq_len=resolved.max_seq_len,
        max_reqs=resolved.max_reqs,
        num_blocks=resolved.num_blocks,
        block_size=resolved.block_size,
        vocab_size=spec.vocab_size,
    )


def _eos_token_ids(config: ServeConfig, files: ModelFiles, text: Text | None) -> list[int]:
    """The tokens that end a text; the tokenizer's where the checkpoint's files name none."""
    if not config.infer.stop_with_eos:
        return []
    return files.eos_token_ids or (list(text.tokenizer.eos_token_ids) if text else [])

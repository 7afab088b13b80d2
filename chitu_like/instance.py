"""From a configuration to one loaded instance, led by this process: the common root of service and LLM."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

from chitu_like.checkpoint.loader import LoadReport
from chitu_like.config.resolve import resolve
from chitu_like.config.resolved import ResolvedConfig
from chitu_like.config.schema import ServeConfig
from chitu_like.config.settle import most_reqs, settle
from chitu_like.config.tree import config_to_json, without_secrets
from chitu_like.core.model_spec import ModelSpec
from chitu_like.core.phases import Phases
from chitu_like.core.sampling_params import SamplingParams
from chitu_like.distributed.parallel_context import ParallelContext
from chitu_like.engine.engine import Engine
from chitu_like.engine.messages import EngineInfo
from chitu_like.kvcache.block_manager import BlockManager
from chitu_like.model_files import ModelFiles, Text, load_text
from chitu_like.scheduler.limits import SchedulerLimits
from chitu_like.scheduler.mlfq import Quanta
from chitu_like.scheduler.policy import Ordering
from chitu_like.scheduler.scheduler import Scheduler
from chitu_like.worker.crew import Crew
from chitu_like.worker.device import device_facts
from chitu_like.worker.local_rank import digest
from chitu_like.worker.local_rank import runner_options as options_of
from chitu_like.worker.memory import MemoryPlan
from chitu_like.worker.messages import Allocate, Load, Plan, Prepare
from chitu_like.worker.options import RunnerOptions


@dataclass(frozen=True, kw_only=True)
class LoadedEngine:
    """An engine that is ready to step, and what is worth telling about it.

    Attributes:
        engine: owns everything that was loaded.
        resolved: the configuration with every `auto` decided.
        memories: where the memory went, one plan a rank, the leader's first.
        load_reports: bytes and seconds of the weights by rank; None where none were read.
        num_host_blocks: KV blocks in host memory.
        phases: of the start, so far.
    """

    engine: Engine
    resolved: ResolvedConfig
    memories: list[MemoryPlan]
    load_reports: list[LoadReport | None]
    num_host_blocks: int
    phases: Phases


@dataclass(frozen=True, kw_only=True)
class Instance:
    """A loaded engine with its text and sampling defaults: all that `LLM` needs."""

    engine: Engine
    text: Text | None
    eos_token_ids: list[int]
    default_params: SamplingParams


def load_instance(
    config: ServeConfig, crew: Crew, files: ModelFiles, *, shows_progress: bool
) -> Instance:
    """Load model and tokenizer; this process leads the instance.

    Raises:
        ChituError: a mistake in the configuration or the checkpoint.
    """
    try:
        text = load_text(files.tokenizer_dir)
    except BaseException:
        crew.dismiss()
        raise
    loaded = load_engine(config, files, crew, shows_progress=shows_progress, bounds_queue=False)
    return Instance(
        engine=loaded.engine,
        text=text,
        eos_token_ids=_eos_token_ids(config, files, text),
        default_params=SamplingParams(**files.sampling_defaults),  # type: ignore[arg-type]
    )


def load_engine(
    config: ServeConfig,
    files: ModelFiles,
    crew: Crew,
    *,
    shows_progress: bool,
    bounds_queue: bool = True,
    phases: Phases | None = None,
) -> LoadedEngine:
    """Load the weights on all ranks, plan the memory and put the engine together.

    Args:
        config: as loaded, every `auto` still in it.
        files: of the model.
        crew: the ranks of the instance, this one leading; dismissed if anything fails.
        shows_progress: show a progress bar over the weights.
        bounds_queue: refuse what exceeds scheduler.max_queued_*, which protects from strangers;
            a caller in this process feeds the engine no faster than it wants to wait.
        phases: of the start; what is done here is added.

    Raises:
        ChituError: the checkpoint is not this model's, or something does not fit.
    """
    try:
        return _load_engine(config, files, crew, shows_progress, bounds_queue, phases or Phases())
    except BaseException:
        crew.dismiss()
        raise


def _load_engine(
    config: ServeConfig,
    files: ModelFiles,
    crew: Crew,
    shows_progress: bool,
    bounds_queue: bool,
    phases: Phases,
) -> LoadedEngine:
    ordering = Ordering(config.scheduler.type)
    node = crew.node
    facts = device_facts(config.infer.device, node.local_rank, num_local_ranks=node.num_local_ranks)
    resolved = resolve(config, facts, files.spec)
    crew.prepare(
        Prepare(
            config=config_to_json(without_secrets(config)),
            spec_digest=digest(files.spec),
            device=resolved.device,
        )
    )
    phases.end("device")
    loaded = crew.load(load_order(resolved), progress=shows_progress)
    phases.end("weights")
    fixed = config.infer.num_blocks
    planned = crew.plan(
        Plan(
            memory_utilization=config.infer.memory_utilization,
            num_blocks=None if fixed == "auto" else fixed,
        )
    )
    phases.end("profile run")
    memories = [answer.memory for answer in planned]
    resolved = settle(resolved, min(memory.num_blocks for memory in memories))
    info = _engine_info(resolved, files.spec)
    # The swap space is a node's, shared by its ranks; the one with the largest blocks fills it first.
    share = resolved.swap_space_bytes // node.num_local_ranks
    num_host_blocks = share // max(memory.bytes_per_block for memory in memories)
    crew.allocate(
        Allocate(
            num_blocks=info.num_blocks,
            num_host_blocks=num_host_blocks,
            max_reqs=info.max_reqs,
            max_seq_len=info.max_seq_len,
        )
    )
    phases.end("KV cache and graphs")
    blocks = BlockManager(
        info.num_blocks,
        info.block_size,
        enable_prefix_caching=resolved.enable_prefix_caching,
        num_host_blocks=num_host_blocks,
    )
    engine = Engine(
        Scheduler(_limits(resolved, info, bounds_queue), blocks, ordering),
        crew.executor(overlap=config.infer.schedule_overlap),
        info,
        seed=config.infer.seed,
        clock=time.monotonic,
    )
    return LoadedEngine(
        engine=engine,
        resolved=resolved,
        memories=memories,
        load_reports=[answer.report for answer in loaded],
        num_host_blocks=num_host_blocks,
        phases=phases,
    )


def load_order(resolved: ResolvedConfig) -> Load:
    """What every rank is told to load; slots and lengths are bounds until the pool is planned."""
    return Load(
        dtype=resolved.dtype,
        max_seq_len=resolved.max_seq_len,
        attn_type=resolved.attn_type,
        op_impl=resolved.op_impl,
        use_cuda_graph=resolved.use_cuda_graph,
        deterministic=resolved.config.infer.deterministic,
        block_size=resolved.block_size,
        max_num_batched_tokens=resolved.max_num_batched_tokens,
        max_reqs=most_reqs(resolved),
    )


def runner_options(resolved: ResolvedConfig, spec: ModelSpec) -> RunnerOptions:
    """What the runner of a single rank is built with."""
    return options_of(load_order(resolved), spec, resolved.device, ParallelContext.single())


def _limits(resolved: ResolvedConfig, info: EngineInfo, bounds_queue: bool) -> SchedulerLimits:
    return SchedulerLimits(
        max_reqs=info.max_reqs,
        max_seq_len=info.max_seq_len,
        max_num_batched_tokens=resolved.max_num_batched_tokens,
        prefill_chunk_size=resolved.prefill_chunk_size,
        max_queued_requests=resolved.max_queued_requests if bounds_queue else sys.maxsize,
        max_queued_tokens=resolved.max_queued_tokens if bounds_queue else sys.maxsize,
        starvation_s=resolved.config.scheduler.starvation_s,
        quanta=Quanta(
            first_steps=resolved.config.scheduler.mlfq_quantum_steps,
            prompt_tokens_per_step=resolved.config.scheduler.mlfq_prompt_tokens_per_step,
        ),
        num_stages=resolved.config.infer.pp_size,
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

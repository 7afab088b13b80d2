"""One rank of one instance: it leads the instance's other ranks, or follows its leader.

Ranks meet through torchrun's store: world rank 0 draws the job's secret there, each leader tells where
its control channel listens. What they compute together is joined only when the leader says so.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import torch

from chitu_like.cluster.placement import InstancePlacement
from chitu_like.config.schema import ServeConfig
from chitu_like.config.secrets import secrets_of
from chitu_like.core.ending import DONE, FAILED, LAST_WORDS_S
from chitu_like.core.garbage import freeze_loaded_objects
from chitu_like.core.logging import configure_logging
from chitu_like.core.model_spec import ModelSpec
from chitu_like.core.phases import Phases
from chitu_like.distributed.channel import LeaderChannel, WorkerChannel
from chitu_like.distributed.parallel_context import ParallelContext
from chitu_like.distributed.rendezvous import (
    Joined,
    Store,
    address_among,
    find_address,
    job_secret,
    join,
    open_store,
    publish_address,
)
from chitu_like.engine.endpoint import EngineEndpoint, serve
from chitu_like.instance import LoadedEngine, load_engine
from chitu_like.layout import placement_of
from chitu_like.model_files import ModelFiles
from chitu_like.torchrun import MEETING_TIMEOUT_S, TorchrunRank
from chitu_like.worker.crew import Crew
from chitu_like.worker.local_rank import LocalRank, Node
from chitu_like.worker.losses import Losses
from chitu_like.worker.messages import FromWorker, ToWorker
from chitu_like.worker.worker import Worker

logger = logging.getLogger(__name__)


class _Meeting:
    """Where the ranks of this process's instance find each other.

    Args:
        config: the placement follows from it.
        spec: of the model.
        here: this process; one of the placement's ranks.
    """

    def __init__(self, config: ServeConfig, spec: ModelSpec, here: TorchrunRank) -> None:
        placement = placement_of(config, spec)
        self.here = here
        self.index = placement.seat(here.rank).instance
        self.instance: InstancePlacement = placement.instances[self.index]
        # A rank that stands still must be noticed before the front end loses its own patience.
        self.silence_s = config.serve.stall_timeout_s / 2
        self.store: Store = open_store(MEETING_TIMEOUT_S)
        self.secret = job_secret(self.store, here.rank, timeout_s=MEETING_TIMEOUT_S)
        self.host = address_among(self.store, self.instance.ranks, MEETING_TIMEOUT_S)

    def local_rank(self, spec: ModelSpec) -> LocalRank:
        """This process's part, not yet loaded."""
        return LocalRank(spec, self._join, _node(self.here))

    def _join(self, device: str) -> Joined:
        backend: Literal["gloo", "nccl"] = "gloo" if device == "cpu" else "nccl"
        return join(
            self.store,
            self.instance,
            self.index,
            self.here.rank,
            backend=backend,
            device=torch.device(device),
            timeout_s=MEETING_TIMEOUT_S,
        )


def gather(
    config: ServeConfig, spec: ModelSpec, environ: Mapping[str, str], *, started: str | None = None
) -> Crew:
    """Called by a leader: wait until the other ranks of its instance are there.

    Args:
        config: of the service.
        spec: of the model.
        environ: torchrun's variables.
        started: name of the run's log folder, for the followers; None: they write no files.

    Raises: PeerError where they do not come.
    """
    here = TorchrunRank.from_environ(environ)
    if config.infer.num_ranks == 1:
        alone = Joined(parallel=ParallelContext.single(), pipeline=None)
        return Crew(LocalRank(spec, lambda device: alone, _node(here)))
    meeting = _Meeting(config, spec, here)
    if here.rank == 0:
        publish_address(meeting.store, "log-folder", started or "")
    losses = Losses(meeting.instance.ranks)
    channel: LeaderChannel[ToWorker, FromWorker] = LeaderChannel(
        meeting.host,
        meeting.secret,
        losses.num_workers,
        from_worker=FromWorker,
        silence_s=meeting.silence_s,
        on_lost=losses,
    )
    losses.channel = channel
    publish_address(meeting.store, f"leader-{meeting.index}", channel.address)
    channel.accept(MEETING_TIMEOUT_S)
    return Crew(meeting.local_rank(spec), channel, losses)


def lead(
    config: ServeConfig,
    files: ModelFiles,
    environ: Mapping[str, str],
    *,
    engine_address: str,
    secret: str,
    started: str,
    phases: Phases,
    on_ready: Callable[[LoadedEngine, str], None],
) -> int:
    """Run the engine of one instance until the front end says to stop.

    Args:
        config: of the service.
        files: of the model.
        environ: torchrun's variables.
        engine_address: to bind for the front end; with tcp the port may be *.
        secret: what the front end will say.
        started: name of the run's log folder.
        phases: of the start; the next ends where torch is imported.
        on_ready: called once, with the very address, when the front end may connect.

    Returns: the exit code, 0 or 1; everything open was answered, and why is in the log.
    Raises: ChituError where it could not be loaded.
    """
    phases.end("imports")
    crew = gather(config, files.spec, environ, started=started)
    shows_progress = environ.get("RANK", "0") == "0"
    loaded = load_engine(config, files, crew, shows_progress=shows_progress, phases=phases)
    try:
        with EngineEndpoint(engine_address, secret) as endpoint:
            freeze_loaded_objects()
            phases.end("engine")
            on_ready(loaded, endpoint.address)
            serve(loaded.engine, endpoint)
    except Exception:  # logged before the front end, which has heard of it, is gone
        logger.exception("the engine failed")
        return FAILED
    finally:
        loaded.engine.shutdown()
    return DONE


def follow(config: ServeConfig, spec: ModelSpec, environ: Mapping[str, str]) -> int:
    """Called by every other rank: do what the leader of its instance says.

    Args:
        config: of the service, as this rank was told.
        spec: of the model, as this rank's files say.
        environ: torchrun's variables.

    Returns: the exit code: 0 told to stop, 1 something broke, 2 the user's mistake.
    Raises: PeerError where the leader is not found.
    """
    meeting = _Meeting(config, spec, TorchrunRank.from_environ(environ))
    started = find_address(meeting.store, "log-folder", MEETING_TIMEOUT_S)
    configure_logging(
        rank=meeting.here.rank,
        log_dir=config.log_dir if started else None,
        started=started,
        console_level=logging.WARNING,  # what goes well is the leader's to say, once
        secrets=secrets_of(config),
    )
    channel: WorkerChannel[ToWorker, FromWorker] = WorkerChannel.connect(
        find_address(meeting.store, f"leader-{meeting.index}", MEETING_TIMEOUT_S),
        meeting.secret,
        rank=meeting.instance.ranks.index(meeting.here.rank),
        to_worker=ToWorker,
        silence_s=meeting.silence_s,
        timeout_s=MEETING_TIMEOUT_S,
        on_lost=partial(_end_without_leader, meeting.instance.leader),
    )
    return Worker(meeting.local_rank(spec), channel).run()


def _node(here: TorchrunRank) -> Node:
    return Node(local_rank=here.local_rank, num_local_ranks=here.num_local_ranks)


def _end_without_leader(leader: int, reason: str) -> None:
    """Called from a thread while this rank computes, perhaps for ever, with peers that are gone.

    The leader may be about to say why: torchrun would end it in the middle of that.
    """
    logger.error("rank %d, which leads this instance, is lost (%s): this rank ends", leader, reason)
    time.sleep(LAST_WORDS_S)
    faulthandler.dump_traceback(all_threads=True)
    logging.shutdown()
    os._exit(FAILED)

"""From a command line to a running service: this process's role, until it is told to stop.

The leader starts the front end first, so that the port answers (503, "loading") while torch and the
weights load; then it runs the engine in this process until the front end says that all is drained.
"""

from __future__ import annotations

import faulthandler
import importlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import FrameType, ModuleType
from typing import TYPE_CHECKING

from rich.console import Console

from chitu_like.config.load import load_config
from chitu_like.config.schema import ServeConfig
from chitu_like.config.secrets import secrets_of
from chitu_like.core.ending import DONE, FAILED, INTERRUPTED, LAST_WORDS_S, USER_MISTAKE
from chitu_like.core.errors import ChituError, PeerError
from chitu_like.core.logging import configure_logging, start_time
from chitu_like.core.parent import signal_when_parent_dies
from chitu_like.core.phases import Phases, process_age_s
from chitu_like.front_end_process import FrontEndProcess
from chitu_like.model_files import ModelFiles, read_model_files
from chitu_like.openmp import wait_without_spinning
from chitu_like.router.policy import make_policy
from chitu_like.scheduler.policy import Ordering
from chitu_like.supervisor.supervise import supervise
from chitu_like.torchrun import TorchrunRank

if TYPE_CHECKING:
    from chitu_like.instance import LoadedEngine

logger = logging.getLogger(__name__)


class _Interrupted(BaseException):
    """A signal came before there was anything to drain."""


def launch(overrides: Sequence[str], environ: Mapping[str, str] = os.environ) -> int:
    """Serve until told to stop.

    Args:
        overrides: KEY=VALUE texts of the command line.
        environ: torchrun's variables (RANK, WORLD_SIZE), CONFIG_NAME and keys are read from it.

    Returns: the exit code: 0 drained, 1 something broke, 2 the user's mistake (one line on stderr
        says which, on rank 0; where only another node has it, on that node's first rank).
    """
    wait_without_spinning()
    if "TORCHELASTIC_RUN_ID" in environ:  # torchrun killed: the ranks drain, as if it had said so
        signal_when_parent_dies(signal.SIGTERM)
    here = TorchrunRank.from_environ(environ)
    try:
        config = load_config(overrides, environ=environ)
        files = check_before_start(config)
        here.check(config)  # last: whoever follows its advice meets no other refusal
        if config.deploy.replicas > 1:
            _interrupt_on_signals()
            return supervise(config, files, here.rank)
        if here.rank == 0:
            return _lead(config, files, environ)
        # It may wait in torch for a leader that is gone, where Python takes no signal.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        from chitu_like.rank import follow

        return follow(config, files.spec, environ)
    except PeerError as error:
        logger.error("%s", error, exc_info=error.__cause__)
        return FAILED
    except ChituError as error:
        if here.rank == 0:
            print(f"chitu_like: {error}", file=sys.stderr)
        else:
            time.sleep(LAST_WORDS_S)
            if here.local_rank == 0:  # and still here: rank 0, on another node, has no such mistake
                print(f"chitu_like: rank {here.rank}: {error}", file=sys.stderr)
        return USER_MISTAKE
    except _Interrupted:
        return DONE
    except Exception:
        logger.exception("the service failed")
        return FAILED


def check_before_start(config: ServeConfig) -> ModelFiles:
    """Find every mistake that needs no torch; what the model's files say.

    Raises: ChituError.
    """
    Ordering(config.scheduler.type)
    make_policy(config.router.policy)
    return read_model_files(config)


def _lead(config: ServeConfig, files: ModelFiles, environ: Mapping[str, str]) -> int:
    """Run the front end, and the engine of the only instance."""
    phases = Phases(process_age_s())
    phases.end("configuration")
    started = start_time()
    configure_logging(rank=0, log_dir=config.log_dir, started=started, secrets=secrets_of(config))
    # On SIGUSR1 all stacks go to stderr: the front end asks for that before it ends a stalled leader.
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    _interrupt_on_signals()
    console = Console()
    # torch takes seconds to import, and so does what the front end serves with: both at once.
    importing = import_beside("chitu_like.rank")
    with FrontEndProcess(config, files, started) as front_end:
        console.print(f"listening on {front_end.url}, loading the model ...", highlight=False)
        is_reported = threading.Event()

        def invite() -> None:
            is_reported.wait()
            console.print(front_end.invitation, highlight=False, soft_wrap=True)

        front_end.when_ended(_exit_with_front_end, when_ready=invite)
        phases.end("front end")
        importing.result()
        from chitu_like.rank import lead
        from chitu_like.startup_report import print_report

        def announce(loaded: LoadedEngine, address: str) -> None:
            _drain_on_signals(front_end)
            print_report(console, loaded, files.spec)
            is_reported.set()

        code = lead(
            config,
            files,
            environ,
            engine_address=front_end.engine_address,
            secret=front_end.secret,
            started=started,
            phases=phases,
            on_ready=announce,
        )
    if code == DONE:
        logger.info("drained")
    elif config.infer.num_ranks > 1:  # a thread may wait for a lost rank for ever
        logging.shutdown()
        os._exit(code)
    return code


def import_beside(module: str) -> Future[ModuleType]:
    """Import a module in a thread, for which an exit of the process waits.

    Its error is kept: torch, imported again after it failed, would fail of something else.
    """
    return ThreadPoolExecutor(1, "import").submit(importlib.import_module, module)


def _interrupt_on_signals() -> None:
    """Until there is something to drain, a signal ends this process as it stands."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise _Interrupted(signal.Signals(number).name)


def _drain_on_signals(front_end: FrontEndProcess) -> None:
    """The first signal drains, a second one of the keyboard stops at once."""

    def drain(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, stop)
        front_end.drain()

    def stop(number: int, frame: FrameType | None) -> None:
        front_end.remove_folder()
        os._exit(INTERRUPTED)  # the front end sees its input end and says goodbye

    signal.signal(signal.SIGTERM, drain)
    signal.signal(signal.SIGINT, drain)


def _exit_with_front_end(code: int, reason: str) -> None:
    """Called from a thread: without a front end there is nobody to serve."""
    if code == USER_MISTAKE:
        print(f"chitu_like: {reason}", file=sys.stderr)
    elif code != DONE:
        logger.error("%s: stopping", reason)
    logging.shutdown()
    os._exit(code if code in (DONE, USER_MISTAKE) else FAILED)

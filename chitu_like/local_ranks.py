"""A service's ranks on this node: torchrun starts them, signals reach them, their exit code comes back.

torchrun runs in this very process. By itself it reports every failure of a rank with a table, two
traces and code 1; here a rank's own last words stand alone.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType, TracebackType

from chitu_like.config.schema import ServeConfig
from chitu_like.core.ending import DONE, FAILED, INTERRUPTED, USER_MISTAKE
from chitu_like.core.errors import ConfigError

KILL_AFTER_DRAIN_S = 10
"""What ranks may take to end once the drain is over."""


def check_devices(config: ServeConfig) -> None:
    """Raise ConfigError if this node has fewer GPUs than the configuration has ranks for them."""
    from torch import cuda  # here and not above: other mistakes are told before torch has loaded

    if config.infer.device == "cpu" or (config.infer.device == "auto" and not cuda.is_available()):
        return
    if (num_devices := cuda.device_count()) < config.num_ranks:
        raise ConfigError(
            f"infer.tp_size={config.infer.tp_size}, infer.pp_size={config.infer.pp_size} and "
            f"deploy.replicas={config.deploy.replicas} need {config.num_ranks} GPUs, this node has "
            f"{num_devices}: use fewer, or more nodes (script/ssh_multi_node.sh, "
            "script/srun_multi_node.sh)"
        )


def run_ranks(command: Sequence[str], *, num_ranks: int, drain_timeout_s: float) -> int:
    """Run a command on this node as torchrun does, and end it as `serve` promises.

    Args:
        command: what follows torchrun's options, such as ["-m", "chitu_like", ...].
        num_ranks: processes to start.
        drain_timeout_s: what the ranks may take to finish open requests when they are asked to end.

    Returns: 0 where all ranks ended well, 2 where one found a mistake of the user's, 130 after an
        impatient Ctrl-C, else 1.
    """
    shutdown_s = ceil(drain_timeout_s) + KILL_AFTER_DRAIN_S
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(shutdown_s)
    with _Signals(shutdown_s) as signals:
        try:
            failures = _torchrun(command, num_ranks)
        except _NothingToDrain:
            return DONE
    if signals.is_impatient:
        return INTERRUPTED
    if signals.were_asked:  # whom SIGTERM ended had nothing to drain yet
        failures = {rank: code for rank, code in failures.items() if code != -signal.SIGTERM}
    return _report(failures)


def _torchrun(command: Sequence[str], num_ranks: int) -> Mapping[int, int]:
    """Run all ranks until they have ended; exit codes other than 0 by rank."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    options = ["--standalone", "--local-addr", "127.0.0.1", "--nproc_per_node", str(num_ranks)]
    # Signals are ours: it would stop watching the ranks, and their exit codes would be lost.
    options += ["--signals-to-handle", "SIGQUIT"]
    # Where it would keep redirected output; nothing is, but it leaves a folder behind a run.
    folder = TemporaryDirectory(prefix="chitu-like-torchrun-", ignore_cleanup_errors=True)
    try:
        with folder as logs, _silent_logs():
            run(parse_args([*options, "--log-dir", logs, *command]))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        return {rank: failure.exitcode for rank, failure in error.failures.items()}
    return {}


@contextmanager
def _silent_logs() -> Iterator[None]:
    """Keep torchrun's log lines back: they say what the ranks have said, in more words."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _report(failures: Mapping[int, int]) -> int:
    """Say what no rank could say of itself; the exit code."""
    if not failures:
        return DONE
    if USER_MISTAKE in failures.values():
        return USER_MISTAKE
    # Once one has ended, torchrun sends SIGTERM to the others: that says nothing, unless it is all.
    is_telling = {*failures.values()} - {-signal.SIGTERM} or {-signal.SIGTERM}
    for rank, code in sorted(failures.items()):
        if code < 0 and code in is_telling:
            name = signal.Signals(-code).name
            print(f"chitu_like: rank {rank} was ended by {name}", file=sys.stderr)
    return FAILED


class _NothingToDrain(BaseException):
    """A signal came before there was a rank."""


class _Signals:
    """Pass the end on to the ranks while the context is open.

    The first SIGINT, SIGTERM or SIGHUP drains. A second Ctrl-C has the leaders stop at once, a
    third one kills, and so does the clock where ranks outlive the drain.

    Args:
        shutdown_s: what the ranks get to drain and end.
    """

    NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)

    def __init__(self, shutdown_s: int) -> None:
        self._shutdown_s = shutdown_s
        self._num_asked = 0

    @property
    def were_asked(self) -> bool:
        """The ranks were asked to drain."""
        return self._num_asked > 0

    @property
    def is_impatient(self) -> bool:
        """Ctrl-C was pressed again while the ranks drained."""
        return self._num_asked > 1

    def __enter__(self) -> _Signals:
        """Take the signals."""
        self._saved = {number: signal.signal(number, self._pass_on) for number in self.NUMBERS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the signals back."""
        signal.alarm(0)
        for number, handler in self._saved.items():
            signal.signal(number, handler)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        ranks = _children()
        if number == signal.SIGALRM:
            _send(ranks, signal.SIGKILL)
        elif not ranks:
            raise _NothingToDrain
        elif self._num_asked == 0:
            self._num_asked = 1
            signal.alarm(self._shutdown_s)
            _send(ranks, signal.SIGTERM)
        elif number == signal.SIGINT:  # of the others a second one only repeats the first
            self._num_asked += 1
            _send(ranks, signal.SIGINT if self._num_asked == 2 else signal.SIGKILL)


def _children() -> list[int]:
    """Process ids of the ranks: all that this process has started."""
    pid = os.getpid()
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _send(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)

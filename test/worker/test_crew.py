"""A leader and its workers' answers; what it makes of failures and of ranks that are lost."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap

import pytest
import torch
from processes import PATIENCE_S
from tiny_model import tiny_runner, tiny_spec

from chitu_like.core.errors import ChituError, ConfigError, PeerError
from chitu_like.distributed.parallel_context import ParallelContext
from chitu_like.distributed.rendezvous import Joined
from chitu_like.worker.crew import Crew
from chitu_like.worker.local_rank import LocalRank, Node, digest
from chitu_like.worker.losses import Losses
from chitu_like.worker.messages import (
    Allocated,
    Failed,
    FromWorker,
    Prepare,
    Prepared,
    Stop,
    ToWorker,
)
from chitu_like.worker.model_runner import ModelRunner

ORDER = Prepare(config="{}", spec_digest=digest(tiny_spec()), device="cpu")
WORLD_RANKS = [4, 5, 6]  # of the second instance


class FakeChannel:
    """Answers are there from the start."""

    def __init__(self, *answers: tuple[int, FromWorker] | PeerError) -> None:
        self.answers = list(answers)
        self.sent: list[ToWorker] = []
        self.is_broken = False

    def stop(self, message: ToWorker, timeout_s: float) -> None:
        if self.is_broken:
            raise PeerError("rank 1 was lost")
        self.sent.append(message)

    def send(self, message: ToWorker) -> None:
        self.sent.append(message)

    def receive(self, timeout_s: float | None = None) -> tuple[int, FromWorker]:
        if not self.answers:
            raise TimeoutError
        answer = self.answers.pop(0)
        if isinstance(answer, PeerError):
            raise answer
        return answer


@pytest.fixture(autouse=True)
def _nobody_is_lost_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is lost here is lost before anything fails."""
    monkeypatch.setattr("chitu_like.worker.losses.CAUSE_TIMEOUT_S", 0.01)


def local_rank(node: Node | None = None) -> LocalRank:
    alone = Joined(parallel=ParallelContext.single(), pipeline=None)
    return LocalRank(tiny_spec(), lambda device: alone, node or Node())


def test_recorded_steps_are_gone_before_the_groups_are_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """NCCL's abort waits for every graph that holds one of its calls, for ever."""
    done: list[str] = []
    monkeypatch.setattr(ModelRunner, "drop_steps", lambda runner: done.append("steps"))
    monkeypatch.setattr(Joined, "leave", lambda joined: done.append("groups"))
    rank = local_rank()
    rank._runner = tiny_runner()
    rank._joined = Joined(parallel=ParallelContext.single(), pipeline=None)
    rank.leave()
    assert done == ["steps", "groups"]


def crew_of(*answers: tuple[int, FromWorker] | PeerError) -> tuple[Crew, FakeChannel, Losses]:
    channel, losses = FakeChannel(*answers), Losses(WORLD_RANKS, grace_s=60.0)
    losses.channel = channel  # type: ignore[assignment]
    return Crew(local_rank(), channel, losses), channel, losses  # type: ignore[arg-type]


def test_every_rank_is_told_and_answers() -> None:
    crew, channel, _ = crew_of((2, Prepared()), (1, Prepared()))
    assert crew.prepare(ORDER) == [Prepared()] * 3
    assert channel.sent == [ORDER]


def test_a_worker_s_mistake_of_the_user_is_the_leader_s() -> None:
    crew, _, _ = crew_of((1, Prepared()), (2, Failed("no such file", is_users_mistake=True)))
    with pytest.raises(ChituError, match=r"^no such file \(rank 6\)$") as raised:
        crew.prepare(ORDER)
    assert not isinstance(raised.value, PeerError)


def test_a_worker_that_broke_is_named_with_what_all_were_at() -> None:
    crew, _, _ = crew_of((1, Failed("OSError: disk", is_users_mistake=False)))
    with pytest.raises(PeerError, match=r"^rank 5 failed at the start: OSError: disk$"):
        crew.prepare(ORDER)


def test_another_answer_than_asked_for_is_a_broken_protocol() -> None:
    crew, _, _ = crew_of((1, Allocated()))
    with pytest.raises(PeerError, match="answered Allocated"):
        crew.prepare(ORDER)


def test_a_failure_beside_a_loss_is_the_lost_rank_s() -> None:
    """The collectives of its peers broke, and they said so first."""
    losses = Losses(WORLD_RANKS, grace_s=60.0)
    losses.doing = "at step 7"
    losses(1, "connection closed")
    gloo = Failed("RuntimeError: connection closed by peer", is_users_mistake=False, step_id=7)
    assert str(losses.failure(2, gloo)) == "rank 5 was lost at step 7: connection closed"


def test_what_a_lost_rank_said_before_is_why_it_is_lost() -> None:
    _, _, losses = crew_of(
        (2, Failed("RuntimeError: connection closed by peer", is_users_mistake=False)),
        (1, Failed("MemoryError: full", is_users_mistake=False, step_id=9)),
    )
    losses(1, "connection closed")
    says = re.escape("rank 5 failed at step 9: MemoryError: full")
    with pytest.raises(PeerError, match=says), losses.explained():
        raise RuntimeError("gloo: connection closed by peer")
    assert losses.has_failed


def test_a_failure_of_the_leader_s_own_stays_what_it_was() -> None:
    losses = Losses(WORLD_RANKS, grace_s=60.0)
    with pytest.raises(ConfigError, match="wrong"), losses.explained():
        raise ConfigError("wrong")


def test_files_of_another_model_are_refused() -> None:
    order = Prepare(config="{}", spec_digest="of another", device="cpu")
    with pytest.raises(ConfigError, match="another model on this node"):
        local_rank().prepare(order)


def test_a_node_needs_a_device_for_each_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    order = Prepare(config="{}", spec_digest=digest(tiny_spec()), device="cuda")
    local_rank(Node(num_local_ranks=2)).prepare(order)
    with pytest.raises(ConfigError, match=r"4 ranks on a node with 2 CUDA devices: use --nproc"):
        local_rank(Node(num_local_ranks=4)).prepare(order)


@pytest.mark.parametrize("is_one_lost", [False, True])
def test_whoever_is_dismissed_is_told_to_stop_so_only_the_leader_says_why(
    is_one_lost: bool,
) -> None:
    crew, channel, _ = crew_of()
    channel.is_broken = is_one_lost
    crew.dismiss()
    assert channel.sent == ([] if is_one_lost else [Stop()])


def test_a_single_rank_has_no_channel() -> None:
    crew = Crew(local_rank())
    assert crew.prepare(ORDER) == [Prepared()]
    crew.dismiss()


def test_a_process_that_does_not_notice_a_loss_ends() -> None:
    """As one whose main thread waits in a collective for a peer that stands still."""
    program = """
        import logging, time
        from chitu_like.worker.losses import Losses
        logging.basicConfig(format="%(message)s")
        losses = Losses([0, 1], grace_s=0.2)
        losses.doing = "at step 57"
        losses(1, "silent for 2 s")
        time.sleep(600)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("rank 1 was lost at step 57: silent for 2 s\n")
    assert "Current thread" in done.stderr  # the stacks
    assert "in <module>" in done.stderr

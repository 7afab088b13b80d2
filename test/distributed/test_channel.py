"""The control channel: ordered, closed to strangers, and nobody's end goes unnoticed."""

import logging
import os
import queue
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
from distributed.channel_worker import (
    EXIT_IN_RECEIVE,
    EXIT_WHILE_COMPUTING,
    Answer,
    Ask,
    Compute,
    End,
    Order,
)
from processes import PATIENCE_S, free_port, until, until_asleep

from chitu_like.core.errors import PeerError
from chitu_like.distributed.channel import LeaderChannel, WorkerChannel
from chitu_like.distributed.wire import MAX_FRAME_BYTES, FrameParser, frame_of

REPO = Path(__file__).resolve().parents[2]
SECRET = "a" * 64
WAIT_S = PATIENCE_S
SILENCE_S = (
    2.0  # where it shall be noticed: more than a busy machine makes a process wait for a core
)

Leader = LeaderChannel[Order, Answer]
Worker = WorkerChannel[Order, Answer]


class Losses:
    """What on_lost was called with."""

    def __init__(self) -> None:
        self.calls: queue.SimpleQueue[tuple[object, ...]] = queue.SimpleQueue()

    def __call__(self, *what: object) -> None:
        self.calls.put(what)

    def next(self) -> tuple[object, ...]:
        return self.calls.get(timeout=WAIT_S)


@pytest.fixture
def losses() -> Losses:
    return Losses()


@pytest.fixture
def open_leader(losses: Losses) -> Iterator[Callable[..., Leader]]:
    """Make leaders; they are closed after the test."""
    opened: list[Leader] = []

    def make(num_workers: int = 1, silence_s: float = 10.0, host: str = "127.0.0.1") -> Leader:
        leader: Leader = LeaderChannel(
            host, SECRET, num_workers, from_worker=Answer, silence_s=silence_s, on_lost=losses
        )
        opened.append(leader)
        return leader

    yield make
    for leader in opened:
        leader.close()


@pytest.fixture
def connect() -> Iterator[Callable[..., Worker]]:
    """Make workers of this process; they are closed after the test."""
    opened: list[Worker] = []

    def make(
        leader: Leader,
        rank: int = 1,
        *,
        secret: str = SECRET,
        silence_s: float = 10.0,
        on_lost: Callable[[str], None] = lambda reason: None,
    ) -> Worker:
        worker: Worker = WorkerChannel.connect(
            leader.address,
            secret,
            rank=rank,
            to_worker=Order,
            silence_s=silence_s,
            timeout_s=WAIT_S,
            on_lost=on_lost,
        )
        opened.append(worker)
        return worker

    yield make
    for worker in opened:
        worker.close()


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start workers as processes; they are killed after the test."""
    started: list[subprocess.Popen[str]] = []

    def make(leader: Leader, rank: int = 1, silence_s: float = 10.0) -> subprocess.Popen[str]:
        script = str(Path(__file__).with_name("channel_worker.py"))
        process = subprocess.Popen(
            [sys.executable, script, leader.address, SECRET, str(rank), str(silence_s)],
            env={**os.environ, "PYTHONPATH": str(REPO)},
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield make
    for process in started:
        process.kill()
        process.wait()


def knock(leader: Leader, sent: bytes = b"") -> socket.socket:
    """Connect as a stranger."""
    host, _, port = leader.address.rpartition(":")
    stranger = socket.create_connection((host, int(port)), timeout=WAIT_S)
    stranger.sendall(sent)
    return stranger


def flood(leader: Leader) -> None:
    """Send more than all buffers on the way hold."""
    for number in range(100):
        leader.send(Ask(number, bytes(1_000_000)))


def is_dropped(stranger: socket.socket) -> bool:
    try:
        return stranger.recv(1) == b""
    except ConnectionResetError:
        return True


def hello(secret: str = SECRET, rank: int = 1) -> bytes:
    return frame_of(msgspec.msgpack.encode({"secret": secret, "rank": rank}))


def test_ten_thousand_messages_arrive_in_order_both_ways(
    open_leader: Callable[..., Leader], connect: Callable[..., Worker]
) -> None:
    num_workers, num_messages = 3, 10_000
    leader = open_leader(num_workers)
    seen: dict[int, list[int]] = {rank: [] for rank in range(1, num_workers + 1)}

    def work(rank: int) -> None:
        worker = connect(leader, rank)
        for _ in range(num_messages):
            order = worker.receive()
            assert isinstance(order, Ask)
            seen[rank].append(order.number)
            worker.send(Answer(rank, order.number))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in seen]
    for thread in threads:
        thread.start()
    leader.accept(WAIT_S)
    for number in range(num_messages):
        leader.send(Ask(number, bytes(number % 97)))
    answers: dict[int, list[int]] = {rank: [] for rank in seen}
    for _ in range(num_messages * num_workers):
        rank, answer = leader.receive(WAIT_S)
        assert rank == answer.rank
        answers[rank].append(answer.number)
    for thread in threads:
        thread.join()
    assert seen == answers == {rank: list(range(num_messages)) for rank in seen}


def test_a_message_larger_than_every_buffer_arrives_whole(
    open_leader: Callable[..., Leader], start: Callable[..., subprocess.Popen[str]]
) -> None:
    leader = open_leader(2)
    start(leader, 1), start(leader, 2)
    leader.accept(WAIT_S)
    for number in range(3):
        leader.send(Ask(number, bytes(20_000_000)))
    received = [leader.receive(WAIT_S)[1] for _ in range(6)]
    assert sorted((a.rank, a.number) for a in received) == [
        (rank, number) for rank in (1, 2) for number in range(3)
    ]
    assert {answer.num_bytes for answer in received} == {20_000_000}


def test_receive_says_when_nothing_came(
    open_leader: Callable[..., Leader], connect: Callable[..., Worker]
) -> None:
    leader = open_leader()
    connect(leader)
    leader.accept(WAIT_S)
    with pytest.raises(TimeoutError):
        leader.receive(0.01)


def test_a_worker_told_to_stop_leaves_and_nobody_is_lost(
    open_leader: Callable[..., Leader],
    start: Callable[..., subprocess.Popen[str]],
    losses: Losses,
) -> None:
    leader = open_leader(3)
    workers = [start(leader, rank) for rank in (1, 2, 3)]
    leader.accept(WAIT_S)
    leader.stop(End(), WAIT_S)
    assert [worker.wait(WAIT_S) for worker in workers] == [0, 0, 0]
    assert [worker.communicate()[0] for worker in workers] == ["", "", ""]
    assert losses.calls.empty()


def test_ranks_that_do_not_come_are_named(
    open_leader: Callable[..., Leader], connect: Callable[..., Worker]
) -> None:
    leader = open_leader(4)
    connect(leader, 3)
    until(lambda: leader._door.missing == [1, 2, 4])
    with pytest.raises(PeerError, match=r"within 0\.1 s: 1, 2, 4$"):
        leader.accept(0.1)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(PeerError, match=r"cannot listen on 203\.0\.113\.7"):
        LeaderChannel(
            "203.0.113.7", SECRET, 1, from_worker=Answer, silence_s=1.0, on_lost=lambda *_: None
        )


def test_a_worker_that_finds_nobody_says_where_it_looked() -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(PeerError, match=f"leader at {address}"):
        WorkerChannel.connect(
            address,
            SECRET,
            rank=1,
            to_worker=Order,
            silence_s=1.0,
            timeout_s=1.0,
            on_lost=lambda reason: None,
        )


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_it_speaks_ipv6(open_leader: Callable[..., Leader], connect: Callable[..., Worker]) -> None:
    leader = open_leader(host="::1")
    assert leader.address.startswith("[::1]:")
    worker = connect(leader)
    leader.accept(WAIT_S)
    leader.send(Ask(1))
    assert worker.receive() == Ask(1)


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (hello(secret="b" * 64), "does not know the job's secret"),
        (hello(secret="ä" * 64), "does not know the job's secret"),
        (hello(secret=""), "does not know the job's secret"),
        (hello(rank=0), "claims rank 0, which is not free"),
        (hello(rank=2), "claims rank 2, which is not free"),
        (hello(rank=3), "claims rank 3, which is not free"),
        (frame_of(b"\xc1garbage"), "sent no hello"),
        (frame_of(b""), "sent no hello"),
        (b"GET / HTTP/1.1\r\n\r\n", "announced a message of 1195725856 bytes, more than 1024"),
        (struct.pack("!I", 1025), "announced a message of 1025 bytes, more than 1024"),
    ],
)
def test_a_stranger_is_dropped_and_the_worker_let_in(
    open_leader: Callable[..., Leader],
    connect: Callable[..., Worker],
    losses: Losses,
    caplog: pytest.LogCaptureFixture,
    sent: bytes,
    reason: str,
) -> None:
    leader = open_leader(2)
    second = connect(leader, 2)
    with caplog.at_level(logging.WARNING), knock(leader, sent) as stranger:
        assert is_dropped(stranger)
        first = connect(leader, 1)
        leader.accept(WAIT_S)
    assert [record.getMessage().partition(": dropped ")[2] for record in caplog.records] == [
        f"127.0.0.1:{caplog.records[0].getMessage().split(':')[2]}: {reason}"
    ]
    assert SECRET not in caplog.text
    leader.send(Ask(7))
    assert first.receive() == second.receive() == Ask(7)
    assert losses.calls.empty()


def test_silent_strangers_delay_nobody_and_go(
    open_leader: Callable[..., Leader],
    connect: Callable[..., Worker],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("chitu_like.distributed.door.HELLO_TIMEOUT_S", 1.0)
    monkeypatch.setattr("chitu_like.distributed.door.MAX_STRANGERS", 50)
    leader = open_leader(2)
    strangers = [knock(leader, b"\0\0") for _ in range(80)]
    connect(leader, 1)
    assert all(map(is_dropped, strangers))
    monkeypatch.setattr("chitu_like.distributed.door.HELLO_TIMEOUT_S", 10 * WAIT_S)
    late = knock(leader, b"\0\0")
    connect(leader, 2)
    leader.accept(WAIT_S)  # before the stranger's time is up
    assert is_dropped(late)
    with pytest.raises(ConnectionRefusedError):
        knock(leader)
    for stranger in strangers:
        stranger.close()


def test_callers_that_hang_up_at_once_do_no_harm(
    open_leader: Callable[..., Leader], connect: Callable[..., Worker]
) -> None:
    """As port scanners do: such a socket does not even know any more who its peer was."""
    leader = open_leader()
    for _ in range(50):
        stranger = knock(leader)
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stranger.close()
    worker = connect(leader)
    leader.accept(WAIT_S)
    leader.send(Ask(1))
    assert worker.receive() == Ask(1)


@pytest.mark.slow
def test_a_worker_that_is_stuck_while_all_stop_delays_nobody_for_ever(
    open_leader: Callable[..., Leader], start: Callable[..., subprocess.Popen[str]], losses: Losses
) -> None:
    leader = open_leader(2, silence_s=SILENCE_S)
    victim, other = start(leader, 1), start(leader, 2)
    leader.accept(WAIT_S)
    victim.send_signal(signal.SIGSTOP)
    started = time.monotonic()
    leader.stop(End(), WAIT_S)
    assert time.monotonic() - started < WAIT_S / 2
    assert losses.next() == (1, f"silent for {SILENCE_S} s")
    assert other.wait(WAIT_S) == 0


def test_what_comes_with_the_hello_is_read(open_leader: Callable[..., Leader]) -> None:
    leader = open_leader()
    answers = b"".join(frame_of(msgspec.msgpack.encode(Answer(1, n))) for n in range(3))
    with knock(leader, hello() + answers):
        leader.accept(WAIT_S)
        assert [leader.receive(WAIT_S)[1].number for _ in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (frame_of(b"\xc1"), "sent no message of ours"),
        (frame_of(msgspec.msgpack.encode(["answer", 1])), "sent no message of ours"),
        (
            struct.pack("!I", MAX_FRAME_BYTES + 1),
            f"announced a message of {MAX_FRAME_BYTES + 1} bytes, more than {MAX_FRAME_BYTES}",
        ),
        (b"", "connection closed"),
    ],
)
def test_a_worker_that_breaks_the_protocol_is_lost_after_what_it_said(
    open_leader: Callable[..., Leader], losses: Losses, sent: bytes, reason: str
) -> None:
    leader = open_leader(2)
    with (
        knock(leader, hello(rank=2)),
        knock(leader, hello() + frame_of(msgspec.msgpack.encode(Answer(1, 5))) + sent) as worker,
    ):
        worker.shutdown(socket.SHUT_WR)
        rank, why = losses.next()
        assert rank == 1
        assert str(why).startswith(reason)
        assert leader.receive(WAIT_S) == (1, Answer(1, 5))
        for _ in range(2):  # it stays lost
            with pytest.raises(PeerError, match=f"rank 1 of the instance is lost: {reason}"):
                leader.receive(WAIT_S)
        with pytest.raises(PeerError, match="rank 1 of the instance"):
            leader.send(Ask(1))
    assert losses.calls.empty()


def test_a_worker_refuses_what_no_leader_says(connect: Callable[..., Worker]) -> None:
    """With a stand-in for the leader that has lost its mind."""
    for sent, reason in [
        (frame_of(b"\xc1"), "sent no message of ours"),
        (struct.pack("!I", MAX_FRAME_BYTES + 1), f"announced .* {MAX_FRAME_BYTES}"),
    ]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            host, port = listener.getsockname()
            worker: Worker = WorkerChannel.connect(
                f"{host}:{port}",
                SECRET,
                rank=1,
                to_worker=Order,
                silence_s=5.0,
                timeout_s=WAIT_S,
                on_lost=lambda reason: None,
            )
            with listener.accept()[0] as leader:
                leader.sendall(sent)
                with pytest.raises(PeerError, match=reason):
                    worker.receive()
            worker.close()


def test_an_oversized_message_is_refused_where_it_is_made(
    open_leader: Callable[..., Leader], connect: Callable[..., Worker]
) -> None:
    leader = open_leader()
    worker = connect(leader)
    leader.accept(WAIT_S)
    with pytest.raises(ValueError, match="exceeds"):
        leader.send(Ask(1, bytes(MAX_FRAME_BYTES)))
    leader.send(Ask(2))
    assert worker.receive() == Ask(2)


def test_frames_are_the_same_however_the_stream_is_cut() -> None:
    payloads = [b"", b"a", bytes(300), b"", b"\0\0\0\1", bytes(70_000)]
    stream = b"".join(map(frame_of, payloads))
    for size in (1, 3, 4, 5, 1000, len(stream)):
        parser = FrameParser(MAX_FRAME_BYTES)
        found: list[bytes] = []
        for start in range(0, len(stream), size):
            parser.feed(stream[start : start + size])
            while (payload := parser.next_payload()) is not None:
                found.append(payload)
        assert found == payloads


@pytest.mark.parametrize("computing", [False, True])
def test_a_killed_worker_is_reported_by_rank(
    open_leader: Callable[..., Leader],
    start: Callable[..., subprocess.Popen[str]],
    losses: Losses,
    computing: bool,
) -> None:
    leader = open_leader(2)
    victim = start(leader, 2)
    start(leader, 1)
    leader.accept(WAIT_S)
    if computing:
        leader.send(Compute(600.0))
        assert {leader.receive(WAIT_S)[0] for _ in (1, 2)} == {1, 2}
    victim.kill()
    assert losses.next() == (2, "connection closed")
    with pytest.raises(PeerError, match="rank 2 of the instance is lost: connection closed"):
        leader.receive(WAIT_S)


def test_a_stopped_worker_is_reported_by_rank(
    open_leader: Callable[..., Leader],
    start: Callable[..., subprocess.Popen[str]],
    losses: Losses,
) -> None:
    leader = open_leader(2, silence_s=SILENCE_S)
    start(leader, 1)
    victim = start(leader, 2)
    leader.accept(WAIT_S)
    stopped_at = time.monotonic()
    victim.send_signal(signal.SIGSTOP)
    assert losses.next() == (2, f"silent for {SILENCE_S} s")
    assert time.monotonic() - stopped_at > 0.7 * SILENCE_S
    with pytest.raises(PeerError, match=f"rank 2 of the instance is lost: silent for {SILENCE_S}"):
        leader.receive(WAIT_S)


@pytest.mark.slow
def test_a_send_to_a_stopped_worker_comes_back(
    open_leader: Callable[..., Leader], start: Callable[..., subprocess.Popen[str]]
) -> None:
    leader = open_leader(1, silence_s=SILENCE_S)
    victim = start(leader)
    leader.accept(WAIT_S)
    victim.send_signal(signal.SIGSTOP)
    with pytest.raises(PeerError, match="rank 1 of the instance is lost: silent"):
        flood(leader)


@pytest.mark.slow
def test_a_worker_that_beats_but_takes_nothing_is_lost(
    open_leader: Callable[..., Leader],
    start: Callable[..., subprocess.Popen[str]],
    losses: Losses,
) -> None:
    leader = open_leader(1, silence_s=1.0)
    start(leader)
    leader.accept(WAIT_S)
    leader.send(Compute(600.0))
    with pytest.raises(PeerError, match="took no message for 1"):
        flood(leader)
    assert losses.next() == (1, "took no message for 1.0 s")


@pytest.mark.parametrize(
    ("computing", "code", "said"),
    [
        (False, EXIT_IN_RECEIVE, "the instance's leader is lost: connection closed\n"),
        (True, EXIT_WHILE_COMPUTING, "lost: connection closed\n"),
    ],
)
def test_workers_end_when_the_leader_goes_without_a_word(
    open_leader: Callable[..., Leader],
    start: Callable[..., subprocess.Popen[str]],
    computing: bool,
    code: int,
    said: str,
) -> None:
    leader = open_leader(2)
    workers = [start(leader, rank) for rank in (1, 2)]
    leader.accept(WAIT_S)
    if computing:
        leader.send(Compute(600.0))
        assert {leader.receive(WAIT_S)[0] for _ in workers} == {1, 2}
        leader.send(Ask(1))  # nobody reads this any more: no reason to wait
    else:
        for worker in workers:
            until_asleep(worker.pid)  # in receive
    leader.close()
    assert [worker.communicate(timeout=WAIT_S)[0] for worker in workers] == [said, said]
    assert [worker.returncode for worker in workers] == [code, code]


def test_a_leader_that_goes_right_behind_an_order_is_noticed(
    open_leader: Callable[..., Leader], connect: Callable[..., Worker], losses: Losses
) -> None:
    leader = open_leader()
    worker = connect(leader, on_lost=losses)
    leader.accept(WAIT_S)
    received: queue.SimpleQueue[Order] = queue.SimpleQueue()
    computing = threading.Thread(target=lambda: received.put(worker.receive()))
    computing.start()
    order = Ask(1, bytes(8_000_000))  # so long that the end has come before all of it is read
    leader.send(order)
    leader.close()
    assert received.get(timeout=WAIT_S) == order
    assert losses.next() == ("connection closed",)
    computing.join()


LEADER = """
import sys, time
from distributed.channel_worker import Answer, Ask, Compute
from chitu_like.distributed.channel import LeaderChannel
leader = LeaderChannel("127.0.0.1", sys.argv[1], 1, from_worker=Answer, silence_s=600.0,
                       on_lost=lambda *what: None)
print(leader.address, flush=True)
leader.accept(600.0)
if sys.argv[2] == "True":
    leader.send(Compute(600.0))
    leader.receive(600.0)
print("busy", flush=True)
time.sleep(600.0)
"""


@pytest.mark.parametrize(
    ("sent", "computing"),
    [
        (signal.SIGKILL, True),
        pytest.param(signal.SIGKILL, False, marks=pytest.mark.slow),
        pytest.param(signal.SIGSTOP, True, marks=pytest.mark.slow),
        pytest.param(signal.SIGSTOP, False, marks=pytest.mark.slow),
    ],
)
def test_workers_end_when_the_leader_is_killed_or_stopped(
    start: Callable[..., subprocess.Popen[str]], sent: signal.Signals, computing: bool
) -> None:
    leader = subprocess.Popen(
        [sys.executable, "-c", LEADER, SECRET, str(computing)],
        env={**os.environ, "PYTHONPATH": f"{REPO}{os.pathsep}{REPO / 'test'}"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert leader.stdout is not None
        address = leader.stdout.readline().strip()
        script = str(Path(__file__).with_name("channel_worker.py"))
        worker = subprocess.Popen(
            [sys.executable, script, address, SECRET, "1", str(SILENCE_S)],
            env={**os.environ, "PYTHONPATH": str(REPO)},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert leader.stdout.readline() == "busy\n"
            until_asleep(worker.pid)
            leader.send_signal(sent)
            said = worker.communicate(timeout=WAIT_S)[0]
        finally:
            worker.kill()
    finally:
        leader.kill()
        leader.communicate()
    reason = "connection closed" if sent is signal.SIGKILL else f"silent for {SILENCE_S} s"
    assert said.endswith(f"lost: {reason}\n")
    assert worker.returncode == (EXIT_WHILE_COMPUTING if computing else EXIT_IN_RECEIVE)


@pytest.mark.slow
def test_a_leader_that_stood_still_loses_nobody(
    open_leader: Callable[..., Leader],
    start: Callable[..., subprocess.Popen[str]],
    losses: Losses,
) -> None:
    """What piled up meanwhile shows that the worker lives."""
    leader = open_leader(1, silence_s=1.0)
    start(leader, silence_s=30.0)
    leader.accept(WAIT_S)
    blocked = sys.getswitchinterval()
    sys.setswitchinterval(3.0)  # no other thread of this process runs
    try:
        until = time.monotonic() + 2.0
        while time.monotonic() < until:
            pass
    finally:
        sys.setswitchinterval(blocked)
    time.sleep(0.5)
    assert losses.calls.empty()


@pytest.mark.slow
def test_idle_ranks_sleep_and_are_not_lost_however_long(
    open_leader: Callable[..., Leader],
    start: Callable[..., subprocess.Popen[str]],
    losses: Losses,
) -> None:
    leader = open_leader(2, silence_s=SILENCE_S)
    workers = [start(leader, rank, silence_s=SILENCE_S) for rank in (1, 2)]
    leader.accept(WAIT_S)
    processes = [psutil.Process(), *(psutil.Process(worker.pid) for worker in workers)]
    for process in processes:
        process.cpu_percent()
    time.sleep(3 * SILENCE_S)
    shares = [process.cpu_percent() for process in processes]
    print(f"CPU of an idle leader and its workers: {shares} %")
    assert max(shares) < 1.0
    leader.send(Ask(1))
    assert {leader.receive(WAIT_S)[0] for _ in (1, 2)} == {1, 2}
    assert losses.calls.empty()

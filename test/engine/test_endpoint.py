"""Both ends of the socket: what is said arrives, strangers are not heard, a failure reaches everyone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
import zmq
from fake_executor import expected_output
from scheduling import Rig, make_rig

from chitu_like.core.output import FinishReason, RequestDelta
from chitu_like.core.sampling_params import SamplingParams
from chitu_like.engine.endpoint import EngineEndpoint, serve
from chitu_like.engine.messages import (
    AbortRequests,
    AddRequest,
    Failed,
    Hello,
    Ready,
    Shutdown,
    ToEngine,
    ToFrontEnd,
)


class Peer:
    """A front end of ten lines."""

    def __init__(self, address: str) -> None:
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(address)
        self.deltas: list[RequestDelta] = []

    def send(self, message: ToEngine) -> None:
        self.socket.send(msgspec.msgpack.encode(message))

    def receive(self, timeout_s: float = 5.0) -> ToFrontEnd | None:
        if not self.socket.poll(int(timeout_s * 1000)):
            return None
        return msgspec.msgpack.decode(self.socket.recv(), type=ToFrontEnd)

    def collect(self, request_id: str) -> tuple[list[int], FinishReason | None]:
        while True:
            tokens: list[int] = []
            for delta in self.deltas:
                if delta.request_id == request_id:
                    tokens += delta.token_ids
                    if delta.finish_reason:
                        return tokens, delta.finish_reason
            message = self.receive()
            assert message is not None, "the engine fell silent"
            self.deltas += getattr(
                message, "deltas", []
            )  # others' too: a step tells of all at once


class Served:
    """An engine with a fake executor that serves in a thread."""

    def __init__(self, folder: Path) -> None:
        self.rig: Rig = make_rig(max_in_flight=2)
        self.address = f"ipc://{folder}/engine"
        self.error: BaseException | None = None
        self._endpoint = EngineEndpoint(self.address, "right")
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        with self._endpoint:
            try:
                serve(self.rig.engine, self._endpoint)
            except RuntimeError as error:
                self.error = error


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    engine = Served(tmp_path)
    yield engine
    peer = Peer(engine.address)
    peer.send(Hello("right"))
    peer.send(Shutdown())
    engine.thread.join(5)
    peer.socket.close()


def greedy(request_id: str, prompt: list[int], max_tokens: int) -> AddRequest:
    return AddRequest(request_id, prompt, SamplingParams(temperature=0.0, max_tokens=max_tokens))


@pytest.fixture
def peer(served: Served) -> Iterator[Peer]:
    peer = Peer(served.address)
    peer.send(Hello("right"))
    assert isinstance(peer.receive(), Ready)
    yield peer
    peer.socket.close()


def test_requests_are_answered_and_shutdown_ends_the_loop(served: Served, peer: Peer):
    peer.send(greedy("a", [1, 2, 3], 6))
    peer.send(greedy("b", [4], 3))
    assert peer.collect("a") == (expected_output([1, 2, 3], 6), FinishReason.LENGTH)
    peer.send(Shutdown())
    served.thread.join(5)
    assert not served.thread.is_alive()
    assert served.error is None


def test_a_bad_request_is_answered_and_the_next_works(peer: Peer):
    peer.send(greedy("bad", [10**6], 6))
    peer.send(greedy("good", [1], 2))
    assert peer.collect("bad") == ([], FinishReason.ERROR)
    assert peer.collect("good")[0] == expected_output([1], 2)


def test_garbage_is_dropped_and_the_next_request_works(peer: Peer):
    peer.socket.send(b"\xc1 not msgpack")
    peer.socket.send(msgspec.msgpack.encode({"type": "add", "request_id": 3}))
    peer.socket.send(
        msgspec.msgpack.encode(
            {
                "type": "add",
                "request_id": "x",
                "prompt_token_ids": [1],
                "params": {"temperature": -5.0},
            }
        )
    )
    peer.send(greedy("good", [1], 2))
    assert peer.collect("good")[0] == expected_output([1], 2)


@pytest.mark.parametrize("secret", ["wrong", "", "r\u012bght"])
def test_a_stranger_is_not_heard(served: Served, secret: str):
    stranger = Peer(served.address)
    stranger.send(Hello(secret))
    stranger.send(greedy("a", [1], 2))
    time.sleep(0.2)
    assert served.rig.executor.batches == []
    honest = Peer(served.address)  # the stranger is still there, and in nobody's way
    honest.send(Hello("right"))
    assert isinstance(honest.receive(), Ready)
    honest.send(greedy("b", [1], 2))
    assert honest.collect("b")[0] == expected_output([1], 2)
    honest.socket.close()
    stranger.socket.close()


def test_an_abort_stops_a_request(served: Served, peer: Peer):
    peer.send(greedy("a", [1], 60))
    peer.send(AbortRequests(["a", "unknown"]))
    peer.send(greedy("b", [2], 2))
    assert peer.collect("b")[1] is FinishReason.LENGTH
    assert served.rig.scheduler.open_requests() == []


def test_a_broken_executor_is_the_last_that_is_heard(served: Served, peer: Peer):
    served.rig.executor.fails_at_step = 0
    peer.send(greedy("a", [1], 9))
    message = peer.receive()
    assert isinstance(message, Failed)
    assert "caught fire" not in message.reason  # exception text stays in the log
    served.thread.join(5)
    assert "caught fire" in str(served.error)


def test_an_idle_engine_uses_no_cpu(served: Served, peer: Peer):
    process = psutil.Process()
    before = sum(process.cpu_times()[:2])
    time.sleep(0.5)
    assert sum(process.cpu_times()[:2]) - before < 0.1

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import msgspec
import pytest
import zmq
from fakes import FakeEngine, say

from chitu_like.core.errors import CapacityError, PeerError
from chitu_like.core.sampling_params import SamplingParams
from chitu_like.engine import client as client_module
from chitu_like.engine.client import EngineClient
from chitu_like.engine.endpoint import EngineEndpoint
from chitu_like.engine.messages import (
    AddRequest,
    EngineInfo,
    Hello,
    Ready,
    StepMessage,
    ToEngine,
)


def test_requests_go_and_deltas_come_in_order(tmp_path: Path) -> None:
    engine = FakeEngine(f"ipc://{tmp_path}/e", script=say("abc"))

    async def talk() -> list[int]:
        client = EngineClient("s3cret")
        client.connect(engine.address)
        tokens: list[int] = []
        async for message in client.messages():
            if isinstance(message, Ready):
                client.add(AddRequest("r", [1], SamplingParams(max_tokens=9), [257]))
            elif isinstance(message, StepMessage):
                tokens += [token for delta in message.deltas for token in delta.token_ids]
                if message.deltas[-1].finish_reason is not None:
                    break
        client.close()
        client.close()
        return tokens

    try:
        assert asyncio.run(asyncio.wait_for(talk(), 10)) == [97, 98, 99, 257]
        assert engine.added[0].params == SamplingParams(max_tokens=9)
    finally:
        engine.close()


def test_sending_does_not_put_a_waiting_reader_to_sleep(tmp_path: Path) -> None:
    """ZeroMQ's descriptor is edge-triggered: a send must not eat the edge of a message."""
    engine = FakeEngine(f"ipc://{tmp_path}/e", script=say("a"), delay_s=0.0)

    async def talk() -> int:
        client = EngineClient("s3cret")
        client.connect(engine.address)
        num_finished = 0
        async for message in client.messages():
            if isinstance(message, Ready):
                for i in range(300):
                    client.add(AddRequest(f"r{i}", [1], SamplingParams(max_tokens=1)))
                    client.abort(["nobody"])
                    await asyncio.sleep(0.0005)
            elif isinstance(message, StepMessage):
                num_finished += sum(delta.finish_reason is not None for delta in message.deltas)
                if num_finished == 300:
                    break
        client.close()
        return num_finished

    try:
        assert asyncio.run(asyncio.wait_for(talk(), 20)) == 300
    finally:
        engine.close()


def test_an_engine_on_another_machine_is_reached_over_tcp(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It binds any free port and says which; heartbeats do not disturb a connection that is idle."""
    monkeypatch.setattr(client_module, "PING_MS", 200)
    monkeypatch.setattr(client_module, "PONG_TIMEOUT_MS", 400)
    with EngineEndpoint("tcp://127.0.0.1:*", "word") as endpoint:
        assert re.fullmatch(r"tcp://127\.0\.0\.1:\d{4,5}", endpoint.address)

        async def talk() -> None:
            client = EngineClient("word")
            client.connect(endpoint.address)
            assert await asyncio.to_thread(endpoint.receive, 5.0) == Hello("word")
            gone = asyncio.ensure_future(client.wait_gone())
            endpoint.send(Ready(EngineInfo(100, 2, 10, 16, 50)))
            assert isinstance(await anext(client.messages()), Ready)
            await asyncio.sleep(1.0)
            assert not gone.done()
            client.close()

        asyncio.run(asyncio.wait_for(talk(), 20))


def test_an_engine_that_goes_is_noticed_at_once(tmp_path: Path) -> None:
    engine = FakeEngine(f"ipc://{tmp_path}/e")

    async def watch() -> None:
        client = EngineClient("s3cret")
        client.connect(engine.address)
        await anext(client.messages())
        gone = asyncio.ensure_future(client.wait_gone())
        await asyncio.sleep(0.1)
        assert not gone.done()
        await asyncio.to_thread(engine.close)
        await gone
        client.close()

    asyncio.run(asyncio.wait_for(watch(), 10))


def test_hello_with_the_secret_comes_first_even_if_the_engine_binds_later(tmp_path: Path) -> None:
    async def talk() -> ToEngine:
        client = EngineClient("word")
        client.connect(f"ipc://{tmp_path}/late")
        client.abort(["x"])
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            socket.bind(f"ipc://{tmp_path}/late")
            first = await asyncio.to_thread(socket.recv)
        client.close()
        message: ToEngine = msgspec.msgpack.decode(first, type=ToEngine)
        return message

    assert asyncio.run(asyncio.wait_for(talk(), 10)) == Hello("word")


def test_what_is_no_message_breaks_the_connection(tmp_path: Path) -> None:
    async def talk() -> None:
        client = EngineClient("word")
        client.connect(f"ipc://{tmp_path}/e")
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            socket.bind(f"ipc://{tmp_path}/e")
            socket.send(b"\x80\x03cos\nsystem\n")
            with pytest.raises(PeerError, match="protocol"):
                await anext(client.messages())
        client.close()

    asyncio.run(asyncio.wait_for(talk(), 10))


def test_an_engine_that_does_not_read_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "MAX_PENDING_SENDS", 10)

    async def talk() -> None:
        client = EngineClient("word")
        client.connect(f"ipc://{tmp_path}/nobody")
        for _ in range(9):  # Hello is the first of ten
            client.abort(["x"])
        with pytest.raises(CapacityError, match="stopped reading"):
            client.abort(["x"])
        client.close()
        with pytest.raises(PeerError, match="not connected"):
            client.abort(["x"])

    asyncio.run(asyncio.wait_for(talk(), 10))

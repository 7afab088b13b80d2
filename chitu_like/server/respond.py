"""From a call's deltas to an HTTP answer, whole or streamed, watching whether the client is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from chitu_like.core.output import FinishReason
from chitu_like.server.answers import Usage
from chitu_like.server.call import Call
from chitu_like.server.choice import ChoiceDelta
from chitu_like.server.problems import to_api_error

LAST_FRAME_S = 2.0
"""Time a stream has to say why it ends, after the call was cut: a client that reads needs none."""
CLIENT_LEFT = 499
"""Status of the answer nobody reads, for the log of a proxy; nginx's word for it."""


class StreamSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a stream is told.

    Attributes:
        include_usage: end with a chunk that carries the usage.
        continuous_usage: every chunk carries the usage so far.
        keep_alive_s: silence after which a comment is sent.
    """

    include_usage: bool
    continuous_usage: bool
    keep_alive_s: float


class Answer(Protocol):
    """How one endpoint words its answer."""

    def whole(self, deltas: list[ChoiceDelta], usage: Usage) -> msgspec.Struct:
        """The answer in one piece, from all deltas in order."""

    def opening(self, usage: Usage | None) -> Sequence[msgspec.Struct]:
        """Chunks before the first text."""

    def chunk(self, delta: ChoiceDelta, usage: Usage | None) -> msgspec.Struct:
        """The chunk that carries a delta."""

    def closing(self, usage: Usage) -> msgspec.Struct:
        """The chunk that carries the usage of the call."""


def json_response(
    content: msgspec.Struct, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Answer with a struct."""
    return Response(
        msgspec.json.encode(content), status, headers=headers, media_type="application/json"
    )


async def respond_whole(
    request: Request, call: Call, answer: Answer, headers: Mapping[str, str]
) -> Response:
    """Answer in one piece; the call is closed when this returns, or the client leaves."""
    collecting = asyncio.ensure_future(_collect(call.news()))
    leaving = asyncio.ensure_future(_wait_left(request.receive))
    try:
        await asyncio.wait({collecting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not collecting.done():
            return Response(status_code=CLIENT_LEFT)
        return json_response(answer.whole(collecting.result(), call.usage()), headers=headers)
    except Exception:
        call.close(FinishReason.ERROR)
        raise
    finally:
        call.close()
        collecting.cancel()
        leaving.cancel()


async def respond_stream(
    request: Request,
    call: Call,
    answer: Answer,
    settings: StreamSettings,
    headers: Mapping[str, str],
) -> Response:
    """Answer with server-sent events; the call is closed when the stream ends.

    The status is held back until there is something to say, `keep_alive_s` at most, so that a
    request that an engine refuses gets its 4xx.
    """
    batches = call.news(settings.keep_alive_s, singly=settings.continuous_usage)
    leaving = asyncio.ensure_future(_wait_left(request.receive))
    first = asyncio.ensure_future(_next(batches))
    try:
        await asyncio.wait({first, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if leaving.done():
            call.close()
            first.cancel()
            return Response(status_code=CLIENT_LEFT)
        frames = _frames(call, answer, settings, _chain(first.result(), batches))
    except BaseException as error:
        call.close(FinishReason.ERROR if isinstance(error, Exception) else FinishReason.ABORT)
        leaving.cancel()
        first.cancel()
        raise
    return EventStream(call, frames, leaving, headers)


class EventStream(Response):
    """Sends frames until they end, the client leaves, or the call is cut while the client sleeps.

    Args:
        call: closed at the end, whatever it was.
        frames: what to send.
        leaving: done when the client has left.
        headers: sent along.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        call: Call,
        frames: AsyncIterator[bytes],
        leaving: asyncio.Future[None],
        headers: Mapping[str, str],
    ) -> None:
        no_buffers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(headers={**headers, **no_buffers})
        del self.headers["content-length"]
        self._call = call
        self._frames = frames
        self._leaving = leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        writing = asyncio.ensure_future(self._write(send))
        cut = asyncio.ensure_future(_wait_cut(self._call))
        waiting = {writing, cut, self._leaving}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if cut.done() and not writing.done():
                await asyncio.wait({writing, self._leaving}, timeout=LAST_FRAME_S)
            if writing.done():
                writing.result()
        finally:
            self._call.close()
            for task in waiting:
                task.cancel()

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for frame in self._frames:
            await send({"type": "http.response.body", "body": frame, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _frames(
    call: Call,
    answer: Answer,
    settings: StreamSettings,
    batches: AsyncIterator[list[ChoiceDelta]],
) -> AsyncIterator[bytes]:
    """The whole stream; an error becomes its last frame but one.

    What has piled up goes out in one piece: the more there is to tell, the less a token costs.
    """
    has_begun = False
    try:
        async for deltas in batches:
            if not deltas:
                yield b": keep-alive\n\n"
                continue
            usage = call.usage() if settings.continuous_usage else None
            chunks = [] if has_begun else [*answer.opening(usage)]
            has_begun = True
            chunks += [answer.chunk(delta, usage) for delta in deltas]
            yield b"".join(map(_frame, chunks))
        if settings.include_usage:
            yield _frame(answer.closing(call.usage()))
    except Exception as error:
        call.close(FinishReason.ERROR)
        yield b"data: " + to_api_error(error, call.parts.call_id).to_json() + b"\n\n"
    yield b"data: [DONE]\n\n"


def _frame(chunk: msgspec.Struct) -> bytes:
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


async def _next(batches: AsyncIterator[list[ChoiceDelta]]) -> list[ChoiceDelta]:
    return await batches.__anext__()


async def _chain(
    first: list[ChoiceDelta], rest: AsyncIterator[list[ChoiceDelta]]
) -> AsyncIterator[list[ChoiceDelta]]:
    yield first
    async for deltas in rest:
        yield deltas


async def _collect(batches: AsyncIterator[list[ChoiceDelta]]) -> list[ChoiceDelta]:
    return [delta async for deltas in batches for delta in deltas]


async def _wait_cut(call: Call) -> None:
    await call.cut.wait()


async def _wait_left(receive: Receive) -> None:
    """Return when the client has closed its connection; its body was read before."""
    while (await receive())["type"] != "http.disconnect":
        pass

"""One request to an OpenAI-compatible server, each arrival of data stamped with the time.

A protocol of asyncio's own and a connection a request: between the kernel and the stamp stands one
callback, so that hundreds of streams in one process measure the server and not each other.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import msgspec

from chitu_like.bench.event_stream import EventStream
from chitu_like.core.errors import ConfigError, PeerError


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None

    @property
    def shown(self) -> str:
        """What the event adds to the answer."""
        if self.delta is None:
            return self.text or ""
        return (self.delta.content or "") + (self.delta.reasoning_content or "")


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: dict[str, object] | None = None


@dataclass
class StreamRecord:
    """What one request brought; times are the clock's.

    Attributes:
        start_s: when it was sent, its connection not yet made.
        token_times: when each event with tokens came.
        end_s: when it was over.
        num_input_tokens, num_output_tokens: as the server counts; the second falls back on events.
        error: why it failed, or None.
    """

    start_s: float
    token_times: list[float] = field(default_factory=list)
    end_s: float = 0.0
    num_input_tokens: int | None = None
    num_output_tokens: int = 0
    error: str | None = None


class Address:
    """Where a server is.

    Args:
        base_url: http://host:port, with or without the trailing /v1.

    Raises: ConfigError if it is no such URL.
    """

    def __init__(self, base_url: str) -> None:
        parts = urlsplit(base_url if "//" in base_url else f"http://{base_url}")
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            port = 0
        if parts.scheme not in ("http", "https") or not parts.hostname or not port:
            raise ConfigError(f"--base-url {base_url}: give http://HOST:PORT")
        self.host: str = parts.hostname
        self.port: int = port
        self.path: str = parts.path.rstrip("/").removesuffix("/v1")
        self.tls = ssl.create_default_context() if parts.scheme == "https" else None


class StreamClient:
    """Sends requests.

    Args:
        address: of the server.
        headers: of every request.
        clock: seconds that never go back.
        timeout_s: after which a request counts as failed.
    """

    def __init__(
        self,
        address: Address,
        headers: Mapping[str, str],
        clock: Callable[[], float],
        timeout_s: float,
    ) -> None:
        self._address = address
        self._headers = dict(headers)
        self._clock = clock
        self._timeout_s = timeout_s

    async def stream(self, path: str, body: Mapping[str, object], max_events: int) -> StreamRecord:
        """POST and take in the stream of the answer; a failure is noted in the record.

        Args:
            path: behind the server's own, e.g. /v1/completions.
            body: sent as JSON.
            max_events: tokens that were asked for.
        """
        content = self._request("POST", path, msgspec.json.encode(body))
        record = StreamRecord(start_s=self._clock())
        answer = _Answer(record, content, self._clock, max_events)
        try:
            await asyncio.wait_for(self._exchange(answer), self._timeout_s)
        except asyncio.TimeoutError:
            record.error = f"no answer within {self._timeout_s:g} s"
        except OSError as error:
            record.error = f"connection failed: {error}"
        except PeerError as error:
            record.error = str(error)
        record.end_s = record.end_s or self._clock()
        return record

    async def get(self, path: str) -> bytes:
        """GET a small answer.

        Raises: PeerError if there is none, or not with status 200.
        """
        record = StreamRecord(start_s=self._clock())
        answer = _Answer(record, self._request("GET", path, None), self._clock, 0)
        try:
            await asyncio.wait_for(self._exchange(answer), self._timeout_s)
        except (OSError, asyncio.TimeoutError) as error:
            raise PeerError(
                f"http://{self._address.host}:{self._address.port} does not answer: {error}"
            ) from None
        if record.error is not None:
            raise PeerError(record.error)
        return answer.stream.body

    def _request(self, method: str, path: str, content: bytes | None) -> bytes:
        address = self._address
        headers = {
            "Host": f"{address.host}:{address.port}",
            "Connection": "close",
            **self._headers,
        }
        if content is not None:
            headers["Content-Type"] = "application/json"
            headers["Content-Length"] = str(len(content))
        lines = [f"{method} {address.path}{path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + (content or b"")

    async def _exchange(self, answer: _Answer) -> None:
        address = self._address
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(
            lambda: answer, address.host, address.port, ssl=address.tls
        )
        try:
            await answer.done
        finally:
            transport.abort()


class _Answer(asyncio.Protocol):
    """Takes in one answer.

    Attributes:
        done: set when the answer is over, one way or the other.
        stream: the bytes so far.
    """

    def __init__(
        self,
        record: StreamRecord,
        content: bytes,
        clock: Callable[[], float],
        max_events: int,
    ) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.stream = EventStream()
        self._record = record
        self._content = content
        self._clock = clock
        self._max_events = max_events
        self._is_finished = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        assert isinstance(transport, asyncio.Transport), f"{transport} cannot write"
        transport.write(self._content)

    def data_received(self, data: bytes) -> None:
        """Stamp what came."""
        now_s = self._clock()
        try:
            for event in self.stream.feed(data):
                self._take(event, now_s)
        except (PeerError, msgspec.MsgspecError) as error:
            self._end(now_s, " ".join(str(error).split()))
            return
        if self._is_finished or self.stream.is_complete:
            self._end(now_s, self._fault())

    def connection_lost(self, exc: Exception | None) -> None:
        """The server closed."""
        self.stream.end()
        self._end(self._clock(), str(exc) if exc is not None else self._fault())

    def _take(self, event: bytes, now_s: float) -> None:
        if event == b"[DONE]":
            self._is_finished = True
            return
        found = msgspec.json.decode(event, type=_Event)
        record = self._record
        if found.error is not None:
            raise PeerError(f"error in the stream: {found.error.get('message', 'no message')}")
        if found.usage is not None:
            record.num_input_tokens = found.usage.prompt_tokens
            record.num_output_tokens = found.usage.completion_tokens
        if any(self._brings_tokens(choice) for choice in found.choices):
            record.token_times.append(now_s)
            record.num_output_tokens = max(record.num_output_tokens, len(record.token_times))

    def _brings_tokens(self, choice: _Choice) -> bool:
        """Whether an event stands for tokens, though their text may be empty (held back, or none)."""
        if choice.shown:
            return True
        if choice.delta is not None and choice.finish_reason is None:
            return False  # a chat's first event names the role
        return len(self._record.token_times) < self._max_events

    def _fault(self) -> str | None:
        stream = self.stream
        if stream.status is None:
            return "the server closed without an answer"
        if stream.status != 200:
            text = " ".join(stream.body.decode(errors="replace").split())
            return f"status {stream.status}: {text[:200]}"
        if self._max_events and not self._is_finished:
            return "the stream broke off before [DONE]"
        if self._max_events and not self._record.token_times:
            return "the stream brought no token"
        if not self._max_events and not stream.is_complete:
            return "the answer broke off"
        return None

    def _end(self, now_s: float, error: str | None) -> None:
        if not self.done.done():
            self._record.end_s = now_s
            self._record.error = error
            self.done.set_result(None)

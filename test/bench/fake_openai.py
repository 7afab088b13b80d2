"""A small server that streams as OpenAI's do, in a thread, and says what it was asked."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

Write = Callable[[bytes], Awaitable[None]]
Body = dict[str, object]

HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(content), content)


def event(found: object) -> bytes:
    return chunk(b"data: " + json.dumps(found).encode() + b"\n\n")


def token_event(text: str = " a", finish_reason: str | None = None) -> bytes:
    return event({"choices": [{"index": 0, "text": text, "finish_reason": finish_reason}]})


def usage_event(num_in: int, num_out: int) -> bytes:
    usage = {"prompt_tokens": num_in, "completion_tokens": num_out}
    return event({"choices": [], "usage": usage})


DONE = chunk(b"data: [DONE]\n\n") + chunk(b"")


def plain(status: str, found: object) -> bytes:
    content = json.dumps(found).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    return head.encode() + b"\r\n\r\n" + content


async def answer_all(body: Body, write: Write) -> None:
    """As many tokens as were asked for."""
    await write(HEAD)
    number = int(str(body["max_tokens"]))
    for index in range(number):
        await write(token_event(finish_reason="length" if index == number - 1 else None))
    prompt = body.get("prompt", [])
    await write(usage_event(len(prompt) if isinstance(prompt, list) else 1, number) + DONE)


class FakeOpenAI:
    """Answers POSTs with a script and GET /v1/models with one model.

    Attributes:
        bodies: what was asked, in order.
        peak: most requests open at once.
    """

    def __init__(self, script: Callable[[Body, Write], Awaitable[None]] = answer_all) -> None:
        self.script = script
        self.bodies: list[Body] = []
        self.paths: list[str] = []
        self.headers: list[str] = []
        self.peak = 0
        self._num_open = 0

    async def start(self) -> tuple[asyncio.Server, str]:
        """Listen in the running loop; returns the server and its URL."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._num_open += 1
        self.peak = max(self.peak, self._num_open)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.headers.append(head)
            self.paths.append(head.split()[1])
            if head.startswith("GET"):
                writer.write(plain("200 OK", {"data": [{"id": "fake"}]}))
            else:
                lengths = [li for li in head.split("\r\n") if li.lower().startswith("content-le")]
                content = await reader.readexactly(int(lengths[0].partition(":")[2]))
                self.bodies.append(json.loads(content))

                async def write(part: bytes) -> None:
                    writer.write(part)
                    await writer.drain()

                await self.script(self.bodies[-1], write)
            await writer.drain()
        except ConnectionError:
            pass  # the client had enough
        finally:
            self._num_open -= 1
            writer.close()


@contextmanager
def serving(fake: FakeOpenAI) -> Iterator[str]:
    """Run a fake in a thread; gives its URL."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server, url = asyncio.run_coroutine_threadsafe(fake.start(), loop).result(10)
    try:
        yield url
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()

from __future__ import annotations

import random

import pytest
from bench.fake_openai import HEAD, chunk

from chitu_like.bench.event_stream import EventStream
from chitu_like.core.errors import PeerError

EVENTS = [b'{"a": 1}', b'{"text": "\xe4\xbd\xa0"}', b"[DONE]"]
LINES = b": a comment\n\n" + b"".join(b"data: " + event + b"\r\n\r\n" for event in EVENTS)
PLAIN_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"


def chunked(content: bytes, rng: random.Random) -> bytes:
    parts = []
    while content:
        size = rng.randint(1, 20)
        parts.append(chunk(content[:size]))
        content = content[size:]
    return HEAD + b"".join(parts) + b"0\r\n\r\n"


@pytest.mark.parametrize("seed", range(20))
def test_events_do_not_depend_on_how_the_bytes_fall(seed: int) -> None:
    rng = random.Random(seed)
    wire = chunked(LINES, rng) if seed % 2 else PLAIN_HEAD + LINES
    stream, found = EventStream(), []
    while wire:
        size = rng.randint(1, 30)
        found += stream.feed(wire[:size])
        wire = wire[size:]
    assert found == EVENTS
    if seed % 2:
        assert stream.is_complete
    stream.end()
    assert (stream.status, stream.is_complete) == (200, True)


def test_an_errors_body_is_kept_and_its_length_ends_it() -> None:
    stream = EventStream()
    wire = b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nfull"
    assert stream.feed(wire[:-1]) == []
    assert not stream.is_complete
    stream.feed(wire[-1:])
    assert (stream.status, stream.body, stream.is_complete) == (503, b"full", True)


def test_a_chunked_answer_that_is_cut_is_not_complete() -> None:
    stream = EventStream()
    stream.feed(HEAD + chunk(b"data: 1\n\n"))
    stream.end()
    assert not stream.is_complete


@pytest.mark.parametrize(
    "wire",
    [
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        HEAD + b"zz\r\n",
        HEAD + b"-5\r\n",
        HEAD + b"fffffffff\r\n",
        b"x" * (70 << 10),
    ],
)
def test_what_is_no_http_is_refused(wire: bytes) -> None:
    with pytest.raises(PeerError):
        EventStream().feed(wire)

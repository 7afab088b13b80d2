"""Bytes of an HTTP answer to server-sent events, piece by piece, without waiting for anything."""

from __future__ import annotations

from chitu_like.core.errors import PeerError

MAX_HEADER_BYTES = 64 << 10
MAX_BUFFER_BYTES = 64 << 20


class EventStream:
    """Takes the bytes of one HTTP/1.1 answer as they come, gives the `data:` of its events.

    Attributes:
        status: of the answer; None until its head has come.
        body: of an answer that is no event stream (an error's), as far as it came.
        is_complete: the answer has ended as HTTP says it ends.
    """

    def __init__(self) -> None:
        self.status: int | None = None
        self.body = b""
        self.is_complete = False
        self._buffer = b""
        self._text = b""
        self._is_stream = False
        self._is_chunked = False
        self._left: int | None = None  # bytes of the chunk, or of the whole, that are still to come

    def feed(self, received: bytes) -> list[bytes]:
        """Take bytes; returns the data of each event that is now whole.

        Raises: PeerError if this is no HTTP.
        """
        self._buffer += received
        if len(self._buffer) + len(self._text) + len(self.body) > MAX_BUFFER_BYTES:
            raise PeerError(f"the answer holds a piece of more than {MAX_BUFFER_BYTES} bytes")
        if self.status is None and not self._take_head():
            return []
        content = self._take_chunks() if self._is_chunked else self._take_plain()
        if not self._is_stream:
            self.body += content
            return []
        self._text += content
        *lines, self._text = self._text.split(b"\n")
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]

    def end(self) -> None:
        """The connection was closed; that ends an answer of unknown length."""
        if self.status is not None and not self._is_chunked and self._left is None:
            self.is_complete = True

    def _take_head(self) -> bool:
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            if len(head) > MAX_HEADER_BYTES:
                raise PeerError("the answer's head does not end")
            return False
        self._buffer = rest
        first, *others = head.decode("latin-1").split("\r\n")
        version, _, status = first.partition(" ")
        if not version.startswith("HTTP/1.") or not status[:3].isdecimal():
            raise PeerError(f"not an HTTP answer: {first[:60]!r}")
        headers = {
            name.strip().lower(): value.strip().lower()
            for name, _, value in (line.partition(":") for line in others)
        }
        self.status = int(status[:3])
        self._is_stream = headers.get("content-type", "").startswith("text/event-stream")
        self._is_chunked = headers.get("transfer-encoding") == "chunked"
        length = headers.get("content-length", "")
        self._left = int(length) if length.isdecimal() and not self._is_chunked else None
        return True

    def _take_plain(self) -> bytes:
        content, self._buffer = self._buffer, b""
        if self._left is not None:
            self._left -= len(content)
            self.is_complete = self._left <= 0
        return content

    def _take_chunks(self) -> bytes:
        """What is there of the chunks: size in hexadecimal, CRLF, content, CRLF; size 0 ends."""
        parts = []
        while self._buffer and not self.is_complete:
            if self._left is None:
                size, found, rest = self._buffer.partition(b"\r\n")
                if not found:
                    break
                self._left, self._buffer = _chunk_size(size) + 2, rest
                self.is_complete = self._left == 2
            piece = self._buffer[: self._left]
            self._buffer = self._buffer[len(piece) :]
            # The last two bytes of a chunk are its CRLF, however the pieces fall.
            parts.append(piece[: max(self._left - 2, 0)])
            self._left -= len(piece)
            if self._left == 0:
                self._left = None
        return b"".join(parts)


def _chunk_size(text: bytes) -> int:
    digits = text.split(b";")[0].strip()
    try:
        size = int(digits, 16)
    except ValueError:
        size = -1
    if not 0 <= size <= MAX_BUFFER_BYTES:
        raise PeerError(f"not a chunk of an HTTP answer: {text[:40]!r}")
    return size

"""One TCP connection that carries frames: four bytes of length, then a message as msgpack.

A frame without payload is a heartbeat: it says that the process lives, and nothing else.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import select
import socket
import struct
import termios
import threading

from chitu_like.core.errors import PeerError

MAX_FRAME_BYTES = 64 * 2**20
"""No honest message comes near: a batch of a million prompt tokens takes five megabytes."""

_LENGTH = struct.Struct("!I")
_HEARTBEAT = _LENGTH.pack(0)
_READ_BYTES = 64 * 1024


def frame_of(payload: bytes) -> bytes:
    """Put its length in front of a payload. Raises: ValueError where it exceeds MAX_FRAME_BYTES."""
    if len(payload) > MAX_FRAME_BYTES:
        raise ValueError(f"a message of {len(payload)} bytes exceeds {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(payload)) + payload


class FrameParser:
    """Cuts a stream of bytes into frames.

    Args:
        max_bytes: longest payload taken; may be changed between two frames.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> None:
        """Append what came; `next_payload` gives the frames in it."""
        self._buffer += chunk

    def next_payload(self) -> bytes | None:
        """The next frame's payload (empty: a heartbeat), or None until more has come.

        Raises: PeerError where a frame announces more than `max_bytes`; nothing was kept for it.
        """
        if len(self._buffer) < _LENGTH.size:
            return None
        (size,) = _LENGTH.unpack_from(self._buffer)
        if size > self.max_bytes:
            raise PeerError(f"announced a message of {size} bytes, more than {self.max_bytes}")
        end = _LENGTH.size + size
        if len(self._buffer) < end:
            return None
        payload = bytes(self._buffer[_LENGTH.size : end])
        del self._buffer[:end]
        return payload


class Wire:
    """A connected socket. One thread reads it; any thread may send, beat and hang up.

    Args:
        connection: blocking; this object closes it.
        peer: the other end's address. Asked of the socket it fails once the peer is gone.
        max_bytes: longest payload taken.

    Attributes:
        parser: holds what was read and not yet taken.
        num_silent_looks: how many looks in a row found no new byte from the peer, read or not.
        num_stuck_looks: how many looks in a row found the same send waiting for the peer.
    """

    def __init__(
        self, connection: socket.socket, peer: str, max_bytes: int = MAX_FRAME_BYTES
    ) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connection
        self.peer = peer
        self._sending = threading.Lock()
        self._num_sends = 0
        self._stuck_send = 0  # number of the send that the last look found
        self._is_sending = False
        self._num_bytes_read = 0
        self._num_bytes_arrived = 0  # as the last look found
        self.parser = FrameParser(max_bytes)
        self.num_silent_looks = 0
        self.num_stuck_looks = 0

    def fileno(self) -> int:
        """For selectors."""
        return self._socket.fileno()

    def send(self, frame: bytes) -> None:
        """Send a whole frame, waiting while the peer takes none. Raises: OSError once it is gone."""
        with self._sending:
            self._num_sends += 1
            self._is_sending = True
            try:
                self._socket.sendall(frame)
            finally:
                self._is_sending = False

    def beat(self) -> None:
        """Send a heartbeat, unless one would have to wait: then the peer has enough to read.

        Raises: OSError once the peer is gone.
        """
        if not self._sending.acquire(blocking=False):
            return
        try:
            writable = select.poll()
            writable.register(self._socket, select.POLLOUT)
            if writable.poll(0):
                self._socket.sendall(_HEARTBEAT)
        finally:
            self._sending.release()

    def read(self) -> bool:
        """Wait for bytes and hand them to the parser; False at the end of the stream.

        Raises: OSError where the connection broke.
        """
        chunk = self._socket.recv(_READ_BYTES)
        self._num_bytes_read += len(chunk)
        self.parser.feed(chunk)
        return bool(chunk)

    def look(self) -> None:
        """See whether the peer lives, and count; one thread calls this at regular times.

        Looks are counted and not seconds, so that the peer is not blamed for a time in which this
        very process stood still.
        """
        unread = array.array("i", [0])
        fcntl.ioctl(self._socket, termios.FIONREAD, unread)
        arrived = self._num_bytes_read + unread[0]
        self.num_silent_looks = (
            self.num_silent_looks + 1 if arrived == self._num_bytes_arrived else 0
        )
        self._num_bytes_arrived = arrived
        is_stuck = self._is_sending and self._num_sends == self._stuck_send
        self.num_stuck_looks = self.num_stuck_looks + 1 if is_stuck else 0
        self._stuck_send = self._num_sends

    def hang_up(self) -> None:
        """End both directions, so that whoever waits in `send` or `read` comes back."""
        with contextlib.suppress(OSError):  # the peer was faster
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the socket back. No thread may still use it."""
        self._socket.close()


def format_address(name: tuple[str, int]) -> str:
    """'host:port', an IPv6 host in brackets."""
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_address(address: str) -> tuple[str, int]:
    """The opposite of `format_address`. Raises: ValueError where it is no address."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"{address!r} is not host:port")
    return host.strip("[]"), int(port)

"""The socket pair between a supervisor and its rank: one JSON line a message."""

from __future__ import annotations

import socket
from typing import Generic, TypeVar

import msgspec

from chitu_like.core.errors import PeerError

Said = TypeVar("Said")
Heard = TypeVar("Heard")


class Link(Generic[Said, Heard]):
    """One end. One thread reads, one writes.

    Args:
        end: of the pair; closed with this object.
        heard: the type of what the other end says, for msgspec.
    """

    def __init__(self, end: socket.socket, heard: object) -> None:
        self._socket = end
        self._lines = end.makefile("rb")
        self._decoder: msgspec.json.Decoder[Heard] = msgspec.json.Decoder(heard)

    def send(self, message: Said) -> None:
        """Say something. Raises: PeerError where the other end is gone."""
        try:
            self._socket.sendall(msgspec.json.encode(message) + b"\n")
        except OSError as error:
            raise PeerError(f"the process at the other end is gone: {error.strerror}") from None

    def receive(self) -> Heard | None:
        """The next message; None when the other end is gone."""
        try:
            line = self._lines.readline()
        except OSError:
            line = b""
        return self._decoder.decode(line) if line else None

    def close(self) -> None:
        """Close this end."""
        self._lines.close()
        self._socket.close()

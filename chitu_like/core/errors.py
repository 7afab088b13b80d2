"""The mistakes this package tells apart.

Every class is a mistake somebody can put right, so its message is ONE line: the fault with its
values, what would be right, and where to set it. Entry points print that line and exit with 2;
the HTTP service turns a RequestError into a 4xx answer.
"""


class ChituError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(ChituError):
    """A configuration key is unknown, has the wrong type or contradicts another key."""


class CheckpointError(ChituError):
    """A checkpoint folder lacks a file or tensor, holds one too many, or is damaged."""


class CapacityError(ChituError):
    """The model or one request does not fit the memory or the limits that were set."""


class UnsupportedError(ChituError):
    """The request is sound but this version, device or installation cannot serve it."""


class PeerError(ChituError):
    """Another process of this service died, fell silent or broke the protocol."""


class RequestError(ChituError, ValueError):
    """One request asks for something invalid; other requests are not touched.

    Args:
        message: one line for the client.
        param: the request field at fault, as the client spelled it, or None.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        """Keep `param` beside the message."""
        super().__init__(message)
        self.param = param

    def __reduce__(self) -> tuple[type["RequestError"], tuple[str, str | None]]:
        """Survive copy and multiprocessing with `param` intact."""
        return type(self), (str(self), self.param)

"""Who answers in `chitu-like chat`: the engine in this process, or a server somewhere."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

import msgspec

from chitu_like.core.errors import ConfigError, PeerError, RequestError
from chitu_like.core.sampling_params import SamplingParams

if TYPE_CHECKING:
    from chitu_like.llm import LLM  # brings torch, which a remote chat does not need

Message = Mapping[str, str]
MAX_LINE_BYTES = 1 << 20
TIMEOUT_S = 600.0


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What came at once: text, and how many tokens it took (0 or more)."""

    text: str
    num_tokens: int


class ChatSource(Protocol):
    """Something that answers a conversation piece by piece."""

    name: str

    def answer(self, messages: list[Message]) -> Generator[Piece, None, None]:
        """Stream the assistant's next turn; closing the iterator stops it.

        Raises: ChituError if it cannot be answered.
        """
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


class LocalSource:
    """The engine in this process.

    Args:
        llm: owned from now on.
        params: of every answer.
        name: shown to the user.
    """

    def __init__(self, llm: LLM, params: SamplingParams, name: str) -> None:
        self.name = name
        self._llm = llm
        self._params = params

    def answer(self, messages: list[Message]) -> Generator[Piece, None, None]:
        """See ChatSource."""
        prompt = self._llm.render_chat(messages)
        for output in self._llm.stream(prompt, self._params):
            yield Piece(text=output.text, num_tokens=len(output.token_ids))

    def close(self) -> None:
        """See ChatSource."""
        self._llm.shutdown()


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)


class _Usage(msgspec.Struct):
    completion_tokens: int = 0


class _Event(msgspec.Struct):
    """The part of a stream's event that is looked at."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: dict[str, object] | None = None


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class RemoteSource:
    """A server that speaks OpenAI's chat completions.

    Args:
        url: with or without the trailing /v1.
        model: as the server calls it; None: the first it lists.
        api_key: sent as a bearer key.
        fields: further fields of every request (temperature ...).

    Raises:
        ConfigError: the URL is none.
        PeerError: the server does not answer, or lists no model.
    """

    def __init__(
        self, url: str, model: str | None, api_key: str | None, fields: Mapping[str, object]
    ) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            port = 0
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise ConfigError(f"--url {url}: give http://HOST:PORT")
        self._address = (parts.scheme, parts.hostname, port)
        self._base = parts.path.rstrip("/").removesuffix("/v1")
        self._url = url
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._fields = dict(fields)
        self.name = model or self._first_model()

    def answer(self, messages: list[Message]) -> Generator[Piece, None, None]:
        """See ChatSource."""
        body = {
            "model": self.name,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._fields,
        }
        num_tokens = 0
        with self._request("POST", "/v1/chat/completions", json.dumps(body).encode()) as response:
            for event in self._events(response):
                if event.error is not None:
                    raise PeerError(str(event.error.get("message", "the server failed")))
                text = "".join(choice.delta.content or "" for choice in event.choices)
                if event.usage is not None:
                    # Events were counted as one token each; the server knows better.
                    yield Piece(text=text, num_tokens=event.usage.completion_tokens - num_tokens)
                elif text:
                    num_tokens += 1
                    yield Piece(text=text, num_tokens=1)

    def close(self) -> None:
        """See ChatSource: every answer has a connection of its own."""

    def _first_model(self) -> str:
        with self._request("GET", "/v1/models", None) as response:
            try:
                models = msgspec.json.decode(response.read(MAX_LINE_BYTES), type=_Models).data
            except msgspec.MsgspecError:
                models = []
        if not models:
            raise PeerError(f"{self._url} lists no model at /v1/models: give --model")
        return models[0].id

    def _request(self, method: str, path: str, body: bytes | None) -> http.client.HTTPResponse:
        """Open a connection and send; the response's `with` closes both."""
        scheme, host, port = self._address
        if scheme == "https":
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, port, timeout=TIMEOUT_S, context=ssl.create_default_context()
            )
        else:
            connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
        try:
            headers = {**self._headers, "Connection": "close"}
            connection.request(method, self._base + path, body, headers)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise PeerError(f"{self._url} does not answer: {error}") from error
        if response.status != http.client.OK:
            with response:
                text = response.read(MAX_LINE_BYTES).decode(errors="replace")
            raise RequestError(f"{self._url} answered {response.status}: {_error_message(text)}")
        return response

    def _events(self, response: http.client.HTTPResponse) -> Iterator[_Event]:
        """The events of a stream until [DONE]."""
        try:
            while line := response.readline(MAX_LINE_BYTES):
                content = line.removeprefix(b"data:").strip()
                if line.startswith(b"data:") and content == b"[DONE]":
                    return
                if line.startswith(b"data:"):
                    yield msgspec.json.decode(content, type=_Event)
        except (OSError, http.client.HTTPException) as error:
            raise PeerError(f"{self._url} broke off: {error}") from error
        except msgspec.MsgspecError as error:
            raise PeerError(f"{self._url} sent what is no chat completion: {error}") from error
        raise PeerError(f"{self._url} broke off before the answer was complete")


def _error_message(text: str) -> str:
    """OpenAI's error message in a body, else the beginning of the body."""
    try:
        found = json.loads(text)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        found = text
    return " ".join(str(found).split())[:300] or "nothing"

"""What every route needs, in one place: the router, the text side and the settings of a service."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from starlette.requests import Request
from starlette.responses import Response

from chitu_like.core.errors import RequestError
from chitu_like.core.sampling_params import SamplingParams
from chitu_like.engine.messages import EngineInfo
from chitu_like.router.admission import Refused
from chitu_like.router.router import Router
from chitu_like.server.call import Call, CallParts
from chitu_like.server.front_end_config import FrontEndConfig
from chitu_like.server.logprobs import LogprobSpeller
from chitu_like.server.metrics import Metrics
from chitu_like.server.problems import ApiError, unsupported
from chitu_like.server.prompts import Prompt, PromptMaker
from chitu_like.server.protocol import ChatCompletionRequest, CompletionRequest
from chitu_like.server.respond import Answer, StreamSettings, respond_stream, respond_whole

MIN_BODY_BYTES = 4 << 20
MAX_BODY_BYTES = 64 << 20
BODY_BYTES_PER_TOKEN = 32
"""Room for the whole context as escaped text or as digits, and for several prompts of it."""


class Service:
    """One service. Belongs to one event loop; written by the front end alone.

    Args:
        config: what the leader said.
        router: the way to the engines.
        metrics: told of every request.

    Attributes:
        router, metrics: as given.
        model_name: what clients call the model.
        sampling_defaults: see sampling_params.
        stall_timeout_s: see FrontEndConfig.
        started_s: Unix time of its start.
    """

    def __init__(self, config: FrontEndConfig, router: Router, metrics: Metrics) -> None:
        self.router = router
        self.metrics = metrics
        self.model_name = config.model_name
        self.sampling_defaults: dict[str, float | bool] = {**config.sampling_defaults}
        self.stall_timeout_s = config.stall_timeout_s
        self.started_s = int(time.time())
        self._config = config
        self._prompts: PromptMaker | None = None
        self._num_preparing = 0

    def loaded(self, prompts: PromptMaker) -> None:
        """Take the text side, once it is read."""
        self._prompts = prompts

    @property
    def is_loaded(self) -> bool:
        """Whether the text side is there."""
        return self._prompts is not None

    @property
    def prompts(self) -> PromptMaker:
        """The text side. Raises: Refused while it is read."""
        if self._prompts is None:
            raise Refused("the tokenizer is still loading", code="loading", retry_after_s=5)
        return self._prompts

    @property
    def speller(self) -> LogprobSpeller:
        """Spells log-probabilities."""
        return LogprobSpeller(self.prompts.tokenizer)

    def created(self) -> int:
        """Unix time, for an answer that is made now."""
        return int(time.time())

    @property
    def eos_token_ids(self) -> Sequence[int]:
        """End-of-text tokens: none where they are ignored, the leader's word, else the tokenizer's."""
        if self._config.ignore_eos:
            return ()
        tokenizer = self.prompts.tokenizer
        own = () if tokenizer is None else tokenizer.eos_token_ids
        return self._config.eos_token_ids or own

    def check_ready(self) -> EngineInfo:
        """The limits of the engines. Raises: Refused or PeerError where no call can be taken."""
        info = self.router.check_open()
        _ = self.prompts
        return info

    @contextmanager
    def admitted(self) -> Iterator[EngineInfo]:
        """Hold a place while a call is read and encoded; more than the engines hold are refused.

        Raises: as check_ready; Refused when all places are taken.
        """
        info = self.check_ready()
        if self._num_preparing >= info.max_reqs + self._config.max_queued_requests:
            raise Refused("the service is full", code="overloaded", retry_after_s=1)
        self._num_preparing += 1
        try:
            yield info
        finally:
            self._num_preparing -= 1

    def max_body_bytes(self) -> int:
        """Longest request body read."""
        info = self.router.info
        wanted = 0 if info is None else info.max_seq_len * BODY_BYTES_PER_TOKEN
        return min(max(wanted, MIN_BODY_BYTES), MAX_BODY_BYTES)

    def check_model(self, name: str | None) -> None:
        """Raise ApiError 404 for another model than the one served."""
        if name is not None and name != self.model_name:
            raise ApiError(
                404,
                f"the model {name[:100]!r} is not served here; ask for {self.model_name!r}",
                param="model",
                code="model_not_found",
            )

    def check_num_requests(self, num_requests: int) -> None:
        """Raise RequestError where n times the prompts is more than the service ever holds."""
        room = self.check_ready().max_reqs + self._config.max_queued_requests
        if num_requests > room:
            raise RequestError(
                f"n times the prompts is {num_requests}: this service holds {room} requests", "n"
            )

    def with_context_left(self, params: SamplingParams, prompt: Prompt) -> SamplingParams:
        """The same parameters, with as many output tokens as the context has room for."""
        left = self.check_ready().max_seq_len - len(prompt.token_ids)
        return dataclasses.replace(params, max_tokens=max(left, params.min_tokens, 1))

    def open_call(self, call_id: str, prompts: Sequence[Prompt], params: SamplingParams) -> Call:
        """Admit a call; it must then be answered or closed. Raises: as Call."""
        if params.stop and self.prompts.tokenizer is None:
            raise unsupported("stop", "without a tokenizer there is no text to stop at")
        parts = CallParts(
            call_id=call_id,
            prompts=prompts,
            params=params,
            eos_token_ids=self.eos_token_ids,
            timeout_s=self._config.request_timeout_s,
            arrival_s=time.monotonic(),
        )
        return Call(
            parts, router=self.router, tokenizer=self.prompts.tokenizer, metrics=self.metrics
        )

    async def respond(
        self,
        request: Request,
        call: Call,
        answer: Answer,
        wanted: ChatCompletionRequest | CompletionRequest,
        headers: Mapping[str, str],
    ) -> Response:
        """Answer a call, streamed where the client wants it."""
        if not wanted.stream:
            return await respond_whole(request, call, answer, headers)
        options = wanted.stream_options
        settings = StreamSettings(
            include_usage=bool(options and options.include_usage),
            continuous_usage=bool(options and options.continuous_usage_stats),
            keep_alive_s=self._config.keep_alive_s,
        )
        return await respond_stream(request, call, answer, settings, headers)


def service_of(request: Request) -> Service:
    """The service that a request came to."""
    service = request.scope["state"]["service"]
    assert isinstance(service, Service)
    return service


def request_id_of(request: Request) -> str:
    """The id the gate gave this request; it stands in the log and in X-Request-Id."""
    return str(request.scope["state"]["request_id"])

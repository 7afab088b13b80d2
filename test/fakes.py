"""Stand-ins for the slow parts: a tokenizer of bytes, and an engine without a model."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import tokenizers
import zmq
from tokenizers import decoders, models, pre_tokenizers

from chitu_like.core.output import FinishReason, RequestDelta, RequestTimes, TokenLogprobs
from chitu_like.engine.messages import (
    AbortRequests,
    AddRequest,
    EngineInfo,
    EngineStats,
    Failed,
    Hello,
    Ready,
    Shutdown,
    StepMessage,
    ToEngine,
    ToFrontEnd,
)

IM_START, IM_END, END_OF_TEXT = 256, 257, 258
BYTE_VOCAB_SIZE = 259
SPECIAL_TOKENS = {"<|im_start|>": IM_START, "<|im_end|>": IM_END, "<|endoftext|>": END_OF_TEXT}
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class ByteTokenizer:
    """Token b is byte b; three special tokens stand above them. Knows no merges."""

    vocab_size = BYTE_VOCAB_SIZE

    @staticmethod
    def encode(text: str) -> list[int]:
        return list(text.encode())

    @staticmethod
    def decode(token_ids: Sequence[int]) -> str:
        return bytes(token for token in token_ids if token < 256).decode(errors="replace")

    @staticmethod
    def save(folder: Path) -> Path:
        """Write the same tokenizer as a Hugging Face folder, with a chat template."""
        folder.mkdir(parents=True, exist_ok=True)
        vocabulary = {character: byte for byte, character in _byte_characters().items()}
        tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
        tokenizer.save(str(folder / "tokenizer.json"))
        config = {
            "eos_token": "<|im_end|>",
            "chat_template": CHAT_TEMPLATE,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        return folder


def _byte_characters() -> dict[int, str]:
    """GPT-2's printable character for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def say(text: str) -> Callable[[AddRequest], list[int]]:
    """A script: every request is answered with `text`, then the end of its turn."""
    tokens = [*text.encode(), IM_END]
    return lambda request: tokens


def count_up(request: AddRequest) -> list[int]:
    """A script: digits without end, as far as max_tokens goes."""
    return [48 + i % 10 for i in range(request.params.max_tokens or 10**6)]


@dataclass
class _Running:
    request: AddRequest
    script: list[int]
    num_done: int = 0
    started_s: float = field(default_factory=time.monotonic)


class FakeEngine:
    """An engine on a real socket, in a thread: it follows a script instead of a model.

    Each step gives every running request one token, `delay_s` apart. Everything may be changed
    while it runs.

    Attributes:
        script: what a request is answered with; cut at max_tokens and at end-of-text tokens.
        delay_s: time of a step.
        is_stalled: take requests, never step.
        is_loading: not ready before this turns false.
        added, aborted: what the front end said, in order.
        peak: most requests that were open at once.
    """

    def __init__(
        self,
        address: str,
        secret: str = "s3cret",
        *,
        script: Callable[[AddRequest], list[int]] | None = None,
        delay_s: float = 0.001,
        max_reqs: int = 64,
        max_seq_len: int = 4096,
        is_loading: bool = False,
    ) -> None:
        self.address = address
        self.script = script or say("Hello from the fake engine.")
        self.delay_s = delay_s
        self.is_stalled = False
        self.is_loading = is_loading
        self.added: list[AddRequest] = []
        self.aborted: list[str] = []
        self.peak = 0
        self.was_shut_down = False
        self.info = EngineInfo(max_seq_len, max_reqs, 512, 16, BYTE_VOCAB_SIZE)
        self._secret = secret
        self._failure: str | None = None
        self._waiting: list[_Running] = []
        self._running: dict[str, _Running] = {}
        self._totals = [0, 0, 0]
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def num_open(self) -> int:
        return len(self._waiting) + len(self._running)

    def fail(self, reason: str) -> None:
        """Say that the engine cannot go on."""
        self._failure = reason

    def close(self) -> None:
        """Vanish, as an engine does whose process is killed."""
        self._stopped.set()
        self._thread.join(10)

    def wait_until(self, is_true: Callable[[FakeEngine], bool], timeout_s: float = 60.0) -> None:
        """Wait until something holds of this engine; fail the test if it never does."""
        deadline_s = time.monotonic() + timeout_s
        while not is_true(self):
            assert time.monotonic() < deadline_s, f"never came true within {timeout_s} s"
            time.sleep(0.005)

    def _serve(self) -> None:
        context = zmq.Context()
        socket = context.socket(zmq.DEALER)
        socket.bind(self.address)
        while self.is_loading and not self._stopped.is_set():
            self._stopped.wait(0.02)
        self._send(socket, Ready(self.info))
        trusted = False
        next_step_s = 0.0
        while not self._stopped.is_set() and not self.was_shut_down:
            idle_ms = 5 if self.num_open and not self.is_stalled else 20
            left_ms = int(1000 * max(next_step_s - time.monotonic(), 0))
            if socket.poll(min(idle_ms, left_ms) if self.num_open else idle_ms):
                message = msgspec.msgpack.decode(socket.recv(), type=ToEngine)
                trusted = trusted or (isinstance(message, Hello) and message.secret == self._secret)
                assert trusted, "the front end did not say hello"
                self._take(message)
                if isinstance(message, AbortRequests) and not self.num_open:
                    self._send(socket, StepMessage([], self._stats()))
                continue
            if self._failure is not None:
                self._send(socket, Failed(self._failure))
                self._stopped.wait(1.0)
                break
            if self.num_open and not self.is_stalled and time.monotonic() >= next_step_s:
                next_step_s = time.monotonic() + self.delay_s
                self._send(socket, self._step())
        socket.close(linger=0)
        context.term()

    def _send(self, socket: zmq.Socket[bytes], message: ToFrontEnd) -> None:
        # A PAIR without a peer would block, and the front end may be gone or not there yet.
        while not self._stopped.is_set() and not socket.poll(20, zmq.POLLOUT):
            pass
        if not self._stopped.is_set():
            socket.send(msgspec.msgpack.encode(message), zmq.NOBLOCK)

    def _take(self, message: ToEngine) -> None:
        if isinstance(message, AddRequest):
            script = self.script(message)[: message.params.max_tokens]
            self.added.append(message)
            self._waiting.append(_Running(message, script))
            self._totals[1] += len(message.prompt_token_ids)
            self.peak = max(self.peak, self.num_open)
        elif isinstance(message, AbortRequests):
            self.aborted += message.request_ids
            for request_id in message.request_ids:
                self._running.pop(request_id, None)
            gone = set(message.request_ids)
            self._waiting = [w for w in self._waiting if w.request.request_id not in gone]
        elif isinstance(message, Shutdown):
            self.was_shut_down = True

    def _step(self) -> StepMessage:
        while self._waiting and len(self._running) < self.info.max_reqs:
            started = self._waiting.pop(0)
            self._running[started.request.request_id] = started
        deltas = [self._advance(running) for running in list(self._running.values())]
        self._totals[0] += 1
        self._totals[2] += len(deltas)
        for delta in deltas:
            if delta.finish_reason is not None:
                del self._running[delta.request_id]
        return StepMessage(deltas, self._stats())

    def _stats(self) -> EngineStats:
        num_steps, num_prompt_tokens, num_output_tokens = self._totals
        return EngineStats(
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            kv_usage=len(self._running) / self.info.max_reqs,
            num_steps=num_steps,
            num_prompt_tokens=num_prompt_tokens,
            num_output_tokens=num_output_tokens,
            prefix_cache_queries=num_prompt_tokens,
        )

    def _advance(self, running: _Running) -> RequestDelta:
        request = running.request
        params, prompt = request.params, request.prompt_token_ids
        token = running.script[running.num_done]
        is_first = running.num_done == 0
        running.num_done += 1
        stops = () if params.ignore_eos else request.eos_token_ids
        is_stop = token in stops or token in params.stop_token_ids
        reason = FinishReason.STOP if is_stop else None
        if reason is None and running.num_done == len(running.script):
            reason = FinishReason.LENGTH
        num_prompt_top = params.prompt_logprobs
        return RequestDelta(
            request.request_id,
            [token],
            logprobs=[] if params.logprobs is None else [fake_logprobs(token, params.logprobs)],
            prompt_logprobs=[fake_logprobs(t, num_prompt_top) for t in prompt[1:]]
            if is_first and num_prompt_top is not None
            else [],
            finish_reason=reason,
            stop_token_id=token if is_stop else None,
            num_cached_tokens=0,
            times=RequestTimes(0.001, 0.002, time.monotonic() - running.started_s)
            if reason
            else None,
        )


def fake_logprobs(token: int, num_top: int) -> TokenLogprobs:
    """The token is the second best; its neighbours above it are the others."""
    others = [((token + 1 + i) % 256, -0.5 - i) for i in range(num_top)]
    top = [*others[:1], (token, -1.0), *others[1:]][:num_top]
    return TokenLogprobs(token, -1.0, 2, top if num_top else [(token, -math.inf)][:0])

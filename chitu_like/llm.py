"""The engine in your own program: prompts in, answers out, no server and no sockets.

Example::

    from chitu_like import LLM, SamplingParams

    with LLM("models=tiny-chat") as llm:
        answers = llm.chat([[{"role": "user", "content": "hi"}]], SamplingParams(temperature=0))
        print(answers[0].outputs[0].text)
"""

from __future__ import annotations

import itertools
import operator
import os
import signal
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TypeAlias, cast

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from chitu_like.answer import Answer, GrowingChoice, Prompt
from chitu_like.config.load import load_config
from chitu_like.config.schema import ServeConfig
from chitu_like.core.errors import ChituError, ConfigError, RequestError, UnsupportedError
from chitu_like.core.garbage import LoadedObjects
from chitu_like.core.interrupt import deferred_interrupt
from chitu_like.core.output import (
    CompletionOutput,
    RequestOutput,
)
from chitu_like.core.sampling_params import SamplingParams
from chitu_like.engine.engine import Engine
from chitu_like.engine.messages import AddRequest, EngineInfo, EngineStats
from chitu_like.instance import Instance, load_instance
from chitu_like.model_files import read_model_files
from chitu_like.rank import follow, gather
from chitu_like.server.sampling import for_choice
from chitu_like.server.tokenizer import Tokenizer
from chitu_like.torchrun import TorchrunRank

Message: TypeAlias = Mapping[str, object]


class LLM:
    """A loaded model that answers. One process, one thread: not to be shared between threads.

    Under torchrun every rank makes the same LLM, but the constructor returns on rank 0 only: elsewhere
    the process computes its part until rank 0 shuts down, and ends. So a script needs no rank checks.

    Args:
        overrides: configuration keys as on the command line, e.g. "infer.max_reqs=64".
        config_name: replaces the top configuration file, as CONFIG_NAME does.
        progress: show progress bars while loading and generating.

    Raises:
        ChituError: one of core/errors.py, before any weight is read where that is possible.
        SystemExit: on ranks other than 0, when rank 0 is done.
    """

    def __init__(
        self, *overrides: str, config_name: str | None = None, progress: bool = True
    ) -> None:
        """Load the model."""
        config = load_config(overrides, config_name)
        _check_is_one_instance(config)
        files = read_model_files(config)
        here = TorchrunRank.from_environ(os.environ)
        here.check(config, program="PROGRAM")
        if here.rank > 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # while it looks for rank 0; see `launch`
            raise SystemExit(follow(config, files.spec, os.environ))
        crew = gather(config, files.spec, os.environ)
        self._instance: Instance = load_instance(config, crew, files, shows_progress=progress)
        # A program that never calls `shutdown` must not leave the other ranks waiting.
        objects = LoadedObjects()
        self._shut_down = weakref.finalize(self, _shut_down, self._instance.engine, objects)
        objects.freeze()  # steps come next
        self._shows_progress = progress
        self._ids = itertools.count()
        self._choices: dict[str, GrowingChoice] = {}

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer.

        Raises:
            UnsupportedError: the model was loaded without one (token ids in and out).
        """
        if self._instance.text is None:
            raise UnsupportedError(
                "this model has no tokenizer: give token ids, or set models.tokenizer_path"
            )
        return self._instance.text.tokenizer

    @property
    def info(self) -> EngineInfo:
        """What the engine can hold: requests at once, tokens of one, KV blocks, vocabulary."""
        return self._instance.engine.info

    def stats(self) -> EngineStats:
        """What runs and waits now, how full the KV cache is, and totals since the start."""
        return self._instance.engine.stats()

    def default_params(self) -> SamplingParams:
        """What a call without parameters uses: the model's generation_config, else OpenAI's."""
        return self._instance.default_params

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool | None = None,
    ) -> list[RequestOutput]:
        """Answer every prompt.

        Args:
            prompts: texts or lists of token ids, one or many.
            params: one for all, or one each; None: default_params().
            progress: overrides the constructor's choice.

        Returns: one answer a prompt, in order. A prompt that was refused has `error` set; it costs
            the others nothing.

        Raises:
            RequestError: the number of params is not that of the prompts.
        """
        many = _as_list(prompts)
        each = self._params_for(many, params)
        open_answers = [Answer(str(next(self._ids)), p, s) for p, s in zip(many, each, strict=True)]
        shows = self._shows_progress if progress is None else progress
        try:
            self._run(open_answers, shows)
        finally:
            self._forget(open_answers)
        return [answer.output() for answer in open_answers]

    def generate_each(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        stop_when: Callable[[], bool] = lambda: False,
    ) -> Iterator[tuple[int, RequestOutput]]:
        """Answer every prompt, handing out each answer as soon as it ends.

        Args:
            prompts: as for `generate`, always a sequence of them.
            params: as for `generate`.
            stop_when: asked after each step. Once it is true, answers that have begun are handed
                out as far as they came (finish_reason None) and the rest is given up.

        Yields: (position of the prompt, its answer).

        Raises:
            RequestError: the number of params is not that of the prompts.
        """
        many = list(prompts)
        each = self._params_for(many, params)
        answers = [Answer(str(next(self._ids)), p, s) for p, s in zip(many, each, strict=True)]
        positions = {answer.request_id: position for position, answer in enumerate(answers)}
        open_answers = dict(positions)
        try:
            for ended, _ in self._ending(answers):
                for answer in ended:
                    yield open_answers.pop(answer.request_id), answer.output()
                if stop_when():
                    break
            for request_id, position in open_answers.items():
                output = answers[positions[request_id]].output()
                if any(choice.token_ids for choice in output.outputs):
                    yield position, output
        finally:
            self._forget(answers)

    def chat(
        self,
        conversations: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool | None = None,
        **template_arguments: object,
    ) -> list[RequestOutput]:
        """Answer every conversation, rendered with the model's chat template.

        Args:
            conversations: lists of {"role", "content"} messages, or one such list.
            params: as for `generate`.
            progress: as for `generate`.
            template_arguments: handed to the template, e.g. enable_thinking=False.
        """
        first = conversations[0] if conversations else []
        many = [conversations] if isinstance(first, Mapping) else conversations
        rendered = [
            self._render_or_refuse(messages, template_arguments)
            for messages in cast("Sequence[Sequence[Message]]", many)
        ]
        outputs = self.generate([ids for ids, _ in rendered], params, progress=progress)
        return [
            output if refusal is None else replace(output, error=refusal)
            for output, (_, refusal) in zip(outputs, rendered, strict=True)
        ]

    def render_chat(self, messages: Sequence[Message], **template_arguments: object) -> list[int]:
        """Token ids of a conversation, ready for the assistant's answer.

        Raises:
            RequestError: these are no messages, or the template refuses them.
            UnsupportedError: the model has no chat template.
        """
        if not messages or not all(isinstance(message, Mapping) for message in messages):
            raise RequestError(
                'messages: give a list of {"role": ..., "content": ...}, one at least', "messages"
            )
        text = self._instance.text
        if text is None or text.chat_template is None:
            raise UnsupportedError(
                "this model has no chat template: use generate, or stream a text"
            )
        rendered = text.chat_template.render(
            [dict(message) for message in messages], template_kwargs=template_arguments
        )
        return self.tokenizer.encode(rendered, add_special_tokens=False)

    def _render_or_refuse(
        self, messages: Sequence[Message], template_arguments: Mapping[str, object]
    ) -> tuple[list[int], str | None]:
        """Token ids of a conversation, or none (refused like an empty prompt) and the reason."""
        try:
            return self.render_chat(messages, **template_arguments), None
        except RequestError as error:
            return [], str(error)

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None
    ) -> Iterator[CompletionOutput]:
        """Answer one prompt piece by piece.

        Yields: what is new since the last: text, token ids, log-probabilities; the last piece has a
            finish_reason. Dropping the iterator aborts the request.

        Raises:
            RequestError: the prompt was refused.
        """
        answer = Answer(str(next(self._ids)), prompt, params or self.default_params())
        try:
            self._submit(answer)
            while not answer.is_done:
                self._step()
                yield from answer.news()
            if answer.error is not None:
                raise RequestError(answer.error)
            yield from answer.news()
        finally:
            self._forget([answer])

    def shutdown(self) -> None:
        """Free the model and let the other ranks end. May be called twice."""
        self._shut_down()

    def __enter__(self) -> LLM:
        """Use as a context: leaving it shuts down."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Shut down."""
        self.shutdown()

    def _params_for(
        self, prompts: list[Prompt], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[SamplingParams]:
        if params is None or isinstance(params, SamplingParams):
            return [params or self.default_params()] * len(prompts)
        if len(params) != len(prompts):
            raise RequestError(
                f"{len(prompts)} prompts but {len(params)} SamplingParams: give one, or one each",
                param="params",
            )
        return list(params)

    def _run(self, answers: list[Answer], shows_progress: bool) -> None:
        """Run until every answer is done."""
        total_tokens = 0
        with _progress_bar(shows_progress) as bar:
            task = bar.add_task("generating", total=len(answers), rate="")
            for ended, num_tokens in self._ending(answers):
                total_tokens += num_tokens
                rate = f"{total_tokens / (bar.tasks[task].elapsed or 1e-9):.0f} tokens/s"
                bar.update(task, advance=len(ended), rate=rate)

    def _ending(self, answers: list[Answer]) -> Iterator[tuple[list[Answer], int]]:
        """Feed the engine as it makes room; yields which answers a step ended, and its tokens."""
        waiting = iter(answers)
        num_open = len(answers)
        running: list[Answer] = []
        while num_open:
            running += self._feed(waiting)
            num_tokens = self._step()
            ended = [answer for answer in running if answer.is_done]
            running = [answer for answer in running if not answer.is_done]
            num_open -= len(ended)
            yield ended, num_tokens

    def _feed(self, waiting: Iterator[Answer]) -> list[Answer]:
        """Keep about one more batch waiting: the queue's bounds are for strangers, not for us."""
        engine = self._instance.engine
        room = engine.info.max_reqs - engine.stats().num_waiting
        fed: list[Answer] = []
        while room > 0 and (answer := next(waiting, None)) is not None:
            room -= self._submit(answer)
            fed.append(answer)
        return fed

    def _submit(self, answer: Answer) -> int:
        """Hand an answer's completions to the engine; a refusal is kept in the answer."""
        try:
            answer.prompt_token_ids = self._encode(answer.prompt)
        except ChituError as error:
            answer.refusal = str(error)
            return 0
        params = answer.params
        tokenizer = self._instance.text.tokenizer if self._instance.text else None
        for index in range(params.n):
            choice = GrowingChoice(
                index, for_choice(params, index), answer.prompt_token_ids, tokenizer
            )
            request_id = f"{answer.request_id}-{index}"
            request = AddRequest(
                request_id, answer.prompt_token_ids, choice.params, self._instance.eos_token_ids
            )
            with deferred_interrupt():  # known here and there, or nowhere
                answer.choices[request_id] = self._choices[request_id] = choice
                self._instance.engine.add(request)
        return params.n

    def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        try:
            return [operator.index(token_id) for token_id in prompt]
        except TypeError:
            raise RequestError(
                f"prompt={prompt!r:.60}: give a text or a list of token ids", param="prompt"
            ) from None

    def _step(self) -> int:
        """One step of the engine; returns the output tokens it brought."""
        num_tokens = 0
        with deferred_interrupt():
            for delta in self._instance.engine.step():
                num_tokens += len(delta.token_ids)
                choice = self._choices.get(delta.request_id)
                if choice is None:
                    continue
                choice.take(delta)
                if choice.finish_reason is not None and delta.finish_reason is None:
                    self._instance.engine.abort(delta.request_id)  # a stop string ended it
        return num_tokens

    def _forget(self, answers: list[Answer]) -> None:
        """Drop what is left of these; unfinished ones (an interrupt) are aborted."""
        with deferred_interrupt():
            for request_id in [key for answer in answers for key in answer.choices]:
                choice = self._choices.pop(request_id)
                if choice.finish_reason is None:
                    self._instance.engine.abort(request_id)


def _shut_down(engine: Engine, objects: LoadedObjects) -> None:
    try:
        engine.shutdown()
    finally:
        objects.thaw()


def _check_is_one_instance(config: ServeConfig) -> None:
    if config.deploy.replicas > 1:
        raise ConfigError(
            f"deploy.replicas={config.deploy.replicas}: LLM runs one instance; leave it out, or start "
            "the service"
        )


def _progress_bar(is_shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[rate]}"),
        disable=not is_shown,
    )


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """Every prompt on its own; a text or a list of token ids alone is one."""
    if not isinstance(prompts, Sequence):
        raise RequestError(
            f"prompts={prompts!r:.60}: give a text, a list of token ids, or a list of such",
            param="prompts",
        )
    if isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int)):
        return [cast(Prompt, prompts)]
    return list(cast("Sequence[Prompt]", prompts))

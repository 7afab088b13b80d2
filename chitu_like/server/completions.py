"""POST /v1/completions."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from msgspec import UNSET, UnsetType, structs
from starlette.requests import Request
from starlette.responses import Response

from chitu_like.core.output import TokenLogprobs
from chitu_like.server.answers import Completion, CompletionChoice, LegacyLogprobs, Usage
from chitu_like.server.body import read_body
from chitu_like.server.call import Call
from chitu_like.server.choice import ChoiceDelta
from chitu_like.server.detokenizer import IncrementalDetokenizer
from chitu_like.server.logprobs import LogprobSpeller
from chitu_like.server.problems import unsupported
from chitu_like.server.prompts import Prompt, decode_prompts
from chitu_like.server.protocol import CompletionRequest, TokenIds
from chitu_like.server.sampling import sampling_params
from chitu_like.server.service import Service, request_id_of, service_of

DEFAULT_MAX_TOKENS = 16
"""OpenAI's, for a request that names none."""


async def completions(request: Request) -> Response:
    """Continue one or many prompts."""
    service = service_of(request)
    with service.admitted() as info:
        body = await read_body(request, CompletionRequest, service.max_body_bytes())
        wanted = body.content
        service.check_model(wanted.model)
        if wanted.best_of is not None and wanted.best_of != (wanted.n or 1):
            raise unsupported("best_of", "this version returns all n completions; leave it out")
        max_tokens = DEFAULT_MAX_TOKENS if wanted.max_tokens is None else wanted.max_tokens
        scores_only = bool(wanted.echo) and max_tokens == 0
        params = sampling_params(
            wanted,
            service.sampling_defaults,
            max_tokens=1 if scores_only else max_tokens,
            logprobs=wanted.logprobs,
            prompt_logprobs=wanted.logprobs if wanted.echo else None,
        )
        prompts = await _read_prompts(service, wanted, info.max_seq_len)
        call = service.open_call(f"cmpl-{request_id_of(request)}", prompts, params)
        answer = CompletionAnswer(
            call, wanted, service.model_name, service.speller, service.created(), scores_only
        )
        return await service.respond(request, call, answer, wanted, body.headers())


async def _read_prompts(
    service: Service, wanted: CompletionRequest, max_tokens: int
) -> list[Prompt]:
    """The prompts, encoded; with echo, prompts of token ids get their text too."""
    adds_special = wanted.add_special_tokens is not False

    async def prepare(prompt: str | TokenIds) -> Prompt:
        if isinstance(prompt, str):
            return await service.prompts.encode(
                prompt, add_special_tokens=adds_special, max_tokens=max_tokens
            )
        text = None
        if wanted.echo and service.prompts.tokenizer is not None and len(prompt) <= max_tokens:
            text = await service.prompts.decode(prompt)
        return Prompt(text=text, token_ids=prompt)

    given = decode_prompts(wanted.prompt)
    num_requests = len(given) * (wanted.n or 1)
    service.check_num_requests(num_requests)
    return await asyncio.gather(*map(prepare, given))


class CompletionAnswer:
    """Words the answer of a completion; see respond.Answer."""

    def __init__(
        self,
        call: Call,
        wanted: CompletionRequest,
        model_name: str,
        speller: LogprobSpeller,
        created: int,
        scores_only: bool,
    ) -> None:
        self._call = call
        self._wanted = wanted
        self._model_name = model_name
        self._speller = speller
        self._created = created
        self._scores_only = scores_only
        self._prompt_logprobs: list[list[TokenLogprobs]] = [[] for _ in call.choices]
        self._has_begun = [False] * len(call.choices)
        options = wanted.stream_options
        self._no_usage = None if options is not None and options.include_usage else UNSET

    def whole(self, deltas: Sequence[ChoiceDelta], usage: Usage) -> Completion:
        """The answer in one piece."""
        by_choice: list[list[ChoiceDelta]] = [[] for _ in self._call.choices]
        for delta in deltas:
            by_choice[delta.index].append(delta)
        choices = [self._choice(_merged(own)) for own in by_choice]
        return self._completion(choices, self._counted(usage))

    def opening(self, usage: Usage | None) -> Sequence[Completion]:
        """Nothing: a completion has no role to name."""
        return []

    def chunk(self, delta: ChoiceDelta, usage: Usage | None) -> Completion:
        """The chunk that carries a delta; the first of a choice carries the echo."""
        counted = self._no_usage if usage is None else self._counted(usage)
        return self._completion([self._choice(delta)], counted)

    def closing(self, usage: Usage) -> Completion:
        """The chunk that carries the usage."""
        return self._completion([], self._counted(usage))

    def _choice(self, delta: ChoiceDelta) -> CompletionChoice:
        index, wanted = delta.index, self._wanted
        self._prompt_logprobs[index] += delta.prompt_logprobs
        # All of the prompt's log-probabilities have come when the first token does.
        begins = not self._has_begun[index] and bool(delta.token_ids or delta.finish_reason)
        self._has_begun[index] |= begins
        if self._scores_only:
            delta = structs.replace(
                delta, text="", token_ids=[], logprobs=[], finish_reason=_scored(delta)
            )
        wants_prompt = wanted.prompt_logprobs is not None and begins
        prompt = self._call.choices[index].prompt
        return CompletionChoice(
            index=index,
            text=(prompt.text or "") + delta.text if begins and wanted.echo else delta.text,
            logprobs=self._logprobs(delta, prompt, begins),
            finish_reason=delta.finish_reason,
            stop_reason=delta.stop_reason,
            prompt_logprobs=self._speller.prompt(self._prompt_logprobs[index])
            if wants_prompt
            else UNSET,
            token_ids=delta.token_ids if wanted.return_token_ids else UNSET,
            prompt_token_ids=prompt.token_ids if wanted.return_token_ids and begins else UNSET,
        )

    def _logprobs(self, delta: ChoiceDelta, prompt: Prompt, begins: bool) -> LegacyLogprobs | None:
        num_top = self._wanted.logprobs
        if num_top is None:
            return None
        shift = len(prompt.text or "") if self._wanted.echo else 0
        offsets = [offset + shift for offset in delta.text_offsets[: len(delta.logprobs)]]
        output = self._speller.legacy(delta.logprobs, offsets, num_top)
        if not (begins and self._wanted.echo):
            return output
        entries = self._prompt_logprobs[delta.index]
        scores = self._speller.legacy(entries, [], num_top)
        return LegacyLogprobs(
            text_offset=self._prompt_offsets(prompt) + output.text_offset,
            token_logprobs=[None, *scores.token_logprobs, *output.token_logprobs],
            tokens=[self._speller.text(prompt.token_ids[0]), *scores.tokens, *output.tokens],
            top_logprobs=[None, *scores.top_logprobs, *output.top_logprobs],
        )

    def _prompt_offsets(self, prompt: Prompt) -> list[int]:
        if self._speller.tokenizer is None:
            return [0] * len(prompt.token_ids)
        spelled = IncrementalDetokenizer(self._speller.tokenizer, skip_special_tokens=False)
        spelled.push(prompt.token_ids)
        longest = len(prompt.text or "")
        return [min(offset, longest) for offset in spelled.text_offsets]

    def _counted(self, usage: Usage) -> Usage:
        """The usage, without the token that a scoring call had to draw."""
        if not self._scores_only:
            return usage
        return Usage(usage.prompt_tokens, 0, usage.prompt_tokens, usage.prompt_tokens_details)

    def _completion(
        self, choices: list[CompletionChoice], usage: Usage | UnsetType | None
    ) -> Completion:
        return Completion(
            id=self._call.parts.call_id,
            created=self._created,
            model=self._model_name,
            choices=choices,
            usage=usage,
        )


def _scored(delta: ChoiceDelta) -> str | None:
    return None if delta.finish_reason is None else "length"


def _merged(deltas: Sequence[ChoiceDelta]) -> ChoiceDelta:
    """All deltas of one choice as one."""
    last = deltas[-1]
    return ChoiceDelta(
        index=last.index,
        text="".join(delta.text for delta in deltas),
        token_ids=[token_id for delta in deltas for token_id in delta.token_ids],
        logprobs=[entry for delta in deltas for entry in delta.logprobs],
        text_offsets=[offset for delta in deltas for offset in delta.text_offsets],
        prompt_logprobs=[entry for delta in deltas for entry in delta.prompt_logprobs],
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
    )

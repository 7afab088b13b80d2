"""POST /tokenize, POST /detokenize, GET /tokenizer_info."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from chitu_like.core.errors import RequestError
from chitu_like.server.answers import DetokenizeAnswer, TokenizeAnswer, TokenizerInfo
from chitu_like.server.body import read_body
from chitu_like.server.call import check_token_ids
from chitu_like.server.prompts import Prompt, TemplateOptions
from chitu_like.server.protocol import DetokenizeRequest, TokenizeRequest
from chitu_like.server.respond import json_response
from chitu_like.server.service import Service, service_of


async def tokenize(request: Request) -> Response:
    """Token ids of a text or of a conversation."""
    service = service_of(request)
    with service.admitted() as info:
        body = await read_body(request, TokenizeRequest, service.max_body_bytes())
        service.check_model(body.content.model)
        prompt = await _encode(service, body.content, service.max_body_bytes())
        wants_strs = body.content.return_token_strs
        token_strs = await service.prompts.spell(prompt.token_ids) if wants_strs else None
    answer = TokenizeAnswer(
        count=len(prompt.token_ids),
        max_model_len=info.max_seq_len,
        tokens=prompt.token_ids,
        token_strs=token_strs,
    )
    return json_response(answer, headers=body.headers())


async def detokenize(request: Request) -> Response:
    """Text of token ids."""
    service = service_of(request)
    with service.admitted() as info:
        body = await read_body(request, DetokenizeRequest, service.max_body_bytes())
        service.check_model(body.content.model)
        check_token_ids("tokens", body.content.tokens, info.vocab_size)
        text = await service.prompts.decode(body.content.tokens)
    return json_response(DetokenizeAnswer(text), headers=body.headers())


async def tokenizer_info(request: Request) -> Response:
    """Describe the tokenizer."""
    service = service_of(request)
    info = service.check_ready()
    tokenizer = service.prompts.need_tokenizer()
    return json_response(
        TokenizerInfo(
            vocab_size=tokenizer.vocab_size,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_ids=list(service.eos_token_ids),
            special_tokens=dict(tokenizer.special_tokens),
            chat_template=service.prompts.template_source,
            max_model_len=info.max_seq_len,
        )
    )


async def _encode(service: Service, wanted: TokenizeRequest, max_tokens: int) -> Prompt:
    if (wanted.prompt is None) == (wanted.messages is None):
        raise RequestError("send either prompt or messages", "prompt")
    if wanted.messages is None:
        return await service.prompts.encode(
            wanted.prompt or "",
            add_special_tokens=wanted.add_special_tokens is not False,
            max_tokens=max_tokens,
        )
    options = TemplateOptions(
        add_generation_prompt=wanted.add_generation_prompt,
        continue_final_message=bool(wanted.continue_final_message),
        template_kwargs=wanted.chat_template_kwargs,
        add_special_tokens=bool(wanted.add_special_tokens),
    )
    return await service.prompts.render(wanted.messages, options, max_tokens=max_tokens)

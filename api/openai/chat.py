"""The routes that a model answers: chat and plain completions, tokenize and detokenize."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llmd.api.http.body import read_json
from llmd.api.http.routes import INFER, Route
from llmd.api.http.streams import EventStream, Opened, until_left
from llmd.api.openai.schema import ChatBody, CompletionBody, DetokenizeBody, Generation, TokenizeBody, parse
from llmd.api.openai.stream import EventEncoder, Shape, encoded, whole
from llmd.daemon import limits
from llmd.daemon.engine.messages import (
    Chat,
    Detokenize,
    Detokenized,
    Generate,
    Prompt,
    Tokenize,
    Tokenized,
)
from llmd.daemon.errors import BadRequest
from llmd.daemon.identity.principal import Principal
from llmd.daemon.serving.answer import Answer, Serving
from llmd.daemon.serving.ask import Ask

_E = TypeVar("_E", Tokenized, Detokenized)


async def chat(request: Request, serving: Serving, principal: Principal) -> Response:
    """POST /v1/chat/completions"""
    body = parse(ChatBody, await read_json(request))
    return await _generate(request, serving, principal, body, Chat(body.chat()))


async def completions(request: Request, serving: Serving, principal: Principal) -> Response:
    """POST /v1/completions"""
    body = parse(CompletionBody, await read_json(request))
    return await _generate(request, serving, principal, body, body.given())


async def _generate(
    request: Request, serving: Serving, principal: Principal, body: Generation, prompt: Prompt
) -> Response:
    ask = Ask(request.url.path, body.model, Generate(prompt, body.params(), body.n or 1))
    if body.stream:
        usage = bool(body.stream_options and body.stream_options.include_usage)
        return EventStream(_stream(serving, principal, ask, usage=usage))
    async with until_left(request.receive), serving.open(principal, ask) as answer:
        return JSONResponse(await whole(answer, _shape(ask, answer)), headers={"X-Request-Id": answer.request_id})


@asynccontextmanager
async def _stream(serving: Serving, principal: Principal, ask: Ask, *, usage: bool) -> AsyncIterator[Opened]:
    async with serving.open(principal, ask) as answer:
        events = encoded(answer, EventEncoder(_shape(ask, answer), usage=usage))
        yield Opened({"X-Request-Id": answer.request_id}, events)


def _shape(ask: Ask, answer: Answer) -> Shape:
    assert isinstance(ask.work, Generate)
    chat = isinstance(ask.work.prompt, Chat)
    shown = answer.request_id.replace("req-", "chatcmpl-") if chat else answer.request_id
    return Shape(chat, shown, answer.model, ask.work.params.logprobs is not None)


async def tokenize(request: Request, serving: Serving, principal: Principal) -> Response:
    """POST /tokenize: {"model", "prompt"} to {"tokens", "count", "max_model_len"}"""
    body = parse(TokenizeBody, await read_json(request))
    text = body.prompt if body.prompt is not None else body.content
    if text is None:
        raise BadRequest("prompt is missing", param="prompt")
    ask = Ask(request.url.path, body.model, Tokenize(text, body.add_special), limits.TOKENIZE_SECONDS)
    async with until_left(request.receive), serving.open(principal, ask) as answer:
        tokens = (await _only(answer, Tokenized)).tokens
        return JSONResponse({"tokens": tokens, "count": len(tokens), "max_model_len": answer.context})


async def detokenize(request: Request, serving: Serving, principal: Principal) -> Response:
    """POST /detokenize: {"model", "tokens"} to {"prompt"}; `content` is llama-server's name for the same."""
    body = parse(DetokenizeBody, await read_json(request))
    ask = Ask(request.url.path, body.model, Detokenize(tuple(body.tokens)), limits.TOKENIZE_SECONDS)
    async with until_left(request.receive), serving.open(principal, ask) as answer:
        text = (await _only(answer, Detokenized)).text
        return JSONResponse({"prompt": text, "content": text})


async def _only(answer: Answer, kind: type[_E]) -> _E:
    """The one event of an answer that is no stream; `open` has raised what refuses it."""
    (event,) = await anext(answer)
    assert isinstance(event, kind)
    return event


ROUTES = (
    Route("POST", "/v1/chat/completions", chat, INFER),
    Route("POST", "/v1/completions", completions, INFER),
    Route("POST", "/tokenize", tokenize, INFER),
    Route("POST", "/detokenize", detokenize, INFER),
)

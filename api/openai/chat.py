"""The routes that a model answers: chat and plain completions, tokenize and detokenize."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

from fastapi import Request
from starlette.responses import JSONResponse, Response

from llmd.api.http.body import aside
from llmd.api.http.routes import INFER, Asks, Caller, Route
from llmd.api.http.streams import EventStream, Opened, WholeJson, until_left
from llmd.api.openai.answers import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    DetokenizeAnswer,
    TokenizeAnswer,
)
from llmd.api.openai.schema import ChatBody, CompletionBody, DetokenizeBody, Generation, StreamOptions, TokenizeBody
from llmd.api.openai.stream import Counts, EventEncoder, Shape, encoded, whole
from llmd.daemon.errors import BadRequest
from llmd.daemon.identity.principal import Principal
from llmd.daemon.serving.answer import Answer, Serving
from llmd.daemon.serving.ask import Ask
from llmd.daemon.wire.events import Detokenized, Tokenized
from llmd.daemon.wire.work import Detokenize, Generate, Tokenize

DIALECT = "openai"

_E = TypeVar("_E", Tokenized, Detokenized)


async def chat(body: ChatBody, request: Request, serving: Asks, principal: Caller) -> Response:
    """The model's own chat template, and its answer."""
    return await _generate(request, serving, principal, body, chat=True)


async def completions(body: CompletionBody, request: Request, serving: Asks, principal: Caller) -> Response:
    """The continuation of a text or of a list of tokens, or of each of several."""
    return await _generate(request, serving, principal, body, chat=False)


async def _generate(
    request: Request, serving: Serving, principal: Principal, body: Generation, *, chat: bool
) -> Response:
    large = request.scope["large"]
    work = await aside(request, partial(_work, body)) if large else _work(body)
    ask = Ask(request.url.path, body.model, work, large=large, dialect=DIALECT)

    def shape(answer: Answer) -> Shape:
        shown = answer.request_id.replace("req-", "chatcmpl-") if chat else answer.request_id
        return Shape(chat, shown, answer.model, work.params.logprobs is not None)

    if body.stream:
        return EventStream(_stream(serving, principal, ask, shape, body.stream_options or StreamOptions()))
    async with until_left(request.receive), serving.open(principal, ask) as answer:
        return WholeJson(await whole(answer, shape(answer)), {"X-Request-Id": answer.request_id})


def _work(body: Generation) -> Generate:
    """Raises BadRequest."""
    return Generate(tuple(body.prompts()), body.params(), body.n or 1, body.wanted())


@asynccontextmanager
async def _stream(
    serving: Serving, principal: Principal, ask: Ask, shape: Callable[[Answer], Shape], options: StreamOptions
) -> AsyncIterator[Opened]:
    async with serving.open(principal, ask) as answer:
        counts = Counts(answer) if options.continuous_usage_stats else None
        events = encoded(answer, EventEncoder(shape(answer), usage=bool(options.include_usage), counts=counts))
        yield Opened({"X-Request-Id": answer.request_id}, events)


async def tokenize(body: TokenizeBody, request: Request, serving: Asks, principal: Caller) -> Response:
    """A text's tokens."""
    text = body.prompt if body.prompt is not None else body.content
    if text is None:
        raise BadRequest("prompt is missing", param="prompt")
    work = Tokenize(text, bool(body.add_special))
    ask = Ask(request.url.path, body.model, work, large=request.scope["large"], dialect=DIALECT)
    async with until_left(request.receive), serving.open(principal, ask) as answer:
        tokens = (await _only(answer, Tokenized)).tokens
        return JSONResponse({"tokens": tokens, "count": len(tokens), "max_model_len": answer.context})


async def detokenize(body: DetokenizeBody, request: Request, serving: Asks, principal: Caller) -> Response:
    """Tokens' text."""
    work = Detokenize(tuple(body.tokens))
    ask = Ask(request.url.path, body.model, work, large=request.scope["large"], dialect=DIALECT)
    async with until_left(request.receive), serving.open(principal, ask) as answer:
        text = (await _only(answer, Detokenized)).text
        return JSONResponse({"prompt": text, "content": text})


async def _only(answer: Answer, kind: type[_E]) -> _E:
    """The one event of an answer that is no stream; `open` has raised what refuses it."""
    (event,) = await anext(answer)
    assert isinstance(event, kind)
    return event


ROUTES = (
    Route("POST", "/v1/chat/completions", chat, INFER, {200: {"model": ChatCompletion}}, ChatCompletionChunk),
    Route("POST", "/v1/completions", completions, INFER, {200: {"model": Completion}}, CompletionChunk),
    Route("POST", "/tokenize", tokenize, INFER, {200: {"model": TokenizeAnswer}}),
    Route("POST", "/detokenize", detokenize, INFER, {200: {"model": DetokenizeAnswer}}),
)

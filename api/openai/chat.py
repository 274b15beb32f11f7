"""The routes that a model answers: chat and plain completions, tokenize and detokenize."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from fastapi import Request
from starlette.responses import JSONResponse, Response

from llmd.api.http import rates
from llmd.api.http.routes import INFER, Asked, Asks, Caller, Route
from llmd.api.http.streams import EventStream, Opened, WholeJson, until_left
from llmd.api.openai.answers import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    DetokenizeAnswer,
    TokenizeAnswer,
)
from llmd.api.openai.bodies import ChatBody, CompletionBody, DetokenizeBody, Generation, StreamOptions, TokenizeBody
from llmd.api.openai.encoding import Counts, EventEncoder, Shape, encoded, failed, whole
from llmd.daemon.identity.principal import Principal
from llmd.daemon.serving.answer import Serving
from llmd.daemon.serving.ask import Ask
from llmd.daemon.serving.begun import Answer
from llmd.daemon.wire.events import Detokenized, Tokenized
from llmd.daemon.wire.work import Detokenize, Generate, Tokenize, Work

DIALECT = "openai"
CHAT, COMPLETIONS, TOKENIZE, DETOKENIZE = "/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"

_E = TypeVar("_E", Tokenized, Detokenized)


def ask_of(body: ChatBody | CompletionBody | TokenizeBody | DetokenizeBody) -> Ask:
    """What it asks of a model, whichever way it came. Raises BadRequest."""
    work: Work
    match body:
        case ChatBody():
            path, work = CHAT, _generate(body)
        case CompletionBody():
            path, work = COMPLETIONS, _generate(body)
        case TokenizeBody():
            path, work = TOKENIZE, Tokenize(body.text(), bool(body.add_special))
        case DetokenizeBody():
            path, work = DETOKENIZE, Detokenize(tuple(body.tokens))
    return Ask(path, body.model, work, dialect=DIALECT)


def _generate(body: Generation) -> Generate:
    return Generate(tuple(body.prompts()), body.params(), body.n or 1, body.wanted())


async def chat(body: ChatBody, ask: Asked, request: Request, serving: Asks, principal: Caller) -> Response:
    """The model's own chat template, and its answer."""
    return await _answered(request, serving, principal, ask, body)


async def completions(body: CompletionBody, ask: Asked, request: Request, serving: Asks, principal: Caller) -> Response:
    """The continuation of a text or of a list of tokens, or of each of several."""
    return await _answered(request, serving, principal, ask, body)


async def _answered(request: Request, serving: Serving, principal: Principal, ask: Ask, body: Generation) -> Response:
    chat, logprobs = isinstance(body, ChatBody), body.wanted_logprobs() is not None

    def shape(answer: Answer) -> Shape:
        shown = answer.request_id.replace("req-", "chatcmpl-") if chat else answer.request_id
        return Shape(chat, shown, answer.model, logprobs)

    if body.stream:
        return EventStream(_stream(serving, principal, ask, shape, body.stream_options or StreamOptions()), failed)
    async with until_left(request.receive), serving.open(principal, ask) as answer:
        return WholeJson(await whole(answer, shape(answer)), _headers(answer))


@asynccontextmanager
async def _stream(
    serving: Serving, principal: Principal, ask: Ask, shape: Callable[[Answer], Shape], options: StreamOptions
) -> AsyncIterator[Opened]:
    async with serving.open(principal, ask) as answer:
        counts = Counts(answer) if options.continuous_usage_stats else None
        events = encoded(answer, EventEncoder(shape(answer), usage=bool(options.include_usage), counts=counts))
        yield Opened(_headers(answer), events)


def _headers(answer: Answer) -> dict[str, str]:
    return {"X-Request-Id": answer.request_id, **rates.headers(answer.rates)}


async def tokenize(body: TokenizeBody, ask: Asked, request: Request, serving: Asks, principal: Caller) -> Response:
    """A text's tokens."""
    async with until_left(request.receive), serving.open(principal, ask) as answer:
        tokens = (await _only(answer, Tokenized)).tokens
        content = {"tokens": tokens, "count": len(tokens), "max_model_len": answer.context}
        return JSONResponse(content, headers=_headers(answer))


async def detokenize(body: DetokenizeBody, ask: Asked, request: Request, serving: Asks, principal: Caller) -> Response:
    """Tokens' text."""
    async with until_left(request.receive), serving.open(principal, ask) as answer:
        text = (await _only(answer, Detokenized)).text
        return JSONResponse({"prompt": text, "content": text}, headers=_headers(answer))


async def _only(answer: Answer, kind: type[_E]) -> _E:
    """The one event of an answer that is no stream; `open` has raised what refuses it."""
    (event,) = await anext(answer)
    assert isinstance(event, kind)
    return event


ROUTES = (
    Route("POST", CHAT, chat, INFER, {200: {"model": ChatCompletion}}, ChatCompletionChunk, ask_of=ask_of),
    Route("POST", COMPLETIONS, completions, INFER, {200: {"model": Completion}}, CompletionChunk, ask_of=ask_of),
    Route("POST", TOKENIZE, tokenize, INFER, {200: {"model": TokenizeAnswer}}, ask_of=ask_of),
    Route("POST", DETOKENIZE, detokenize, INFER, {200: {"model": DetokenizeAnswer}}, ask_of=ask_of),
)

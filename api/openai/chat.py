"""The routes that a model answers: chat and plain completions, tokenize and detokenize."""

import asyncio
import json
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from llmd.api.http.body import read_json
from llmd.api.http.routes import INFER, Route
from llmd.api.openai.schema import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    Generation,
    TokenizeBody,
    params_hash,
    parse,
)
from llmd.api.openai.stream import Shape, StreamResponse, whole
from llmd.daemon.engine.messages import (
    Chat,
    Detokenize,
    Detokenized,
    Generate,
    Prompt,
    RawText,
    Tokenize,
    Tokenized,
)
from llmd.daemon.errors import BadRequest
from llmd.daemon.identity.principal import Principal
from llmd.daemon.serving.answer import Exchange, Parts


async def chat(request: Request, parts: Parts, principal: Principal) -> Response:
    """POST /v1/chat/completions"""
    body = parse(ChatBody, await read_json(request))
    turns = body.chat()
    text = json.dumps([{"role": t.role, "content": t.content} for t in turns], separators=(",", ":"))
    return await _generate(request, parts, principal, body, Chat(turns), text)


async def completions(request: Request, parts: Parts, principal: Principal) -> Response:
    """POST /v1/completions"""
    body = parse(CompletionBody, await read_json(request))
    prompt = body.given()
    text = prompt.text if isinstance(prompt, RawText) else json.dumps(prompt.tokens, separators=(",", ":"))
    return await _generate(request, parts, principal, body, prompt, text)


async def _generate(
    request: Request, parts: Parts, principal: Principal, body: Generation, prompt: Prompt, text: str
) -> Response:
    """`text`: the prompt as the audit log's hash covers it."""
    params, choices = body.params(), body.n or 1
    exchange = Exchange(parts, principal, request.url.path, _model(parts, body.model), choices)
    shape = Shape(isinstance(prompt, Chat), exchange.request_id, exchange.model, params.logprobs is not None)
    if shape.chat:
        shape.id = exchange.request_id.replace("req-", "chatcmpl-")
    handed_on = False
    try:
        await exchange.admit(text.encode(), params_hash(params))
        await exchange.begin(Generate(prompt, params, choices))
        if body.stream:
            usage = bool(body.stream_options and body.stream_options.include_usage)
            handed_on = True
            return StreamResponse(exchange, shape, usage=usage)
        answer = await _unless_left(request, whole(exchange, shape))
        return JSONResponse(answer, headers={"X-Request-Id": exchange.request_id})
    except ClientDisconnect:
        raise  # closed as cancelled
    except Exception as e:
        exchange.fail(e)
        raise
    finally:
        if not handed_on:
            exchange.close()


async def _unless_left(request: Request, answer: Any) -> dict[str, Any]:
    """The answer, unless the client goes away first: then the work stops."""
    work = asyncio.ensure_future(answer)
    left = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return await work  # type: ignore[no-any-return]
    finally:
        work.cancel()
        left.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def tokenize(request: Request, parts: Parts, principal: Principal) -> Response:
    """POST /tokenize: {"model", "prompt"} to {"tokens", "count", "max_model_len"}"""
    body = parse(TokenizeBody, await read_json(request))
    text = body.prompt if body.prompt is not None else body.content
    if text is None:
        raise BadRequest("prompt is missing", param="prompt")
    model = _model(parts, body.model)
    done = await _call(request, parts, principal, model, text.encode(), Tokenize(text, body.add_special))
    assert isinstance(done, Tokenized)
    context = parts.pool.context(model)
    return JSONResponse({"tokens": done.tokens, "count": len(done.tokens), "max_model_len": context})


async def detokenize(request: Request, parts: Parts, principal: Principal) -> Response:
    """POST /detokenize: {"model", "tokens"} to {"prompt"}; `content` is llama-server's name for the same."""
    body = parse(DetokenizeBody, await read_json(request))
    data = json.dumps(body.tokens).encode()
    done = await _call(request, parts, principal, _model(parts, body.model), data, Detokenize(tuple(body.tokens)))
    assert isinstance(done, Detokenized)
    return JSONResponse({"prompt": done.text, "content": done.text})


async def _call(
    request: Request, parts: Parts, principal: Principal, model: str, data: bytes, work: Tokenize | Detokenize
) -> Tokenized | Detokenized:
    exchange = Exchange(parts, principal, request.url.path, model)
    try:
        await exchange.admit(data)
        return await exchange.reply(work)
    except ClientDisconnect:
        raise  # closed as cancelled
    except Exception as e:
        exchange.fail(e)
        raise
    finally:
        exchange.close()


def _model(parts: Parts, asked: str | None) -> str:
    """The model asked for; without a name, the only one there is."""
    if asked is not None:
        return asked
    names = [d.model for d in parts.pool.all()]
    if len(names) != 1:
        raise BadRequest(f"model is missing; deployed: {', '.join(names) or 'none'}", param="model")
    return names[0]


ROUTES = (
    Route("POST", "/v1/chat/completions", chat, INFER),
    Route("POST", "/v1/completions", completions, INFER),
    Route("POST", "/tokenize", tokenize, INFER),
    Route("POST", "/detokenize", detokenize, INFER),
)

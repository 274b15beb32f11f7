"""Another dialect than OpenAI's, whole: what one takes that is added to llmd. It answers a chat as a stream."""

import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from pydantic import BaseModel

from llmd.api.http import streams
from llmd.api.http.body import Body
from llmd.api.http.error_answers import Errors
from llmd.api.http.routes import INFER, Asked, Asks, Caller, Route
from llmd.daemon.serving.ask import Ask
from llmd.daemon.serving.tools import Choice, tool
from llmd.daemon.wire.events import Event, Failed, Finished, Text, ToolCalled
from llmd.daemon.wire.work import Chat, ChatMessage, Generate, SamplingWish


class Said(Body):
    who: str
    text: str
    most: int
    usable: dict[str, dict[str, Any]] = {}
    until: list[str] = []


def ask_of(body: Said) -> Ask:
    choice = Choice(must=bool(body.usable), parallel=False)
    tools = choice.told(tool(name, "", takes, strict=True, where="usable") for name, takes in body.usable.items())
    chat, params = Chat((ChatMessage("user", body.text),), tools=tools), SamplingWish(body.most, stop=tuple(body.until))
    return Ask("/say", body.who, Generate((chat,), params, 1, choice.wanted(None, tools)), dialect="other")


def told(event: Event) -> dict[str, Any]:
    match event:
        case Text():
            return {"says": event.text}
        case ToolCalled(name=name) if name:
            return {"uses": name, "as": "use-" + secrets.token_hex(4)}
        case ToolCalled():
            return {"with": event.arguments}
        case Finished():
            return {"over": "used" if event.calls else event.reason, "by": event.stop}
    return {"wrong": event.code} if isinstance(event, Failed) else {}


async def say(body: Said, ask: Asked, serving: Asks, principal: Caller) -> streams.EventStream:
    @asynccontextmanager
    async def opening() -> AsyncIterator[streams.Opened]:
        async with serving.open(principal, ask) as answer:
            said = (one async for events in answer for one in map(told, events) if one)
            yield streams.Opened({}, (streams.event(json.dumps(one)) async for one in said))

    return streams.EventStream(opening())


ROUTE = Route("POST", "/say", say, INFER, errors=Errors(lambda error: {"wrong": error.code}, BaseModel), ask_of=ask_of)

"""The routes of the models that are imported."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

from pydantic import Field
from starlette.responses import Response

from llmd.api.admin.parts import Admin, Answer, Name
from llmd.api.http.body import Body
from llmd.api.http.routes import ADMIN, Caller, Route
from llmd.api.http.streams import progress
from llmd.api.openai.messages import Message
from llmd.daemon import limits

PROGRESS_SECONDS = 0.1


class ImportBody(Body):
    path: Annotated[str, Field(min_length=1, max_length=4096)]
    name: Name | None = None


class RenameBody(Body):
    name: Name


class ConversationBody(Body):
    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=limits.MAX_MESSAGES)]


class SyntaxBody(Body):
    syntax: Annotated[str, Field(max_length=64)]


# --- what is answered


class Form(Answer):
    name: str
    size: int
    digest: str
    made: dict[str, Any] = {}


class Model(Answer):
    """`info`: as `state/records.py` has it, all that its check told."""

    name: str
    digest: str
    size: int
    source: str
    imported: str
    info: dict[str, Any]
    deployed: bool
    forms: list[Form]


class Models(Answer):
    models: list[Model]


class Prompt(Answer):
    model: str
    prompt: str


class Removed(Answer):
    removed: str


class Verified(Answer):
    model: str
    ok: bool
    do: str


# --- the routes


async def models(service: Admin) -> Models:
    return Models(models=[Model(**one) for one in await service.imported()])


async def show(name: str, service: Admin) -> Model:
    return Model(**await service.show(name))


async def template(name: str, body: ConversationBody, service: Admin) -> Prompt:
    turns = tuple(message.turn(i) for i, message in enumerate(body.messages))
    return Prompt(model=name, prompt=await service.template(name, turns))


async def syntax(name: str, body: SyntaxBody, service: Admin, caller: Caller) -> Model:
    return Model(**await service.set_syntax(name, body.syntax, caller.name))


async def rename(name: str, body: RenameBody, service: Admin, caller: Caller) -> Model:
    return Model(**await service.rename_model(name, body.name, caller.name))


async def remove(name: str, service: Admin, caller: Caller) -> Removed:
    await service.remove_model(name, caller.name)
    return Removed(removed=name)


async def verify_model(name: str, service: Admin) -> Verified:
    return Verified(**await service.verify(name))


async def import_model(body: ImportBody, service: Admin, caller: Caller) -> Response:
    """Events {"done", "total"} in bytes, then {"model"} or an error. A client that goes away ends the import."""

    async def steps() -> AsyncIterator[dict[str, Any]]:
        at = [0, 0]

        def note(done: int, total: int) -> None:
            at[:] = done, total

        work = asyncio.ensure_future(service.import_model(body.path, body.name, caller.name, note))
        try:
            while not work.done():
                await asyncio.wait({work}, timeout=PROGRESS_SECONDS)
                if at[1]:
                    yield {"done": at[0], "total": at[1]}
            model = await work
            yield {"model": await service.show(model.name)}
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    return progress(steps())


ROUTES = (
    Route("GET", "/models", models, ADMIN),
    Route("POST", "/models", import_model, ADMIN),
    Route("GET", "/models/{name}", show, ADMIN),
    Route("DELETE", "/models/{name}", remove, ADMIN),
    Route("POST", "/models/{name}/syntax", syntax, ADMIN),
    Route("POST", "/models/{name}/rename", rename, ADMIN),
    Route("POST", "/models/{name}/template", template, ADMIN),
    Route("POST", "/models/{name}/verify", verify_model, ADMIN),
)

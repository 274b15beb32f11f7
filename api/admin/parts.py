"""What the routes of the admin socket share: who asks, the daemon's service, what a name is, and how
answers are typed."""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, Request
from pydantic import BaseModel, ConfigDict, Field, model_serializer

from llmd.daemon.admin.service import Service
from llmd.daemon.identity.principal import Principal


def who(request: Request) -> Principal:
    """Whom the kernel names; the listener lets only admins in."""
    return Principal(f"uid:{request.scope['extensions']['peer']['uid']}", "admin", "", "local")


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Admin = Annotated[Service, Depends(_service)]
Name = Annotated[str, Field(min_length=1, max_length=256)]


class Answer(BaseModel):
    """What a route answers. Sizes are bytes and moments RFC 3339 in UTC, unless a field says otherwise; a field with a
    default is there where it says something. Strict: a field that is not told of is a fault."""

    model_config = ConfigDict(extra="forbid")

    @model_serializer(mode="wrap")
    def _said(self, whole: Callable[["Answer"], dict[str, Any]]) -> dict[str, Any]:
        told, fields = whole(self), type(self).model_fields
        said = {(fields[name].alias if name in fields else None) or name for name in self.model_fields_set}
        return {name: value for name, value in told.items() if name in said}

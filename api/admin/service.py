"""What every route of the admin socket is given: who asks, and the daemon's service."""

from typing import Annotated

from fastapi import Depends, Request

from llmd.daemon.admin.service import Service
from llmd.daemon.identity.principal import Principal


def who(request: Request) -> Principal:
    """Whom the kernel names; the listener lets only admins in."""
    return Principal(f"uid:{request.scope['extensions']['peer']['uid']}", "admin", "", "local")


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Admin = Annotated[Service, Depends(_service)]

"""The admin socket's routes: what `llmctl` calls. The kernel says who calls; the listener lets only admins in."""

from dataclasses import replace

from llmd.api.admin import audit, clients, deployments, forms, imported, machine, policy, usage
from llmd.api.admin.parts import who
from llmd.api.http.routes import ADMIN
from llmd.api.openai import chat

__all__ = ["ROUTES", "who"]

ROUTES = (
    *machine.ROUTES,
    *imported.ROUTES,
    *forms.ROUTES,
    *deployments.ROUTES,
    *clients.ROUTES,
    *policy.ROUTES,
    *usage.ROUTES,
    *audit.ROUTES,
    replace(chat.ROUTES[0], roles=ADMIN),  # `llmctl chat`
)

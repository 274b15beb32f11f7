"""What the shell completes: names of models and of clients, as the daemon has them now; none where none answers."""

from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem

from llmd.api.cli.connection import Client, DaemonError, NoDaemon


def _asked(ctx: click.Context, ask: Callable[[Client], list[str]], begun: str) -> list[str]:
    """The names that go on as they were begun."""
    socket = ctx.find_root().params.get("path")
    try:
        return [name for name in ask(Client(socket)) if name.startswith(begun)]
    except (NoDaemon, DaemonError, LookupError):
        return []


def models(ctx: click.Context, _: click.Parameter, begun: str) -> list[str]:
    """Of imported models, and of their forms once an @ is there."""

    def ask(daemon: Client) -> list[str]:
        found: list[dict[str, Any]] = daemon.call("GET", "/models")["models"]
        return [n for m in found for n in ((f["name"] for f in m["forms"]) if "@" in begun else [m["name"]])]

    return _asked(ctx, ask, begun)


def models_or_paths(ctx: click.Context, param: click.Parameter, begun: str) -> list[str] | list[CompletionItem]:
    """A path has a slash; which there are the shell itself knows."""
    return [CompletionItem(begun, type="file")] if "/" in begun else models(ctx, param, begun)


def deployed(ctx: click.Context, _: click.Parameter, begun: str) -> list[str]:
    """Of models that serve, or are to."""
    return _asked(ctx, lambda daemon: [m["model"] for m in daemon.call("GET", "/status")["models"]], begun)


def clients(ctx: click.Context, _: click.Parameter, begun: str) -> list[str]:
    return _asked(ctx, lambda daemon: [c["name"] for c in daemon.call("GET", "/clients")["clients"]], begun)

"""`llmctl network`: which networks the installed service may exchange anything with. Enforced by the kernel, whatever
runs in the service; this machine itself (localhost) always may."""

import ipaddress
from typing import Any

import click

from llmd.api.cli import unit
from llmd.api.cli.connection import DaemonError
from llmd.api.cli.terminal import as_json, json_before, safe, show_json

DROP_IN = "network"
ALLOW, DENY = "IPAddressAllow", "IPAddressDeny"
ANY = ("0.0.0.0/0", "::/0")
HERE = ("127.0.0.0/8", "::1/128")


@click.group(invoke_without_command=True)
@json_before
@click.pass_context
def network(ctx: click.Context) -> None:
    """Which networks may reach the installed service, and it them."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(show)


@network.command()
@as_json
def show(json_: bool) -> None:
    """The networks that are allowed now."""
    found = allowed()
    if found is None:
        raise DaemonError(unit.NOT_INSTALLED)
    if json_:
        return show_json({"networks": found})
    click.echo("\n".join(safe(one) for one in found) or "this machine only: llmctl network allow NETWORK adds one")


@network.command()
@click.argument("networks", nargs=-1, required=True)
@as_json
def allow(networks: tuple[str, ...], json_: bool) -> None:
    """Let these networks in, at once: 10.0.0.0/8, one address, or any."""
    wanted = [*unit.held(unit.SERVICE, DROP_IN, ALLOW)]
    wanted += [one for one in map(_network, networks) if one not in wanted]
    _write(wanted, json_)


@network.command()
@click.argument("networks", nargs=-1, required=True)
@as_json
def remove(networks: tuple[str, ...], json_: bool) -> None:
    """No longer let these networks in; open connections get nothing more either."""
    there = unit.held(unit.SERVICE, DROP_IN, ALLOW)
    gone = [_network(one) for one in networks]
    if unknown := [one for one in gone if one not in there]:
        raise DaemonError(f"{unknown[0]} is not allowed; allowed: {', '.join(there) or 'none but this machine'}")
    _write([one for one in there if one not in gone], json_)


def _write(wanted: list[str], json_: bool) -> None:
    lines = [f"{ALLOW}={one}" for one in wanted]
    # what comes in is held against the socket's unit, what goes out against the service's
    unit.change(DROP_IN, {unit.SERVICE: lines, unit.SOCKET: lines})
    if json_:
        return show_json({"networks": wanted})
    click.echo(f"llmd may be reached from this machine{''.join(f' and {safe(one)}' for one in wanted)}")


def _network(text: str) -> str:
    """As systemd takes it. Raises UsageError."""
    if text == "any":
        return text
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        pass
    try:
        likely = ipaddress.ip_interface(text).network
    except ValueError:
        raise click.UsageError(f"{text} is no network: 10.0.0.0/8, an address, or any") from None
    raise click.UsageError(f"{text} is an address in a network: {likely}, or {text.split('/')[0]}")


def allowed(name: str = unit.SERVICE) -> list[str] | None:
    """The networks besides this machine, whoever allowed them; None without an installed service."""
    found = unit.told(name, ALLOW, DENY)
    if not found:
        return None
    if not set(ANY) <= set(found.get(DENY, "").split()):
        return ["any"]
    named = [one for one in found.get(ALLOW, "").split() if one not in HERE]
    return ["any"] if set(ANY) <= set(named) else named


def checks() -> list[dict[str, Any]]:
    """Doctor's."""
    found = allowed()
    if found is None:
        return []
    listens = unit.told(unit.SOCKET, "Listen").get("Listen", "")
    elsewhere = not listens.startswith(("127.", "[::1]"))
    connect = allowed(unit.SOCKET)
    if connect is not None and sorted(connect) != sorted(found):
        fix = f"take drop-ins that say so away (systemctl cat {unit.SERVICE} {unit.SOCKET}), and use llmctl network"
        return [_check(False, "other networks may connect than llmd may answer", fix)]
    if found == ["any"]:
        return [_check(None, "any network may reach llmd", "llmctl network remove any, and allow the ones you know")]
    if not found and elsewhere:
        return [_check(False, "no other machine may reach llmd", "llmctl network allow 10.0.0.0/8, or whichever")]
    return [_check(True, f"this machine{''.join(f' and {one}' for one in found)} may reach llmd")]


def _check(ok: bool | None, message: str, fix: str = "") -> dict[str, Any]:
    return {"name": "network", "ok": ok, "message": message, "fix": fix}

"""`llmctl`: the local admin's command. It speaks to the daemon over its admin socket and opens none of its files.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 no daemon, 130 interrupted.
"""

import itertools
import json
import os
import sys
from dataclasses import dataclass
from typing import Any, NoReturn

import click

from llmd.api.cli import audit as cli_audit
from llmd.api.cli import bench as cli_bench
from llmd.api.cli import chat as cli_chat
from llmd.api.cli import client as cli_client
from llmd.api.cli import credential as cli_credential
from llmd.api.cli import deploy as cli_deploy
from llmd.api.cli import doctor as cli_doctor
from llmd.api.cli import gpu as cli_gpu
from llmd.api.cli import jobs as cli_jobs
from llmd.api.cli import model as cli_model
from llmd.api.cli import network as cli_network
from llmd.api.cli import plan as cli_plan
from llmd.api.cli import policy as cli_policy
from llmd.api.cli import usage as cli_usage
from llmd.api.cli.completion import deployed
from llmd.api.cli.connection import SOCKETS, Client, DaemonError, NoDaemon
from llmd.api.cli.terminal import MAX_CELL, as_json, device, json_before, moment, safe, short, show_json, span, table
from llmd.daemon.errors import MAX_GIVEN, cut

GIVEN = "llmctl.given"


class Llmctl(click.Group):
    """Errors become one line on standard error, or one JSON object with --json: wrong usage too."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        # an option that is wrong ends the reading before a --json behind it is met
        given = _Given(list(args), "--json" in itertools.takewhile(lambda word: word != "--", args))
        try:
            ctx = super().make_context(info_name, args, parent, **extra)
        except click.ClickException as e:
            self._wrong(e, given)
        ctx.meta[GIVEN] = given
        return ctx

    def invoke(self, ctx: click.Context) -> Any:
        given: _Given = ctx.meta[GIVEN]
        try:
            return super().invoke(ctx)
        except NoDaemon as e:
            self._fail(3, str(e), "no_daemon", given)
        except DaemonError as e:
            self._fail(1, str(e), e.code, given)
        except click.ClickException as e:
            self._wrong(e, given)
        except click.Abort as e:  # a question: Ctrl-C, or No
            sys.exit(130 if isinstance(e.__context__, KeyboardInterrupt) else 1)
        except BrokenPipeError:
            # the reader of our output has gone: that is no failure, and nothing may be printed at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except OSError as e:
            self._fail(1, f"{cut(str(e.filename))}: {e.strerror}" if e.filename else str(e), "", given)
        except KeyboardInterrupt:
            sys.exit(130)

    def _wrong(self, error: click.ClickException, given: "_Given") -> NoReturn:
        if given.json:
            kind = "usage" if isinstance(error, click.UsageError) else ""
            self._fail(error.exit_code, error.format_message(), kind, given)
        text = given.cut(error.format_message())
        raise click.UsageError(text, error.ctx) if isinstance(error, click.UsageError) else click.ClickException(text)

    def _fail(self, code: int, message: str, kind: str, given: "_Given") -> NoReturn:
        message = given.cut(message)
        if given.json:
            click.echo(json.dumps({"error": {"message": message, "code": kind or "failed"}}), err=True)
        else:
            click.echo(f"llmctl: {safe(message)}", err=True)
        sys.exit(code)


@dataclass(frozen=True, slots=True)
class _Given:
    """What was typed, and whether errors are to be JSON."""

    words: list[str]
    json: bool

    def cut(self, message: str) -> str:
        """An error without more of a word that was typed than a person needs to know it by."""
        for word in {part for typed in self.words for part in (typed, typed.partition("=")[2])}:
            for written in (word, repr(word)[1:-1]):
                if len(written) > MAX_GIVEN:
                    message = message.replace(written, short(written, MAX_GIVEN))
        return message


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from importlib.metadata import version  # it reads the disk: only here

        click.echo(f"llmctl {version('llmd-appliance')}")
        ctx.exit()


@click.group(cls=Llmctl, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--socket",
    "path",
    metavar="PATH",
    help=f"The daemon's admin socket. Default: {', else '.join(SOCKETS)}, else that of the one daemon that runs here.",
)
@json_before
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
@click.pass_context
def main(ctx: click.Context, path: str | None) -> None:
    """Administer the llmd daemon on this machine."""
    ctx.obj = Client(path)


@main.command()
@as_json
@click.pass_obj
def status(client: Client, json_: bool) -> None:
    """The daemon, its models and what ends soon."""
    s = client.call("GET", "/status")
    if json_:
        return show_json(s)
    audit = "written" if s["audit"]["writable"] else "CANNOT BE WRITTEN"
    click.echo(
        f"llmd {s['version']} on {s['listen']}, node {s['node']}, up {span(s['uptime'])}, {s['connections']} "
        "connections"
    )
    click.echo(
        f"audit log: {audit}, {s['audit']['seq']} rows; server certificate until "
        f"{moment(s['server_certificate_until'])}"
    )
    if s["policy"]["exists"]:
        click.echo(f"policy {s['policy']['version']} says who may use what: llmctl policy show")
    missing = " and no ".join(map(safe, s["confinement"]["lacks"]))
    if missing:
        click.echo(
            f"NOT CONFINED: this kernel has no {missing}, so what reads models may read all of llmd: llmctl doctor"
        )
    else:
        click.echo("confined: what reads models, schemas and templates reaches nothing else")
    for c in s["certificates_ending_soon"]:
        what = f"certificate of {safe(c['client'])}" if c["kind"] == "client" else f"the CA's {c['kind']}"
        do = f"llmctl client issue {safe(c['client'])} --again" if c["kind"] == "client" else "llmctl doctor"
        click.echo(f"{what} ends {moment(c['not_after'])}: {do}")
    table(
        ("model", "state", "replicas", "on", "context", "slots", "running", "waiting", "kv used", "restarts", "reason"),
        [
            (m["model"], m["state"], _replicas(m), _where(m), m.get("context"), m.get("slots"), m.get("running"),
             m.get("waiting"), f"{100 * m['kv_used']:.1f} %" if "kv_used" in m else "", m["restarts"], m["reason"])
            for m in s["models"]
        ],
    )  # fmt: skip
    _notes(s["models"])
    for one in s["damaged"]:
        click.echo(f"{safe(one['form'])}: {safe(one['reason'])}: {safe(one['do'])}")
    for one in s["evicted"]:
        click.echo(f"{safe(one['model'])} {safe(one['reason'])}: llmctl deploy {safe(one['model'])} brings it back")


def _notes(models: list[dict[str, Any]]) -> None:
    """What is worth knowing of the plans, and reasons that are too long for a table."""
    for model in models:
        if len(model["reason"]) > MAX_CELL:
            click.echo(f"{safe(model['model'])}: {safe(model['reason'])}")
        for note in sorted({one["note"] for one in model["replicas"] if one["note"]}):
            click.echo(f"{safe(model['model'])}: {safe(note)}")


def _where(model: dict[str, Any]) -> str:
    """The CPU, or the GPUs by the ends of their UUIDs."""
    if "gpus" not in model:
        return ""
    return " ".join(map(device, model["gpus"])) or "CPU"


def _replicas(model: dict[str, Any]) -> str:
    """How many serve, of how many."""
    serve = sum("slots" in one for one in model["replicas"])
    return f"{serve}/{model['wanted_replicas']}"


@main.command()
@click.argument("model", shell_complete=deployed)
@as_json
@click.pass_obj
def undeploy(client: Client, model: str, json_: bool) -> None:
    """Take a model out of service; running requests may finish."""
    done = client.call("POST", "/undeploy", {"model": model})
    show_json(done) if json_ else click.echo(f"{safe(model)} is out of service")


@main.command()
@as_json
@click.pass_obj
def reload(client: Client, json_: bool) -> None:
    """Read the configuration and the CA's files again, all or nothing, and renew what is due."""
    done = client.call("POST", "/reload")
    if json_:
        return show_json(done)
    click.echo(
        f"reloaded: the server's certificate is good until {moment(done['server_certificate_until'])}, revoked "
        f"certificates: {done['revoked_certificates']}"
    )
    for key, when in (("changed", "from now on"), ("next_start", "from the next start on")):
        if done[key]:
            click.echo(f"changed in llmd.toml, and used {when}: {', '.join(done[key])}")


for command in (
    cli_model.model,
    cli_deploy.deploy,
    cli_jobs.jobs,
    cli_client.client,
    cli_policy.policy,
    cli_policy.group,
    cli_usage.usage,
    cli_doctor.doctor,
    cli_network.network,
    cli_credential.ca_key,
    cli_audit.audit,
    cli_chat.chat,
    cli_bench.bench,
    cli_gpu.gpus,
    cli_plan.plan,
):
    main.add_command(command)

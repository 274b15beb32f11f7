"""`llmctl chat`: talk to a model in the terminal."""

import sys
from typing import Any

import click

from llmd.api.cli.completion import deployed
from llmd.api.cli.connection import Client, DaemonError
from llmd.api.cli.terminal import as_json, safe, show_json


@click.command()
@click.argument("model", shell_complete=deployed)
@click.argument("message", required=False)
@click.option("--system", help="The system message.")
@click.option("--temperature", type=float)
@click.option("--max-tokens", type=int)
@as_json
@click.pass_obj
def chat(
    client: Client,
    model: str,
    message: str | None,
    system: str | None,
    temperature: float | None,
    max_tokens: int | None,
    json_: bool,
) -> None:
    """Chat with a deployed model. With a MESSAGE (- is standard input) it answers once, and --json is the whole answer.

    Ctrl-C stops an answer; Ctrl-D, or Ctrl-C at the prompt, ends.
    """
    options: dict[str, Any] = {"model": model}
    options |= {k: v for k, v in (("temperature", temperature), ("max_tokens", max_tokens)) if v is not None}
    messages = [{"role": "system", "content": system}] if system else []
    if message == "-" or (message is None and not sys.stdin.isatty()):
        message = sys.stdin.read().strip()
    if message is not None:
        if not message.strip():
            raise click.UsageError("there is no message to send: give one, or write it to standard input")
        messages.append({"role": "user", "content": message})
        if json_:
            return show_json(client.call("POST", "/v1/chat/completions", {**options, "messages": messages}))
        _answer(client, options, messages)
        return
    if json_:
        raise click.UsageError("--json needs a MESSAGE")
    _talk(client, options, messages)


def _talk(client: Client, options: dict[str, Any], messages: list[dict[str, str]]) -> None:
    import readline  # noqa: F401  # input() edits lines with it

    click.echo(f"{safe(options['model'])}; Ctrl-C stops an answer, Ctrl-D ends", err=True)
    while True:
        try:
            text = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            click.echo()
            return
        if not text:
            continue
        asked = [*messages, {"role": "user", "content": text}]
        try:
            answer = _answer(client, options, asked, goes_on=True)
        except DaemonError as e:
            click.echo(f"llmctl: {safe(e)}", err=True)
            continue
        messages = [*asked, {"role": "assistant", "content": answer}]


def _answer(client: Client, options: dict[str, Any], messages: list[dict[str, str]], *, goes_on: bool = False) -> str:
    """Print an answer as it comes; Ctrl-C ends it, and where it `goes_on` with another question nothing else. What the
    model thinks goes to standard error, dimmed. Returns the answer."""
    parts: list[str] = []
    thinking = False
    stream = client.events("POST", "/v1/chat/completions", {**options, "messages": messages, "stream": True})
    try:
        for event in stream:
            delta = event["choices"][0]["delta"] if event["choices"] else {}
            if thought := delta.get("reasoning_content"):
                click.secho(_shown(thought), nl=False, err=True, dim=True)
                thinking = True
            if text := delta.get("content"):
                if thinking:
                    click.echo("\n", err=True)
                    thinking = False
                parts.append(text)
                click.echo(_shown(text), nl=False)
                sys.stdout.flush()
    except KeyboardInterrupt:
        stream.close()  # type: ignore[attr-defined]
        if not goes_on:
            click.echo()
            raise
    click.echo()
    return "".join(parts)


def _shown(text: str) -> str:
    """A model may write anything: line breaks are wanted, escape sequences are not."""
    return "\n".join(map(safe, text.replace("\t", "    ").split("\n")))

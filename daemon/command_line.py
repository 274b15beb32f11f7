"""What the `llmd` command is told on its command line."""

import argparse
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from llmd.daemon.config import DEFAULT_FILE
from llmd.daemon.errors import cut


class Arguments(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(cut(message))


def arguments() -> argparse.ArgumentParser:
    top = Arguments(prog="llmd", description="A private LLM service. `llmctl` administers it.")
    top.add_argument("--version", action="version", version=f"llmd {version('llmd-appliance')}")
    commands = top.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="run the daemon in the foreground")
    init = commands.add_parser("init", help="make the state folder, the CA and the server's certificate, and end")
    for command in (serve, init):
        command.add_argument("--config", type=Path, metavar="FILE", help=f"default: {DEFAULT_FILE}, if it exists")
        command.add_argument("--state-dir", metavar="DIR", help="models, certificates, audit log")
    serve.add_argument("--listen", metavar="HOST:PORT", help="where clients connect")
    serve.add_argument(
        "--default-model", metavar="NAME=FILE", help="import and deploy this GGUF if NAME is not there yet"
    )
    init.set_defaults(listen=None, default_model=None)
    return top

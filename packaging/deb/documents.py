"""What the package has to read: man pages from the commands' own help.

python -I packaging/deb/documents.py ROOT      run by debian/rules, with the package's own Python
"""

import argparse
import gzip
import os
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click

from llmd.api.cli.main import main as llmctl
from llmd.daemon.command_line import arguments

WHEN = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", "0")), UTC)


# --- man pages


def roff(text: str) -> str:
    """Text as it is."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^([.'])", r"\\&\1", escaped, flags=re.MULTILINE)


def page(name: str, section: int, about: str, synopsis: str, parts: dict[str, str], others: str) -> str:
    head = f'.TH "{name.upper()}" "{section}" "{WHEN:%Y-%m-%d}" "llmd" "llmd"\n'
    body = f".SH NAME\n{roff(name)} \\- {roff(about)}\n.SH SYNOPSIS\n{synopsis}\n"
    body += "".join(f".SH {title}\n{text}\n" for title, text in parts.items() if text)
    return head + body + f".SH SEE ALSO\n{others}\n"


def items(rows: list[tuple[str, str]]) -> str:
    return "\n".join(f".TP\n.B {roff(name)}\n{roff(text)}" for name, text in rows)


def of_click(command: click.Command, path: list[str]) -> Iterator[tuple[str, str]]:
    """A page for a command, and one for each below it."""
    context = click.Context(command, info_name=" ".join(path))
    about = (command.help or "").strip().split("\n")[0].rstrip(".")
    usage = " ".join(command.collect_usage_pieces(context))
    options = [record for p in command.get_params(context) if (record := p.get_help_record(context))]
    below = command.commands if isinstance(command, click.Group) else {}
    rows = [(f"{' '.join(path)} {name}", one.get_short_help_str(200)) for name, one in sorted(below.items())]
    see = "\n".join([f".BR {roff('-'.join([*path, name]))} (1)," for name in sorted(below)] + [".BR llmd (8)"])
    parts = {"DESCRIPTION": roff(command.help or ""), "COMMANDS": items(rows), "OPTIONS": items(options)}
    name = "-".join(path)
    yield f"{name}.1", page(name, 1, about, f".B {roff(' '.join(path))}\n{roff(usage)}", parts, see)
    for part, one in below.items():
        yield from of_click(one, [*path, part])


def of_daemon() -> tuple[str, str]:
    parser = arguments()
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    parts = {"DESCRIPTION": roff(parser.description or "")}
    for name, one in commands.choices.items():
        rows = [(", ".join(a.option_strings) + (f" {a.metavar}" if a.metavar else ""), a.help or "")
                for a in one._actions]  # fmt: skip
        parts[f"LLMD {name.upper()}"] = roff(one.format_usage().removeprefix("usage: ")) + items(rows)
    synopsis = ".B llmd\nserve | init [options]"
    return "llmd.8", page("llmd", 8, "a private LLM service", synopsis, parts, ".BR llmctl (1),\n.BR llmd.toml (5)")


def of_configuration(text: str) -> tuple[str, str]:
    """From the table of docs/configuration.md."""
    rows = re.findall(r"^\| `(\w+)` \| `(.*?)` \| (.*) \|$", text, re.MULTILINE)
    keys = items([(f"{name} = {default}", about.replace("`", "")) for name, default, about in rows])
    parts = {"DESCRIPTION": roff("One TOML file; an unknown key or a wrong type is an error. Every key, with its "
                                 "default:"), "KEYS": keys}  # fmt: skip
    return "llmd.toml.5", page("llmd.toml", 5, "configuration of llmd", "/etc/llmd/llmd.toml", parts, ".BR llmd (8)")


def main() -> None:
    root = Path(sys.argv[1])
    pages = [*of_click(llmctl, ["llmctl"]), of_daemon(), of_configuration(Path("docs/configuration.md").read_text())]
    for name, text in pages:
        folder = root / "usr/share/man" / f"man{name[-1]}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main()

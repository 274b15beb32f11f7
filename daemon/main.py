"""`llmd`: the command. `llmd serve` runs a daemon (`composition.py`) until it has drained, `llmd init` makes what it
needs."""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

import uvloop

from llmd.daemon import atomic, config, logs
from llmd.daemon.command_line import arguments
from llmd.daemon.composition import Daemon
from llmd.daemon.config import Config, ConfigError
from llmd.daemon.errors import LlmdError, cut
from llmd.daemon.machine import process, systemd
from llmd.daemon.machine.process import Fatal

# for the last lines of the log, where somebody reads it
FLUSH_SECONDS = 1.0


async def _serve(read: Callable[[], Config], default_model: tuple[str, Path] | None) -> None:
    await Daemon(read(), read).run(default_model)


async def _init(read: Callable[[], Config]) -> None:
    """What is there already stays."""
    daemon = Daemon(read())
    daemon.audit.ready()
    await daemon.close()


def _fail(message: str) -> NoReturn:
    """The last words; `llmctl doctor` gets them from systemd."""
    systemd.notify(STATUS=f"failed: {message}")
    sys.exit(f"llmd: {message}")


def main(argv: list[str] | None = None) -> None:
    """The `llmd` command. Exits 0 after a drain, 1 when it cannot run."""
    given = arguments().parse_args(argv)
    process.without_dumps()
    os.umask(0o077)
    lines = logs.start()
    name, _, file = (given.default_model or "").partition("=")
    if given.default_model and not (name and file):
        sys.exit("llmd: --default-model takes NAME=FILE")
    try:
        read = partial(config.load, given.config, state_dir=given.state_dir, listen=given.listen)
        # its TLS writes cost half of asyncio's own (benchmarks/gateway.py)
        work = _serve(read, (name, Path(file)) if file else None) if given.command == "serve" else _init(read)
        uvloop.run(work)
    except (Fatal, ConfigError) as e:
        _fail(str(e))
    except LlmdError as e:
        _fail(e.message)
    except OSError as e:
        _fail(f"{cut(str(e.filename))}: {atomic.why(e)}" if e.filename else atomic.why(e))
    finally:
        lines.flush(FLUSH_SECONDS)


if __name__ == "__main__":
    main()

"""The installed service's units. What systemd decides and not llmd stands there, and not in llmd.toml: which networks
there are, which keys are handed in. `llmctl` writes it as a drop-in, for root."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from llmd.api.cli.connection import DaemonError

SYSTEM = Path("/etc/systemd/system")
RUNS = Path("/run/systemd/system")  # it is there where systemd runs the machine
SERVICE, SOCKET = "llmd.service", "llmd.socket"
SECTIONS = {SERVICE: "Service", SOCKET: "Socket"}
HEAD = "# written by llmctl\n"
NOT_INSTALLED = "systemd does not know llmd.service here: this is for the installed package"
SECONDS = 60.0


def told(unit: str, *names: str) -> dict[str, str]:
    """Properties of a unit, as systemd has them now; empty where there is no such unit, or no systemd."""
    if not RUNS.exists():
        return {}
    asked = ("LoadState", *names)
    done = _systemctl("show", unit, *(f"--property={name}" for name in asked))
    found = dict(line.split("=", 1) for line in done.splitlines() if "=" in line)
    return found if found.get("LoadState") == "loaded" else {}


def held(unit: str, name: str, setting: str) -> list[str]:
    """The values of a setting in the drop-in `name`; none where there is no such file."""
    file = _file(unit, name)
    try:
        found = file.stat()
        lines = file.read_text().splitlines()
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as e:
        raise DaemonError(f"{file} cannot be read: {getattr(e, 'strerror', None) or e}") from e
    if found.st_uid not in (0, os.getuid()) or found.st_mode & 0o022:
        raise DaemonError(f"{file} is not root's alone, and systemd obeys it: chown root: {file} && chmod go-w {file}")
    return [line.partition("=")[2] for line in lines if line.startswith(f"{setting}=")]


def change(name: str, lines: Mapping[str, Sequence[str]]) -> None:
    """Write the drop-in `name` of each unit, whole or not at all; one without lines goes. systemd then reads it. Raises
    DaemonError."""
    if not told(SERVICE):
        raise DaemonError(NOT_INSTALLED)
    if os.geteuid() != 0:
        raise DaemonError("only root may change a unit: sudo llmctl …")
    for unit, wanted in lines.items():
        file = _file(unit, name)
        try:
            if wanted:
                _write(file, HEAD + f"[{SECTIONS[unit]}]\n" + "".join(f"{line}\n" for line in wanted))
            else:
                file.unlink(missing_ok=True)
        except OSError as e:
            raise DaemonError(f"{file} cannot be written: {e.strerror}") from e
    _systemctl("daemon-reload")


def _file(unit: str, name: str) -> Path:
    return SYSTEM / f"{unit}.d" / f"{name}.conf"


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    try:
        part.write_text(text)
        part.chmod(0o644)
        part.replace(file)
    except OSError:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def _systemctl(*arguments: str) -> str:
    try:
        done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise DaemonError(f"systemctl does not answer: {e}") from e
    if done.returncode:
        raise DaemonError(f"systemctl {arguments[0]}: {done.stderr.strip() or done.returncode}")
    return done.stdout

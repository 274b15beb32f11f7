"""The configuration: one frozen dataclass, one TOML file, no environment variables. An unknown key is an error."""

import ipaddress
import os
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from llmd.daemon import atomic, toml
from llmd.daemon.current import Current
from llmd.daemon.errors import MAX_GIVEN, cut, quoted

DEFAULT_FILE = Path("/etc/llmd/llmd.toml")
# bytes that the kernel takes
MAX_SOCKET_PATH = 107


class ConfigError(Exception):
    """The file or what was given beside it cannot be used; the message is one line, with file and line number."""


@dataclass(frozen=True, slots=True)
class Config:
    """Every key of llmd.toml, with its default. 0 and "" mean: derive it."""

    listen: str = "127.0.0.1:8443"  # host:port for clients
    state_dir: str = "/var/lib/llmd"
    admin_socket: str = ""  # default: admin.sock in state_dir
    node: str = ""  # the name in llmd://NODE/client/NAME; default: this host's
    server_names: tuple[str, ...] = ()  # DNS names and addresses in the server's certificate, besides this host's own
    allowed_hosts: tuple[str, ...] = ()  # Host headers that are answered; none: any
    slots: int = 8  # sequences a model computes at once
    context: int = 4096  # tokens a slot, at most what the model was trained for
    queue: int = 64  # requests that may wait for a slot, a model
    batch: int = 512  # tokens a step while nothing generates
    chunk: int = 256  # prompt tokens a step while something generates
    evict: bool = False  # deploying takes idle models out of service where another one needs their room
    threads: int = 0  # for arithmetic and sampling; default: all cores
    drain_seconds: int = 30  # how long running requests may finish at stop
    audit_on_failure: str = "refuse"  # or "serve": answer requests although they cannot be logged
    require_confinement: bool = False  # do not start where the kernel cannot confine what reads strangers' bytes

    @property
    def state(self) -> Path:
        return Path(self.state_dir)

    @property
    def admin_path(self) -> Path:
        """Absolute, so that `llmctl` can find it from anywhere; as it was given where that is too long for a socket."""
        path = Path(self.admin_socket) if self.admin_socket else self.state / "admin.sock"
        return path.absolute() if len(os.fsencode(path.absolute())) <= MAX_SOCKET_PATH else path

    @property
    def node_name(self) -> str:
        return self.node or re.sub(r"[^a-z0-9.-]", "-", socket.gethostname().lower()) or "llmd"

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of `listen`."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)

    def at(self, port: int) -> "Config":
        """Listening on that port, where it was the kernel's to choose."""
        return self if self.address[1] else replace(self, listen=f"{self.listen.rpartition(':')[0]}:{port}")

    @property
    def url(self) -> str:
        """Where this machine finds it, by a name that the server's certificate has: none has that of every address."""
        host, port = self.address
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


class InUse(Current[Config]):
    """The configuration that is in use, so that a reload is used by all. Made once, by the composition. `read` gives
    what the file says by now; it raises ConfigError."""

    def __init__(self, config: Config, read: Callable[[], Config] | None = None) -> None:
        super().__init__(config)
        self.read = read or (lambda: config)


def load(file: Path | None, **given: Any) -> Config:
    """The file's values (the default file need not exist), over them `given` ones that are not None. Raises
    ConfigError."""
    where = file or DEFAULT_FILE
    shown = cut(str(where))
    text = _text(where) if file is not None or where.exists() else ""
    told = {key: value for key, value in given.items() if value is not None}

    def wrong(key: str, why: str) -> ConfigError:
        at = f"--{key.replace('_', '-')}" if key in told else f"{shown}:{toml.line(text, (key,))}"
        return ConfigError(f"{at}: {why}")

    kinds = {f.name: type(f.default) for f in fields(Config)}
    try:
        values = toml.parsed(text)
    except toml.Wrong as e:
        raise ConfigError(f"{shown}{f':{e.line}' if e.line else ''}: {e.why}") from e
    for key, value in values.items():
        if key not in kinds:
            raise wrong(key, f"there is no setting {quoted(key, MAX_GIVEN)}")
        if kinds[key] is tuple and isinstance(value, list) and all(isinstance(v, str) for v in value):
            values[key] = tuple(value)
        elif type(value) is not kinds[key]:
            raise ConfigError(f"{shown}:{toml.line(text, (key,))}: {key} takes {_KINDS[kinds[key]]}")
    config = replace(Config(), **{**values, **told})
    for key, why in _faults(config):
        raise wrong(key, why)
    return config


def _text(where: Path) -> str:
    try:
        if why := atomic.foreign(where):
            raise ConfigError(why)
        return where.read_text(encoding="utf-8-sig")  # some editors begin a file with a byte order mark
    except OSError as e:
        raise ConfigError(f"{cut(str(where))}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"{cut(str(where))}: this is not UTF-8 text") from e


# fixed by what was made or opened with them
FIXED = frozenset({"listen", "state_dir", "admin_socket", "node", "server_names", "require_confinement"})


def changes(used: Config, new: Config) -> tuple[Config, list[str], list[str]]:
    """`new`, as far as a running llmd can use it; the keys that this changes; those that wait for the next start."""
    new = new.at(used.address[1])
    names = [f.name for f in fields(Config) if getattr(used, f.name) != getattr(new, f.name)]
    waiting = [name for name in names if name in FIXED]
    usable = replace(new, **{name: getattr(used, name) for name in waiting})
    return usable, [name for name in names if name not in FIXED], waiting


_KINDS: dict[type, str] = {str: "a text", int: "a whole number", bool: "true or false", tuple: "a list of texts"}
_RANGES = {
    "slots": (1, 256), "context": (0, 1 << 24), "queue": (0, 100_000), "batch": (64, 16384), "chunk": (64, 16384),
    "threads": (0, 1024), "drain_seconds": (0, 3600),
}  # fmt: skip


def _faults(config: Config) -> Iterator[tuple[str, str]]:
    """The settings whose values cannot be used, and why."""
    texts = (f.name for f in fields(Config) if isinstance(f.default, str))
    for key in (key for key in texts if not getattr(config, key).isprintable()):
        yield key, f"{key} takes a text of one line, without control characters"
    for key, (low, high) in _RANGES.items():
        value = getattr(config, key)
        if not low <= value <= high:
            # Python does not write a number of thousands of digits out
            told = value if abs(value) < 1 << 64 else "larger than that"
            yield key, f"{key} is {told}; it takes {low} to {high}"
    written = re.fullmatch(r"(\[[^\]]+\]|[^\[\]:]+):[0-9]{1,5}", config.listen)
    if not (written and _host(config.address[0]) and config.address[1] < 1 << 16):
        yield "listen", f"listen is {quoted(config.listen, MAX_GIVEN)}; it takes HOST:PORT"
    if not config.state_dir:
        yield "state_dir", "state_dir is empty; it takes a folder"
    if config.node and not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,62}", config.node):
        yield "node", "node takes lower-case letters, digits, dots and hyphens"
    for name in (name for name in config.server_names if not _host(name.removeprefix("*."))):
        yield "server_names", f"server_names holds {quoted(name, MAX_GIVEN)}; it takes DNS names and addresses"
    if config.audit_on_failure not in ("refuse", "serve"):
        yield "audit_on_failure", 'audit_on_failure takes "refuse" or "serve"'


def _host(name: str) -> bool:
    """A DNS name (RFC 1035: labels of up to 63 characters, 253 in all; `_` is seen in them too), or an address."""
    try:
        return ipaddress.ip_address(name) is not None and "%" not in name  # an interface is no part of an address
    except ValueError:
        return len(name) <= 253 and all(re.fullmatch("[A-Za-z0-9_-]{1,63}", label) for label in name.split("."))

"""What runs as root obeys no file that somebody else can have written: systemd's generator, `llmctl`, llmd itself. One
rule, tried on one table of files."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from test_generator import generated_from

from llmd.api.cli import unit
from llmd.api.cli.connection import DaemonError
from llmd.daemon.config import ConfigError, load

TEXT = 'listen = "10.0.0.1:1"\n'
DROP_IN = "[Service]\nIPAddressAllow=10.0.0.0/8\n"


def by_the_generator(folder: Path, make: Callable[[Path, str], None]) -> bool:
    make(folder / "llmd.toml", TEXT)
    return "10.0.0.1:1" in generated_from(folder / "llmd.toml")[0]


def by_llmd(folder: Path, make: Callable[[Path, str], None]) -> bool:
    make(folder / "llmd.toml", TEXT)
    try:
        return load(folder / "llmd.toml").listen == "10.0.0.1:1"
    except ConfigError as e:
        assert "chown root: " in str(e) or "chmod go-w " in str(e) or "directory" in str(e)
        return False


def by_llmctl(folder: Path, make: Callable[[Path, str], None]) -> bool:
    file = folder / "llmd.service.d" / "network.conf"
    file.parent.mkdir()
    make(file, DROP_IN)
    try:
        return unit.held(unit.SERVICE, "network", "IPAddressAllow") == ["10.0.0.0/8"]
    except DaemonError as e:
        assert "chown root: " in str(e) or "directory" in str(e)
        return False


def mode(given: int) -> Callable[[Path, str], None]:
    def make(file: Path, text: str) -> None:
        file.write_text(text)
        file.chmod(given)

    return make


def anothers(file: Path, text: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("root alone gives files away")
    file.write_text(text)
    os.chown(file, 65534, 65534)


def link_to_anothers(file: Path, text: str) -> None:
    anothers(file.with_name("theirs"), text)
    file.symlink_to(file.with_name("theirs"))


def folder(file: Path, _: str) -> None:
    file.mkdir()


FILES: dict[str, tuple[Callable[[Path, str], None], bool]] = {
    "one's own": (mode(0o644), True), "one's own alone": (mode(0o600), True), "read by all": (mode(0o444), True),
    "written by the group": (mode(0o664), False), "written by all": (mode(0o646), False),
    "another's": (anothers, False), "a link to another's": (link_to_anothers, False), "a folder": (folder, False),
}  # fmt: skip


@pytest.mark.parametrize("by", [by_the_generator, by_llmd, by_llmctl])
@pytest.mark.parametrize("kind", FILES)
def test_who_is_obeyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, by: Callable[[Path, Callable[[Path, str], None]], bool]
) -> None:
    monkeypatch.setattr(unit, "SYSTEM", tmp_path)
    make, obeyed = FILES[kind]
    assert by(tmp_path, make) is obeyed

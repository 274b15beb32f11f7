"""systemd as `llmctl` sees it, made up: what `systemctl` says of units with the drop-ins that are there."""

import os
from pathlib import Path

import pytest

from llmd.api.cli import network, unit


class Systemd:
    """Units whose drop-ins are in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.reloads = folder, 0
        self.properties: dict[str, str] = {}
        self.loaded, self.deny, self.listens = "loaded", "0.0.0.0/0 ::/0", "127.0.0.1:8443 (Stream)"

    def lines(self, name: str) -> list[str]:
        file = self.folder / f"{name}.d" / "network.conf"
        return file.read_text().splitlines() if file.exists() else []

    def __call__(self, command: str, *rest: str) -> str:
        if command == "daemon-reload":
            self.reloads += 1
            return ""
        found = {"LoadState": self.loaded, "IPAddressDeny": self.deny, "Listen": self.listens} | self.properties
        named = [line.partition("=")[2] for line in self.lines(rest[0]) if line.startswith("IPAddressAllow=")]
        every = ["127.0.0.0/8", "::1/128", *(network.ANY if "any" in named else named)]
        found["IPAddressAllow"] = " ".join(every)
        asked = [one.removeprefix("--property=") for one in rest[1:]]
        return "".join(f"{name}={found[name]}\n" for name in asked if name in found)

    @classmethod
    def installed(cls, folder: Path, monkeypatch: pytest.MonkeyPatch) -> "Systemd":
        """In the place of the real one, for root."""
        fake = cls(folder)
        monkeypatch.setattr(unit, "RUNS", folder)
        monkeypatch.setattr(unit, "SYSTEM", folder)
        monkeypatch.setattr(unit, "_systemctl", fake)
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        return fake

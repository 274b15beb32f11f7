"""Eight hundred days: the daemon and a client in processes of their own under Debian's libfaketime, real handshakes all
along, and nothing done by hand but what an operator does: a client's new certificate, a revocation.

With libfaketime a thread reads the real time once in a while (4 threads: 11 readings of 190,000), so what is wrong for
a moment is asked again.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llmd.api.cli.connection import Client, DaemonError, NoDaemon

ROOT = Path(__file__).parents[2]
DAY = 86400
STEP = 4  # days
UPKEEP = 0.05  # seconds between two looks at the clock: a test's day is short

DAEMON = f"""
import sys
from llmd.daemon import main
from llmd.daemon.admin import upkeep
upkeep.MAINTAIN_SECONDS = upkeep.RETRY_SECONDS = {UPKEEP}
main.main(sys.argv[1:])
"""

# a line is a certificate's file: a handshake, a request, a line with its status, or with what refused it
CLIENT = """
import http.client, json, ssl, sys
ca, port = sys.argv[1], int(sys.argv[2])
for line in sys.stdin:
    tls = ssl.create_default_context(cafile=ca)
    tls.load_cert_chain(line.strip())
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=tls, timeout=60)
    try:
        connection.request("GET", "/livez")
        answer = connection.getresponse()
        code = json.loads(answer.read()).get("error", {}).get("code", "")
        until = ssl.cert_time_to_seconds(connection.sock.getpeercert()["notAfter"]) if connection.sock else 0
        print(json.dumps([answer.status, code, until]), flush=True)
    except (OSError, http.client.HTTPException) as e:
        print(json.dumps([0, f"{type(e).__name__}: {e}"[:200], 0]), flush=True)
    finally:
        connection.close()
"""


@dataclass
class Machine:
    """A daemon and a client, each with a clock of its own: days from the present."""

    folder: Path
    library: str
    port: int
    start: float = field(default_factory=time.time)
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def environment(self, clock: str) -> dict[str, str]:
        return {
            **os.environ, "LD_PRELOAD": self.library, "FAKETIME_TIMESTAMP_FILE": str(self.folder / clock),
            "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1", "TZ": "UTC",
        }  # fmt: skip

    def set_clock(self, clock: str, days: float) -> None:
        part = self.folder / f"{clock}.part"
        part.write_text(f"{days * DAY:+.0f}\n")
        part.replace(self.folder / clock)

    def set_clocks(self, days: float) -> None:
        for clock in ("server", "client"):
            self.set_clock(clock, days)

    def start_daemon(self) -> None:
        command = [sys.executable, "-P", "-c", DAEMON, "serve", "--state-dir", str(self.folder / "state"), "--listen",
                   f"127.0.0.1:{self.port}"]  # fmt: skip
        with (self.folder / "log").open("a") as log:
            self.daemon = subprocess.Popen(command, stderr=log, stdout=log, text=True, env=self.environment("server"))
        self.processes.append(self.daemon)
        self.until(lambda: self.admin.call("GET", "/status"))
        self.until(self._listens)

    def _listens(self) -> bool:
        socket.create_connection(("127.0.0.1", self.port)).close()
        return True

    def stop_daemon(self) -> None:
        self.daemon.send_signal(signal.SIGTERM)
        assert self.daemon.wait(20) == 0

    def start_client(self) -> None:
        command = [sys.executable, "-P", "-c", CLIENT, str(self.folder / "state/pki/ca.crt"), str(self.port)]
        self.client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                       env=self.environment("client"))  # fmt: skip
        self.processes.append(self.client)

    @property
    def admin(self) -> Client:
        return Client(str(self.folder / "state" / "admin.sock"))

    def until(self, what: Any, seconds: float = 20.0) -> Any:
        """What `what` gives, once it is something."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                if found := what():
                    return found
            except (OSError, NoDaemon, DaemonError):
                pass
            assert time.monotonic() < deadline, (self.folder / "log").read_text()[-3000:]
            time.sleep(0.02)

    def ask(self, certificate: Path) -> tuple[int, str, float]:
        """Status, the error's code, and the end of the server's certificate."""
        assert self.client.stdin is not None and self.client.stdout is not None
        self.client.stdin.write(f"{certificate}\n")
        self.client.stdin.flush()
        status, code, until = json.loads(self.client.stdout.readline())
        return status, code, until

    def issue(self, name: str, day: int) -> tuple[Path, str, float]:
        """The file of a new certificate, its serial number and its end."""
        soon = self.start + (day + 80) * DAY
        again = any(client["name"] == name for client in self.admin.call("GET", "/clients")["clients"])
        made = self.admin.call("POST", "/clients", {"name": name, "days": 90, "again": again})
        while _seconds(made["not_after"]) < soon:  # it was made in a moment of the real time
            made = self.admin.call("POST", "/clients", {"name": name, "days": 90, "again": True})
        file = self.folder / f"{made['serial']}.pem"
        file.write_text(made["key_pem"] + made["certificate_pem"])
        return file, made["serial"], _seconds(made["not_after"])


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    found = subprocess.run([ROOT / "packaging" / "faketime.sh"], capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    machine = Machine(tmp_path, found.stdout.strip(), port)
    machine.set_clocks(0)
    machine.start_daemon()
    machine.start_client()
    yield machine
    for process in machine.processes:
        process.kill()
        process.communicate()


def refuses(machine: Machine, certificate: Path) -> bool:
    return machine.ask(certificate)[0] == 0


def serves(machine: Machine, certificate: Path) -> bool:
    return machine.ask(certificate)[0] == 200


def is_revoked(machine: Machine, certificate: Path) -> bool:
    return machine.ask(certificate)[:2] == (403, "certificate_revoked")


def answers(machine: Machine, certificate: Path) -> float:
    """The end of the server's certificate, where it serves."""
    status, _, until = machine.ask(certificate)
    return until if status == 200 else 0.0


def ends_soon(machine: Machine, serial: str) -> bool:
    return serial in [e["serial"] for e in machine.admin.call("GET", "/status")["certificates_ending_soon"]]


def keeps_its_own(machine: Machine) -> bool:
    return {e["kind"] for e in machine.admin.call("GET", "/status")["certificates_ending_soon"]} <= {"client"}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_eight_hundred_days(machine: Machine) -> None:
    alice, serial, end = machine.issue("alice", 0)
    servers, issuers, refused = set(), set(), 0
    for day in range(0, 800, STEP):
        now = machine.start + day * DAY
        machine.set_clocks(day)
        time.sleep(2 * UPKEEP)  # a day is long for the upkeep
        if day in (200, 600):  # the server's clock is set wrong, and right again; once it is restarted meanwhile
            machine.set_clock("server", day + (500 if day == 200 else 4000))
            assert machine.until(partial(refuses, machine, alice))
            if day == 600:
                machine.stop_daemon()
                machine.start_daemon()
                assert machine.until(partial(refuses, machine, alice))
            machine.set_clock("server", day)
            assert machine.until(partial(serves, machine, alice), 10.0)
        if day in (364, 732):
            machine.stop_daemon()
            machine.start_daemon()
        if end - now < 30 * DAY:  # what `llmctl status` tells an operator
            assert machine.until(partial(ends_soon, machine, serial))
            old, old_serial = alice, serial
            alice, serial, end = machine.issue("alice", day)
            assert machine.until(partial(serves, machine, old)) and machine.until(partial(serves, machine, alice))
            gone = machine.admin.call("DELETE", "/clients/alice", serial=old_serial)
            assert gone["revoked"] == [old_serial] and machine.until(partial(is_revoked, machine, old))
            refused += 1
        until = machine.until(partial(answers, machine, alice))
        servers.add(until)
        issuers.add(alice.read_bytes().split(b"-----BEGIN CERTIFICATE-----")[2])
        assert until > now, f"day {day}"
    assert len(servers) >= 9 and len(issuers) >= 2 and refused >= 12
    assert machine.until(partial(keeps_its_own, machine))
    audit = machine.admin.call("GET", "/audit/query", kind="pki.renewed", limit=2000)["rows"]
    said = " ".join(row["body"]["what"] for row in audit)
    assert "issuer" in said and "server certificate" in said and "revocation list" in said
    assert machine.admin.call("GET", "/audit/verify")["verdict"] == "holds"
    checks = {c["name"]: c["ok"] for c in machine.admin.call("GET", "/doctor")["checks"]}
    assert [name for name, ok in checks.items() if ok is False and name != "models"] == []
    assert "clock" in checks, "rows of the log are of days that have not come"

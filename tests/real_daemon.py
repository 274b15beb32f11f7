"""A real daemon for tests: started, asked, administered and stopped as a person would."""

import http.client
import json
import socket
import ssl
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from forked import Forked, forker

from llmd.api.cli.main import main

# what is printed goes through names of the whole process: one at a time
_PRINTING = threading.Lock()


def llmctl(admin: Path, *arguments: str) -> Result:
    """What `llmctl` does, without the time that a process takes to start."""
    with _PRINTING:
        done = CliRunner().invoke(main, ["--socket", str(admin), *arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@dataclass
class Llmd:
    """A real daemon in a process of its own, on the real small model."""

    state: Path
    process: Forked | subprocess.Popen[str]
    port: int
    banner: str

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def tls(self, name: str = "demo", folder: Path | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.state / "pki" / "ca.crt"))
        folder = folder or self.state / "pki" / "clients"
        context.load_cert_chain(folder / f"{name}.crt", folder / f"{name}.key")
        return context

    def llmctl(self, *arguments: str, code: int = 0) -> Any:
        """Run llmctl --json, in this process; its output parsed."""
        done = llmctl(self.state / "admin.sock", *arguments, "--json")
        assert done.exit_code == code, done.stderr
        text = done.stdout if code == 0 or done.stdout else done.stderr
        try:
            found = json.loads(text)
        except ValueError:
            return [json.loads(line) for line in text.splitlines()]
        # rows come a line each, be it one
        return [found] if code == 0 and arguments[:1] == ("audit",) and arguments[1] in ("query", "tail") else found

    def issue(self, name: str, folder: Path) -> ssl.SSLContext:
        self.llmctl("client", "issue", name, "--out", str(folder))
        return self.tls(name, folder)

    def issue_anew(self, folder: Path, *names: str) -> None:
        """Certificates for clients, be they known already, into that folder."""
        known = {one["name"] for one in self.llmctl("client", "list")}
        for name in names:
            again = ["--again"] if name in known else []
            self.llmctl("client", "issue", name, "--out", str(folder), "--force", *again)

    def post(self, route: str, body: Any, tls: ssl.SSLContext | None = None) -> tuple[int, dict[str, str], Any]:
        """Status, headers and parsed JSON of one request; `body` is bytes as they are, or a value to encode."""
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=tls or self.tls(), timeout=60)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST" if body is not None else "GET", route, data if body is not None else None,
                           {"Content-Type": "application/json"})  # fmt: skip
        response = connection.getresponse()
        raw = response.read()
        connection.close()
        return response.status, dict(response.getheaders()), json.loads(raw) if raw else None

    def get(self, route: str, tls: ssl.SSLContext | None = None) -> tuple[int, dict[str, str], Any]:
        return self.post(route, None, tls)

    def model(self) -> dict[str, Any]:
        found: dict[str, Any] = self.llmctl("status")["models"][0]
        return found

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        code = self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


# `llmd` with another program for its workers, which the environment's PYTHONPATH has
_WITH_WORKER = """
import sys
from llmd.daemon.main import main
from llmd.daemon.replicas import worker
worker.PROGRAM = sys.argv.pop(1)
main()
"""


def start_llmd(state: Path, model: Path, config: str = "", worker: str = "") -> Llmd:
    """Start a daemon and wait until its model answers. `worker`: a module that its workers run."""
    state.mkdir(exist_ok=True)
    (state / "llmd.toml").write_text(f'state_dir = "{state}"\nnode = "test"\n{config}')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["--config", state / "llmd.toml", "--listen", f"127.0.0.1:{port}", "--default-model", f"smol={model}"]
    with (state / "log").open("a") as log:
        process: Forked | subprocess.Popen[str]
        if worker:
            command = [sys.executable, "-P", "-c", _WITH_WORKER, worker, "serve", *map(str, arguments)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        else:
            process = forker().start("serve", *arguments, stdout=subprocess.PIPE, stderr=log)
    assert process.stdout is not None
    banner = ""
    for line in process.stdout:
        banner += line
        if line.strip() == "EOF":
            return Llmd(state, process, port, banner)
    raise AssertionError((state / "log").read_text())

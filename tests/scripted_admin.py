"""`llmctl` against a daemon whose GPUs a fake makes up, and whose workers compute on none."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fake_nvml import FakeNvml
from placing import Placing

from llmd.api.admin import table
from llmd.api.http.app import application
from llmd.api.http.listener import Listener
from llmd.daemon.composition import Daemon
from llmd.daemon.config import Config
from llmd.daemon.gpus.nvml import Nvml
from llmd.daemon.gpus.watch import Watcher

LLMCTL = str(Path(sys.executable).parent / "llmctl")


class Admin:
    """An admin socket whose daemon sees the GPUs of a fake."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.command = [LLMCTL, "--socket", str(folder / "admin.sock")]
        self.start(FakeNvml.without_driver())

    def see(self, fake: FakeNvml, architectures: Sequence[str] = ()) -> Watcher:
        """As another start of the daemon, with these GPUs."""
        self.end()
        self.start(fake, architectures)
        self.daemon.watcher.refresh()
        return self.daemon.watcher

    def start(self, fake: FakeNvml, architectures: Sequence[str] = ()) -> None:
        shutil.rmtree(self.folder / "root", ignore_errors=True)  # of what was seen before
        nvml = Nvml(fake, fake.root(self.folder / "root"))

        def plans(watcher: Watcher, *_: object) -> Placing:
            return Placing(watcher, architectures=architectures)

        config = Config(state_dir=str(self.folder / "state"), node="test")
        self.daemon = Daemon(config, nvml=nvml, plans=plans)
        assert isinstance(self.daemon.planner, Placing)
        self.planner = self.daemon.planner
        self.app = application(table.ROUTES, table.who, serving=self.daemon.serving, service=self.daemon.service)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)

    def end(self) -> None:
        """The files of one that has ended."""
        self.daemon.state.close()
        self.daemon.store.close()
        self.daemon.audit.close()
        os.close(self.daemon._lock)

    async def run(self, *arguments: str, code: int = 0) -> str:
        process = await asyncio.create_subprocess_exec(
            *self.command, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        out, err = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == code and b"Traceback" not in err, err
        return out.decode()

    async def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(await self.run(*arguments, "--json", code=code) or "{}")

    async def checks(self, code: int) -> dict[str, Any]:
        """What doctor says of the GPUs, by name."""
        told = json.loads(await self.run("doctor", "--json", code=code))["checks"]
        return {check["name"]: check for check in told if check["name"].startswith("gpu")}


@asynccontextmanager
async def scripted(tmp_path: Path) -> AsyncIterator[Admin]:
    """A daemon without clients, behind its admin socket."""
    admin = Admin(tmp_path)
    listener = Listener(admin, refusals=admin.daemon.serving.books.refusals, tasks=admin.daemon.tasks)
    await listener.start_unix(tmp_path / "admin.sock", 0o660)
    yield admin
    await listener.stop(1)
    await admin.daemon.pool.close(0)
    await asyncio.to_thread(admin.end)

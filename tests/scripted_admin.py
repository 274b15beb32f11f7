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

from llmd.api.admin import routes
from llmd.api.http.app import application
from llmd.api.http.listener import Listener
from llmd.daemon.config import Config
from llmd.daemon.gpus.nvml import Nvml
from llmd.daemon.gpus.watch import Watcher
from llmd.daemon.main import Daemon

LLMCTL = str(Path(sys.executable).parent / "llmctl")


class Admin:
    """An admin socket whose daemon sees the GPUs of a fake."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemon = Daemon(Config(state_dir=str(folder / "state"), node="test"))
        self.command = [LLMCTL, "--socket", str(folder / "admin.sock")]

    def see(self, fake: FakeNvml, architectures: Sequence[str] = ()) -> Watcher:
        shutil.rmtree(self.folder / "root", ignore_errors=True)  # of what was seen before
        watcher = Watcher(Nvml(fake, fake.root(self.folder / "root")))
        watcher.refresh()
        self.daemon.service.cards.watcher = self.daemon.service.doctor.watcher = watcher
        self.planner = Placing(watcher, architectures=architectures)
        service = self.daemon.service
        for part in (service, service.cards, service.fitting, service.doctor):
            part.planner = self.planner
        self.daemon.pool._planner = self.daemon.pool._runs._planner = self.planner
        return watcher

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
    daemon = admin.daemon
    listener = Listener(
        application(routes.ROUTES, routes.who, serving=daemon.serving, service=daemon.service),
        refusals=daemon.serving.books.refusals,
        tasks=daemon.tasks,
    )
    await listener.start_unix(tmp_path / "admin.sock", 0o660)
    yield admin
    await listener.stop(1)
    await daemon.pool.close(0)
    daemon.state.close()
    daemon.store.close()
    await asyncio.to_thread(daemon.audit.close)
    os.close(daemon._lock)

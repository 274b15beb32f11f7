"""A daemon that was made and not started: its admin's side."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llmd.daemon.composition import Daemon
from llmd.daemon.config import Config
from llmd.daemon.machine.groups import Groups


@pytest.fixture
def groups() -> Groups | None:
    """A module's tests may have others."""
    return None


@pytest.fixture
async def daemon(tmp_path: Path, groups: Groups | None) -> AsyncIterator[Daemon]:
    daemon = Daemon(Config(state_dir=str(tmp_path / "state"), node="test"), groups=groups)
    yield daemon
    await daemon.pool.close(0)
    daemon.state.close()
    daemon.store.close()
    await asyncio.to_thread(daemon.audit.close)
    os.close(daemon._lock)

"""A daemon that was made and not started: its admin's side."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llmd.daemon.config import Config
from llmd.daemon.main import Daemon


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    daemon = Daemon(Config(state_dir=str(tmp_path / "state"), node="test"))
    yield daemon
    await daemon.pool.close(0)
    daemon.state.close()
    daemon.store.close()
    await asyncio.to_thread(daemon.audit.close)
    os.close(daemon._lock)

"""What holds after whatever a client did: the daemon is the same process and answers the next one at once."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_daemon import Llmd


@pytest.fixture(autouse=True)
def unharmed(request: pytest.FixtureRequest) -> Iterator[None]:
    if "llmd" not in request.fixturenames:
        yield
        return
    llmd: Llmd = request.getfixturevalue("llmd")
    yield
    began = time.monotonic()
    assert llmd.get("/livez")[0] == 200
    assert time.monotonic() - began < 5 and llmd.process.poll() is None


@pytest.fixture(scope="module", autouse=True)
def nothing_left(llmd: Llmd) -> Iterator[None]:
    """Open files are back where they were, and the worker is the one that it was."""
    llmd.get("/livez")
    files, worker = _files(llmd), llmd.model()["pid"]
    yield
    for _ in range(50):
        if _files(llmd) <= files + 2:
            break
        time.sleep(0.1)
    assert _files(llmd) <= files + 2
    assert llmd.model()["pid"] == worker


def _files(llmd: Llmd) -> int:
    return len(os.listdir(Path("/proc") / str(llmd.process.pid) / "fd"))

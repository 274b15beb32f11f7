"""kill -9 between any two writes of what changes who gets in: what is left is closed or complete, never open."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("fault_points.py")


@pytest.mark.parametrize(
    ("act", "writes"),
    [("revoke", ["crl.pem"]), ("issue", []), ("role", []), ("policy", []),
     ("renewal", ["issuers.key", "server.key", "crl.pem"]),
     ("first_start", ["audit.key", "root.key", "issuers.key", "server.key", "demo.key"])],
)  # fmt: skip
def test_what_a_kill_leaves_is_closed_or_complete(tmp_path: Path, act: str, writes: list[str]) -> None:
    done = subprocess.run([sys.executable, "-P", PROGRAM, tmp_path, act], capture_output=True, text=True, timeout=120)
    points = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, done.stdout + done.stderr
    assert [(p["at"], p["point"], p["found"]) for p in points if not p["ok"]] == []
    assert points[-1]["point"] == "the end", "every point was tried"
    for write in writes:
        assert {f"before rename to {write}", f"after rename to {write}"} <= {p["point"] for p in points}
    if act != "renewal":
        assert sum(p["point"] == "before commit" for p in points) >= 3, "the act's row, the state, its result"

"""systemd's generator: the socket's unit listens where the configuration says."""

import subprocess
import sys
from pathlib import Path

import pytest

GENERATOR = Path(__file__).parents[1] / "systemd" / "generator.py"
RUN = "import pathlib, runpy, sys; g = runpy.run_path(sys.argv[1]); g['generate'](*map(pathlib.Path, sys.argv[2:]))"


def generated(tmp_path: Path, config: str | bytes | None) -> tuple[str, bool]:
    """The drop-in, and whether there is no socket at all."""
    file, normal, early = (tmp_path / name for name in ("llmd.toml", "normal", "early"))
    normal.mkdir()
    early.mkdir()
    if config is not None:
        file.write_bytes(config if isinstance(config, bytes) else config.encode())
    done = subprocess.run(
        [sys.executable, "-I", "-c", RUN, str(GENERATOR), str(file), str(normal), str(early)],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stderr
    drop_in, mask = normal / "llmd.socket.d" / "listen.conf", early / "llmd.socket"
    return drop_in.read_text() if drop_in.exists() else "", mask.is_symlink() and str(mask.readlink()) == "/dev/null"


@pytest.mark.parametrize("listen", ["0.0.0.0:8443", "10.1.2.3:443", "[::]:8443", "[fd00::1]:8443"])
def test_an_address(tmp_path: Path, listen: str) -> None:
    said = f"[Socket]\nListenStream=\nListenStream={listen}\n"
    assert generated(tmp_path, f'listen = "{listen}"') == (said, False)


@pytest.mark.parametrize(
    "listen", ["llm.example.internal:8443", "127.0.0.1:0", "127.0.0.1:99999", "127.0.0.1", "::1]\\n:1"]
)
def test_what_systemd_cannot_listen_on_is_left_to_llmd(tmp_path: Path, listen: str) -> None:
    assert generated(tmp_path, f'listen = "{listen}"') == ("", True)


@pytest.mark.parametrize("config", [None, "", "listen = 5", "listen = ", b"\xff", 'queue = 5\n[listen]\na = "b"'])
def test_the_unit_stays_as_it_is(tmp_path: Path, config: str | bytes | None) -> None:
    assert generated(tmp_path, config) == ("", False)

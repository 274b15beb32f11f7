"""systemd's generator: the socket's unit listens where the configuration says."""

import subprocess
import sys
from pathlib import Path

import pytest

GENERATOR = Path(__file__).parents[1] / "systemd" / "generator.py"
RUN = "import pathlib, runpy, sys; g = runpy.run_path(sys.argv[1]); g['generate'](*map(pathlib.Path, sys.argv[2:]))"


def generated(tmp_path: Path, config: str | bytes | None) -> tuple[str, bool]:
    """The drop-in, and whether there is no socket at all."""
    file = tmp_path / "llmd.toml"
    if config is not None:
        file.write_bytes(config if isinstance(config, bytes) else config.encode())
        file.chmod(0o644)
    return generated_from(file)


def generated_from(file: Path) -> tuple[str, bool]:
    normal, early = (file.parent / name for name in ("normal", "early"))
    normal.mkdir()
    early.mkdir()
    done = subprocess.run(
        [sys.executable, "-I", "-c", RUN, str(GENERATOR), str(file), str(normal), str(early)],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stderr
    drop_in, mask = normal / "llmd.socket.d" / "listen.conf", early / "llmd.socket"
    return drop_in.read_text() if drop_in.exists() else "", mask.is_symlink() and str(mask.readlink()) == "/dev/null"


@pytest.mark.parametrize(
    ("listen", "said"),
    [("[0:0:0:0:0:0:0:1]:08443", "[::1]:8443"), ("::1:8443", "[::1]:8443"), ("[127.0.0.1]:8443", "127.0.0.1:8443")],
)
def test_what_is_written_is_what_was_read_and_not_how_it_was_spelled(tmp_path: Path, listen: str, said: str) -> None:
    assert generated(tmp_path, f'listen = "{listen}"')[0].splitlines()[-1] == f"ListenStream={said}"


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    said = "[Socket]\nListenStream=\nListenStream=0.0.0.0:443\n"
    assert generated(tmp_path, b'\xef\xbb\xbflisten = "0.0.0.0:443"') == (said, False)


@pytest.mark.parametrize("listen", ["0.0.0.0:8443", "10.1.2.3:443", "[::]:8443", "[fd00::1]:8443"])
def test_an_address(tmp_path: Path, listen: str) -> None:
    said = f"[Socket]\nListenStream=\nListenStream={listen}\n"
    assert generated(tmp_path, f'listen = "{listen}"') == (said, False)


@pytest.mark.parametrize(
    "listen",
    [
        "llm.example.internal:8443",
        "127.0.0.1:0",
        "127.0.0.1:99999",
        "127.0.0.1",
        "::1]\\n:1",
        # a zone is any text: a line of a unit of root's
        "[fe80::1%x\\nExecStartPre=/bin/false]:8443",
        "[fe80::1%x\\nExecStartPre=/bin/false:8443",
        "[fe80::1%eth0]:8443",
        "127.0.0.1:84_43",
        "127.0.0.1: 8443",
        "127.0.0.1:8443\\nExecStartPre=x",
        "127.0.0.1:٨٤٤٣",
        "[::1:8443",
    ],
)
def test_what_systemd_cannot_listen_on_is_left_to_llmd(tmp_path: Path, listen: str) -> None:
    assert generated(tmp_path, f'listen = "{listen}"') == ("", True)


@pytest.mark.parametrize("config", [None, "", "listen = 5", "listen = ", b"\xff", 'queue = 5\n[listen]\na = "b"'])
def test_the_unit_stays_as_it_is(tmp_path: Path, config: str | bytes | None) -> None:
    assert generated(tmp_path, config) == ("", False)

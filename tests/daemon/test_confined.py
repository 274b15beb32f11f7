"""A child that works on a stranger's files reaches what it is given and nothing else."""

import asyncio
import json
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

from llmd.daemon import children
from llmd.daemon.children import Limits
from llmd.daemon.confined import landlocked

# what a program finds refused, and why
ATTEMPT = """
import ctypes, json, os, socket, sys
found = {}
def attempt(name, work):
    try:
        work()
        found[name] = ""
    except OSError as e:
        found[name] = e.strerror
"""
TRIES = (
    ATTEMPT
    + """
mine, out, secret = sys.argv[1:4]
attempt("reads its own", lambda: open(mine + "/file").read())
attempt("lists its own", lambda: os.listdir(mine))
attempt("writes its own", lambda: open(mine + "/new", "w"))
attempt("writes out", lambda: open(out + "/new", "w").write("x"))
attempt("makes a folder", lambda: os.mkdir(out + "/folder"))
attempt("cuts off", lambda: os.truncate(out + "/new", 100))
attempt("reads a secret", lambda: open(secret + "/file").read())
attempt("follows a link", lambda: open(mine + "/link").read())
attempt("goes round", lambda: open("/proc/self/root" + secret + "/file").read())
attempt("takes a secret over", lambda: os.link(secret + "/file", out + "/taken"))
attempt("makes a socket", lambda: socket.socket())
attempt("makes a socket of this machine", lambda: socket.socket(socket.AF_UNIX))
attempt("throws away", lambda: open("/dev/null", "w").write("x"))
attempt("asks for numbers", lambda: open("/dev/urandom", "rb").read(1))
libc = ctypes.CDLL(None, use_errno=True)
if libc.syscall(425, 1, None) < 0:
    found["rings"] = os.strerror(ctypes.get_errno())
import sqlite3, ssl, encodings.idna  # what it has not imported yet is still there
found["children"] = os.waitstatus_to_exitcode(os.system("cat " + secret + "/file >/dev/null 2>&1"))
print(json.dumps(found))
"""
)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, Path]:
    found = tmp_path / "mine", tmp_path / "out", tmp_path / "secret"
    for folder in found:
        folder.mkdir()
        (folder / "file").write_text("x")
    (found[0] / "link").symlink_to(found[2] / "file")
    (found[0] / "program.py").write_text(TRIES)
    monkeypatch.setenv("PYTHONPATH", str(found[0]))
    return found


async def said(module: str, *arguments: str, **given: Any) -> Any:
    child = await children.start(
        module, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, **given
    )
    async with asyncio.timeout(20):
        out, wrong = await child.communicate()
    assert child.returncode == 0, wrong.decode()
    return json.loads(out)


async def test_it_reads_and_writes_where_it_may(places: tuple[Path, Path, Path]) -> None:
    assert landlocked(), "this kernel has no Landlock: nothing would be tested"
    mine, out, secret = map(str, places)
    found = await said("program", mine, out, secret, limits=Limits(reads=(mine,), writes=(out,)))
    refused = {name for name, why in found.items() if why}
    assert refused == {
        "writes its own", "reads a secret", "follows a link", "goes round", "takes a secret over", "makes a socket",
        "makes a socket of this machine", "rings", "children",
    }  # fmt: skip
    assert {found[name] for name in refused if name != "children"} <= {"Permission denied", "Invalid cross-device link"}


async def test_without_terms_nothing_is_refused(places: tuple[Path, Path, Path]) -> None:
    found = await said("program", *map(str, places))
    assert {name for name, why in found.items() if why} == {"rings"}  # its arguments are none


async def test_a_kernel_without_landlock_still_takes_the_sockets(
    places: tuple[Path, Path, Path],
) -> None:
    mine, out, secret = map(str, places)
    (places[0] / "sitecustomize.py").write_text("import llmd.daemon.confined as c; c._version = lambda: -1")
    found = await said("program", mine, out, secret, limits=Limits(reads=(mine,)))
    assert found["makes a socket"] == "Permission denied" and not found["reads a secret"]


async def test_another_interpreter_has_this_package_and_not_its_dependencies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "venv"
    venv.create(other, symlinks=True)
    (tmp_path / "program.py").write_text(
        "import json, sys, llmd.daemon.errors, llmd.quantize.checkpoints.safetensors, importlib.util as u\n"
        "print(json.dumps([sys.prefix, llmd.daemon.errors.__file__, bool(u.find_spec('msgspec'))]))"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    prefix, file, dependency = await said(
        "program", interpreter=str(other / "bin" / "python"), limits=Limits(reads=(str(tmp_path),))
    )
    import llmd.daemon.errors

    assert (prefix, file, dependency) == (str(other), llmd.daemon.errors.__file__, False)
    assert sys.prefix != prefix


SEALED = (
    ATTEMPT
    + """
from llmd.daemon.confined import seal
kept = open("/etc/hostname")
seal()
attempt("reads what is open", kept.read)
attempt("reads a file", lambda: open("/etc/hostname").read())
attempt("reads itself", lambda: open("/proc/self/environ").read())
attempt("lists", lambda: os.listdir("/"))
attempt("writes", lambda: open("/dev/null", "w"))
attempt("makes a socket", lambda: socket.socket(socket.AF_UNIX))
print(json.dumps(found))
"""
)


async def test_what_is_sealed_opens_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sealed.py").write_text(SEALED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = await said("sealed")
    assert {name for name, why in found.items() if not why} == {"reads what is open"}, found

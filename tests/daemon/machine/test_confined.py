"""A child that works on a stranger's files reaches what it is given and nothing else."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from gguf_writer import STR
from small_models import ATTENTION, DENSE, model, write

from llmd.daemon.machine import children
from llmd.daemon.machine.children import Limits
from llmd.daemon.machine.confined import lacks
from llmd.daemon.metrics import Metrics
from llmd.daemon.models.checking import check, trial
from llmd.daemon.models.files import QUANTIZING
from llmd.daemon.models.running import lines
from llmd.daemon.replicas.worker import Worker
from llmd.daemon.serving.judging import Schemas
from llmd.daemon.wire.control import Llama
from llmd.daemon.wire.events import Failed, Finished
from llmd.daemon.wire.work import Chat, ChatMessage, Generate, SamplingWish

ROOT = Path(__file__).parents[3]

# what a program finds refused, and why
ATTEMPT = """
import ctypes, json, os, socket, stat, subprocess, sys
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
def program():
    with open(os.open(out + "/p", os.O_CREAT | os.O_WRONLY, 0o700), "w") as file:
        file.write("#!/bin/true")
    subprocess.run([out + "/p"])
attempt("makes a program", program)
attempt("makes a device", lambda: os.mknod(out + "/device", stat.S_IFCHR | 0o600, os.makedev(1, 3)))
attempt("makes a socket file", lambda: os.mknod(out + "/socket", stat.S_IFSOCK | 0o600))
attempt("cuts off", lambda: open(out + "/new", "r+").truncate(100))
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
    assert not lacks(), "this kernel does not confine: nothing would be tested"
    mine, out, secret = map(str, places)
    found = await said("program", mine, out, secret, limits=Limits(reads=(mine,), writes=(out,)))
    refused = {name for name, why in found.items() if why}
    assert refused == {
        "writes its own", "reads a secret", "follows a link", "goes round", "takes a secret over", "makes a socket",
        "makes a socket of this machine", "makes a program", "makes a device", "makes a socket file", "rings",
        "children",
    }  # fmt: skip
    assert {found[name] for name in refused if name != "children"} <= {"Permission denied", "Invalid cross-device link"}


@pytest.mark.parametrize("swapped", ["", "last", "middle"])
@pytest.mark.parametrize("links", [True, False])
async def test_a_link_in_the_place_of_a_folder_since_it_was_resolved_leads_nowhere(
    places: tuple[Path, Path, Path], tmp_path: Path, swapped: str, links: bool
) -> None:
    theirs, secret = tmp_path / "theirs" / "folder", places[2]
    theirs.mkdir(parents=True)
    (theirs / "file").write_text("x")
    if swapped == "last":
        theirs.rename(tmp_path / "away")
        theirs.symlink_to(secret)
    if swapped == "middle":
        theirs.parent.rename(tmp_path / "away")
        secret.rename(tmp_path / "folder")  # what is behind the link has a folder of that name
        theirs.parent.symlink_to(tmp_path)
        secret = tmp_path / "folder"
    (places[0] / "reads.py").write_text(
        ATTEMPT + "for name in sys.argv[1:]:\n    attempt(name, lambda: open(name).read())\nprint(json.dumps(found))"
    )
    file, hidden = str(theirs / "file"), str(secret / "file")
    found = await said("reads", file, hidden, limits=Limits(reads=(str(theirs),), links=links))
    assert (not found[file], not found[hidden]) == (links or not swapped, links and bool(swapped))


async def test_without_terms_nothing_is_refused(places: tuple[Path, Path, Path]) -> None:
    found = await said("program", *map(str, places))
    refused = {name for name, why in found.items() if why}
    assert refused - {"makes a device"} == {"rings"}  # root makes devices; a ring's arguments are none


async def test_a_kernel_without_landlock_still_takes_the_sockets(
    places: tuple[Path, Path, Path],
) -> None:
    mine, out, secret = map(str, places)
    (places[0] / "sitecustomize.py").write_text("import llmd.daemon.machine.confined as c; c.landlock = lambda: 0")
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
from llmd.daemon.machine.confined import seal
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


LATER = (
    ATTEMPT
    + """
import threading
from llmd.daemon.machine.confined import NCCL, hold_to_paths, refuse_calls
def connects(family, kind, address):
    with socket.socket(family, kind) as sock:
        sock.connect(address)
go, inside = threading.Event(), {}
def thread():
    go.wait()
    attempt("a thread makes a stream", lambda: socket.socket(socket.AF_UNIX))
    attempt("a thread reads", lambda: open("/etc/hostname"))
hold_to_paths([], [])
worker = threading.Thread(target=thread)
worker.start()
attempt("makes a stream, before", lambda: socket.socket(socket.AF_UNIX))
refuse_calls(NCCL)
go.set()
worker.join()
attempt("makes a stream", lambda: socket.socket(socket.AF_UNIX))
attempt("makes a sequence", lambda: socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
attempt("makes a datagram", lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC))
attempt("connects a datagram to a stream", lambda: connects(socket.AF_UNIX, socket.SOCK_DGRAM, sys.argv[1]))
attempt("makes IPv4", socket.socket)
attempt("makes IPv6", lambda: socket.socket(socket.AF_INET6))
attempt("makes netlink", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
attempt("makes a packet socket", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
attempt("makes a virtual machine's", lambda: socket.socket(socket.AF_VSOCK))
print(json.dumps(found))
"""
)


async def test_what_nccl_makes_reaches_no_admin_socket_and_threads_are_held_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "later.py").write_text(LATER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with socket.socket(socket.AF_UNIX) as stream:
        stream.bind(str(tmp_path / "admin.sock"))
        stream.listen()
        found = await said("later", str(tmp_path / "admin.sock"))
    assert {name for name, why in found.items() if not why} == {
        "makes a stream, before", "makes a datagram", "makes IPv4", "makes IPv6", "makes netlink",
    }  # fmt: skip
    assert found["connects a datagram to a stream"] == "Protocol wrong type for socket"


async def test_a_process_with_other_threads_is_not_confined_by_halves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "threads.py").write_text(
        "import json, threading\nfrom llmd.daemon.machine.confined import confine, seal\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\nsaid = []\n"
        "for work in (lambda: confine([]), seal):\n"
        "    try: work()\n    except RuntimeError as e: said.append(str(e))\n"
        "print(json.dumps(said))"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert await said("threads") == ["2 threads run: what confines one of them leaves the others free"] * 2


HELD = """
import json
from llmd.daemon.machine.confined import confine
confine([])
print("ready", flush=True)
input()
open("/proc/self/status").read(), open("/proc/meminfo").read(), open("/proc/thread-self/status").read()
print(json.dumps("read"))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="has the kernel forget files, which root may")
def test_what_it_may_read_of_proc_stays_so_when_memory_is_short(tmp_path: Path) -> None:
    """A file of /proc that nobody holds is forgotten, and is another file for Landlock when it comes back."""
    child = subprocess.Popen([sys.executable, "-P", "-c", HELD], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin and child.stdout and child.stdout.readline() == b"ready\n"
    Path("/proc/sys/vm/drop_caches").write_text("2")
    out, _ = child.communicate(b"\n", 20)
    assert out == b'"read"\n'


# --- every place where strangers' bytes are read

PROBE = ROOT / "tests" / "probe.py"
# what a sealed process cannot, and one that opens files can
OWN = {"reads itself", "reads libraries", "throws away", "signals itself", "makes a pair"}


OPENING = {"quantize/check", "quantize/quantizing", "engine/trial", "engine/__main__"}
SEALED_PLACES = {"answers/judge", "llmd-render"}


@dataclass
class Places:
    """What stands beside a confined process, and where the probe tells what it reached."""

    folder: Path
    model: Path

    def found(self) -> dict[str, dict[str, set[str]]]:
        lines = map(json.loads, (self.folder / "found").read_text().splitlines())
        return {line.pop("place"): {name: set(told) for name, told in line.items()} for line in lines}


@pytest.fixture
def probed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Places]]:
    state, folder = tmp_path / "state", tmp_path / "probe"
    for made in (state / "pki", state / "models" / "mine", state / "models" / "another", folder):
        made.mkdir(parents=True)
    secrets = [state / "pki" / "root.key", state / "audit.db", state / "models" / "another" / "model.gguf"]
    for secret in secrets:
        secret.write_text("x")
    small = model("llama", {}, {**ATTENTION, **DENSE}, blocks=1)
    small.keys["tokenizer.chat_template"] = (STR, "{{ messages[0].content }}")
    mine = write(state / "models" / "mine", small)
    shutil.copy(PROBE, folder)
    (folder / "sitecustomize.py").write_text("import probe\nprobe.main()\n")
    (folder / "control.py").write_text("import probe\nprobe.probed()\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    stream, datagram = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    port = socket.socket()
    other = subprocess.Popen(["sleep", "600"])
    with stream, datagram, port:
        stream.bind(str(tmp_path / "admin.sock"))
        datagram.bind(str(tmp_path / "log.sock"))
        port.bind(("127.0.0.1", 0))
        stream.listen()
        port.listen()
        terms = {
            "files": [str(mine), *map(str, secrets)], "folders": [str(state), str(mine.parent), "/tmp"],
            "stream": str(tmp_path / "admin.sock"), "datagram": str(tmp_path / "log.sock"),
            "port": port.getsockname()[1], "pid": other.pid,
        }  # fmt: skip

        def limited(version: int) -> Places:
            (folder / "terms.json").write_text(json.dumps({**terms, "version": version}))
            return Places(folder, mine)

        yield limited
    other.kill()
    other.wait()


async def all_places(path: Path) -> None:
    """Each program that reads strangers' bytes, as the daemon runs it."""
    await check(path)
    await trial(path, path.stat().st_size)
    assert [line async for line in lines("sizes", QUANTIZING, "sizes", str(path), limits=Limits(reads=(str(path),)))]
    schemas = Schemas()
    await schemas.start()
    await schemas.check("alice", [('{"type": "object"}', "response_format", True)])
    await schemas.close()
    worker = Worker(Llama(str(path), 1, 64, 64, 32, 1), Metrics().model("m"))
    await worker.start()
    stream = worker.open("a", Generate((Chat((ChatMessage("user", "x"),)),), SamplingWish(1)))
    async with asyncio.timeout(20):
        while not any(isinstance(event, Finished | Failed) for event in await stream.next()):
            pass
    assert worker.info and worker.info.confined
    await worker.stop()


@pytest.mark.parametrize("version", [0, 2, 1], ids=["as the kernel has it", "as of Linux 5.19", "as of Linux 5.13"])
async def test_whatever_reads_strangers_bytes_reaches_nothing_else(
    probed: Callable[[int], Places], version: int
) -> None:
    assert not lacks(), "this kernel does not confine: nothing would be tested"
    places = probed(version)
    await all_places(places.model)
    found = places.found()
    assert found.keys() == {*OPENING, *SEALED_PLACES}
    for place, told in found.items():
        sealed = place in SEALED_PLACES
        assert told["done"] == (set() if sealed else {f"reads {places.model}", f"goes round to {places.model}"}), place
        assert told["unable"] == (OWN if sealed else set()), place


async def test_the_probe_can_do_all_of_it_where_nothing_is_confined(probed: Callable[[int], Places]) -> None:
    places = probed(0)
    child = await children.start("control")
    assert await child.wait() == 0
    (told,) = places.found().values()
    # a ring may be switched off, and attaching to what is no child of one's own
    assert told["refused"] <= {"makes a ring", "attaches"} and not told["unable"]
    assert len(told["done"]) > 60

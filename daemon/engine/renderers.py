"""Chats are rendered in a process of their own: a template is anybody's code, and may take any time and memory.

    worker   asks one renderer, and the nursery for another one when that has ended
    nursery  forked from the worker while that had nothing yet: no thread, no model, no request; it forks renderers
    renderer renders for one model; the kernel ends it where a prompt takes more than SECONDS of a processor, and gives
             it no more memory than MEMORY beyond what it began with

Neither of the two opens a file or a socket. Each ends with the process above it.
"""

import ctypes
import gc
import json
import os
import pprint  # noqa: F401  Jinja imports it, and the next two, when a template uses them
import random  # noqa: F401
import resource
import signal
import socket
import textwrap  # noqa: F401
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from llmd.daemon.engine import failures
from llmd.daemon.engine.answers.detecting import name_of
from llmd.daemon.engine.answers.formats import CALLS, Syntax, thinking_named
from llmd.daemon.engine.rendering import Rendering, Terms, Written
from llmd.daemon.errors import BadRequest, LlmdError, ModelInvalid, from_wire
from llmd.daemon.machine.confined import seal
from llmd.daemon.wire.frames import decode_chat, encode_chat
from llmd.daemon.wire.work import Chat, ChatMessage

SECONDS = 2.0
MEMORY = 512 * 1024 * 1024
# a renderer that computes nothing and does not answer: it was stopped, say
PATIENCE_SECONDS = 60.0
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15


class Nursery:
    """Call it in a process that has one thread, before it has opened anything that others may not have."""

    def __init__(self) -> None:
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        gc.freeze()  # what is there is shared with it, and no collection touches it
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._sock.close()
                _nurse(theirs, parent)
            finally:
                os._exit(1)
        theirs.close()

    def renderer(self) -> socket.socket:
        """The way to a new one. Without a nursery nothing can be rendered any more: then this process ends."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._sock, [b"one"], [theirs.fileno()])
            except OSError as e:
                failures.told("what starts renderers", e, failures.LAST_WORDS_SECONDS)
                os._exit(failures.EXIT_SOFTWARE)
        return ours

    def close(self) -> None:
        """End its process, and those that it started."""
        self._sock.close()
        os.waitpid(self.pid, 0)


class Rendered:
    """Renders for one model, in a process. Any thread."""

    def __init__(self, nursery: Nursery, terms: Terms) -> None:
        self.terms = terms
        self._nursery = nursery
        self._lock = threading.Lock()
        self._sock: socket.socket | None = None
        self._syntax: Syntax | None = None

    @property
    def syntax(self) -> Syntax:
        if self._syntax is None:
            said, _ = self._asked(b"")
            self._syntax = Syntax(CALLS.get(said["calls"]), thinking_named(said["thinking"]))
        return self._syntax

    def text(self, chat: Chat) -> Written:
        said, text = self._asked(encode_chat(chat))
        return Written(text.decode(), said["special"], said["done"])

    def close(self) -> None:
        """End its process."""
        if self._sock:
            self._sock.close()
            self._sock = None

    def _asked(self, data: bytes) -> tuple[dict[str, Any], bytes]:
        """One answer. Raises what rendering raises, and ModelInvalid where that ends its process, twice: it may have
        been ended by somebody else."""
        with self._lock:
            for again in (True, False):
                began = time.monotonic()
                try:
                    said, text = self._answer(data)
                    break
                except (OSError, EOFError) as e:
                    self.close()
                    late = time.monotonic() - began >= SECONDS
                    if late or not again:
                        why = "takes too long" if late else "ended the process that renders it"
                        raise ModelInvalid(f"the model's chat template {why}") from e
        if "code" in said:
            raise from_wire(said["code"], said["message"], said["param"])
        return said, text

    def _answer(self, data: bytes) -> tuple[dict[str, Any], bytes]:
        """Raises OSError and EOFError where its process has ended."""
        if self._sock is None:
            self._sock = self._nursery.renderer()
            _write(self._sock, json.dumps(asdict(self.terms)).encode())
        self._sock.settimeout(PATIENCE_SECONDS)
        _write(self._sock, data)
        return json.loads(_read(self._sock)), _read(self._sock)


def _write(sock: socket.socket, data: bytes) -> None:
    sock.sendall(len(data).to_bytes(8, "big") + data)


def _read(sock: socket.socket) -> bytes:
    return _take(sock, int.from_bytes(_take(sock, 8), "big"))


def _take(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = sock.recv(min(size - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


# --- the nursery


def _nurse(sock: socket.socket, parent: int) -> NoReturn:
    _ends_with(parent, b"llmd-nursery")
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    own = sock.fileno()
    os.closerange(3, own)
    os.closerange(own + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how one ended
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with suppress(OSError):  # where memory is short, what renders goes first
        Path("/proc/self/oom_score_adj").write_text("1000")
    space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    time.localtime()  # it reads the time zone
    # what Python and Jinja load when they are used first
    for template in ("{{ messages | tojson }}{{ strftime_now('%d %b %Y') }}", "{{ raise_exception('') }}"):
        with suppress(LlmdError):
            Rendering(Terms(template, "", "")).text(Chat((ChatMessage("user", "Hello."),)))
    seal()
    nursery = os.getpid()
    while True:
        data, fds, _, _ = socket.recv_fds(sock, 16, 1)
        if not data:
            os._exit(0)
        (given,) = fds
        with suppress(OSError):  # memory is short: whoever asked sees that nobody is there
            _start(sock, given, nursery, space)
        os.close(given)


def _start(sock: socket.socket, given: int, nursery: int, space: int) -> None:
    """A renderer that is asked on `given`, with MEMORY beyond a `space` of addresses. Raises OSError."""
    if os.fork() == 0:
        _ends_with(nursery, b"llmd-render")
        sock.close()
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        most = space + MEMORY if most == resource.RLIM_INFINITY else min(most, space + MEMORY)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        _render_all(socket.socket(fileno=given))


def _ends_with(parent: int, name: bytes) -> None:
    """`name` is what ps(1) shows."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_NAME, name, 0, 0, 0)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


# --- a renderer


def _render_all(sock: socket.socket) -> NoReturn:
    with suppress(EOFError, OSError):
        terms = json.loads(_read(sock))
        rendering = Rendering(Terms(**{**terms, "special": tuple(terms["special"])}))
        while True:
            data = _read(sock)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            said, text = _rendered(rendering, data)
            signal.setitimer(signal.ITIMER_PROF, 0)
            _write(sock, json.dumps(said).encode())
            _write(sock, text)
    os._exit(0)


def _rendered(rendering: Rendering, data: bytes) -> tuple[dict[str, Any], bytes]:
    """What is said of a prompt, and its text."""
    try:
        if not data:
            calls, _, thinking = name_of(rendering.syntax).partition("+")
            return {"calls": calls, "thinking": thinking}, b""
        text, special, done = rendering.text(decode_chat(data))
        return {"special": special, "done": done}, text.encode()
    except MemoryError:
        error: LlmdError = ModelInvalid("the model's chat template takes too much memory")
    except UnicodeEncodeError:
        error = BadRequest("the model's chat template makes half a character of these messages", param="messages")
    except Exception as e:
        error = failures.of_request(e)
    return {"code": error.code, "message": error.message, "param": error.param}, b""

"""What a template may take: time and memory of a process of its own, and nothing else."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from llmd.daemon.engine import failures, renderers
from llmd.daemon.engine.renderers import Nursery, Rendered
from llmd.daemon.engine.rendering import Rendering, Terms
from llmd.daemon.errors import BadRequest, ContextExceeded, ModelInvalid
from llmd.daemon.wire.work import Chat, ChatMessage, Tool

ASKED = Chat((ChatMessage("user", "hello <s>"),))
PLAIN = "{{ messages[0].content }}"
# a text that grows to more than any machine has, in every way that a template knows
GROW = {
    "~": "{% set ns.x = ns.x ~ ns.x %}",
    "+": "{% set ns.x = ns.x + ns.x %}",
    "*": "{% set ns.x = ns.x * 4 %}",
    "%": "{% set ns.x = '%s%s' % (ns.x, ns.x) %}",
    "format": "{% set ns.x = '%s%s' | format(ns.x, ns.x) %}",
    "a text's format": "{% set ns.x = '{0}{0}'.format(ns.x) %}",
    "join": "{% set ns.x = [ns.x, ns.x] | join %}",
    "a text's join": "{% set ns.x = ns.x.join(['a', 'b', 'c', ns.x]) %}",
    "replace": "{% set ns.x = ns.x | replace('a', 'aa') %}",
    "a text's replace": "{% set ns.x = ns.x.replace('a', 'aa') %}",
    "indent": "{% set ns.x = ns.x | indent(ns.x | length, true) %}",
    "center": "{% set ns.x = ns.x | center(4 * (ns.x | length)) %}",
    "a text's center": "{% set ns.x = ns.x.center(4 * ns.x | length) %}",
    "zfill": "{% set ns.x = ns.x.zfill(4 * ns.x | length) %}",
    "a list": "{% set ns.l = ns.l + ns.l %}",
    "a batch": "{% set ns.l = ns.l | batch(ns.x | length, 'a') | list %}{% set ns.x = ns.x * 4 %}",
    "a width": "{% set ns.x = '%*d' % (2000000000, 1) %}",
    "a power": "{% set ns.n = ns.n ** 9 %}",
    "what it encloses": "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}",
    "tojson": "{% set ns.x = [ns.x, ns.x] | tojson %}",
    "wordwrap": "{% set ns.x = (ns.x ~ ns.x) | wordwrap(1) %}",
    "urlize": "{% set ns.x = ns.x ~ (ns.x | urlize) %}",
}
HEAD = "{% set ns = namespace(x='aaaa', l=['a', 'a'], n=9) %}{% for i in range(99999) %}"


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """What it starts has less time than a model's has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(renderers, "SECONDS", 0.5)
        made = Nursery()
        yield made
        made.close()


Make = Callable[..., Rendered]


@pytest.fixture
def rendered(nursery: Nursery) -> Iterator[Make]:
    """What renders with a template and further terms."""
    made: list[Rendered] = []

    def make(template: str, **terms: Any) -> Rendered:
        made.append(Rendered(nursery, Terms(template, "", "", **terms)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_what_is_rendered_there_is_what_is_rendered_here(rendered: Make) -> None:
    tools = (Tool("a", '{"type": "function", "function": {"name": "a"}}', "{}"),)
    for template in (PLAIN, "{% for m in messages %}{{ m.role }}: {{ m.content }} ä{% endfor %}{{ bos_token }}"):
        for chat in (ASKED, Chat((ChatMessage("system", "a"), ChatMessage("user", ("b", "<s>"))), "high", tools)):
            there = rendered(template, special=("<s>", "</s>"), context=1000, longest_token=20)
            here = Rendering(there.terms)
            assert there.text(chat) == here.text(chat) and there.syntax == here.syntax


@pytest.mark.parametrize("syntax", ["", "mistral+think", "gemma"])
def test_how_a_model_writes_comes_whole(rendered: Make, syntax: str) -> None:
    for template in (PLAIN, "<think>{{ messages[0].content }}"):
        there = rendered(template, syntax=syntax)
        assert there.syntax == Rendering(there.terms).syntax


def test_what_is_refused_there_is_refused_here(rendered: Make) -> None:
    with pytest.raises(BadRequest, match="refuses these messages: only one") as e:
        rendered("{% if messages[0].content == 'hello <s>' %}{{ raise_exception('only one') }}{% endif %}"
                 + PLAIN).text(ASKED)  # fmt: skip
    assert e.value.param == "messages"
    with pytest.raises(ContextExceeded, match="length is 3 tokens"):
        rendered(PLAIN * 9, context=3, longest_token=2).text(ASKED)
    with pytest.raises(ModelInvalid, match="cannot be compiled"):
        rendered("{% for %}").text(ASKED)
    with pytest.raises(BadRequest, match="half a character"):
        rendered(PLAIN + "{{ '\\ud800' }}").text(ASKED)


@pytest.mark.parametrize("way", GROW)
def test_a_text_that_grows_costs_its_request_alone(nursery: Nursery, rendered: Make, way: str) -> None:
    there = rendered(PLAIN + HEAD + GROW[way] + "{% endfor %}{{ ns.x | length }}")
    peak = 0
    with pytest.raises((ModelInvalid, BadRequest)) as e:
        there.text(ASKED)
    assert "hello" not in e.value.message
    for child in psutil.Process(nursery.pid).children():
        peak = max(peak, _peak(child.pid))
    assert peak < _peak(nursery.pid) + 2 * renderers.MEMORY, "beyond what it shares with the nursery"
    assert rendered(PLAIN).text(ASKED) == ("hello <s>", [], "")


def _peak(pid: int) -> int:
    """The most memory that a process has had, in bytes."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


def test_one_that_does_not_end_is_ended_and_the_next_is_rendered(rendered: Make) -> None:
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    there = rendered(PLAIN + "{% if messages[0].content == 'endless' %}" + endless + "{% endif %}")
    began = time.monotonic()
    with pytest.raises(ModelInvalid, match="takes too long"):
        there.text(Chat((ChatMessage("user", "endless"),)))
    assert time.monotonic() - began < 30
    assert there.text(ASKED)[0] == "hello <s>"


def test_one_whose_process_is_killed_has_another(nursery: Nursery, rendered: Make) -> None:
    there = rendered(PLAIN)
    before = set(psutil.Process(nursery.pid).children())
    for _ in range(3):
        assert there.text(ASKED)[0] == "hello <s>"
        (renderer,) = set(psutil.Process(nursery.pid).children()) - before
        renderer.send_signal(signal.SIGKILL)
        renderer.wait(10)


def test_one_that_ends_its_process_twice_says_so(rendered: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    there, asked = rendered(PLAIN), []

    def ends(_: bytes) -> None:
        asked.append(1)
        raise EOFError

    with monkeypatch.context() as patch:
        patch.setattr(there, "_answer", ends)
        with pytest.raises(ModelInvalid, match="ended the process that renders it"):
            there.text(ASKED)
    assert len(asked) == 2 and there.text(ASKED)[0] == "hello <s>"


def test_they_open_no_file_and_no_socket_and_end_with_who_asks() -> None:
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            there = Rendered(Nursery(), Terms(PLAIN, "", ""))
            there.text(ASKED)
            pids = [child.pid for child in psutil.Process().children(recursive=True)]
            theirs.send(" ".join(map(str, pids)).encode())
            time.sleep(60)
        finally:
            os._exit(0)
    theirs.close()
    pids = [int(word) for word in ours.recv(100).split()]
    assert len(pids) == 2
    for child in pids:
        assert Path(f"/proc/{child}/comm").read_text().strip() in ("llmd-nursery", "llmd-render")
        assert "Seccomp:\t2" in Path(f"/proc/{child}/status").read_text()
        open_ = [os.readlink(fd) for fd in Path(f"/proc/{child}/fd").iterdir()]
        assert all(name.startswith(("socket:", "/dev/null", "pipe:", "/tmp", "/dev/pts")) for name in open_), open_
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    deadline = time.monotonic() + 5
    while any(psutil.pid_exists(child) for child in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(psutil.pid_exists(child) for child in pids)
    ours.close()


def test_without_a_nursery_the_process_ends_and_is_replaced() -> None:
    pid = os.fork()
    if pid == 0:
        try:
            nursery = Nursery()
            os.kill(nursery.pid, signal.SIGKILL)
            os.waitpid(nursery.pid, 0)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            Rendered(nursery, Terms(PLAIN, "", "")).text(ASKED)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == failures.EXIT_SOFTWARE

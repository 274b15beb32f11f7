"""Which of the engine's libraries runs on this CPU: the best that passes a trial in a child process.

A hypervisor may show instructions that it does not carry out, and a library that uses them kills its process at the
first token. So each is tried, the best first, until one computes what it should; what was found is kept with the CPU's
identity and tried again when that is another one. An engine compiled for this machine has no libraries to choose from.
"""

import hashlib
import importlib.util
import json
import logging
import os
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from llmd.daemon import atomic
from llmd.daemon.errors import Unavailable
from llmd.daemon.machine import verdicts
from llmd.daemon.machine.verdicts import NoVerdict, Refused

log = logging.getLogger("llmd.cpu")

PROGRAM = "llmd.daemon.engine.selftest"
FILE = "cpu.json"
VARIABLE = "GGML_CPU_VARIANT"  # for the children: `quantize/backends.py` reads it
TRIAL_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Choice:
    """`variant`: the library; "": the engine has none to choose from. `failed`: better ones, and why not them;
    `identity`: of the CPU that they were tried on."""

    identity: str
    variant: str
    failed: dict[str, str]

    @property
    def text(self) -> str:
        why = "; ".join(f"{name}: {reason}" for name, reason in self.failed.items())
        return f"{self.variant} is used" + (f", since better ones fail on this CPU ({why})" if why else "")


async def choose(state: Path) -> Choice:
    """The library for this CPU, and from now on every child's. Raises Unavailable where none runs."""
    if not has_libraries():
        return Choice("", "", {})
    now = identity()
    found = _kept(state / FILE, now)
    if found is None:
        found = await _try_all(now)
        try:
            atomic.write(state / FILE, json.dumps(asdict(found)).encode(), 0o600)
        except OSError as e:  # a full disk: the next start tries them again
            log.warning("%s cannot be written: %s", FILE, e.strerror)
    os.environ[VARIABLE] = found.variant
    return found


def has_libraries() -> bool:
    """Whether the engine has several for the CPU."""
    found = importlib.util.find_spec("llama_cpp")
    places = (found.submodule_search_locations if found else None) or []
    return any(list(Path(place, "lib").glob("libggml-cpu-*.so")) for place in places)


def identity(root: Path = Path("/")) -> str:
    """Of the CPU as the kernel shows it, and of the engine."""
    lines = (root / "proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    told = [line for line in lines if line.startswith(("model name", "stepping", "microcode", "flags"))]
    return hashlib.sha256("\n".join([*told, version("llama-cpp-python")]).encode()).hexdigest()


def _kept(file: Path, now: str) -> Choice | None:
    try:
        found = Choice(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return found if found.identity == now else None


async def _try_all(now: str) -> Choice:
    failed: dict[str, str] = {}
    try:
        scores = await _scores()
        for name in sorted((name for name, score in scores.items() if score), key=lambda name: -scores[name]):
            try:
                await verdicts.asked(PROGRAM, name, seconds=TRIAL_SECONDS)
            except (Refused, NoVerdict) as e:
                failed[name] = str(e)
                log.warning("the engine's library %s does not run on this CPU: %s", name, e)
                continue
            log.info("the engine's library for this CPU: %s", name)
            return Choice(now, name, failed)
    except (Refused, NoVerdict) as e:
        failed["the list of them"] = str(e)
    told = "; ".join(f"{name}: {why}" for name, why in failed.items())
    raise Unavailable(f"no library of the engine runs on this CPU ({told or 'none was found'})")


async def _scores() -> dict[str, int]:
    """How well each fits, as it says itself; 0: it does not run here."""
    said = (await verdicts.asked(PROGRAM, seconds=TRIAL_SECONDS)).get("variants")
    return {str(name): int(score) for name, score in said.items()} if isinstance(said, dict) else {}

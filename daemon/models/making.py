"""Other forms of a model: what each type would take, and one made in a child process (`quantize/quantizing.py`), in the
background of everything else.

A form is made from the file that was imported, is checked and tried as an import is, and stands beside it under the
model's name. What is cut off, or fails, leaves nothing.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from llmd.daemon.errors import BadRequest, Conflict
from llmd.daemon.jobs.queue import Tell
from llmd.daemon.machine.children import Limits
from llmd.daemon.models.checking import check, trial
from llmd.daemon.models.copying import FILE, begin, in_thread, reading
from llmd.daemon.models.files import QUANTIZING, ModelStore, shown
from llmd.daemon.models.running import lines, no_verdict
from llmd.daemon.state.records import Form, Made, Model
from llmd.daemon.state.store import StateThread
from llmd.quantize.quantizing import STANDARD, TYPES, WHOLE
from llmd.quantize.quantizing import Size as Size
from llmd.quantize.shape import Shape

SIZES_SECONDS = 120.0
WHAT = "quantizing this file"


@dataclass(frozen=True, slots=True)
class Asked:
    """Which form: a type, or the largest standard one that takes at most so many bytes, or bits a weight. `again`: from
    a file that is quantized already."""

    type: str | None = None
    budget: int | None = None
    bits: float | None = None
    again: bool = False


@dataclass(frozen=True, slots=True)
class Making:
    """What a job is to make: a form of this `type` and about so many `bytes`, of the file `digest`; `again`: which is
    quantized already."""

    type: str
    bytes: int
    digest: str
    again: bool = False


@dataclass(frozen=True, slots=True)
class FormMade:
    form: str  # MODEL@TYPE
    digest: str
    size: int


class Maker:
    """`threads` tells how many there are to compute with."""

    def __init__(self, models: ModelStore, state: StateThread, threads: Callable[[], int]) -> None:
        self._models, self._state, self._threads = models, state, threads

    async def sizes(self, name: str) -> list[Size]:
        """Every type's file as it would be, the largest first. Raises ModelNotFound, ModelInvalid."""
        return await self.sizes_of(await self._state.run(lambda: self._models.path(name)))

    async def sizes_of(self, path: Path) -> list[Size]:
        """As `sizes`, of a file that may have no data yet."""
        try:
            async with asyncio.timeout(SIZES_SECONDS):
                limits = Limits(reads=(os.fspath(path),))
                told = [line async for line in lines(WHAT, QUANTIZING, "sizes", os.fspath(path), limits=limits)]
            said = [Size(*line["size"]) for line in told if "size" in line]
            for size in said:  # a file may have taken the child over
                Shape.from_dict(size.shape)
            if {s.type for s in said} != TYPES.keys() or not all(type(s.bytes) is int for s in said):
                raise ValueError("types are missing")
        except (TimeoutError, KeyError, TypeError, ValueError) as e:
            raise no_verdict(WHAT) from e
        return sorted(said, key=lambda s: -s.bytes)

    async def smaller(self, model: Model) -> list[Size]:
        """The standard types that take less than the model's own file, the largest first. Raises ModelInvalid."""
        return await self.smaller_of(self._models.file(model.digest), model.size)

    async def smaller_of(self, path: Path, size: int, kind: str | None = None) -> list[Size]:
        """As `smaller`, of a file that may have no data yet and will have so many bytes. `kind`: this type only."""
        if kind is not None:
            check_type(kind)
        found = [s for s in await self.sizes_of(path) if s.bytes < size]
        return [s for s in found if (s.type in STANDARD if kind is None else s.type == kind)]

    async def seconds(self, model: Model, kind: str) -> float:
        """About what making that type takes on this machine, as it is measured now. Raises ModelInvalid."""
        return await self.seconds_of(self._models.file(model.digest), kind)

    async def seconds_of(self, path: Path, kind: str) -> float:
        """As `seconds`, of a file that may have no data yet."""
        given = (os.fspath(path), kind, str(self._threads()))
        limits = Limits(reads=(os.fspath(path),))
        said = [line async for line in lines(WHAT, QUANTIZING, "speed", *given, limits=limits)]
        if not isinstance(said[-1].get("seconds"), int | float):
            raise no_verdict(WHAT)
        return float(said[-1]["seconds"])

    def again(self, model: Model) -> bool:
        """Whether it is quantized already, or was before it was converted."""
        return held_as(model) not in WHOLE

    async def chosen(self, model: Model, asked: Asked) -> Size:
        """The type that is asked for. Raises BadRequest where there is none or its loss is not asked for, Conflict
        where the model has it, and what `sizes` raises."""
        if self.again(model) and not asked.again:
            raise BadRequest(
                f"{model.name} is quantized already ({held_as(model)}): another type made of that loses twice, more "
                "than one made of the file in full precision. Import that one, or give --requantize", param="type",
            )  # fmt: skip
        if sum(value is not None for value in (asked.type, asked.budget, asked.bits)) != 1:
            raise BadRequest("give one of type, budget and bpw", param="type")
        found = await self.sizes(model.name)
        if asked.type is not None:
            kind = asked.type.upper()
            check_type(kind)
            size = next(s for s in found if s.type == kind)
        else:
            size = _largest(found, asked)
        if size.type in {form.type for form in await self._state.run(lambda: self._models.forms(model.name))}:
            raise Conflict(f"{model.name} has the form {size.type} already")
        if size.bytes >= model.size:
            raise BadRequest(
                f"{size.type} would take {shown(size.bytes)}, and the model has {shown(model.size)}: nothing is gained",
                param="type",
            )  # fmt: skip
        return size

    async def make(self, name: str, asked: Making, tell: Tell) -> FormMade:
        """A form of that model. Raises LlmdError."""
        model = await self._state.run(lambda: self._models.show(name))
        if model.digest != asked.digest:
            raise Conflict(f"{model.name} is another model by now")
        kind = asked.type
        async with self._models.stage(asked.bytes) as (stage, count):
            await in_thread(lambda: begin(stage))
            out = stage / FILE
            source = os.fspath(self._models.file(model.digest))
            limits = Limits(background=True, reads=(source,), writes=(os.fspath(stage),))
            given = ["make", source, os.fspath(out), kind, str(self._threads())]
            again = ["again"] if asked.again else []
            async for line in lines(WHAT, QUANTIZING, *given, *again, limits=limits):
                tell(int(line.get("done", 0)), int(line.get("total", 0)), str(line.get("log", "")))
                with contextlib.suppress(OSError):
                    count(out.stat().st_size, asked.bytes)
            tell(0, 0, "checking what was made")
            size = out.stat().st_size
            async with reading(stage, background=True) as whole:
                info = await check(out, background=True, seats=self._models.seats)
                tried = await trial(out, size, background=True, seats=self._models.seats)
                made = Made(model.digest, kind, version("llama-cpp-python"), version("llmd-appliance"))
                info = info.but(**tried, made=made)
                form: Form = await self._models.add_form(stage, whole, model, kind, info)
        return FormMade(form.name, form.digest, form.size)


def check_type(kind: str) -> None:
    """Raises BadRequest for what is no type."""
    if kind not in TYPES:
        raise BadRequest(f"there is no type {kind[:20]!r}: {', '.join(TYPES)}", param="type")


def held_as(model: Model) -> str:
    """The type of its weights, or how they were packed before they were unpacked."""
    return (model.info.converted.method if model.info.converted else "") or model.info.file_type


def _largest(found: list[Size], asked: Asked) -> Size:
    """The largest standard type within what was asked. Raises BadRequest."""
    standard = [s for s in found if s.type in STANDARD]
    for size in standard:
        if asked.budget is not None and size.bytes <= asked.budget:
            return size
        if asked.bits is not None and size.bits <= asked.bits:
            return size
    least = standard[-1]
    raise BadRequest(
        f"the smallest type is {least.type}, with {shown(least.bytes)} and {least.bits:g} bits a weight",
        param="budget",
    )

"""Models that come as a Hugging Face folder: a job reads, converts and holds them against the original, in children.

The folder's files are a stranger's: the child that converts them reads that folder and nothing else of this machine's,
writes into the stage, has no network and runs no code of theirs (`quantize/checkpoints/converting.py`). What is cut
off, or fails, leaves nothing.
"""

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llmd.daemon.errors import BadRequest, Conflict, ModelInvalid, Unavailable, cut
from llmd.daemon.jobs.queue import Tell
from llmd.daemon.machine import children
from llmd.daemon.machine.children import Limits
from llmd.daemon.models.copying import FILE, begin, in_thread, reading
from llmd.daemon.models.files import ModelStore
from llmd.daemon.models.making import Maker, Making
from llmd.daemon.models.names import checked, name_of_folder
from llmd.daemon.models.running import lines, no_verdict
from llmd.daemon.state.records import Converted, Model, Proof
from llmd.daemon.state.store import StateThread
from llmd.quantize.checkpoints.checkpoint import Checkpoint, blobs
from llmd.quantize.checkpoints.proof import MOST_DIFFERENCE

WHAT = "converting this model"
CHECKPOINT = "llmd.quantize.checkpoints.checkpoint"
CONVERTING = "llmd.quantize.checkpoints.converting"
PROOF = "llmd.quantize.checkpoints.proof"
PACKAGE = "llmd-torch"
# of the package, and of a checkout
INTERPRETERS = (Path("/usr/lib/llmd-torch/bin/python3"), children.PACKAGE / ".build/torch/bin/python")
SCRATCH, LOGITS = "scratch", "logits.npz"  # in the stage: what the libraries leave, and a proof
READ_SECONDS = 120.0
# libraries are imported; bytes that a thread computes and writes in a second, and how many threads help: rounded from
# the runs of benchmarks/results/importing.md, to say about how long it takes
START_SECONDS, WRITE_RATE, MOST_THREADS, SAMPLE_BYTES = 15.0, 60e6, 7, 32 << 20
# what a step takes, in bytes of the converted file: it is computed, held against the original, and tried
COMPUTED, PROVEN, TRIED = 1.0, 0.5, 0.5
# a header's tables, and what the tokenizer and the original's first words take beside the weights
HEAD_BYTES = 256 << 20
MAX_REASON = 400
LIMITS = Limits(address_space=8 << 30, cpu_seconds=120)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A form to make behind an import: its type, and about how many bytes it takes."""

    type: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Importing:
    """What a job is to do: convert the folder at `path`, which takes so many `bytes` of which `read` are read, of an
    `architecture` whose weights are packed by a `method` ("": not at all), and make a `form` of that."""

    path: str
    bytes: int
    read: int
    architecture: str
    method: str
    form: Wanted | None = None

    @property
    def type(self) -> str | None:
        return self.form.type if self.form else None


@dataclass(frozen=True, slots=True)
class Imported:
    """`digest` and `size` are the form's, where one was made (MODEL@TYPE)."""

    model: str
    digest: str
    size: int
    proof: Proof
    form: str | None = None


class Importer:
    """`threads` tells how many there are for the file's own first words."""

    def __init__(self, models: ModelStore, maker: Maker, state: StateThread, threads: Callable[[], int]) -> None:
        self._models, self._maker, self._state, self._threads = models, maker, state, threads

    async def asked(self, path: str, name: str | None) -> tuple[str, Importing]:
        """The name that a folder's model gets, and what a job is to do. Raises BadRequest, ModelInvalid, Conflict where
        the name is taken, Unavailable where nothing here converts, NoSpace."""
        folder = await in_thread(lambda: _folder(path))
        name = name_of_folder(folder) if name is None else checked(name)
        found = await self.read(folder)
        if name in {model.name for model in await self._state.run(self._models.list)}:
            raise Conflict(
                f"the name {name} belongs to another model: choose another with --name, or remove that one first",
                param="name",
            )
        interpreter()
        self._models.make_room(found.converted + HEAD_BYTES)
        return name, Importing(str(folder), found.converted, found.bytes, found.architecture, found.method)

    async def held(self, path: str, name: str | None) -> Model | None:
        """The model that was made of this folder already. Raises BadRequest."""
        folder = await in_thread(lambda: _folder(path))
        models = await self._state.run(self._models.list)
        return next((m for m in models if m.source == str(folder) and name in (None, m.name)), None)

    async def seconds(self, folder: Path, size: int) -> float:
        """About what converting it into so many bytes takes: reading is measured now."""

        def sample() -> float:
            file = max(folder.glob("*.safetensors"), key=lambda one: one.stat().st_size)
            begun, count = time.perf_counter(), 0
            with file.open("rb", buffering=0) as data:
                while count < SAMPLE_BYTES and (more := data.read(1 << 20)):
                    count += len(more)
            return (time.perf_counter() - begun) / count

        rate = WRITE_RATE * min(self._threads(), MOST_THREADS)
        return START_SECONDS + size * (await in_thread(sample) + 1 / rate)

    async def read(self, folder: Path) -> Checkpoint:
        """What the folder holds. Raises ModelInvalid."""
        what = "reading this folder"
        limits = Limits(LIMITS.address_space, cpu_seconds=LIMITS.cpu_seconds, reads=_reads(folder), links=False)
        try:
            async with asyncio.timeout(READ_SECONDS):
                said = [line async for line in lines(what, CHECKPOINT, str(folder), limits=limits)]
            return Checkpoint(**said[-1]["checkpoint"])
        except (TimeoutError, KeyError, TypeError) as e:
            raise no_verdict(what) from e

    @contextlib.asynccontextmanager
    async def outlined(self, folder: Path) -> AsyncIterator[Path]:
        """A file with the header that the converted one will have and no data, while the block lasts. Raises
        ModelInvalid, Unavailable."""
        async with self._models.stage(HEAD_BYTES) as (stage, _):
            async for _line in self._convert("outline", folder, stage):
                pass
            yield stage / FILE

    async def make(self, name: str, asked: Importing, tell: Tell) -> Imported:
        """A model of that name. Raises LlmdError."""
        folder, size, form = await in_thread(lambda: _folder(asked.path)), asked.bytes, asked.form
        async with self._models.stage(size + HEAD_BYTES) as (stage, count):
            unproven = ""
            whole = int(size * (COMPUTED + PROVEN + TRIED + (1 if form else 0)))
            async for line in self._convert("convert", folder, stage, os.fspath(stage / SCRATCH / LOGITS)):
                share = int(line.get("done", 0)) / max(1, int(line.get("total", 1)))
                tell(int(size * COMPUTED * share), whole if "done" in line else 0, str(line.get("log", "")))
                unproven = str(line.get("unproven", unproven))[:MAX_REASON]
                if "done" in line:
                    count(int(line["done"]), max(size + HEAD_BYTES, int(line["done"])))
            async with reading(stage, background=True) as read:
                proof = Proof(unproven=unproven) if unproven else await self._proof(stage)
                tell(int(size * (COMPUTED + PROVEN)), whole, _words(proof))
                await in_thread(lambda: shutil.rmtree(stage / SCRATCH))
                by = version("llama-cpp-python"), version("llmd-appliance")
                converted = Converted(asked.architecture, asked.method, *by)
                model = await self._models.take_in(stage, read, name, str(folder), proof, converted, tried=not unproven)
        if form is None:
            tell(whole, whole, "")
            return Imported(model.name, model.digest, model.size, proof)

        def beside(at: int, total: int, line: str) -> None:
            share = at / total if total else 0
            tell(whole - size + int(size * share), whole if total else 0, line)

        made = await self._maker.make(name, Making(form.type, form.bytes, model.digest), beside)
        return Imported(model.name, made.digest, made.size, proof, made.form)

    async def _convert(self, what: str, folder: Path, stage: Path, *more: str) -> AsyncIterator[dict[str, Any]]:
        def start() -> None:
            begin(stage)
            (stage / SCRATCH).mkdir()

        await in_thread(start)
        scratch = os.fspath(stage / SCRATCH)
        limits = Limits(background=what == "convert", reads=_reads(folder), writes=(str(stage),), links=False)
        said = lines(
            WHAT, CONVERTING, what, str(folder), os.fspath(stage / FILE), *more, limits=limits,
            interpreter=interpreter(), variables={"HOME": scratch, "TMPDIR": scratch},
        )  # fmt: skip
        async for line in said:
            yield line

    async def _proof(self, stage: Path) -> Proof:
        """How far the file's first logits are from the original's. Raises ModelInvalid where that is too far."""
        what = "the proof of this conversion"
        limits = Limits(background=True, reads=(str(stage),))
        given = (os.fspath(stage / FILE), os.fspath(stage / SCRATCH / LOGITS), str(self._threads()))
        said = [line async for line in lines(what, PROOF, *given, limits=limits)][-1]
        try:
            apart, kl = float(said["difference"]), float(said["kl"])
            count, same = int(said["tokens"]), bool(said["same_tokens"])
        except (KeyError, TypeError, ValueError) as e:
            raise no_verdict(what) from e
        if not apart <= MOST_DIFFERENCE:
            raise ModelInvalid(
                f"what was converted does not compute what the original does: its first {count} logits differ by "
                f"{100 * apart:.0f} % of theirs, and {100 * MOST_DIFFERENCE:g} % are the most. The converter does not "
                "read this model rightly: import a GGUF file that its maker made"
            )
        return Proof(apart, kl, count, same)


def interpreter() -> str:
    """The Python that has torch and the converter. Raises Unavailable."""
    for python in INTERPRETERS:
        if python.exists():
            return str(python)
    raise Unavailable(
        f"Hugging Face models are converted by the package {PACKAGE}, which is not installed: apt install "
        f"./{PACKAGE}.deb, or convert the folder on another machine (llama.cpp: convert_hf_to_gguf.py FOLDER "
        "--outfile MODEL.gguf) and import that file"
    )


def _reads(folder: Path) -> tuple[str, ...]:
    """What a child may read of a model."""
    cache = blobs(folder)
    return (str(folder), str(cache)) if cache else (str(folder),)


def _folder(path: str) -> Path:
    shown = cut(path)
    try:
        folder = Path(path).resolve(strict=True)
        with os.scandir(folder):
            return folder
    except (FileNotFoundError, NotADirectoryError) as e:
        raise BadRequest(f"there is no folder {shown}, or llmd may not look into the one above it", param="path") from e
    except PermissionError as e:
        raise BadRequest(f"llmd may not read {shown}: let its user read the folder and its files", param="path") from e
    except (OSError, RuntimeError, ValueError) as e:
        raise BadRequest(f"{shown!r} cannot be opened: {getattr(e, 'strerror', None) or e}", param="path") from e


def _words(proof: Proof) -> str:
    if proof.difference is None:
        return f"not held against the original: {proof.unproven}"
    return f"differs from the original's first {proof.tokens} logits by {100 * proof.difference:.2g} %"

"""Other forms of a GGUF file, through llama.cpp's `llama_model_quantize`. A child process: the file may be hostile.

    python -P -m llmd.quantize.quantizing sizes FILE                  what each type's file would be; nothing is written
    python -P -m llmd.quantize.quantizing make FILE OUT TYPE THREADS  `again` behind it: of what is quantized already
    python -P -m llmd.quantize.quantizing speed FILE TYPE THREADS     seconds that this machine would take for it
    python -P -m llmd.quantize.quantizing join FILE OUT                     FILE and the other parts of its model as one

It prints JSON lines: `{"done": N, "total": N}` in bytes of FILE, `{"size": […]}`, what llama.cpp says
(`{"log": TEXT}`), and last `{"ok": true, …}` or `{"ok": false, "code": CODE, "message": TEXT}`; and exits with 0.
`daemon/models/making.py` runs it, and an import of a model in parts.

Buffers hold 512 MiB of a tensor's rows and llama.cpp lets go of each tensor's pages, so that a model of any size takes
the same memory. The sizes are computed from the types that its dry run gives the tensors; a test holds them against
files.
"""

import ctypes
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, replace
from typing import Any

from llmd.daemon.errors import BadRequest, ModelInvalid, NoSpace
from llmd.daemon.machine.telling import Tell, verdict
from llmd.quantize import backends
from llmd.quantize.header import TENSOR_TYPES, Header, TensorInfo, read_header
from llmd.quantize.shape import shape_of

# llama.cpp's numbers of the types that it makes without an importance matrix
TYPES = {
    "F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q6_K": 18, "Q5_K_M": 17, "Q5_K_S": 16, "Q5_1": 9, "Q5_0": 8,
    "Q4_K_M": 15, "Q4_K_S": 14, "Q4_1": 3, "Q4_0": 2, "IQ4_NL": 25, "IQ4_XS": 30, "Q3_K_L": 13, "Q3_K_M": 12,
    "Q3_K_S": 11, "IQ3_M": 27, "IQ3_S": 26, "Q2_K": 10,
}  # fmt: skip
# those that are chosen among where a size is asked for
STANDARD = (
    "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S",
    "Q2_K",
)  # fmt: skip
WHOLE = {"F32", "F16", "BF16"}
BUFFER_BYTES = 512 << 20
REPORT_BYTES = 64 << 20
MAX_LINE = 400
SAMPLE_SECONDS, SAMPLE_WEIGHTS, SAMPLE_BYTES = 0.4, 1 << 16, 64 << 20

_BY_NAME = {name: (block, width) for name, block, width in TENSOR_TYPES.values()}
_TENSOR = re.compile(r"\[ *\d+/ *\d+\] (\S+) +- \[")
_FALLBACKS = re.compile(r"(\d+) of \d+ tensor\(s\) required fallback")
_COPIED = re.compile(r"\] .* size = +([0-9.]+) MiB$")
# as llama.cpp names the parts of a model
PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_TO = re.compile(r"\(([A-Za-z0-9_]+)\)\s*$")
# keys that llama.cpp writes to a form, and those that it leaves out: text of the key, its length, its type, its value
_WRITES = ("general.quantization_version", "general.file_type")
_DROPS = {"split.no": 2, "split.count": 2, "split.tensors.count": 4}


@dataclass(frozen=True, slots=True)
class Size:
    """A form's file in bytes, its weights' bits each, how many tensors got another type than it is named after, since
    their rows do not divide into its blocks, and what its memory depends on (`quantize/shape.py`)."""

    type: str
    bytes: int
    bits: float
    fallbacks: int
    shape: dict[str, Any]


def quantized(header: Header) -> str:
    """The type that most weights have, where that is a quantized one; else ""."""
    held: dict[str, int] = {}
    for t in header.tensors:
        held[t.type] = held.get(t.type, 0) + t.nbytes
    most = max(held, key=lambda name: held[name])
    return "" if most in WHOLE else most


def size_of(header: Header, types: dict[str, str]) -> int:
    """Bytes of a file with tensors of these types (name to type; the others stay as they are)."""
    head = header.head_size
    head += sum(8 + len(key) + 4 + 4 for key in _WRITES if key not in header.metadata)
    head -= sum(8 + len(key) + 4 + width for key, width in _DROPS.items() if key in header.metadata)
    # llama.cpp writes no dimension of 1 at a shape's end
    head -= sum(8 * (len(t.shape) - _dimensions(t)) for t in header.tensors)
    return _padded(head, header) + sum(_padded(_bytes(t, types.get(t.name, t.type)), header) for t in header.tensors)


def _dimensions(t: TensorInfo) -> int:
    return max([1, *(i + 1 for i, count in enumerate(t.shape) if count > 1)])


def _bytes(t: TensorInfo, kind: str) -> int:
    block, width = _BY_NAME[kind]
    return math.prod(t.shape) // block * width


def _as(t: TensorInfo, kind: str) -> TensorInfo:
    return replace(t, type=kind, nbytes=_bytes(t, kind))


def _padded(size: int, header: Header) -> int:
    return -(-size // header.alignment) * header.alignment


# --- llama.cpp


class _Log:
    """What llama.cpp prints, as whole lines."""

    def __init__(self, use: Callable[[str], None]) -> None:
        self._use, self._rest = use, ""

    def take(self, text: str) -> None:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._use(line)
        # a tensor's line begins long before it ends
        if _TENSOR.match(self._rest):
            self._use(self._rest)


def _quantize(path: str, out: str, kind: str, threads: int, use: Callable[[str], None], **given: bool) -> int:
    lib = backends.engine()

    backends.load(gpus=False)
    log = _Log(use)

    def said(_: int, text: bytes, __: Any) -> None:
        log.take(text.decode(errors="replace").replace(path, "the file"))

    callback = lib.llama_log_callback(said)
    lib.llama_log_set(callback, None)
    params = lib.llama_model_quantize_default_params()
    params.nthread, params.ftype, params.max_buf_size = threads, TYPES[kind], BUFFER_BYTES
    for name, value in given.items():
        setattr(params, name, value)
    return int(lib.llama_model_quantize(os.fsencode(path), os.fsencode(out), params))


def sizes(path: str) -> Iterator[Size]:
    """Every type's file, as it would be. Raises ModelInvalid."""
    header = read_header(path)
    weights = sum(math.prod(t.shape) for t in header.tensors)
    for kind in TYPES:
        types: dict[str, str] = {}
        last: list[str] = []

        def use(line: str, types: dict[str, str] = types, last: list[str] = last) -> None:
            last.append(line)
            if (tensor := _TENSOR.match(line)) and (to := _TO.search(line)):
                types[tensor[1]] = _named(to[1])

        if _quantize(path, "", kind, 1, use, dry_run=True, allow_requantize=True):
            raise ModelInvalid(f"llama.cpp cannot quantize it: {_cause(last)}")
        odd = [int(found[1]) for line in last if (found := _FALLBACKS.search(line))]
        whole = size_of(header, types)
        made = replace(header, tensors=tuple(_as(t, types.get(t.name, t.type)) for t in header.tensors))
        yield Size(kind, whole, round(8 * whole / weights, 2), sum(odd), shape_of(made).to_dict())


def _named(said: str) -> str:
    """A tensor's type as the header's table names it; llama.cpp prints q8_0 and q4_K."""
    return said.upper()


def _cause(lines: list[str]) -> str:
    found = [line.partition("failed to quantize: ")[2] for line in lines if "failed to quantize: " in line]
    return (found or ["it does not say why"])[-1][:MAX_LINE]


def make(path: str, out: str, kind: str, threads: int, again: bool, tell: Callable[[dict[str, Any]], None]) -> None:
    """Write FILE as that type. Raises BadRequest, ModelInvalid, NoSpace."""
    header = read_header(path)
    if (held := quantized(header)) and not again:
        raise BadRequest(f"it is quantized already ({held})", param="type")
    before, at = {}, 0
    for t in sorted(header.tensors, key=lambda t: t.name):  # llama.cpp's order
        before[t.name] = at
        at += t.nbytes
    told, lines = 0, []

    def use(line: str) -> None:
        nonlocal told
        tensor = _TENSOR.match(line)
        if tensor and before.get(tensor[1], 0) >= told + REPORT_BYTES:
            told = before[tensor[1]]
            tell({"done": told, "total": at})
        if not tensor or "size =" in line:
            lines.append(line)
            tell({"log": line[:MAX_LINE]})

    tell({"done": 0, "total": at})
    if _quantize(path, out, kind, threads, use, allow_requantize=again):
        _check_room(out)
        raise ModelInvalid(f"llama.cpp cannot quantize it: {_cause(lines)}")
    tell({"done": at, "total": at})


def parts(path: str) -> list[str]:
    """The files of the model that this one is a part of, in order; only this one where it is whole."""
    found = PART.fullmatch(os.path.basename(path))
    if not found or int(found[3]) < 2:
        return [path]
    names = (f"{found[1]}-{at:05}-of-{found[3]}.gguf" for at in range(1, int(found[3]) + 1))
    return [os.path.join(os.path.dirname(path), name) for name in names]


def join(path: str, out: str, tell: Callable[[dict[str, Any]], None]) -> None:
    """Write the parts as one file, with the tensors as they are. Raises ModelInvalid for a part that is missing, is
    damaged or belongs to another model."""
    found, total = parts(path), 0
    for number, part in enumerate(found):
        if not os.path.exists(part):
            raise ModelInvalid(
                f"part {number + 1} of {len(found)} is missing: {os.path.basename(part)} has to lie beside"
            )
        header = read_header(part)
        if (header.metadata.get("split.count"), header.metadata.get("split.no")) != (len(found), number):
            raise ModelInvalid(f"{os.path.basename(part)} is not what its name says: part {number + 1} of {len(found)}")
        total += sum(t.nbytes for t in header.tensors)
    done, lines = 0, []

    def use(line: str) -> None:
        nonlocal done
        lines.append(line)
        if size := _COPIED.search(line):
            done += int(float(size[1]) * (1 << 20))
            tell({"done": min(done, total), "total": total})

    if _quantize(found[0], out, "F16", 1, use, only_copy=True):
        _check_room(out)
        raise ModelInvalid(f"llama.cpp cannot join the parts: {_cause(lines)}")
    tell({"done": total, "total": total})


def _check_room(out: str) -> None:
    """Raises NoSpace where that is why a file could not be written."""
    free = os.statvfs(os.path.dirname(out) or ".")
    if free.f_bavail * free.f_frsize < REPORT_BYTES:
        raise NoSpace("the disk became full while the model was written: remove a model or enlarge the disk")


def seconds(path: str, kind: str, threads: int) -> float:
    """What `make` would take: as long as this machine takes for random rows of that type in as many threads, and for
    reading some of the file. Raises ModelInvalid."""
    header = read_header(path)
    rate = _rate(next(t for t in header.tensors if len(t.shape) > 1).shape[0], kind, threads)
    work = sum(math.prod(t.shape) for t in header.tensors if len(t.shape) > 1) / rate
    begun, sample = time.perf_counter(), min(SAMPLE_BYTES, header.file_size)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    for at in range(0, sample, 1 << 20):
        os.pread(fd, 1 << 20, header.file_size // 2 + at)
    os.close(fd)
    return work + (time.perf_counter() - begun) * header.file_size / sample


def _rate(row: int, kind: str, threads: int) -> float:
    """Weights a second. Python lets go of its lock in each call."""
    import numpy as np

    backends.load(gpus=False)
    base = ctypes.CDLL(
        "libggml-base.so.0" if (where := backends.folder()) is None else str(where / "libggml-base.so.0")
    )
    call = base.ggml_quantize_chunk
    call.restype = ctypes.c_size_t
    call.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    number = next(n for n, (name, _, _) in TENSOR_TYPES.items() if name == _base(kind))
    width = -(-row // 256) * 256
    rows = max(1, SAMPLE_WEIGHTS // width)
    weights = np.random.default_rng(0).standard_normal(rows * width, dtype=np.float32)
    out = [ctypes.create_string_buffer(rows * width * 4) for _ in range(threads)]
    done = [0] * threads

    def work(at: int) -> None:
        end = time.perf_counter() + SAMPLE_SECONDS
        while time.perf_counter() < end:
            call(number, weights.ctypes.data, out[at], 0, rows, width, None)
            done[at] += rows * width

    call(number, weights.ctypes.data, out[0], 0, 1, width, None)  # its tables are made
    begun, running = time.perf_counter(), [threading.Thread(target=work, args=(at,)) for at in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return sum(done) / (time.perf_counter() - begun)


def _base(kind: str) -> str:
    """The type that most tensors get of a mixed one."""
    return {"IQ3_M": "IQ3_S"}.get(
        kind, kind.removesuffix("_M").removesuffix("_S").removesuffix("_L") if "_K_" in kind else kind
    )


# --- the child


def _asked(tell: Tell) -> dict[str, Any]:
    what, path, *rest = sys.argv[1:]
    match what:
        case "sizes":
            for size in sizes(path):
                tell({"size": astuple(size)})
        case "join":
            join(path, rest[0], tell)
        case "speed":
            return {"seconds": seconds(path, rest[0], int(rest[1]))}
        case "make":
            out, kind, threads, *again = rest
            make(path, out, kind, int(threads), bool(again), tell)
    return {}


if __name__ == "__main__":
    verdict(_asked, "quantize this file")

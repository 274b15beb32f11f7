"""How much memory a model takes on each device in llama.cpp, from its shape alone: pure.

`need(shape, layout, calibration)` gives the bytes of each part. Weights, keys and values are exact. The compute buffer
follows ggml's allocator (`quantize/compute.py`). What a process takes beside these, which no header tells (CUDA's
context, its kernels, the libraries' workspaces), is measured: `Calibration` keeps what was measured with its
conditions.
"""

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any, Final, Literal

from llmd.quantize import compute
from llmd.quantize.shape import Shape

MIB: Final = 1 << 20
Split = Literal["none", "layer", "tensor"]

# bytes a block of elements, as ggml packs them
KV_TYPES: Final = {"f16": (1, 2), "q8_0": (32, 34), "q4_0": (32, 18)}
# what the runner adds to a step's budget: two pieces of a prompt, and a token a slot (daemon/engine/llama/runner.py)
BEYOND = 2 * 64
PAGE: Final = 2 * MIB  # what CUDA hands out memory in
PROCESS: Final = 66 * MIB  # the interpreter and the libraries of a worker without GPUs, measured
TOKEN: Final = 130  # a token's text in llama.cpp's vocabulary and its tables, measured
KEPT_MEASUREMENTS = 200
CELLS = 256  # llama.cpp rounds a sequence's context up to a multiple of this


@dataclass(frozen=True, slots=True)
class Layout:
    """How a model is to be loaded, as the runner is told.

    `shares` has a number for each device, in their order: layers are given out in proportion to it, as llama.cpp does
    to the free memory; empty: the CPU.
    """

    context: int
    slots: int
    kv_type: str = "f16"
    ubatch: int = 2048
    batch: int = 2048
    split: Split = "none"
    shares: tuple[int, ...] = (1,)

    @property
    def cells(self) -> int:
        """The context of one sequence as llama.cpp rounds it."""
        return _up(_up(self.context * self.slots, CELLS) // self.slots, CELLS)

    def largest(self, flash: bool) -> compute.Pass:
        """The pass for which llama.cpp reserves memory."""
        batch = min(_up(self.context * self.slots, CELLS), self.batch + BEYOND + self.slots)
        tokens = min(batch, self.ubatch)
        tokens = _up(tokens, self.slots)  # as many for every sequence
        cpu = not self.shares
        outputs = min(tokens, self.slots)
        return compute.Pass(tokens, outputs, self.cells, self.slots, self.kv_type == "f16", cpu or flash, cpu)


def on_cpu(context: int, slots: int, kv_type: str = "f16", batch: int = 512) -> Layout:
    """As the runner loads a model without GPUs: no pass is longer than two pieces of a prompt, or a token a slot."""
    return Layout(context, slots, kv_type, max(BEYOND, slots), batch, shares=())


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes on one device, or on the host."""

    weights: int = 0
    kv: int = 0
    compute: int = 0
    overhead: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.compute + self.overhead

    def to_dict(self) -> dict[str, int]:
        return {**dataclasses.asdict(self), "total": self.total}


@dataclass(frozen=True, slots=True)
class Measured:
    """Bytes that a process took on a device beside the parts we compute, and under which conditions."""

    overhead: int
    compute: tuple[int, int] | None = None
    cuda: int | None = None
    devices: int = 1
    split: Split = "none"
    model: str = ""  # digest of its file
    layout: str = ""  # how it was loaded
    build: str = ""  # of the engine
    conditions: str = ""

    @property
    def key(self) -> tuple[Any, ...]:
        """What one measurement replaces another of."""
        return self.compute, self.cuda, self.devices, self.split, self.model, self.layout


# until there is a measurement of the machine's own; `benchmarks/fit.py` makes these. In tensor mode the devices'
# exchange of results takes 0.8 GiB on each, whatever the model
_H100: Final = "NVIDIA H100 80GB, driver 580, 2026-11-26: 1B, 8B, 70B"
DEFAULT: Final = (
    Measured(1450 * MIB, (9, 0), 13, 2, "tensor", conditions=_H100),
    Measured(598 * MIB, (9, 0), 13, 2, "layer", conditions=_H100),
    Measured(598 * MIB, (9, 0), 13, 1, "none", conditions=_H100),
)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Measured overheads. Of those under equally near conditions the largest counts."""

    measured: tuple[Measured, ...] = DEFAULT

    def overhead(
        self,
        compute: tuple[int, int] | None = None,
        cuda: int | None = None,
        devices: int = 1,
        split: Split = "none",
        model: str = "",
        layout: str = "",
    ) -> int:
        """The overhead on one device, measured under the nearest conditions."""

        def nearness(one: Measured) -> tuple[bool, bool, bool, bool, bool, bool, bool, int]:
            own = one.model == model
            return (
                one.compute == compute, one.split == split, one.devices == devices, one.cuda == cuda, bool(one.model),
                own, own and one.layout == layout, one.overhead,
            )  # fmt: skip

        return max(self.measured, key=nearness).overhead

    def add(self, measured: Measured) -> "Calibration":
        """With one more measurement; it replaces one of the same conditions, and of a machine's own ones the oldest go
        when there are too many."""
        others = [one for one in self.measured if one.key != measured.key]
        own = [one for one in others if one.model]
        gone = set(own[: max(0, len(own) - KEPT_MEASUREMENTS + 1)])
        return Calibration((*(one for one in others if one not in gone), measured))

    def to_list(self) -> list[dict[str, Any]]:
        return [dataclasses.asdict(one) for one in self.measured]

    @classmethod
    def from_list(cls, data: list[dict[str, Any]]) -> "Calibration":
        """Raises ValueError for what is no such list."""
        try:
            found = tuple(
                Measured(**{**one, "compute": tuple(one["compute"]) if one.get("compute") else None}) for one in data
            )
        except (TypeError, AttributeError) as e:
            raise ValueError(f"this is not a calibration: {e}") from e
        if not found or not all(type(one.overhead) is int and one.overhead >= 0 for one in found):
            raise ValueError("a calibration needs at least one overhead in bytes")
        return cls(found)


class Load:
    """A shape made ready: it is asked for many layouts while a plan is made."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.all = compute.blocks(shape.layers)
        self._flash = shape.flash
        widths = (max(la.ff, la.q, la.expert_ff * shape.used) for la in self.all.telling)
        self._widest = max(shape.embedding, *widths)
        self._runs = {(0, len(shape.layers)): self.all}

    def need(self, layout: Layout, overheads: tuple[int, ...]) -> tuple[Need, ...]:
        """What each device needs, in the order of `layout.shares`; `overheads` has its measured overhead."""
        one = layout.largest(self._flash)
        pool = self._pool(one)
        parts = (
            self._tensor(layout, one)
            if layout.split == "tensor" and len(layout.shares) > 1
            else self._layers(layout, one)
        )
        return tuple(_rounded(part, overhead + pool) for part, overhead in zip(parts, overheads, strict=True))

    def host(self, layout: Layout) -> Need:
        """What the process takes of the host's memory: without devices all of it, else the embedding and what goes in
        and out, beside CUDA's own."""
        one = layout.largest(self._flash)
        logits = 4 * self.shape.vocab * layout.slots
        if layout.shares:
            inputs = 2 * 4 * one.tokens * self.shape.embedding + compute.masks(self.shape, self.all, one)
            return Need(weights=self.shape.host, compute=inputs + logits)
        buffer = compute.buffer(self.shape, self.all, one, output=True)
        weights, process = self.shape.file + self.shape.repacked, PROCESS + TOKEN * self.shape.vocab
        return Need(weights, kv(self.all, layout), buffer + logits, process)

    def least(self, layout: Layout) -> int:
        """What all devices together hold at the least: weights, keys and values."""
        return self.all.nbytes + self.shape.output + kv(self.all, layout)

    def _layers(self, layout: Layout, one: compute.Pass) -> list[Need]:
        """Whole blocks on each device. Over several they work in a pipeline, and each keeps its inputs several
        times."""
        devices, count = len(layout.shares), len(self.shape.layers)
        copies = compute.COPIES if devices > 1 else 1
        found = []
        for first, end in places(count, layout.shares):
            held, last = self._run(first, min(end, count)), first <= count < end
            found.append(Need(
                weights=held.nbytes + (self.shape.output if last else 0),
                kv=kv(held, layout),
                compute=compute.buffer(self.shape, held, one, output=last, copies=copies),
            ))  # fmt: skip
        return found

    def _tensor(self, layout: Layout, one: compute.Pass) -> list[Need]:
        """A part of each block on each device; what cannot be split lies on all. ggml reserves the whole pass on each
        of them."""
        devices, held = len(layout.shares), self.all
        shared = held.shared + self.shape.output_shared
        part = Need(
            weights=shared + -(-(held.nbytes + self.shape.output - shared) // devices),
            kv=-(-kv(held, layout) // devices),
            compute=compute.buffer(self.shape, held, one, output=True),
        )  # fmt: skip
        return [part] * devices

    def _run(self, first: int, end: int) -> compute.Blocks:
        found = self._runs.get((first, end))
        if found is None:
            found = self._runs[first, end] = compute.blocks(self.shape.layers[first:end])
        return found

    def _pool(self, one: compute.Pass) -> int:
        """Workspace of the matrix multiplications: a pass's input to the widest one, in 36 bytes for 32 numbers."""
        return one.tokens * self._widest * 36 // 32


def need(
    shape: Shape, layout: Layout, calibration: Calibration | None = None, *,
    capability: tuple[int, int] | None = None, cuda: int | None = None,
) -> tuple[Need, ...]:  # fmt: skip
    """What each device needs, in the order of `layout.shares`. `capability` and `cuda` choose the overhead."""
    devices = len(layout.shares)
    overhead = (calibration or Calibration()).overhead(capability, cuda, devices, layout.split)
    return Load(shape).need(layout, (overhead,) * devices)


def kv(held: compute.Blocks, layout: Layout) -> int:
    """Keys, values and states of these blocks, for all slots. Blocks with a window keep the whole context
    (`swa_full`)."""
    block, width = KV_TYPES[layout.kv_type]
    return layout.cells * layout.slots * (held.k + held.v) // block * width + 4 * layout.slots * held.state


def places(count: int, shares: tuple[int, ...]) -> list[tuple[int, int]]:
    """The first block of each device and the one behind its last, as llama.cpp does it; the output layer is block
    `count`."""
    total, ends = sum(shares), [0]
    for share in itertools.accumulate(shares):
        # block i lies on the first device whose summed share is more than i / (count + 1)
        ends.append(-(-share * (count + 1) // total))
    return list(itertools.pairwise(ends))


def _rounded(part: Need, overhead: int) -> Need:
    """Each buffer takes whole pages."""
    return Need(_up(part.weights, PAGE), _up(part.kv, PAGE), _up(part.compute, PAGE), _up(overhead, PAGE))


def _up(value: int, step: int) -> int:
    return -(-value // step) * step

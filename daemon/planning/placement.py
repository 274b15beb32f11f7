"""Where a model goes and how it is loaded: pure, from the model's header, the GPUs' free memory and what was asked.

The first that fits on every device is taken, tried in this order; what was asked for is never changed:

1. context and slots as asked, else the configuration's, with keys and values as f16;
2. the largest form;
3. passes of 2,048 tokens, then of 512;
4. the fewest GPUs;
5. of these the best linked: a set counts as its worst pair, NVLink before PCIe, near before far;
6. of these the set with the least memory left, so that large holes stay for large models.

Over NVLink each block is split over the devices (tensor: measured on a 70B, 1.8 times the prefill and 1.4 times the
decode of whole blocks on each), where the model can be split and keys and values are f16; else whole blocks are given
out (layer). Where nothing fits, 1 to 6 again with half the slots, down to 1; then with keys and values as q8_0; then
with half the context, down to FLOOR. A model that ran out of memory begins below what it ran with.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from llmd.daemon.errors import BadRequest, DoesNotFit
from llmd.daemon.gpus.links import NVLINK_RANK, Link
from llmd.daemon.planning.engines import ENGINES, Arithmetic
from llmd.daemon.wire.control import Llama
from llmd.quantize.footprint import Calibration, Layout, Need, Split
from llmd.quantize.shape import Shape

GIB = 1 << 30
MOST_GPUS = 16  # llama.cpp takes no more
FLOOR = 2048
OF_THE_DRIVER = 512 << 20  # 480 MiB on an idle H100 of 80 GB
UBATCHES = (2048, 512)
TENSOR_CORES = (7, 0)  # the first compute capability that has them

Links = Mapping[frozenset[str], Link]
Rung: TypeAlias = tuple[int, int, str]  # context, slots and type of keys and values


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU, or a MIG instance, which cannot work together with another device. Memory in bytes."""

    uuid: str
    name: str
    free: int
    total: int
    compute: tuple[int, int] | None = None
    unified: bool = False
    mig: bool = False

    @property
    def room(self) -> int:
        """What may be planned: a part stays free for what no prediction knows, more where the server itself lives in
        it."""
        spare = self.total // 10 + GIB if self.unified else self.total // 100 + GIB // 4
        return self.free - spare


@dataclass(frozen=True, slots=True)
class Form:
    """One form of a model, as quantized: `size` of its file in bytes, and which engine loads it (`engines.py`)."""

    name: str
    shape: Shape
    size: int
    digest: str = ""
    engine: str = Llama.engine

    @classmethod
    def of(cls, name: str, shape: dict[str, Any], size: int, digest: str = "", engine: str = Llama.engine) -> "Form":
        """With the shape as it is stored beside the model."""
        return cls(name, Shape.from_dict(shape), size, digest, engine)


@dataclass(frozen=True, slots=True)
class Asked:
    """Context and slots to begin with, and what may not be changed of them; None elsewhere: the plan's to choose.
    `gpus` are UUIDs, in the order in which they are to be used."""

    context: int
    slots: int
    keep_context: bool = False
    keep_slots: bool = False
    kv: str | None = None
    split: str | None = None
    ubatch: int | None = None
    gpus: tuple[str, ...] = ()
    below: Rung | None = None  # what it ran out of memory with


@dataclass(frozen=True, slots=True)
class Step:
    """A line of the explanation: what was looked at, whether it was taken, and why or why not."""

    what: str
    taken: bool
    why: str


@dataclass(frozen=True, slots=True)
class Placed:
    """What was chosen; `needs` has each device's bytes, in the order of `devices`. `buys`: what more memory would
    change."""

    form: str
    devices: tuple[Device, ...]
    layout: Layout
    needs: tuple[Need, ...]
    steps: tuple[Step, ...] = ()
    buys: tuple[str, ...] = ()

    @property
    def shown(self) -> tuple[str, int, int, str, Split, int]:
        """What a user sees of it: two plans that are alike in this are as good as each other."""
        la = self.layout
        return self.form, la.context, la.slots, la.kv_type, la.split, len(self.devices)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        la = self.layout
        pairs = zip(self.devices, self.needs, strict=True)
        return {
            "form": self.form, "split": la.split, "kv": la.kv_type, "context": la.context, "slots": la.slots,
            "ubatch": la.ubatch, "gpus": [d.uuid for d in self.devices],
            "devices": [{"uuid": d.uuid, "name": d.name, "free": d.free, "need": n.to_dict()} for d, n in pairs],
            "steps": [{"what": s.what, "taken": s.taken, "why": s.why} for s in self.steps],
            "buys": list(self.buys),
        }  # fmt: skip


@dataclass(slots=True)
class _Miss:
    """The choice that lacked least, and how many bytes on its fullest device."""

    short: int
    form: str
    layout: Layout
    device: Device
    need: Need


@dataclass(slots=True)
class _Search:
    forms: Sequence[Form]
    devices: Sequence[Device]
    links: Links
    asked: Asked
    calibration: Calibration
    cuda: int | None
    steps: list[Step] = field(default_factory=list)
    miss: _Miss | None = None
    _loads: dict[str, Arithmetic] = field(default_factory=dict)
    _leasts: dict[tuple[str, Layout], int] = field(default_factory=dict)
    _needs: dict[tuple[str, Layout, tuple[int, ...]], tuple[Need, ...]] = field(default_factory=dict)

    def run(self) -> Placed | None:
        forms = sorted(self.forms, key=lambda form: (-form.size, form.name))
        if self.asked.below:
            context, slots, kv = self.asked.below
            self.steps.append(Step(f"{slots} slots of {context} tokens, {kv}", False, "it ran out of memory with them"))
        for context, slots, kv in rungs(self.asked):  # 1
            fits = [form for form in forms if kv == "f16" or form.shape.quantized_kv()]
            before, self.miss = self.miss, None
            sizes = (self.asked.ubatch,) if self.asked.ubatch else UBATCHES
            for form, ubatch in itertools.product(fits, sizes):  # 2, 3
                found = self._on_fewest(form, Layout(context, slots, kv, ubatch, max(ubatch, UBATCHES[0])))
                if found:
                    self.steps.append(Step(told(found.layout), True, self._why(found)))
                    return replace(found, steps=tuple(self.steps))
            what = f"{slots} slots of {context} tokens, {kv}"
            self.steps.append(Step(what, False, _lacks(self.miss) if self.miss else "no form and GPUs for it"))
            self.miss = min((m for m in (before, self.miss) if m), key=lambda m: m.short, default=None)
        return None

    def _on_fewest(self, form: Form, layout: Layout) -> Placed | None:
        rooms = sorted((device.room for device in self.devices), reverse=True)
        for count in range(1, min(len(self.devices), MOST_GPUS) + 1):  # 4
            # a choice that lacks something is known already: GPUs that cannot hold the weights tell no more
            if self.miss and self._least(form, layout) > sum(rooms[:count]):
                continue
            found = [placed for group in self._groups(count) if (placed := self._on(form, layout, group))]
            if found:
                return min(found, key=self._order)  # 5, 6
        return None

    def _groups(self, count: int) -> Iterator[tuple[Device, ...]]:
        if self.asked.gpus:
            by_uuid = {device.uuid: device for device in self.devices}
            if count == len(self.asked.gpus):
                yield tuple(by_uuid[uuid] for uuid in self.asked.gpus)
            return
        yield from itertools.combinations([d for d in self.devices if count == 1 or not d.mig], count)

    def _order(self, placed: Placed) -> tuple[bool, int, int, tuple[str, ...]]:
        """What is without tensor cores comes last, whatever it has left; of unknown cards each counts."""
        old = any(d.compute is not None and d.compute < TENSOR_CORES for d in placed.devices)
        left = sum(d.room - n.total for d, n in zip(placed.devices, placed.needs, strict=True))
        return old, -self._rank(placed.devices), left, tuple(d.uuid for d in placed.devices)

    def _rank(self, group: tuple[Device, ...]) -> int:
        """Of its worst link; 0 where nothing is known."""
        pairs = (frozenset((a.uuid, b.uuid)) for a, b in itertools.combinations(group, 2))
        return min((self.links[pair].rank if pair in self.links else 0 for pair in pairs), default=0)

    def _on(self, form: Form, layout: Layout, group: tuple[Device, ...]) -> Placed | None:
        if self.miss and len(group) > 1 and self._least(form, layout) > sum(d.room for d in group):
            return None
        for split in self._splits(form, layout, group):
            # whole blocks are given out as llama.cpp does it: in proportion to the free memory
            shares = tuple((d.free >> 26) or 1 for d in group) if split == "layer" else (1,) * len(group)
            tried = replace(layout, split=split, shares=shares)
            needs = self._need(form, tried, group)
            short, device, need = max(
                ((n.total - d.room, d, n) for d, n in zip(group, needs, strict=True)), key=lambda one: one[0]
            )
            if short <= 0:
                return Placed(form.name, group, tried, needs)
            if self.miss is None or short < self.miss.short:
                self.miss = _Miss(short, form.name, tried, device, need)
        return None

    def _splits(self, form: Form, layout: Layout, group: tuple[Device, ...]) -> list[Split]:
        if len(group) == 1:
            return ["none"] if self.asked.split in (None, "none") else []
        can = layout.kv_type == "f16" and form.shape.tensor_split(len(group))
        if self.asked.split:
            return (
                ["layer"] if self.asked.split == "layer" else ["tensor"] if self.asked.split == "tensor" and can else []
            )
        return ["tensor", "layer"] if can and self._rank(group) > NVLINK_RANK else ["layer"]

    def _need(self, form: Form, layout: Layout, group: tuple[Device, ...]) -> tuple[Need, ...]:
        known = conditions(layout)
        overheads = tuple(
            self.calibration.overhead(d.compute, self.cuda, len(group), layout.split, form.digest, known) for d in group
        )
        key = (form.name, layout, overheads)
        if key not in self._needs:
            self._needs[key] = self._load(form).need(layout, overheads)
        return self._needs[key]

    def _least(self, form: Form, layout: Layout) -> int:
        """What all devices together hold at the least, however it is split."""
        key = (form.name, layout)
        if key not in self._leasts:
            self._leasts[key] = self._load(form).least(layout)
        return self._leasts[key]

    def _load(self, form: Form) -> Arithmetic:
        if form.name not in self._loads:
            self._loads[form.name] = ENGINES[form.engine].arithmetic(form.shape)
        return self._loads[form.name]

    def _why(self, found: Placed) -> str:
        names = ", ".join(d.name for d in found.devices)
        if len(found.devices) == 1:
            return f"{found.form} fits on {names}; of the GPUs that hold it the one with the least left"
        linked = "NVLink between all" if self._rank(found.devices) > NVLINK_RANK else "no NVLink between all"
        return f"{found.form} fits on {len(found.devices)} GPUs and not on fewer ({linked}): {names}"


def place(
    forms: Sequence[Form], devices: Sequence[Device], links: Links, asked: Asked,
    calibration: Calibration | None = None, cuda: int | None = None,
) -> Placed:  # fmt: skip
    """The plan for a model of these forms, at least one, on these devices, at least one. Raises DoesNotFit with the
    numbers and the nearest choices that fit, and BadRequest for GPUs that there are not."""
    known = {device.uuid for device in devices}
    missing = [uuid for uuid in asked.gpus if uuid not in known]
    if missing:
        raise BadRequest(f"there is no GPU {missing[0]}; `llmctl gpus` shows them", param="gpus")
    search = _Search(forms, devices, links, asked, calibration or Calibration(), cuda)
    found = search.run()
    if found is None:
        raise DoesNotFit(_refusal(search))
    return found


def explained(
    forms: Sequence[Form], devices: Sequence[Device], links: Links, asked: Asked,
    calibration: Calibration | None = None, cuda: int | None = None,
) -> Placed:  # fmt: skip
    """As `place`, and what one GiB more on each GPU, and one GPU more, would change."""
    found = place(forms, devices, links, asked, calibration, cuda)
    like = _one_more(devices)
    roomier = [replace(d, free=d.free + GIB, total=max(d.total, d.free + GIB)) for d in devices]
    buys = []
    for what, more in (("one GiB more on each GPU", roomier), (f"one more {like.name}", [*devices, like])):
        other = place(forms, more, links, asked, calibration, cuda)
        if other.shown != found.shown:
            buys.append(f"{what}: {other.form} with {told(other.layout)} on {_count(other)}")
    return replace(found, buys=tuple(buys))


def _count(placed: Placed) -> str:
    return "one GPU" if len(placed.devices) == 1 else f"{len(placed.devices)} GPUs"


def _one_more(devices: Sequence[Device]) -> Device:
    """A GPU as the largest one, with nothing on it but what its driver keeps."""
    like = max(devices, key=lambda d: d.total)
    return replace(like, uuid="one more", free=like.total - OF_THE_DRIVER, mig=False)


def rungs(asked: Asked) -> list[Rung]:
    """What is tried, each lower than the one before. Below what ran out of memory, but the last is tried again."""
    all_ = list(_ladder(asked))
    first = all_.index(asked.below) + 1 if asked.below in all_ else 0
    return all_[min(first, len(all_) - 1) :]


def _ladder(asked: Asked) -> Iterator[Rung]:
    context, slots, kv = asked.context, asked.slots, asked.kv or "f16"
    yield context, slots, kv
    while slots > 1 and not asked.keep_slots:
        slots //= 2
        yield context, slots, kv
    if not asked.kv:
        kv = "q8_0"
        yield context, slots, kv
    while context > FLOOR and not asked.keep_context:
        context = max(FLOOR, context // 2)
        yield context, slots, kv


def _refusal(search: _Search) -> str:
    miss = search.miss
    if miss is None:
        return "what was asked for excludes itself: a tensor split needs several GPUs, f16 and even heads"
    need, near = miss.need, list(_nearest(search))
    text = (
        f"{miss.form} with {told(miss.layout)} needs {gib(need.total)} of {miss.device.name} (weights "
        f"{gib(need.weights)}, keys and values {gib(need.kv)}, computing {gib(need.compute)}, else "
        f"{gib(need.overhead)}); {gib(max(0, miss.device.room))} may be used, {gib(miss.short)} are missing"
    )
    return f"{text}. What would fit: {', or '.join(near)}" if near else f"{text}; nothing near it fits"


def _nearest(search: _Search) -> Iterator[str]:
    """Each thing that was asked for, left to the plan; then one GPU more."""
    asked, devices = search.asked, search.devices

    def again(changed: Asked, on: Sequence[Device] = devices, links: Links = search.links) -> Placed | None:
        return _Search(search.forms, on, links, changed, search.calibration, search.cuda).run()

    if asked.keep_slots and (found := again(replace(asked, keep_slots=False))):
        yield f"--slots {found.layout.slots}"
    if asked.keep_context and (found := again(replace(asked, keep_context=False))):
        yield f"--ctx {found.layout.context}"
    if asked.kv == "f16" and again(replace(asked, kv="q8_0")):
        yield "--kv q8_0"
    if asked.gpus and (found := again(replace(asked, gpus=()))):
        yield f"--gpus {','.join(d.uuid for d in found.devices)}"
    one = _one_more(devices)
    if again(replace(asked, gpus=()), [*devices, one]):
        yield f"one more {one.name} with nothing else on it"


def conditions(layout: Layout) -> str:
    """How it is loaded, as measurements name it."""
    return f"{layout.slots} x {layout.context}, {layout.kv_type}, {layout.ubatch}"


def gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"


def told(layout: Layout) -> str:
    split = f", split {layout.split}" if len(layout.shares) > 1 else ""
    return f"{layout.slots} slots of {layout.context} tokens, {layout.kv_type}{split}"


def _lacks(miss: _Miss) -> str:
    return f"{miss.form} lacks {gib(miss.short)} on {miss.device.name}"

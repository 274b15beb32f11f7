"""From what was asked of a deployment to the settings that a worker is started with. Pure; made anew at each start."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from llmd.daemon.errors import BadRequest, Unavailable, cut
from llmd.daemon.planning.engines import ENGINES
from llmd.daemon.planning.placement import gib
from llmd.daemon.wire.control import Fake, Llama, Settings
from llmd.quantize.footprint import Layout, Need, on_cpu
from llmd.quantize.shape import Shape


@dataclass(frozen=True, slots=True)
class Placement:
    """What an admin sets by hand. `gpus`: UUIDs, as NVML names them; none: the CPU. None elsewhere: the default."""

    gpus: tuple[str, ...] = ()
    split: str | None = None  # over several GPUs: none, layer, tensor
    kv: str | None = None  # type of keys and values: f16, q8_0, q4_0
    ubatch: int | None = None  # most tokens of one pass
    form: str | None = None  # type of the form: Q4_K_M

    @classmethod
    def of(cls, stored: dict[str, Any]) -> "Placement":
        """What `to_dict` gave."""
        return cls(**{**stored, "gpus": tuple(stored.get("gpus", ()))})

    def of_form(self, kind: str | None) -> "Placement":
        """With the form that the model's name says, as in MODEL@TYPE. Raises BadRequest where that is another one."""
        if kind and self.form and self.form.upper() != kind:
            raise BadRequest(f"the name says {cut(kind)} and the form {cut(self.form)}: give one of them", param="form")
        return replace(self, form=kind) if kind else self

    def to_dict(self) -> dict[str, Any]:
        """Without what is the default."""
        return {name: value for name, value in asdict(self).items() if value}

    def check(self) -> None:
        """Raises BadRequest for what cannot work, whatever the machine."""
        if len(set(self.gpus)) < len(self.gpus):
            raise BadRequest("gpus names one twice", param="gpus")
        if len(self.gpus) > 1 and self.split == "none":
            raise BadRequest("several gpus take the split layer or tensor", param="split")
        if self.split == "tensor" and self.kv not in (None, "f16"):
            raise BadRequest("the split tensor takes the kv type f16 only", param="kv")


ON_CPU = Placement()
# bytes of a worker's memory beside its model: the interpreter and its libraries, and what its chat template may take in
# the same group (`engine/renderers.py`); what a GPU's driver keeps
BESIDE, BESIDE_GPU = 2 << 30, 4 << 30


@dataclass(frozen=True, slots=True)
class File:
    """A form of a model: its name `MODEL@TYPE`, its file, that one's bytes and SHA-256, what its memory depends on
    (`quantize/shape.py`; None: not known), and which engine loads it (`engines.py`)."""

    name: str
    path: str
    size: int
    digest: str
    shape: dict[str, Any] | None
    engine: str = Llama.engine


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked: a model's file, and how it should serve. `context` is tokens a slot, `placement` where it is put
    by hand, `shape` what its memory depends on (`quantize/shape.py`; None: not known); `engine` loads it, `fake` with
    these arguments. `others`: what may be loaded instead of `form`, the file that these values are of."""

    path: str
    slots: int
    context: int
    batch: int
    chunk: int
    threads: int
    placement: Placement = ON_CPU
    shape: dict[str, Any] | None = None
    size: int = 0  # bytes of the file
    digest: str = ""  # SHA-256 of the file
    keep_context: bool = False  # it was asked for: no plan may change it
    keep_slots: bool = False
    form: str = ""
    others: tuple[File, ...] = ()
    syntax: str = ""  # how the model writes, where an admin said so
    engine: str = Llama.engine
    fake: dict[str, Any] | None = None


def forms(wish: Wish) -> list[Wish]:
    """The same with each form of the model, as the only one."""
    own = File(wish.form, wish.path, wish.size, wish.digest, wish.shape, wish.engine)
    return [
        replace(wish, form=f.name, path=f.path, size=f.size, digest=f.digest, shape=f.shape, engine=f.engine, others=())
        for f in (own, *wish.others)
    ]


def plan(wish: Wish) -> Settings:
    """On the GPUs that were named, else on the CPU."""
    return _settings(wish).holding(_most(wish))


def _settings(wish: Wish) -> Settings:
    where = wish.placement
    common: dict[str, Any] = {
        "path": wish.path,
        "slots": wish.slots,
        "context": wish.context,
        "batch": max(wish.batch, where.ubatch or 0),
        "chunk": wish.chunk,
        "threads": wish.threads,
        "gpus": where.gpus,
        "split": where.split or ("layer" if len(where.gpus) > 1 else "none"),
        "kv_type": where.kv or "f16",
        "form": wish.form,
        "syntax": wish.syntax,
    }
    if wish.engine == Fake.engine:
        return Fake(**common, says=wish.fake)
    return Llama(**common, ubatch=where.ubatch or 0)


def memory(wish: Wish) -> Need:
    """What it takes of this machine's memory; nothing where that is not known."""
    if not wish.shape:
        return Need()
    shape, s = Shape.from_dict(wish.shape), _settings(wish)
    load = ENGINES[s.engine].arithmetic(shape)
    if not s.gpus:
        found = load.host(on_cpu(s.context, s.slots, s.kv_type, s.batch))
        # of weights that are kept in another order too, what the file holds may leave memory again
        return replace(found, weights=found.weights - shape.repacked)
    ubatch, shares = wish.placement.ubatch or 512, (1,) * len(s.gpus)
    return load.host(Layout(s.context, s.slots, s.kv_type, ubatch, s.batch, shares=shares))


def _most(wish: Wish) -> int:
    """Bytes of this machine's memory that a worker may hold, and not more: far enough above the plan to meet only what
    goes wrong. The file that it reads counts as long as the kernel keeps it, and makes the next start a fast one."""
    need = memory(wish).total
    return need + need // 4 + wish.size + BESIDE + BESIDE_GPU * len(wish.placement.gpus) if need else 0


def check_memory(wish: Wish, free: int) -> None:
    """Raises Unavailable where this machine's memory, of which `free` bytes are left, does not hold it: it would drive
    everything else out, or be ended by the kernel in the middle of an answer."""
    need = memory(wish)
    if need.total > free:
        raise Unavailable(
            f"the model needs {gib(need.total)} of memory (weights {gib(need.weights)}, keys and values "
            f"{gib(need.kv)}, buffers {gib(need.compute + need.overhead)}) and {gib(free)} are free: deploy it "
            "with fewer --slots or a smaller --ctx, or free memory"
        )

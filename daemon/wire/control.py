"""How a worker is started, what it is told, and what it tells of itself.

To it: `Load` first, then `Open` and `Cancel`. From it: `Ready` or `Fatal`, then `Step` (one frame carries the events of
one engine step) and `Beat` (once a second).
"""

from typing import Any, ClassVar, Self, TypeAlias

import msgspec

from llmd.daemon.wire.events import Event
from llmd.daemon.wire.message import Message
from llmd.daemon.wire.work import Work


class Common(Message, frozen=True):
    """What a worker of any engine is started with.

    It sees the GPUs in `gpus` and no other, in this order; none: it computes on the CPU.
    """

    engine: ClassVar[str] = ""  # its name (`planning/engines.py`)

    path: str
    slots: int
    context: int  # tokens a slot
    batch: int
    chunk: int
    threads: int
    gpus: tuple[str, ...] = ()  # UUIDs, MIG instances' too
    split: str = "none"  # over several GPUs: `layer` or `tensor`
    kv_type: str = "f16"  # of keys and values: f16, q8_0, q4_0
    form: str = ""  # which of the model's files it is, for people
    memory: int = 0  # bytes of the machine's memory that it may hold; 0: as many as there are
    syntax: str = ""  # how the model writes calls and thoughts, where an admin says so (`engine/answers/detecting.py`)

    @property
    def files(self) -> tuple[str, ...]:
        """What of the disk the model consists of."""
        return (self.path,)

    def holding(self, memory: int) -> Self:
        """With so many bytes of memory."""
        return msgspec.structs.replace(self, memory=memory)


class Llama(Common, frozen=True):
    """llama.cpp, on a GGUF file."""

    engine: ClassVar[str] = "llama"

    ubatch: int = 0  # most tokens the device computes in one pass; 0: 512


class Torch(Common, frozen=True):
    """torch, on a folder of safetensors. Its vocabulary is read from `header`, a GGUF file of the model that may end
    behind its header, with llama.cpp's `library`: the folder of `llama_cpp`, which this engine's interpreter lacks.
    Keys and values lie in `pages` of 64 tokens; 0: as many as all slots need."""

    engine: ClassVar[str] = "torch"

    header: str = ""
    library: str = ""
    pages: int = 0

    @property
    def files(self) -> tuple[str, ...]:
        return (self.path, self.header, self.library)


class Fake(Common, frozen=True):
    """No model: a `FakeRunner` with these arguments."""

    engine: ClassVar[str] = "fake"

    says: dict[str, Any] | None = None


Settings: TypeAlias = Llama | Torch | Fake


# --- to a worker


class Load(Message, frozen=True):
    settings: Settings


class Open(Message, frozen=True):
    """Begin a request. `id` is unique in the worker; `owner` is whose prompt prefixes it may share. `context`: most
    tokens of a prompt with its answer, `output`: of an answer; 0: as many as a slot has. `weight`: the owner's, among
    those who wait for the same."""

    id: int
    owner: str
    work: Work
    context: int = 0
    output: int = 0
    weight: float = 1.0


class Cancel(Message, frozen=True):
    """No event of this request follows what is on its way already."""

    id: int


ToWorker: TypeAlias = Load | Open | Cancel


# --- from a worker


class Ready(Message, frozen=True):
    """The model is loaded."""

    context: int  # tokens a slot
    slots: int
    vocab: int
    parameters: int
    size: int  # bytes of weights
    description: str
    chat: bool  # it has a chat template
    confined: bool = False  # it reaches its model and its GPUs, and nothing else
    samples: bool = True  # it has tokens to give

    @property
    def positions(self) -> int:
        """Tokens that all slots hold."""
        return self.context * self.slots


class Fatal(Message, frozen=True):
    """The process ends; `code` is one of `daemon/errors.py`."""

    code: str
    message: str


class Busy(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How busy an engine is."""

    running: int = 0
    waiting: int = 0
    kv_used: int = 0  # positions in use
    threads: int = 0  # that compute a step
    share: int = 0  # of the cores, dealt to it: more than `threads` where others use them


class Step(Message, frozen=True):
    """What one engine step made visible. `busy` is None where no step was made."""

    events: tuple[Event, ...]
    busy: Busy | None = None


class Spent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """So many seconds of each of its GPUs, or of cores, a worker has computed for an owner."""

    owner: str
    seconds: float


class Beat(Message, frozen=True):
    """The process lives. Seconds: `step` since the running step began, 0 between steps; `token` since the last one.
    `spent`: since the last beat."""

    step: float
    token: float
    spent: tuple[Spent, ...] = ()


FromWorker: TypeAlias = Ready | Fatal | Step | Beat

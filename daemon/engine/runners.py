"""Which runner settings ask for: the one place that knows every engine's."""

from collections.abc import Callable

from llmd.daemon.engine.protocols import Runner
from llmd.daemon.machine.cores import Seat
from llmd.daemon.wire.control import Fake, Llama, Settings, Torch


def runner_for(s: Settings) -> Callable[[Seat], Runner]:
    """What makes the runner that `s` asks for, which loads with as many threads as a seat has; all of it but the model
    is there then. The imports are here: no engine needs what another one does."""
    match s:
        case Fake():
            from llmd.daemon.engine.fake import FakeRunner

            return lambda _: FakeRunner(slots=s.slots, context=s.context, **(s.says or {}))
        case Llama():
            return _llama(s)
        case Torch():
            return _torch(s)


def _llama(s: Llama) -> Callable[[Seat], Runner]:
    from llmd.quantize import backends

    backends.engine()
    from llmd.daemon.engine.llama.runner import LlamaRunner
    from llmd.daemon.engine.llama.vocabulary import prepare

    prepare(gpus=bool(s.gpus))
    return lambda seat: LlamaRunner(
        s.path,
        slots=s.slots,
        context=s.context,
        batch=s.batch,
        threads=s.threads,
        gpus=len(s.gpus),
        split=s.split,
        kv_type=s.kv_type,
        ubatch=s.ubatch,
        seat=seat,
    )


def _torch(s: Torch) -> Callable[[Seat], Runner]:
    from llmd.daemon.engine.torch.borrowed import borrow

    borrow(s.library)
    from llmd.daemon.engine.llama.vocabulary import prepare
    from llmd.daemon.engine.torch.runner import TorchRunner

    prepare(gpus=False)
    return lambda seat: TorchRunner(
        s.path,
        s.header,
        slots=s.slots,
        context=s.context,
        pages=s.pages,
        threads=s.threads,
        device="cuda" if s.gpus else "cpu",
        seat=seat,
    )

"""A Hugging Face model folder as a GGUF file, through llama.cpp's own converter. It runs in the interpreter of the
package `llmd-torch`, in a child process: the folder may be hostile.

    python -P -m llmd.quantize.checkpoints.converting outline FOLDER OUT         the header, and no data behind it
    python -P -m llmd.quantize.checkpoints.converting convert FOLDER OUT LOGITS  it, and the original's first logits

It prints JSON lines: `{"done": N, "total": N}` in bytes of OUT, what the converter says (`{"log": TEXT}`), and last
`{"ok": true, "unproven": REASON}` or `{"ok": false, "code": CODE, "message": TEXT}`; and exits with 0.
`daemon/models/importing.py` runs it.

The converter describes every tensor before it reads any. Several are then computed at once, as many as a bounded memory
holds, and written to their places.
"""

import errno
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from llmd.daemon.errors import LlmdError, ModelInvalid, NoSpace
from llmd.daemon.machine.telling import Tell, verdict
from llmd.quantize.checkpoints import checkpoint, ends
from llmd.quantize.header import ENDS

WORKERS = 4
FLIGHT_BYTES = 3 << 30  # of tensors that are computed at once; a larger one is computed alone
CHECK_ELEMENTS = 1 << 24
MAX_LINE = 400

# before torch is imported: oneDNN's AMX kernels kill the process where a hypervisor shows AMX and does not carry it out
os.environ.update(
    ONEDNN_MAX_CPU_ISA="AVX512_CORE_FP16", HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", NO_LOCAL_GGUF="1",
    TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false",
)  # fmt: skip


class _Said(logging.Handler):
    """What the converter says, as lines of the job."""

    def __init__(self, tell: Tell, folder: Path) -> None:
        super().__init__(logging.INFO)
        self._tell, self._folder = tell, folder

    def emit(self, record: logging.LogRecord) -> None:
        for line in record.getMessage().replace(str(self._folder), "the folder").splitlines():
            if line.strip():
                self._tell({"log": line[:MAX_LINE]})


def described(folder: Path, out: Path, tell: Tell) -> Any:
    """The converter's model, with all that it will write but the data. Raises ModelInvalid, and the converter's own
    errors, which are of any kind."""
    written, _ = checkpoint.parts(folder)
    import conversion
    import gguf
    import torch
    import transformers

    _no_code(transformers.AutoTokenizer, transformers.AutoConfig, torch)
    conversion.logger.handlers = [_Said(tell, folder)]
    conversion.logger.setLevel(logging.INFO)
    conversion.logger.propagate = False
    gguf.quants._type_traits[gguf.GGMLQuantizationType.BF16] = _Bf16()
    config = _completed(conversion.ModelBase.load_hparams(folder, False), written)
    kind = conversion.get_model_class(conversion.get_model_architecture(config, conversion.ModelType.TEXT))
    model = kind(folder, gguf.LlamaFileType.GUESSED, out, hparams=config)
    model.prepare_tensors()
    model.prepare_metadata(vocab_only=False)
    _say_ends(model.gguf_writer, folder, written)
    return model


def _say_ends(writer: Any, folder: Path, config: Mapping[str, Any]) -> None:
    """Every token that ends a text, beside the one that the converter writes."""
    known = writer.kv_data[0]
    tokens = known.get("tokenizer.ggml.tokens")
    found = ends.ends(folder, config, len(tokens.value) if tokens else 0)
    writer.add_string(ENDS, ",".join(map(str, found)))
    for key, token in ends.named(folder, found).items():
        if key not in known:
            writer.add_uint32(key, token)


def _completed(config: dict[str, Any], written: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers makes of a configuration, and what it left out of it: newer versions move old keys elsewhere,
    where the converter does not look for all of them."""
    both = [k for k, v in config.items() if isinstance(v, dict) and isinstance(written.get(k), dict)]
    nested = {k: _completed(config[k], written[k]) for k in both}
    return {**{k: v for k, v in written.items() if v is not None}, **config, **nested}


def _no_code(tokenizers: Any, configs: Any, torch: Any) -> None:
    """Nothing of a folder is run, whatever the converter would allow: it loads some tokenizers with their code."""

    def guarded(load: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given, **named: load(*given, **{**named, "trust_remote_code": False})

    def pickle(*_: Any, **__: Any) -> None:
        raise ModelInvalid("a part of it is a pickle, which could run code, and is never opened")

    tokenizers.from_pretrained = guarded(tokenizers.from_pretrained)
    configs.from_pretrained = guarded(configs.from_pretrained)
    torch.load = pickle


def _refused(error: Exception, folder: Path) -> str:
    said = str(error).replace(str(folder), "the folder")[:MAX_LINE]
    if "pre-tokenizer" in said:
        return (
            "its tokenizer cannot be converted: llama.cpp knows each BPE tokenizer by what it makes of a text, and "
            "does not know this one. Import a GGUF file of this model that its maker or a newer converter made"
        )
    if isinstance(error, KeyError):
        return f"config.json or a file of the tokenizer lacks {said}"
    return f"it cannot be converted: {said or type(error).__name__}"


class _Bf16:
    """float32 to bfloat16 as torch does it, on all cores; the converter's own way is numpy's, on one."""

    def quantize(self, data: Any) -> Any:
        import gguf
        import numpy as np
        import torch

        def work(array: Any) -> Any:
            return torch.from_numpy(np.ascontiguousarray(array)).to(torch.bfloat16).view(torch.uint8).numpy()

        lazy = gguf.LazyNumpyTensor
        if not isinstance(data, lazy):
            return work(data)
        return lazy._wrap_fn(work, meta_noop=(np.uint8, lambda shape: (*shape[:-1], shape[-1] * 2)))(data)


# --- writing


def outline(model: Any) -> int:
    """Write the header, and let the file end where it will: its data read as zeros. Returns its size in bytes."""
    writer, places = _header(model)
    end = max((at + size for at, size, _ in places.values()), default=0)
    writer.fout[0].flush()
    _cut(model.fname_out, writer.ggml_pad(end, writer.data_alignment))
    writer.close()
    return int(os.path.getsize(model.fname_out))


def _cut(path: Any, size: int) -> None:
    """By a descriptor that may write it: truncate(2) asks for a path, and is refused to what is confined."""
    with open(path, "r+b") as file:
        file.truncate(size)


def convert(model: Any, tell: Tell) -> None:
    """Write all of it. Raises ModelInvalid for a number that is none, OSError."""
    writer, places = _header(model)
    writer.fout[0].flush()
    total = sum(size for _, size, _ in places.values())
    room, done, lock = _Room(FLIGHT_BYTES), 0, threading.Lock()
    _cut(model.fname_out, max((at + size for at, size, _ in places.values()), default=0))

    def write(name: str) -> None:
        nonlocal done
        at, size, info = places[name]
        with room.take(4 * size):
            _write(model.fname_out, at, name, info)
            info.tensor = None
        with lock:
            done += size
            tell({"done": done, "total": total})

    tell({"done": 0, "total": total})
    with ThreadPoolExecutor(min(WORKERS, len(os.sched_getaffinity(0)))) as pool:
        try:
            for future in [pool.submit(write, name) for name in places]:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    end = os.path.getsize(model.fname_out)
    _cut(model.fname_out, writer.ggml_pad(end, writer.data_alignment))
    writer.close()


def _header(model: Any) -> tuple[Any, dict[str, tuple[int, int, Any]]]:
    """What comes before the data, and where each tensor's begin, their bytes, and what the writer knows of it."""
    writer = model.gguf_writer
    writer.write_header_to_file(path=model.fname_out)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    file = writer.fout[0]
    writer.write_padding(file, file.tell())
    at, places = file.tell(), {}
    for name, info in writer.tensors[0].items():
        places[name] = (at, info.nbytes, info)
        at += writer.ggml_pad(info.nbytes, writer.data_alignment)
    return writer, places


def _write(path: Path, at: int, name: str, info: Any) -> None:
    import gguf
    import numpy as np

    data = info.tensor
    if isinstance(data, gguf.LazyNumpyTensor):
        data = gguf.LazyNumpyTensor.to_eager(data)
    with open(path, "r+b", buffering=0) as file:
        file.seek(at)
        data.tofile(file)
    if not isinstance(data, np.ndarray):  # it was computed a piece at a time
        data = np.memmap(path, np.uint8, "r", at, (info.nbytes,))
    _check_numbers(name, data, info.dtype)


def _check_numbers(name: str, data: Any, kind: Any) -> None:
    import torch

    types = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    if kind.name not in types:
        return
    flat = torch.from_numpy(data.reshape(-1)).view(types[kind.name])
    for begin in range(0, flat.numel(), CHECK_ELEMENTS):
        if not bool(torch.isfinite(flat[begin : begin + CHECK_ELEMENTS]).all()):
            raise ModelInvalid(
                f"the tensor {name!r} holds numbers that are none (NaN), or too large for {kind.name}: the model is "
                "damaged, or was not trained to its end"
            )


class _Room:
    """Bytes that may be in memory at once; who needs more than all of them waits to be alone."""

    def __init__(self, size: int) -> None:
        self._size, self._free, self._changed = size, size, threading.Condition()

    def take(self, size: int) -> "_Held":
        size = min(size, self._size)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        return _Held(self, size)

    def give(self, size: int) -> None:
        with self._changed:
            self._free += size
            self._changed.notify_all()


class _Held:
    def __init__(self, room: _Room, size: int) -> None:
        self._room, self._size = room, size

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._room.give(self._size)


# --- the child


def _asked(tell: Tell) -> dict[str, Any]:
    what, folder, out, *rest = sys.argv[1:]
    try:
        return _run(what, Path(folder), Path(out), rest, tell)
    except (LlmdError, MemoryError):
        raise
    except OSError as e:
        # numpy's own has no number: it is raised where a disk has no room for an array
        if e.errno not in (errno.ENOSPC, errno.EDQUOT, None):
            raise
        raise NoSpace("the disk became full while the model was converted: remove a model or enlarge the disk") from e
    except Exception as e:  # the converter's own, of any kind: it says what it does not read
        raise ModelInvalid(_refused(e, Path(folder))) from e


def _run(what: str, folder: Path, out: Path, rest: list[str], tell: Tell) -> dict[str, Any]:
    model = described(folder, out, tell)
    if what == "outline":
        return {"bytes": outline(model)}
    convert(model, tell)
    del model
    from llmd.quantize.checkpoints import original

    try:
        original.write_logits(folder, Path(rest[0]), tell)
    except original.Unproven as e:
        return {"unproven": str(e)[:MAX_LINE]}
    return {"unproven": ""}


if __name__ == "__main__":
    verdict(_asked, "convert this model")

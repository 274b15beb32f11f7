"""Does a converted file compute what the original did? Asked in a child process, because the file may be hostile.

    python -P -m llmd.quantize.checkpoints.proof FILE LOGITS THREADS

LOGITS is what `original.py` wrote. It prints one JSON line and exits with 0: `{"ok": true, "difference": D, "kl": NATS,
"tokens": N, "same_tokens": BOOL}`, or `{"ok": false, "code": CODE, "message": TEXT}`.

D: at each position the root mean square of the difference of both sides' logits, each less its mean, as a share of the
original's; of that the median. It is the same for logits of any scale. A median, since experts that are chosen nearly
as well as others change sides at single positions with any rounding. `kl` is the mean of KL(original || file). The
weights are read through the page cache, so that it takes little memory of its own.
"""

import ctypes
import os
import sys
from typing import Any

import numpy as np

from llmd.daemon.errors import ModelInvalid
from llmd.daemon.machine.telling import Tell, verdict
from llmd.quantize import backends

# llama.cpp rounds what it multiplies with bfloat16 weights to bfloat16, transformers here computes in float32: that is
# 0.006 with SmolLM2's 30 layers, 0.023 with experts. The faults that a test plants begin at 0.145
MOST_DIFFERENCE = 0.08
CONTEXT = 256


def measured(path: str, logits: str, threads: int) -> dict[str, Any]:
    """Raises ModelInvalid."""
    with np.load(logits) as held:
        text, ids, original = held["text"].tobytes(), held["ids"], held["logits"]
    found, own = _computed(path, text, ids, threads)
    width = min(found.shape[1], original.shape[1])
    mine, theirs = _centred(found[:, :width]), _centred(original[:, :width])
    if not np.isfinite(mine).all() or not np.isfinite(theirs).all():
        raise ModelInvalid("the model computes numbers that are none (NaN): its weights are damaged")
    scale = np.sqrt((theirs**2).mean(axis=1))
    apart = np.sqrt(((mine - theirs) ** 2).mean(axis=1))
    log_p, log_q = _log_softmax(theirs), _log_softmax(mine)
    kl = float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean())
    return {
        "difference": float(np.median(apart / np.maximum(scale, 1e-9))), "kl": max(kl, 0.0), "tokens": len(ids),
        "same_tokens": own == [int(i) for i in ids],
    }  # fmt: skip


def _centred(rows: Any) -> Any:
    wide = rows.astype(np.float64)
    return wide - wide.mean(axis=1, keepdims=True)


def _log_softmax(rows: Any) -> Any:
    shifted = rows - rows.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _computed(path: str, text: bytes, ids: Any, threads: int) -> tuple[Any, list[int]]:
    """The file's logits of those tokens, and what its own tokenizer makes of the text."""
    lib = backends.engine()

    backends.load(gpus=False)
    silent = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(silent, None)
    lib.llama_backend_init()
    settings = lib.llama_model_default_params()
    settings.n_gpu_layers, settings.use_mmap, settings.use_extra_bufts = 0, True, False
    model = lib.llama_model_load_from_file(os.fsencode(path), settings)
    if not model:
        raise ModelInvalid("llama.cpp does not load what was converted: the checkpoint is damaged or not supported")
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = CONTEXT, CONTEXT, CONTEXT, 1
    params.n_threads = params.n_threads_batch = threads
    params.type_k = params.type_v = lib.GGML_TYPE_F32
    context = lib.llama_init_from_model(model, params)
    if not context:
        raise ModelInvalid("llama.cpp cannot compute with what was converted: it is damaged or not supported")
    vocab = lib.llama_model_get_vocab(model)
    n_vocab = lib.llama_vocab_n_tokens(vocab)
    if len(ids) and int(ids.max()) >= n_vocab:
        raise ModelInvalid("the tokenizer has more tokens than the model: they do not belong together")
    batch = lib.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for at, token in enumerate(ids):
        batch.token[at], batch.pos[at], batch.n_seq_id[at], batch.seq_id[at][0], batch.logits[at] = (
            int(token),
            at,
            1,
            0,
            1,
        )
    if lib.llama_decode(context, batch):
        raise ModelInvalid("llama.cpp cannot compute with what was converted: it is damaged or not supported")
    rows = ctypes.cast(lib.llama_get_logits(context), ctypes.POINTER(ctypes.c_float))
    logits = np.ctypeslib.as_array(rows, (len(ids), n_vocab)).copy()
    own = (lib.llama_token * CONTEXT)()
    count = lib.llama_tokenize(vocab, text, len(text), own, CONTEXT, True, False)
    return logits, list(own[: max(count, 0)])[: len(ids)]


# --- the child


def _asked(_: Tell) -> dict[str, Any]:
    try:
        return measured(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    except (OSError, ValueError, KeyError) as e:  # of what is held against it
        raise ModelInvalid(f"the proof cannot be read: {type(e).__name__}") from e


if __name__ == "__main__":
    verdict(_asked, "try this model")

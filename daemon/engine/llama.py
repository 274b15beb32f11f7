"""The runner on llama-cpp-python's low-level API: one model, one context, a slot a sequence.

Not its `Llama` class, which serves one request at a time. The context has a stream of keys and values a slot
(`kv_unified` off): attention then reads a sequence's own positions only, which measured faster than one shared buffer
from 8 sequences on.

This file and `vocabulary.py` are the only ones of the engine that import llama_cpp.
"""

import ctypes
import os
import secrets
from collections import abc
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np

from llmd.daemon.engine.messages import SamplingParams
from llmd.daemon.engine.sampling import Sampling, is_simple
from llmd.daemon.engine.types import Chunk, Logprob, ModelInfo, Plan, Sample, Start, next_cut
from llmd.daemon.engine.vocabulary import Vocabulary, load
from llmd.daemon.errors import LlmdError, ModelInvalid, Unavailable

# penalties look back this far for `repeat_penalty`, as llama.cpp's own default does
REPEAT_WINDOW = 64
# The CPU computes a prompt in pieces of this many tokens (`ModelInfo.exact_block`): a token's keys and values depend a
# little on how many others are computed with it (measured: logits differ by up to 1.0). Pieces of 64 cost no more than
# pieces of 256 (measured: 3.0 ms a token, both), shorter ones do
BLOCK = 64
# below this many vocabulary entries a step, threads cost more than they save
PARALLEL_FROM = 60_000

SPLIT_MODES = {
    "none": lib.LLAMA_SPLIT_MODE_NONE,
    "layer": lib.LLAMA_SPLIT_MODE_LAYER,
    "tensor": lib.LLAMA_SPLIT_MODE_TENSOR,
}
KV_TYPES = {"f16": lib.GGML_TYPE_F16, "q8_0": lib.GGML_TYPE_Q8_0, "q4_0": lib.GGML_TYPE_Q4_0}


class LlamaRunner:
    """Loads `path` and makes a context of `slots` × `context` tokens (0: the model's own, at most 4,096).

    `batch` is the most tokens a step computes. `threads` is for the arithmetic and for sampling (0: the cores this
    process may use). With `gpus` more than 0 the model lies on the GPUs that this process sees, as many as that,
    wholly: `split` says how over several. `kv_type` is the keys' and values' type (KV_TYPES), `ubatch` the most tokens
    of one pass (0: 512). Raises ModelInvalid when llama.cpp refuses the file, Unavailable when the GPUs are not there
    or there is no memory for the context: it never falls back to the CPU.
    """

    def __init__(
        self,
        path: str,
        *,
        slots: int,
        context: int = 0,
        batch: int = 512,
        threads: int = 0,
        gpus: int = 0,
        split: str = "none",
        kv_type: str = "f16",
        ubatch: int = 0,
    ) -> None:
        self.threads = threads or len(os.sched_getaffinity(0))
        self._gpu = gpus > 0
        self._split, self._kv_type, self._ubatch = SPLIT_MODES[split], KV_TYPES[kv_type], ubatch or 512
        if self._gpu and not lib.llama_supports_gpu_offload():
            raise Unavailable("this engine was built without CUDA: install the package llmd-cuda, or deploy on the CPU")
        self._model = self._load(path)
        self._vocabulary = vocabulary = Vocabulary(self._model)
        self._n_vocab = vocabulary.size
        self.piece, self.special_texts = vocabulary.piece, vocabulary.special_texts
        self.tokenize, self.detokenize = vocabulary.tokenize, vocabulary.detokenize
        trained = lib.llama_model_n_ctx_train(self._model)
        wanted = min(context or 4096, trained) if trained > 0 else context or 4096
        # a step may go over its budget by less than a piece, and every slot may add a token
        self.batch = batch + 2 * BLOCK + slots
        self._ctx = self._context(slots, wanted)
        self._memory = lib.llama_get_memory(self._ctx)
        self.info = self._describe(slots)
        self._arrays(self.batch)
        self._sampling = Sampling(slots)
        self._samplers: dict[int, Any] = {}  # of the slots for which `_sampling` cannot choose
        self._logprobs: dict[int, int] = {}
        # on the CPU the threads of the arithmetic still spin when sampling begins: with as many of ours it is slower
        # than without (measured on 2 cores: 32 sequences in 3.1 ms against 2.6)
        sampling = self._sampling_threads()
        self._pool = ThreadPoolExecutor(sampling, thread_name_prefix="sample")
        self._parallel_from = PARALLEL_FROM if sampling > 1 else 1 << 62
        self._warm_up()

    # --- loading

    def _load(self, path: str) -> Any:
        params = lib.llama_model_default_params()
        params.n_gpu_layers = -1 if self._gpu else 0
        params.split_mode = self._split
        return load(path, params)

    def _context(self, slots: int, context: int) -> Any:
        params = lib.llama_context_default_params()
        params.n_ctx = context * slots
        params.n_seq_max = slots
        params.n_batch = self.batch
        params.n_ubatch = min(self.batch, self._ubatch)
        params.type_k = params.type_v = self._kv_type
        params.n_threads = params.n_threads_batch = self.threads
        params.kv_unified = False
        params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_AUTO
        # a sliding-window cache cut to the window cannot be trimmed back to a shared prefix
        params.swa_full = True
        params.no_perf = True
        made = lib.llama_init_from_model(self._model, params)
        if not made:
            raise Unavailable(
                f"there is not enough memory for {slots} slots of {context} tokens; deploy with fewer --slots or a "
                "smaller --ctx"
            )
        return made

    def _describe(self, slots: int) -> ModelInfo:
        recurrent = lib.llama_model_is_recurrent(self._model) or lib.llama_model_is_hybrid(self._model)
        vocabulary = self._vocabulary
        text = ctypes.create_string_buffer(256)
        lib.llama_model_desc(self._model, text, 256)
        return ModelInfo(
            vocab=self._n_vocab,
            context=lib.llama_n_ctx_seq(self._ctx),
            slots=slots,
            eos=vocabulary.ends,
            can_trim=not recurrent,
            exact_block=0 if self._gpu else BLOCK,
            chat_template=vocabulary.chat_template,
            bos_text=vocabulary.bos_text,
            eos_text=vocabulary.eos_text,
            description=text.value.decode(errors="replace"),
            parameters=lib.llama_model_n_params(self._model),
            size=lib.llama_model_size(self._model),
            longest_token=vocabulary.longest,
            space_prefix=vocabulary.space_prefix,
        )

    def _arrays(self, size: int) -> None:
        """A batch over our own arrays: filling it is a few numpy assignments, whatever its length."""
        self._token = np.zeros(size, np.int32)
        self._pos = np.zeros(size, np.int32)
        self._one = np.ones(size, np.int32)
        self._seq = np.zeros(size, np.int32)
        self._seq_at = (self._seq.ctypes.data + 4 * np.arange(size, dtype=np.uint64)).astype(np.uint64)
        self._out = np.zeros(size, np.int8)
        field = {name: kind for name, kind, *_ in lib.llama_batch._fields_}

        def pointer(name: str, array: np.ndarray[Any, Any]) -> Any:
            return ctypes.cast(array.ctypes.data, field[name])

        self._batch = lib.llama_batch(
            n_tokens=0,
            token=pointer("token", self._token),
            embd=None,
            pos=pointer("pos", self._pos),
            n_seq_id=pointer("n_seq_id", self._one),
            seq_id=pointer("seq_id", self._seq_at),
            logits=pointer("logits", self._out),
        )

    def _warm_up(self) -> None:
        """One token, so that the first request does not pay for page faults and thread creation. Raises ModelInvalid
        for weights that compute nothing."""
        token = max(self._vocabulary.bos, 0)
        self._decode([Chunk(0, 0, [token], True)])
        logits = np.ctypeslib.as_array(lib.llama_get_logits(self._ctx), (self._n_vocab,))
        if np.isnan(logits).any() or not np.isfinite(logits.max()):
            raise ModelInvalid("the model's weights are damaged: what it computes is not a number")
        lib.llama_memory_clear(self._memory, False)

    # --- a step

    def run(self, plan: Plan) -> abc.Iterator[list[Sample]]:
        """Carry out one step, part by part. Raises LlmdError when llama.cpp cannot: the context is then unusable."""
        for start in plan.starts:
            self._start(start)
        for part in self._parts(plan.chunks):
            rows = self._decode(part)
            if rows:
                yield self._sample_all(rows)

    def _parts(self, chunks: list[Chunk]) -> list[list[Chunk]]:
        """What one call computes. A GPU takes the step at once. On the CPU every block of a prompt goes by itself:
        llama.cpp cuts a mixed batch into pieces of equal length, which would make a text depend on its company."""
        chunks = sorted(chunks, key=lambda c: c.slot)  # adjacent slots in one pass
        if self._gpu:
            return [chunks] if chunks else []
        single = [c for c in chunks if len(c.tokens) == 1]
        blocks = [[block] for c in chunks if len(c.tokens) > 1 for block in _blocks(c)]
        return [single, *blocks] if single else blocks

    def _sampling_threads(self) -> int:
        return min(16, self.threads) if self._gpu else max(1, self.threads // 2)

    def _sample_all(self, rows: list[tuple[int, int]]) -> list[Sample]:
        """One a row, in their order. `rows` are all the outputs of the last call, so the n-th is the n-th row of its
        logits."""
        parts = 1 if len(rows) * self._n_vocab < self._parallel_from else self._pool._max_workers
        size = -(-len(rows) // parts)
        logits = np.ctypeslib.as_array(lib.llama_get_logits(self._ctx), (len(rows), self._n_vocab))
        parted = [(rows[at : at + size], logits[at : at + size]) for at in range(0, len(rows), size)]
        if len(parted) == 1:
            return self._sample_some(*parted[0])
        return [sample for some in self._pool.map(lambda part: self._sample_some(*part), parted) for sample in some]

    def _sample_some(self, rows: list[tuple[int, int]], logits: np.ndarray[Any, Any]) -> list[Sample]:
        simple = [i for i, (_, slot) in enumerate(rows) if slot not in self._samplers]
        tokens = {
            slot: lib.llama_sampler_sample(self._samplers[slot], self._ctx, row)
            for row, slot in rows
            if slot in self._samplers
        }
        if simple:
            slots = [rows[i][1] for i in simple]
            given = logits if len(simple) == len(rows) else logits[simple]
            tokens |= zip(slots, self._sampling.sample(given, slots), strict=True)
        return [self._as_sample(slot, tokens[slot], logits[i]) for i, (_, slot) in enumerate(rows)]

    def _start(self, start: Start) -> None:
        if start.copy_from >= 0:
            lib.llama_memory_seq_rm(self._memory, start.slot, -1, -1)
            lib.llama_memory_seq_cp(self._memory, start.copy_from, start.slot, -1, -1)
        if self.info.can_trim or start.keep == 0:
            lib.llama_memory_seq_rm(self._memory, start.slot, start.keep, -1)
        if start.slot in self._samplers:
            lib.llama_sampler_free(self._samplers.pop(start.slot))
        seed = secrets.randbits(64) if start.params.seed is None else start.params.seed + start.choice
        if is_simple(start.params):
            self._sampling.start(start.slot, start.params, seed)
        else:
            self._samplers[start.slot] = self._chain(start.params, start.prompt, seed)
        self._logprobs.pop(start.slot, None)
        if start.params.logprobs is not None:
            self._logprobs[start.slot] = start.params.logprobs

    def _decode(self, chunks: list[Chunk]) -> list[tuple[int, int]]:
        """Compute the chunks. Returns (row in the batch, slot) of each that is to be sampled."""
        rows, at = [], 0
        self._out[:] = 0
        for chunk in chunks:
            end = at + len(chunk.tokens)
            self._token[at:end] = chunk.tokens
            self._pos[at:end] = np.arange(chunk.start, chunk.start + len(chunk.tokens))
            self._seq[at:end] = chunk.slot
            at = end
            if chunk.sample:
                self._out[at - 1] = 1
                rows.append((at - 1, chunk.slot))
        self._batch.n_tokens = at
        status = lib.llama_decode(self._ctx, self._batch)
        if status != 0:
            raise LlmdError(f"llama.cpp could not compute a step (status {status})")
        if rows:
            # sorts the rows once, so that the sampling threads only read
            lib.llama_get_logits_ith(self._ctx, rows[0][0])
        return rows

    # --- sampling

    def _chain(self, params: SamplingParams, prompt: abc.Sequence[int], seed: int) -> Any:
        """llama.cpp's samplers, in its own order: logit bias, penalties, then greedy or top-k, top-p, min-p,
        temperature."""
        config = lib.llama_sampler_chain_default_params()
        config.no_perf = True
        chain = lib.llama_sampler_chain_init(config)
        if params.logit_bias:
            bias = (lib.llama_logit_bias * len(params.logit_bias))(*params.logit_bias)
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_logit_bias(self._n_vocab, len(bias), bias))
        if params.repeat_penalty != 1.0:
            repeat = lib.llama_sampler_init_penalties(self._n_vocab, REPEAT_WINDOW, params.repeat_penalty, 0.0, 0.0)
            for token in prompt[-REPEAT_WINDOW:]:
                lib.llama_sampler_accept(repeat, token)
            lib.llama_sampler_chain_add(chain, repeat)
        if params.presence_penalty or params.frequency_penalty:
            # over everything generated, not the prompt: what OpenAI's parameters mean
            lib.llama_sampler_chain_add(
                chain,
                lib.llama_sampler_init_penalties(
                    self._n_vocab, self.info.context, 1.0, params.frequency_penalty, params.presence_penalty
                ),
            )
        if params.temperature <= 0:
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_greedy())
            return chain
        if params.top_k > 0:
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_k(params.top_k))
        if params.top_p < 1.0:
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_p(params.top_p, 1))
        if params.min_p > 0.0:
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_min_p(params.min_p, 1))
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_temp(params.temperature))
        # 2^32 - 1 means "draw one" to llama.cpp
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_dist(seed % 0xFFFFFFFF))
        return chain

    def _as_sample(self, slot: int, token: int, logits: np.ndarray[Any, Any]) -> Sample:
        wanted = self._logprobs.get(slot)
        return Sample(slot, token, None if wanted is None else _logprob(logits.astype(np.float64), token, wanted))

    def close(self) -> None:
        """Free the device's memory. The runner cannot be used after."""
        self._pool.shutdown()
        for chain in self._samplers.values():
            lib.llama_sampler_free(chain)
        lib.llama_free(self._ctx)
        lib.llama_model_free(self._model)


def _blocks(chunk: Chunk) -> list[Chunk]:
    """A chunk cut into its prompt's pieces; only a prompt's last chunk is sampled, and only its last piece is
    longer."""
    at, end, pieces = chunk.start, chunk.start + len(chunk.tokens), []
    while at < end:
        cut = next_cut(at, end, BLOCK) if chunk.sample else min(end, at - at % BLOCK + BLOCK)
        pieces.append(
            Chunk(chunk.slot, at, chunk.tokens[at - chunk.start : cut - chunk.start], chunk.sample and cut == end)
        )
        at = cut
    return pieces


def _logprob(logits: np.ndarray[Any, Any], token: int, wanted: int) -> Logprob:
    logs = logits - logits.max()
    logs -= np.log(np.exp(logs).sum())
    top: list[int] = []
    if wanted:
        likeliest = np.argpartition(-logs, wanted)[:wanted]
        top = [int(t) for t in likeliest[np.argsort(-logs[likeliest])]]
    return Logprob(token, float(logs[token]), tuple((t, float(logs[t])) for t in top))

"""The runner on llama-cpp-python's low-level API: one model, one context, a slot a sequence.

Not its `Llama` class, which serves one request at a time. The context has a stream of keys and values a slot
(`kv_unified` off): attention then reads a sequence's own positions only, which measured faster than one shared buffer
from 8 sequences on.

This room's `runner.py`, `chains.py` and `vocabulary.py` are the only files of the engine that import llama_cpp.
"""

import ctypes
import itertools
import secrets
from collections import abc, deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import llama_cpp.llama_cpp as lib
import numpy as np

from llmd.daemon.engine.llama.chains import Chain
from llmd.daemon.engine.llama.passes import BLOCK, Call, blocks, passes
from llmd.daemon.engine.llama.sampling import Floats, Sampling, is_simple
from llmd.daemon.engine.llama.vocabulary import Vocabulary, load, prepare
from llmd.daemon.engine.types import (
    NO_MASKS,
    Chunk,
    Logprob,
    Masks,
    Memo,
    ModelInfo,
    Plan,
    Sample,
    Start,
)
from llmd.daemon.errors import LlmdError, ModelInvalid, Unavailable
from llmd.daemon.machine.cores import Alone, Seat, available

# tokens with their log-probabilities
Pairs = tuple[tuple[int, float], ...]

SPLIT_MODES = {
    "none": lib.LLAMA_SPLIT_MODE_NONE,
    "layer": lib.LLAMA_SPLIT_MODE_LAYER,
    "tensor": lib.LLAMA_SPLIT_MODE_TENSOR,
}
KV_TYPES = {"f16": lib.GGML_TYPE_F16, "q8_0": lib.GGML_TYPE_Q8_0, "q4_0": lib.GGML_TYPE_Q4_0}


class LlamaRunner:
    """Loads `path` and makes a context of `slots` × `context` tokens (0: the model's own, at most 4,096).

    `batch` is the most tokens a step computes. `threads` is the most for the arithmetic and for sampling (0: the cores
    this process may use); until `use` says otherwise as many as `seat` has. With `gpus` more than 0 the model lies on
    the GPUs that this process sees, as many as that, wholly: `split` says how over several. `kv_type` is the keys' and
    values' type (KV_TYPES), `ubatch` the most tokens of one pass (0: 512). `reorder`: a CPU may put weights into an
    order of its own, which takes as long as reading them several times and pays over many tokens. Raises ModelInvalid
    when llama.cpp refuses the file, Unavailable when the GPUs are not there or there is no memory for the context: it
    never falls back to the CPU.
    """

    space = None

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
        seat: Seat | None = None,
        reorder: bool = True,
    ) -> None:
        self._gpu = gpus > 0
        # beside a GPU there is next to nothing to do for them, and they spin after it, in the way of ours
        self.threads = 1 if self._gpu else threads or available()
        prepare(gpus=self._gpu)
        self._split, self._kv_type, self._ubatch = SPLIT_MODES[split], KV_TYPES[kv_type], ubatch or 512
        if self._gpu and not lib.llama_supports_gpu_offload():
            raise Unavailable("this engine was built without CUDA: install the package llmd-cuda, or deploy on the CPU")
        self._model = self._load(path, reorder)
        self.vocabulary = Vocabulary(self._model)
        self._n_vocab = self.vocabulary.size
        trained = lib.llama_model_n_ctx_train(self._model)
        wanted = min(context or 4096, trained) if trained > 0 else context or 4096
        # a step may go over its budget by less than a piece, and every slot may add a token
        self.batch = batch + 2 * BLOCK + slots
        self._ctx = self._context(slots, wanted)
        self._memory = lib.llama_get_memory(self._ctx)
        self._arrays(self.batch)
        self._samplers: dict[int, Any] = {}  # of the slots for which `_sampling` cannot choose
        self._memos: dict[int, Memo] = {}  # of who was in each slot last
        self._logprobs: dict[int, int] = {}
        # on the CPU the threads of the arithmetic still spin when sampling begins: with as many of ours it is slower
        # than without (measured on 2 cores: 32 sequences in 3.1 ms against 2.6)
        sampling = min(8, threads or available()) if self._gpu else max(1, self.threads // 2)
        self._sampling = Sampling(slots, sampling)
        self._pool = ThreadPoolExecutor(sampling, thread_name_prefix="sample")
        self._calls: deque[Call] = deque()  # of the step, to be made yet
        self._rows: list[tuple[int, int]] | None = None  # of the call that was made last; None: there was none
        seat = seat or Alone()
        seat.sit(self.threads)
        self.use(seat.share())
        with ThreadPoolExecutor(1) as beside:  # every token is looked at: most of it beside what the device does
            described = beside.submit(self._describe, slots)
            measured = beside.submit(lambda: self.vocabulary.longest)
            self._warm_up(slots, lib.llama_n_ctx_seq(self._ctx))
            self.info = described.result()
            measured.result()

    # --- loading

    def _load(self, path: str, reorder: bool) -> Any:
        params = lib.llama_model_default_params()
        params.use_extra_bufts = reorder
        params.n_gpu_layers = -1 if self._gpu else 0
        params.split_mode = self._split
        return load(path, params)

    def _context(self, slots: int, context: int) -> Any:
        params = lib.llama_context_default_params()
        params.n_ctx = context * slots
        params.n_seq_max = slots
        params.n_outputs_max = slots  # a gigabyte less where a pass has 2,048 tokens and a vocabulary 128,000
        params.n_batch = self.batch
        # the CPU gets its calls piece by piece: longer passes would only take memory (`quantize/footprint.py: on_cpu`)
        params.n_ubatch = min(self.batch, self._ubatch if self._gpu else max(2 * BLOCK, slots))
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
        text = ctypes.create_string_buffer(256)
        lib.llama_model_desc(self._model, text, 256)
        return ModelInfo(
            vocab=self._n_vocab,
            context=lib.llama_n_ctx_seq(self._ctx),
            slots=slots,
            eos=self.vocabulary.ends,
            can_trim=not recurrent,
            exact_block=0 if self._gpu else BLOCK,
            description=text.value.decode(errors="replace"),
            parameters=lib.llama_model_n_params(self._model),
            size=lib.llama_model_size(self._model),
            samples=self.vocabulary.samples,
            overlaps=self._gpu,
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

    def _warm_up(self, slots: int, context: int) -> None:
        """One token, so that the first request does not pay for page faults and thread creation. Raises ModelInvalid
        for weights that compute nothing."""
        token = max(self.vocabulary.bos, 0)
        self._decode(Call([Chunk(0, 0, [token], True)]))
        lib.llama_get_logits_ith(self._ctx, 0)
        logits = np.ctypeslib.as_array(lib.llama_get_logits(self._ctx), (self._n_vocab,))
        if np.isnan(logits).any() or not np.isfinite(logits.max()):
            raise ModelInvalid("the model's weights are damaged: what it computes is not a number")
        lib.llama_memory_clear(self._memory, False)
        if self._gpu:
            self._load_kernels(token, slots, context)

    def _load_kernels(self, token: int, slots: int, context: int) -> None:
        """A GPU loads a kernel when it is first asked for, and has others for other numbers of tokens, even and odd:
        the first requests would wait for that. Prompts are followed by a token, as requests are. Above 128 tokens no
        size was slower the first time than the next (benchmarks/results/deploy.md); the largest pass is there for its
        memory, which the planner measures next."""
        most = min(self._ubatch, context - 1)
        calls = [(1, n) for n in (*range(1, 9), 13, 16, 24, 32, 48, 61, 64, 96, 128) if n < most]
        calls.append((1, most))
        calls += [(n, 1) for n in (2, 3, 4, 8, 16, 32, 64, 128, 256) if n <= min(slots, most)]
        for sequences, n in calls:
            for start, size in ((0, n), (n, 1)):
                call = [Chunk(slot, start, [token] * size, True) for slot in range(sequences)]
                self._sample_all(self._decode(Call(call)), NO_MASKS)
            lib.llama_memory_clear(self._memory, False)

    # --- a step

    def use(self, threads: int) -> None:
        if self._gpu:
            return
        lib.llama_set_n_threads(self._ctx, threads, threads)
        self._sampling.use(max(1, threads // 2))

    def launch(self, plan: Plan) -> None:
        """Raises LlmdError when llama.cpp cannot compute it: the context is then unusable."""
        for start in plan.starts:
            self._start(start)
        self._calls, self._rows = self._dealt(plan.chunks), None
        if self._gpu:
            self._call_next()

    def collect(self, masks: Masks = NO_MASKS) -> abc.Iterator[list[Sample]]:
        """Raises LlmdError when llama.cpp cannot compute the step: the context is then unusable."""
        if not self._gpu:
            self._call_next()
        while self._rows is not None:
            samples = self._sample_all(self._rows, masks) if self._rows else []
            if self._gpu:  # it computes the next call's while this one's are looked at
                self._call_next()
            if samples:
                yield samples
            if not self._gpu:
                self._call_next()

    def _call_next(self) -> None:
        """Make the next call: a GPU begins with it, the CPU computes it."""
        self._rows = self._decode(self._calls.popleft()) if self._calls else None

    def _dealt(self, chunks: list[Chunk]) -> deque[Call]:
        """What each call computes."""
        if self._gpu:
            return deque(passes(chunks, self._ubatch, self.info.context, self._held if self.info.can_trim else None))
        return deque(blocks(chunks))

    def _sample_all(self, rows: list[tuple[int, int]], masks: Masks) -> list[Sample]:
        """One a row, in their order. `rows` are all the outputs of the last call, so the n-th is the n-th row of its
        logits."""
        # waits for the device, and sorts the rows once, so that the threads only read
        lib.llama_get_logits_ith(self._ctx, rows[0][0])
        at, size = ctypes.cast(lib.llama_get_logits(self._ctx), ctypes.c_void_p).value or 0, self._n_vocab
        likeliest = self._likeliest(at, rows)
        held = [i for i, (_, slot) in enumerate(rows) if slot in masks]
        if held:
            self._sampling.forbid(at, size, held, [masks[rows[i][1]] for i in held])
        simple = [i for i, (_, slot) in enumerate(rows) if slot not in self._samplers]
        others = [i for i, (_, slot) in enumerate(rows) if slot in self._samplers]
        tokens: dict[int, int] = {}
        if simple:
            slots = [rows[i][1] for i in simple]
            tokens |= zip(simple, self._sampling.choose(at, size, simple, slots), strict=True)
        if others:
            tokens |= zip(others, self._chosen([rows[i] for i in others]), strict=True)
        shown = {i: self._shown(i, tokens[i], *found) for i, found in likeliest.items()}
        return [Sample(slot, tokens[i], shown.get(i)) for i, (_, slot) in enumerate(rows)]

    def _likeliest(self, at: int, rows: list[tuple[int, int]]) -> dict[int, tuple[Pairs, float]]:
        """Of the rows whose requests want log-probabilities, under the model's own distribution: before anything is
        forbidden. The likeliest tokens, and what a logit is less by than its log-probability."""
        wanted = {i: self._logprobs[slot] for i, (_, slot) in enumerate(rows) if slot in self._logprobs}
        if not wanted:
            return {}
        found = self._sampling.likeliest(at, self._n_vocab, list(wanted), max(wanted.values()))
        return {
            i: (tuple((int(t), float(v - norm)) for t, v in zip(ids[:count], values[:count], strict=True)), float(norm))
            for (i, count), ids, values, norm in zip(wanted.items(), *found, strict=True)
        }

    def _shown(self, row: int, token: int, top: Pairs, norm: float) -> Logprob:
        return Logprob(token, float(self._row(row)[token]) - norm, top)

    def _row(self, n: int) -> Floats:
        """The logits of the n-th output."""
        rows = np.ctypeslib.as_array(lib.llama_get_logits(self._ctx), (n + 1, self._n_vocab))
        return cast(Floats, rows[n])

    def _chosen(self, rows: list[tuple[int, int]]) -> abc.Iterable[int]:
        """By llama.cpp's samplers."""
        n = self._sampling.threads
        if n == 1:
            return [self._by_chain(*row) for row in rows]
        parts = self._pool.map(lambda at: [self._by_chain(*row) for row in rows[at::n]], range(n))
        return [token for row in itertools.zip_longest(*parts) for token in row if token is not None]

    def _by_chain(self, row: int, slot: int) -> int:
        return int(lib.llama_sampler_sample(self._samplers[slot], self._ctx, row))

    def _held(self, slot: int) -> int:
        return int(lib.llama_memory_seq_pos_max(self._memory, slot)) + 1

    def _start(self, start: Start) -> None:
        if start.copy_from >= 0:
            lib.llama_memory_seq_rm(self._memory, start.slot, -1, -1)
            lib.llama_memory_seq_cp(self._memory, start.copy_from, start.slot, -1, -1)
        if self.info.can_trim or start.keep == 0:
            lib.llama_memory_seq_rm(self._memory, start.slot, start.keep, -1)
        self._sample_with(start)
        self._logprobs.pop(start.slot, None)
        if start.params.logprobs is not None:
            self._logprobs[start.slot] = start.params.logprobs

    def _decode(self, call: Call) -> list[tuple[int, int]]:
        """Compute the chunks, or have the GPU begin with them. Returns (row in the batch, slot) of each that is to be
        sampled."""
        chunks, filling = call.chunks, call.filling
        lengths = [len(chunk.tokens) for chunk in chunks]
        ends = list(itertools.accumulate(lengths))
        size = ends[-1]
        self._token[:size] = [token for chunk in chunks for token in chunk.tokens]
        self._seq[:size] = np.repeat([chunk.slot for chunk in chunks], lengths)
        back = [end - length - chunk.start for chunk, end, length in zip(chunks, ends, lengths, strict=True)]
        self._pos[:size] = np.arange(size) - np.repeat(back, lengths)
        rows = [(e - filling.get(c.slot, 0) - 1, c.slot) for c, e in zip(chunks, ends, strict=True) if c.sample]
        self._out[:size] = 0
        self._out[[row for row, _ in rows]] = 1
        self._batch.n_tokens = size
        status = lib.llama_decode(self._ctx, self._batch)
        if status != 0:
            raise LlmdError(f"llama.cpp could not compute a step (status {status})")
        for chunk in chunks if filling else ():
            if more := filling.get(chunk.slot):
                lib.llama_memory_seq_rm(self._memory, chunk.slot, chunk.start + len(chunk.tokens) - more, -1)
        return rows

    # --- sampling

    def _sample_with(self, start: Start) -> None:
        """What it samples with; one that had a place before goes on with what it had there."""
        memo, slot = start.memo, start.slot
        was = next((other for other, one in self._memos.items() if one is memo), slot) if start.generated else slot
        for left in {slot, was}:
            before = self._memos.pop(left, None)
            if before is not None and left not in self._samplers:
                before.state = self._sampling.state(left)
            self._samplers.pop(left, None)
        self._memos[slot] = memo
        if isinstance(memo.state, Chain):
            self._samplers[slot] = memo.state.address
        elif memo.state is not None:
            self._sampling.resume(slot, memo.state)
        else:
            seed = secrets.randbits(64) if start.params.seed is None else start.params.seed + start.choice
            if is_simple(start.params):
                self._sampling.start(slot, start.params, seed)
            else:
                memo.state = Chain(start.params, start.prompt, seed, self._n_vocab, self.info.context)
                self._samplers[slot] = memo.state.address

    def close(self) -> None:
        """Free the device's memory. The runner cannot be used after."""
        self._pool.shutdown()
        self._sampling.close()
        self._memos.clear()
        lib.llama_free(self._ctx)
        lib.llama_model_free(self._model)

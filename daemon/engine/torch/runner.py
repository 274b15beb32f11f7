"""The runner on torch: one model over one pool of pages.

On the CPU it computes in float32: oneDNN's bfloat16 and float16 make code as they run, which a worker may not
(`MemoryDenyWriteExecute`), and another CPU's text would be another one. What a row becomes there depends on how many
others are computed with it. So generating sequences are computed in passes of ROWS, filled up where they are fewer, and
every piece of a prompt by itself (`engine/llama/passes.py: blocks`).

This room's files and the programs of `quantize/checkpoints/` are the only ones that import torch.
"""

import os
import secrets
from collections import abc, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# before torch is imported: oneDNN's AMX kernels kill the process where a hypervisor shows AMX and does not carry it
# out; and products are the same to the last bit on any number of threads (on an EPYC they take a fifth less time, too)
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_FP16")
os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")

import torch

from llmd.daemon.engine.llama.passes import BLOCK, blocks
from llmd.daemon.engine.llama.vocabulary import Vocabulary, of_file
from llmd.daemon.engine.pages import PAGE, Pages
from llmd.daemon.engine.torch import sampling, weights
from llmd.daemon.engine.torch.architecture import Architecture
from llmd.daemon.engine.torch.ops import Ops, Reference, Rows, Span
from llmd.daemon.engine.torch.sampling import Drawing
from llmd.daemon.engine.torch.transformer import Model
from llmd.daemon.engine.types import NO_MASKS, Chunk, Masks, ModelInfo, Plan, Sample, Start
from llmd.daemon.errors import ModelInvalid, Unavailable
from llmd.daemon.machine.cores import Alone, Seat, available

ROWS = 8
CONTEXT = 4096  # tokens a slot, where nobody says


@dataclass(frozen=True, slots=True)
class Pass:
    """`wanted` are the rows that are sampled, for `slots`, and maybe others."""

    rows: Rows
    wanted: torch.Tensor
    slots: list[int]


class TorchRunner:
    """Loads the model of a `folder`, with the vocabulary of `header`, a GGUF file of it that may end behind its header.

    It has `slots` rows of `context` tokens (0: the model's own, at most 4,096), in `pages` of 64 positions (0: as many
    as all slots need). `threads` is the most for the arithmetic (0: the cores this process may use); until `use` says
    otherwise as many as `seat` has. `device`: cpu or cuda. Raises ModelInvalid for a folder that it does not compute,
    Unavailable where there is no memory for it.
    """

    def __init__(
        self,
        folder: str,
        header: str,
        *,
        slots: int,
        context: int = 0,
        pages: int = 0,
        threads: int = 0,
        device: str = "cpu",
        seat: Seat | None = None,
    ) -> None:
        torch.set_grad_enabled(False)
        self._device, self._gpu = torch.device(device), device != "cpu"
        self.threads = 1 if self._gpu else threads or available()
        seat = seat or Alone()
        seat.sit(self.threads)
        self.use(seat.share())
        a, tensors = weights.folder(folder)
        self.vocabulary: Vocabulary = of_file(header)
        if self.vocabulary.size != a.vocab:
            raise ModelInvalid(
                f"the vocabulary has {self.vocabulary.size} tokens and the model {a.vocab}: import the folder again"
            )
        context = min(context or CONTEXT, a.context)
        pages = max(pages or slots * -(-context // PAGE), -(-context // PAGE))
        self._ops: Ops = Reference(self._device, torch.bfloat16 if self._gpu else torch.float32)
        try:
            self._model = Model(self._ops, a, tensors, context=context, pages=pages, size=PAGE)
        except (MemoryError, RuntimeError) as e:  # torch says so of either device
            if not isinstance(e, torch.OutOfMemoryError | MemoryError) and "memory" not in str(e):
                raise
            raise Unavailable(
                f"there is not enough memory for {pages} pages of {PAGE} tokens; deploy with fewer --slots or a "
                "smaller --ctx"
            ) from e
        self.info = self._described(a, sum(t.nbytes for t in tensors.values()), slots, context)
        self.space = Pages(self.info, pages)
        self._drawings: dict[int, Drawing] = {}
        self._passes: deque[Pass] = deque()  # of the step, to be computed yet
        self._ready: deque[tuple[Pass, torch.Tensor]] = deque()  # that the device is at, or has computed
        self._warm_up()

    def _described(self, a: Architecture, size: int, slots: int, context: int) -> ModelInfo:
        own = [(outputs, inputs) for at in range(a.layers) for _, outputs, inputs in a.linears(at)]
        parameters = sum(outputs * inputs for outputs, inputs in own) + a.vocab * a.width * (1 if a.tied else 2)
        kind = f"GPTQ {a.gptq.bits} bit" if a.gptq else "full precision"
        return ModelInfo(
            vocab=a.vocab,
            context=context,
            slots=slots,
            eos=self.vocabulary.ends,
            can_trim=True,
            exact_block=0 if self._gpu else BLOCK,
            description=f"{a.name.removesuffix('ForCausalLM').lower()} {parameters / 1e9:.2g}B {kind}",
            parameters=parameters,
            size=size,
            overlaps=self._gpu,
        )

    def _warm_up(self) -> None:
        """One token in a page that nobody has yet. Raises ModelInvalid for weights that compute nothing."""
        logits = self._computed(self._pass([Chunk(0, 0, [max(self.vocabulary.bos, 0)], True)], [[0]]))
        if not bool(logits.isfinite().all()):
            raise ModelInvalid("the model's weights are damaged: what it computes is not a number")

    # --- a step

    def use(self, threads: int) -> None:
        if not self._gpu:
            torch.set_num_threads(threads)

    def launch(self, plan: Plan) -> None:
        for start in plan.starts:
            self._start(start)
        self._passes, self._ready = deque(self._dealt(plan.chunks)), deque()
        while self._gpu and self._passes:
            self._compute_next()

    def collect(self, masks: Masks = NO_MASKS) -> abc.Iterator[list[Sample]]:
        while self._passes or self._ready:
            if not self._ready:
                self._compute_next()
            done, logits = self._ready.popleft()
            if done.slots:
                yield self._sampled(done.slots, logits, masks)

    def _start(self, start: Start) -> None:
        if start.copy:
            self._model.copy(*start.copy)
        if start.memo.state is None:
            seed = secrets.randbits(64) if start.params.seed is None else start.params.seed + start.choice
            start.memo.state = Drawing(start.params, start.prompt, seed)
        self._drawings[start.slot] = start.memo.state

    def _dealt(self, chunks: list[Chunk]) -> Iterator[Pass]:
        """The tables are as they are now: a sequence may end, and lose its pages, while it is computed."""
        parts = [chunks] if self._gpu and chunks else []
        if not self._gpu:
            calls = [call.chunks for call in blocks(chunks)]
            parts = [call[at : at + ROWS] for call in calls for at in range(0, len(call), ROWS)]
        return (self._pass(part, [self.space.tables[chunk.slot] for chunk in part]) for part in parts)

    def _pass(self, chunks: Sequence[Chunk], tables: Sequence[Sequence[int]]) -> Pass:
        tokens: list[int] = []
        positions: list[int] = []
        pages: list[int] = []
        spans: list[Span] = []
        wanted: list[int] = []
        for chunk, table in zip(chunks, tables, strict=True):
            begin, end = len(tokens), len(tokens) + len(chunk.tokens)
            own = range(chunk.start, chunk.start + len(chunk.tokens))
            tokens += chunk.tokens
            positions += own
            pages += [table[at // PAGE] for at in own]
            spans.append(Span(begin, end, own.stop, self._tensor(table)))
            wanted += [end - 1] if chunk.sample else []
        if not self._gpu:  # a pass of generating sequences and what is sampled of any have as many rows everywhere
            single = len(tokens) == len(chunks)
            positions += [0] * (ROWS - len(tokens)) if single else []
            tokens += [0] * (ROWS - len(tokens)) if single else []
            wanted += [0] * (ROWS - len(wanted)) if wanted else []
        places = [at % PAGE for at in positions[: len(pages)]]
        rows = Rows(self._tensor(tokens), self._tensor(positions), spans, self._tensor(pages), self._tensor(places))
        return Pass(rows, self._tensor(wanted), [chunk.slot for chunk in chunks if chunk.sample])

    def _tensor(self, numbers: Sequence[int]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self._device)

    def _compute_next(self) -> None:
        one = self._passes.popleft()
        self._ready.append((one, self._computed(one)))

    def _computed(self, one: Pass) -> torch.Tensor:
        return self._model.logits(one.rows, one.wanted)[: len(one.slots)]

    def _sampled(self, slots: list[int], logits: torch.Tensor, masks: Masks) -> list[Sample]:
        drawings = [self._drawings[slot] for slot in slots]
        counts = [one.params.logprobs for one in drawings]
        found = {row: sampling.likeliest(logits[row], count) for row, count in enumerate(counts) if count is not None}
        sampling.forbid(logits, [(row, masks[slot]) for row, slot in enumerate(slots) if slot in masks])
        tokens = self._ops.sample(logits, drawings)
        return [
            Sample(slot, token, sampling.logprob(token, found[row]) if row in found else None)
            for row, (slot, token) in enumerate(zip(slots, tokens, strict=True))
        ]

    def close(self) -> None:
        """Free the device's memory. The runner cannot be used after."""
        del self._model
        self._passes.clear()
        self._ready.clear()

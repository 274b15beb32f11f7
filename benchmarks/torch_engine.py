#!/usr/bin/env python3
"""The torch engine on a GPU against itself on the CPU, in float32: what it computes there, and whether every sequence
ends once where the pool is a third of what all slots would need; and how many tokens a second it gives.

PYTHON benchmarks/torch_engine.py FOLDER HEADER --library LLAMA_CPP [--device cuda] [--out FILE.md]

PYTHON has torch (`make setup-torch`: .build/torch/bin/python). HEADER is a GGUF file of the FOLDER's model, which may
end behind its header; LLAMA_CPP the folder of that package. Packed weights are computed as they are unpacked.
"""

import argparse
import random
import sys
import time
import types
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
package = types.ModuleType("llmd")
package.__path__ = [str(ROOT)]
sys.modules["llmd"] = package

from llmd.daemon.engine.torch.borrowed import borrow  # noqa: E402

SLOTS, CONTEXT, TEXT = 64, 512, 448


def logits(folder: str, ids: list[int], device: str) -> Any:
    """float32 [tokens, vocabulary], on the CPU; the model is freed."""
    import torch

    from llmd.daemon.engine.pages import PAGE
    from llmd.daemon.engine.torch import ops, weights
    from llmd.daemon.engine.torch.transformer import Model

    a, tensors = weights.folder(folder)
    where = torch.device(device)
    made = ops.Reference(where, torch.float32 if device == "cpu" else torch.bfloat16)
    model = Model(made, a, tensors, context=CONTEXT, pages=CONTEXT // PAGE, size=PAGE)
    at = torch.arange(len(ids), device=where)
    span = ops.Span(0, len(ids), len(ids), torch.arange(CONTEXT // PAGE, device=where))
    rows = ops.Rows(torch.tensor(ids, device=where), at, [span], at // PAGE, at % PAGE)
    return model.logits(rows, at).cpu()


def likeness(folder: str, ids: list[int], device: str) -> dict[str, str]:
    one, other = (logits(folder, ids, where).double().log_softmax(-1) for where in ("cpu", device))
    loss = (one.exp() * (one - other)).sum(-1)
    same = (one.argmax(-1) == other.argmax(-1)).double().mean()
    return {
        f"same likeliest token, of {len(ids)}": f"{float(same):.1%}",
        "KL divergence from float32, mean and most": f"{float(loss.mean()):.5f}, {float(loss.max()):.5f}",
    }


def run(runner: Any, requests: list[Any], dice: random.Random | None = None) -> tuple[dict[Any, int], int, float]:
    """How often each choice ended, how many lost their places, and output tokens a second. `dice`: they come and go."""
    from llmd.daemon.engine.scheduler import Scheduler

    s = Scheduler(runner.info, batch=2048, chunk=512, space=runner.space)
    ends: dict[Any, int] = {}
    lost, count, waiting = 0, 0, list(requests)
    began = time.monotonic()
    while s.busy or waiting:
        for _ in range(dice.choice((0, 0, 3)) if dice and s.busy else len(waiting)):
            if waiting:
                s.add(waiting.pop())
        before = {one for one in s.running if one.generated}
        plan = s.plan()
        lost += sum(one.slot < 0 for one in before)
        runner.launch(plan)
        for samples in runner.collect():
            for token in s.apply(plan, samples):
                count += 1
                if token.finish:
                    key = (token.sequence.request.id, token.sequence.choice)
                    ends[key] = ends.get(key, 0) + 1
    return ends, lost, count / (time.monotonic() - began)


def requests(ids: list[int], count: int, tokens: int, dice: random.Random | None = None) -> list[Any]:
    from llmd.daemon.engine.types import Request, SamplingParams

    found = []
    for at in range(count):
        own = dice or random.Random(at)
        begin, length = own.randrange(100), own.randrange(8, 300) if dice else 130
        params = SamplingParams(own.randrange(1, tokens) if dice else tokens, ignore_eos=True, seed=at)
        found.append(
            Request(at, f"owner {at % 5}", tuple(ids[begin : begin + length]), params, 1 + at % 2 if dice else 1)
        )
    return found


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("folder")
    ap.add_argument("header")
    ap.add_argument("--library", required=True)
    ap.add_argument("--device", default="cuda")
    ap.add_argument("--out", type=Path)
    a = ap.parse_args()
    borrow(a.library)
    import torch

    from llmd.daemon.engine.torch.runner import TorchRunner

    made = TorchRunner(
        a.folder, a.header, slots=SLOTS, context=CONTEXT, device=a.device, pages=SLOTS * CONTEXT // 64 // 3
    )
    text = (ROOT / "README.md").read_text()
    ids = made.vocabulary.tokenize(text, add_special=True, parse_special=False)[:TEXT]
    rows = likeness(a.folder, ids, a.device)
    asked = requests(ids, 120, 120, random.Random(1))
    ends, lost, _ = run(made, asked, random.Random(2))
    wanted = sum(one.choices for one in asked)
    assert len(ends) == wanted and set(ends.values()) == {1}, "a sequence did not end once"
    rows[f"{wanted} sequences that come and go, a third of the pages: ended once"] = f"all; {lost} lost their places"
    for streams in (1, 8, 64):
        run(made, requests(ids, streams, 8))
        rows[f"output tokens/s, {streams} streams"] = f"{run(made, requests(ids, streams, 64))[2]:.0f}"
    device = torch.cuda.get_device_name() if a.device == "cuda" else "the CPU"
    head = f"{device}, torch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d}. {made.info.description}, {SLOTS} slots."
    lines = [head, "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    print("\n".join(lines))
    if a.out:
        a.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

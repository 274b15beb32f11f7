#!/usr/bin/env python3
"""What it takes to render a chat: in a process of its own and without, and with as many special tokens as models have.

python benchmarks/rendering.py        results in benchmarks/results/rendering.md
"""

import argparse
import re
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from run import machine

from llmd.daemon.engine.renderers import Nursery, Rendered
from llmd.daemon.engine.rendering import Rendering, Terms, any_of
from llmd.daemon.wire.work import Chat, ChatMessage

HERE = Path(__file__).parent
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
SPECIALS = {
    "Llama 3, 256": [f"<|reserved_special_token_{n}|>" for n in range(250)] + ["<|eot_id|>", "<|begin_of_text|>"],
    "Gemma 3, 6,246": [f"<unused{n}>" for n in range(6242)] + ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"],
}
TEXTS = {"words": "hello world ", "HTML": "hello <b>world</b> ", "only `<`": "<"}
SIZE = 100_000  # characters of a message


def median(work: Callable[[], object], rounds: int) -> float:
    """Milliseconds."""
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        took.append(1000 * (time.perf_counter() - began))
    return statistics.median(took)


def chat(turns: int, size: int) -> Chat:
    return Chat(tuple(ChatMessage(("user", "assistant")[i % 2], "word " * (size // 5)) for i in range(turns)))


def processes(rounds: int) -> list[str]:
    terms = Terms(TEMPLATE, "", "", tuple(SPECIALS["Llama 3, 256"]))
    here, there = Rendering(terms), Rendered(Nursery(), terms)
    rows = []
    for turns, size in ((1, 100), (20, 500), (100, 2000), (1000, 4000)):
        given = chat(turns, size)
        took = [median(lambda one=one, given=given: one.text(given), rounds) for one in (here, there)]  # type: ignore[misc]
        rows.append(f"| {turns:,} turns of {size:,} characters | {took[0]:.2f} ms | {took[1]:.2f} ms |")
    there.close()
    return rows


def specials(rounds: int) -> list[str]:
    def one_by_one(texts: Sequence[str]) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, texts)))

    rows = []
    for model, texts in SPECIALS.items():
        before, now = one_by_one(texts), any_of(texts)
        for what, piece in TEXTS.items():
            text = piece * (SIZE // len(piece))
            took = [median(lambda p=p, text=text: p.sub("", text), rounds) for p in (before, now)]  # type: ignore[misc]
            rows.append(f"| {model} | {what} | {took[0]:.2f} ms | {took[1]:.2f} ms |")
    return rows


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=15)
    p.add_argument("--out", default=str(HERE / "results" / "rendering.md"))
    a = p.parse_args()
    beside, found = processes(a.rounds), specials(max(3, a.rounds // 5))
    text = (
        f"# What it takes to render a chat\n\n{machine()}, {datetime.now(UTC):%Y-%m-%d}. Medians. Command: "
        "`.venv/bin/python benchmarks/rendering.py`\n\n| chat | in the worker itself | in a process beside it |\n"
        "|---|---|---|\n" + "\n".join(beside) + "\n\nTexts of special tokens, looked for in a message of "
        f"{SIZE:,} characters:\n\n| special tokens | message | one after the other | what begins alike once |\n"
        "|---|---|---|---|\n" + "\n".join(found) + "\n"
    )
    print(text)
    Path(a.out).write_text(text)


if __name__ == "__main__":
    main()

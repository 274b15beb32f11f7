"""Model files in a child process: real ones, hostile ones, and children that misbehave."""

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import psutil
import pytest
from gguf_writer import F32, STR, U32, tiny, tiny_bytes

from llmd.daemon.errors import ModelInvalid
from llmd.daemon.machine import memory
from llmd.daemon.models import checking
from llmd.daemon.models.checking import check, trial
from llmd.daemon.state.records import Info
from llmd.quantize.check import check_model
from llmd.quantize.header import read_header


async def test_the_real_model(model_file: Path) -> None:
    info = await check(model_file)
    assert info.architecture == "llama" and info.parameters == 134_515_008
    assert info.file_type == "Q4_1" and info.chat_template and info.size == model_file.stat().st_size


async def test_the_real_model_truncated(model_file: Path, tmp_path: Path) -> None:
    with model_file.open("rb") as file:
        (tmp_path / "x.gguf").write_bytes(file.read(4_000_000))
    with pytest.raises(ModelInvalid, match="truncated: 98362432 bytes expected, 4000000 there"):
        await check(tmp_path / "x.gguf")


async def test_the_tiny_model(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(tiny_bytes())
    assert (await check(tmp_path / "x.gguf")).name == "tiny 0"


async def test_a_model_that_memory_does_not_hold_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(tiny_bytes())
    size = path.stat().st_size
    for free, tried in ((size, False), (1 << 40, True)):
        monkeypatch.setattr(memory, "available", lambda free=free: free)
        assert (await trial(path, size))["tried"] is tried


async def test_what_only_llama_cpp_finds(tmp_path: Path) -> None:
    """Good headers of models that it cannot load: an unknown architecture, a tensor missing, of another shape, a key
    missing."""
    unknown, missing, reshaped, keyless = tiny(), tiny(), tiny(), tiny()
    unknown.keys["general.architecture"] = (STR, "nonesuch")
    unknown.keys |= {k.replace("llama.", "nonesuch."): v for k, v in unknown.keys.items() if k.startswith("llama.")}
    del missing.tensors["blk.0.attn_q.weight"]
    reshaped.tensors["blk.0.attn_q.weight"] = ((32, 16), 0)
    del keyless.keys["llama.attention.layer_norm_rms_epsilon"]
    says = [
        "unknown model architecture: 'nonesuch'. Known: afmoe, apertus",
        "attn_q.weight' not found",
        "wrong shape",
        "layer_norm_rms_epsilon",
    ]
    for i, file in enumerate((unknown, missing, reshaped, keyless)):
        (tmp_path / f"{i}.gguf").write_bytes(file.bytes())
    verdicts = await asyncio.gather(*(check(tmp_path / f"{i}.gguf") for i in range(4)), return_exceptions=True)
    for verdict, expected in zip(verdicts, says, strict=True):
        assert isinstance(verdict, ModelInvalid) and expected in verdict.message, verdict
        assert str(tmp_path) not in verdict.message


async def test_mutated_files_in_the_child(tmp_path: Path) -> None:
    """Keys and tensors with values that our reader lets pass: llama.cpp refuses, takes them or crashes, and we have a
    verdict."""
    rng = random.Random(3)
    files: list[Path] = []
    while len(files) < 6:
        file = tiny()
        key = rng.choice([k for k, v in file.keys.items() if v[0] in (U32, F32)])
        file.keys[key] = (file.keys[key][0], rng.choice((1, 2, 3, 7, 1023)))
        path = tmp_path / f"{len(files)}.gguf"
        path.write_bytes(file.bytes())
        try:
            check_model(read_header(path))
        except ModelInvalid:
            continue
        files.append(path)
    verdicts = await asyncio.gather(*(check(f) for f in files), return_exceptions=True)
    assert all(isinstance(v, Info | ModelInvalid) for v in verdicts), verdicts


CHILDREN = [
    ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", r"crashed \(SIGSEGV\): it is damaged or hostile"),
    ("import os; os.abort()", r"crashed \(SIGABRT\)"),
    ("import time; time.sleep(60)", "did not end within 0.7 s"),
    ("import sys\nwhile True: sys.stdout.write('x' * 4096)", "crashed|without a verdict"),
    ("print('garbage')", r"without a verdict"),
    ("print('[' * 60000)", "without a verdict"),
    ('print(\'{"ok": true, "info": {"size": 1}}\')', "without a verdict"),
    ("print('[]')", "without a verdict"),
    ("raise SystemExit(3)", r"without a verdict \(exit 3\)"),
    ('print(\'{"ok": false, "message": "a\\\\nb"}\')', r"^a\?b$"),
]


@pytest.mark.parametrize(("code", "says"), CHILDREN)
async def test_a_child_that_misbehaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, says: str) -> None:
    package = tmp_path / "llmd" / "quantize"
    package.mkdir(parents=True)
    (package / "check.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ModelInvalid, match=says):
        await check(tmp_path / "x.gguf", timeout=0.7 if "sleep" in code else 20.0)


SAYS = """
import json
from llmd.daemon.state.records import Info
from llmd.quantize.shape import Layer, Shape
layer = Layer(k=1, v=1, heads=1, kv_heads=1, q=1, ff=1, nbytes=1)
info = {
    "architecture": "llama", "name": "a", "parameters": 1, "file_type": "F16", "context_length": 1, "vocab": 1,
    "embedding_length": 1, "block_count": 1, "chat_template": True, "size": 1, "generation": {"top_k": 40},
    "shape": Shape("llama", 1, 1, 1, (layer,), 1, 1, host=1, output=1, file=1).to_dict(),
}
print(json.dumps({"ok": True, "info": info | ODD}))
"""


@pytest.mark.parametrize(
    "odd",
    [
        {"generation": {"temperature": float("nan")}}, {"name": "\ud800"}, {"size": 1.5},
        {"generation": {"top_k": True}}, {"shape": {}}, {},
    ],
    ids=str,
)  # fmt: skip
async def test_what_cannot_be_kept_is_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: dict[str, Any]
) -> None:
    """It would be read back as a damaged database, which holds every other model."""
    (tmp_path / "saying.py").write_text(SAYS.replace("ODD", f"json.loads({json.dumps(odd)!r})"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(checking, "CHECK", "saying")
    if not odd:
        assert (await check(tmp_path / "x.gguf")).generation == {"top_k": 40}
        return
    with pytest.raises(ModelInvalid, match="the check of this file ended without a verdict"):
        await check(tmp_path / "x.gguf")


async def test_a_cancelled_check_leaves_no_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "llmd" / "quantize"
    package.mkdir(parents=True)
    (package / "check.py").write_text("import time\ntime.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    before = psutil.Process().children()
    task = asyncio.create_task(check(tmp_path / "x.gguf"))
    while not (found := [child for child in psutil.Process().children() if child not in before]):
        await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not any(child.is_running() for child in found)

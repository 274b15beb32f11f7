"""Hugging Face folders of many kinds as GGUF: what was converted computes what the original does, and what does not is
found. The folders are made, and converted, in one process of the interpreter that has torch (`torch_side/`)."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch_folders import MODELS, PYTHON, needs_torch

from llmd.daemon.errors import ModelInvalid
from llmd.quantize.checkpoints import proof
from llmd.quantize.header import read_header

pytestmark = [pytest.mark.slow, needs_torch]

# llama.cpp is right: without tokenizer.json transformers forgets the space that Mistral's tokenizer begins with
OTHER_TOKENS = {"mistral-spm"}


@pytest.mark.parametrize("name", MODELS)
def test_what_is_converted_computes_what_the_original_does(folders: Path, name: str) -> None:
    found = proof.measured(str(folders / f"{name}.gguf"), str(folders / f"{name}.npz"), 2)
    # experts that are chosen nearly as well as others change sides
    assert found["difference"] < (proof.MOST_DIFFERENCE / 3 if name == "moe" else proof.MOST_DIFFERENCE / 8), found
    assert found["tokens"] > 80 and found["kl"] < 0.002
    assert found["same_tokens"] == (name not in OTHER_TOKENS)


def test_every_fault_is_beyond_the_bound(folders: Path) -> None:
    names = []
    for fault in sorted((folders / "faults").iterdir()):
        found = proof.measured(str(folders / "smollm2.gguf"), str(fault / "logits.npz"), 2)
        assert found["difference"] > 1.5 * proof.MOST_DIFFERENCE, (fault / "name").read_text()
        names.append((fault / "name").read_text())
    assert len(names) == 5


def test_a_model_that_the_converter_does_not_read_rightly(folders: Path) -> None:
    """A Gemma 3 whose attention is scaled otherwise than llama.cpp takes it to be."""
    found = proof.measured(str(folders / "gemma3-odd.gguf"), str(folders / "gemma3-odd.npz"), 2)
    assert found["difference"] > 1.5 * proof.MOST_DIFFERENCE


def test_template_special_tokens_and_generation_defaults_survive(folders: Path, model_file: Path) -> None:
    made, first = read_header(folders / "smollm2.gguf").metadata, read_header(model_file).metadata
    for key in ("tokens", "merges", "bos_token_id", "eos_token_id", "token_type", "model", "pre"):
        assert made[f"tokenizer.ggml.{key}"] == first[f"tokenizer.ggml.{key}"], key
    assert made["tokenizer.chat_template"].strip() == first["tokenizer.chat_template"].strip()
    assert made["general.sampling.temp"] == pytest.approx(0.25)
    assert made["general.sampling.top_p"] == pytest.approx(0.5)
    assert made["tokenizer.chat_template.tool_use"] == "{{ tools }}{{ messages }}"
    assert made["llmd.eos_token_ids"] == "2,0" and made["tokenizer.ggml.eot_token_id"] == 2


def test_packed_weights_are_what_they_stand_for(folders: Path) -> None:
    """Of GPTQ each weight is scale · (q - zero): here held against the packing's own arithmetic, in numpy."""
    header = read_header(folders / "gptq.gguf")
    tensor = next(t for t in header.tensors if t.name == "blk.1.ffn_up.weight")
    made = np.fromfile(folders / "gptq.gguf", np.uint16, 512 * 256, offset=header.data_offset + tensor.offset)
    assert tensor.type == "BF16"
    values = (made.astype(np.uint32) << 16).view(np.float32).reshape(512, 256)
    with np.load(folders / "packed.npz") as held:
        words, scales = held["qweight"].astype(np.uint32), held["scales"].astype(np.float32)
    q = np.stack([(words >> (4 * at)) & 15 for at in range(8)], axis=1).reshape(-1, words.shape[1]).astype(np.float32)
    wanted = (np.repeat(scales, 32, axis=0) * (q - 8)).T
    assert np.abs(values - wanted).max() <= 2**-8 * np.abs(wanted).max()


def said(what: str, folder: Path, *rest: str) -> list[dict[str, Any]]:
    """What the child says, without the terms that a daemon gives it."""
    package = Path(proof.__file__).resolve().parents[2]
    code = (
        "import sys, types, runpy; p = types.ModuleType('llmd'); p.__path__ = [sys.argv.pop(1)];"
        "sys.modules['llmd'] = p;"
        "runpy.run_module('llmd.quantize.checkpoints.converting', run_name='__main__', alter_sys=True)"
    )
    command = [str(PYTHON), "-P", "-c", code, str(package), what, str(folder), *rest]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_an_outline_is_the_file_without_its_data(folders: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "outline.gguf", folders / "llama-bpe.gguf"
    assert said("outline", folders / "llama-bpe", str(out))[-1] == {"ok": True, "bytes": whole.stat().st_size}
    head = read_header(whole).data_offset
    with out.open("rb") as a, whole.open("rb") as b:
        assert a.read(head) == b.read(head)
    assert out.stat().st_blocks * 512 < head + (1 << 20), "a hole where the data will be"


def test_a_proof_that_cannot_be_read(folders: Path, tmp_path: Path) -> None:
    (tmp_path / "logits.npz").write_bytes(b"none")
    command = [
        sys.executable,
        "-P",
        "-m",
        "llmd.quantize.checkpoints.proof",
        str(folders / "moe.gguf"),
        str(tmp_path / "logits.npz"),
    ]
    done = subprocess.run([*command, "2"], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["ok"] is False
    with pytest.raises(ModelInvalid, match="does not load"):
        proof.measured("/dev/null", str(folders / "moe.npz"), 2)

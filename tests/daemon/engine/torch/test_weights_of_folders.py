"""A folder is looked at in a child process before a worker takes memory for it: hostile ones are refused by their
reason, and nothing else happens."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from torch_folders import PYTHON, ROOT, needs_torch

pytestmark = [pytest.mark.slow, needs_torch, pytest.mark.timeout(600)]

# as `daemon/machine/children.py` starts it
CHILD = (
    "import runpy, sys, types; package = types.ModuleType('llmd'); package.__path__ = [sys.argv.pop(1)];"
    "sys.modules['llmd'] = package; runpy.run_module('llmd.daemon.engine.torch.weights', run_name='__main__')"
)
WEIGHTS = "model.safetensors"


def judged(folder: Path) -> dict[str, Any]:
    command = [str(PYTHON), "-P", "-B", "-c", CHILD, str(ROOT), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture
def folder(folders: Path, tmp_path: Path) -> Path:
    made = tmp_path / "model"
    shutil.copytree(folders / "llama-spm", made)
    return made


def test_a_whole_one_passes(folders: Path) -> None:
    for name in ("llama-spm", "gptq"):
        found = judged(folders / name)
        assert found["ok"] and found["architecture"] == "LlamaForCausalLM"
        assert 0.9 < found["bytes"] / (folders / name / WEIGHTS).stat().st_size <= 1


def test_what_is_cut_off_or_hostile_is_refused(folder: Path) -> None:
    good = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + length])
    name = "model.layers.0.mlp.up_proj.weight"

    def with_header(**changed: Any) -> bytes:
        text = json.dumps({**header, name: {**header[name], **changed}}).encode()
        return len(text).to_bytes(8, "little") + text + good[8 + length :]

    nan = bytearray(good)
    begin = 8 + length + header[name]["data_offsets"][0]
    nan[begin : begin + 2] = b"\xc0\x7f"  # of bfloat16
    wrong: dict[str, bytes] = {
        "is cut off": good[:-100],
        "cut off or is not a safetensors file": good[:200],
        "its header does not end within it": b"\xff" * 8 + good[8:],
        "is damaged": with_header(data_offsets=[0, 1 << 60]),
        "its shape needs": with_header(shape=[1 << 40, 1 << 20]),
        "has the type": with_header(dtype="F4"),
        "'model.layers.0.mlp.up_proj.weight' holds numbers that are none": bytes(nan),
    }
    for said, data in wrong.items():
        (folder / WEIGHTS).write_bytes(data)
        found = judged(folder)
        assert not found["ok"] and found["code"] == "model_invalid" and said in found["message"], found
        assert str(folder) not in found["message"]
    (folder / WEIGHTS).unlink()
    assert "has no weights" in judged(folder)["message"]


def test_another_models_configuration_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for changed, said in (
        ({"intermediate_size": 500}, "do not belong together"),
        ({"architectures": ["PhiForCausalLM"]}, "does not serve 'PhiForCausalLM'"),
        ({"num_hidden_layers": 4}, "they are of two models"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 7, "group_size": 128}}, "7 bits is not read"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 0}}, "group_size of GPTQ takes"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **changed}))
        found = judged(folder)
        assert not found["ok"] and said in found["message"], found

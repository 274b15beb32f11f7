"""A checkpoint's weights as tensors: read from their files a tensor at a time, unpacked where they are packed.

    python -P -m llmd.daemon.engine.torch.weights FOLDER

looks at every number of a folder before a worker takes memory for it, a piece at a time, and prints one JSON line:
`{"ok": true, …}` or `{"ok": false, "code": CODE, "message": TEXT}`; and exits with 0.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from llmd.daemon.engine.torch import architecture
from llmd.daemon.engine.torch.architecture import Architecture
from llmd.daemon.errors import ModelInvalid
from llmd.daemon.machine.telling import verdict
from llmd.quantize.checkpoints import checkpoint
from llmd.quantize.checkpoints.packing import GPTQ_PARTS
from llmd.quantize.checkpoints.safetensors import Tensor, shown

TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I32": torch.int32}
PIECE = 1 << 24  # elements that are looked at together


@dataclass(frozen=True, slots=True)
class Packed:
    """GPTQ's weight of [out, in] in words of 32 bits, the lowest bits first: `words` [in · bits / 32, out], `zeros`
    [groups, out · bits / 32], `scales` [groups, out], `groups` [in]: which one an input is in. Each zero is kept less
    by `less`. (Frantar et al. 2022; GPTQModel's qlinear for the packing.)"""

    words: torch.Tensor
    zeros: torch.Tensor
    scales: torch.Tensor
    groups: torch.Tensor
    bits: int
    less: int

    def unpacked(self) -> torch.Tensor:
        """float32 [out, in]: scale · (q - zero)."""
        steps = torch.arange(0, 32, self.bits, dtype=torch.int32, device=self.words.device)
        most = (1 << self.bits) - 1
        q = ((self.words[:, None, :] >> steps[None, :, None]) & most).flatten(0, 1)
        zeros = ((self.zeros[:, :, None] >> steps[None, None, :]) & most).flatten(1) + self.less
        at = self.groups.long()
        return (self.scales.float()[at] * (q - zeros[at]).float()).T.contiguous()


def folder(path: str) -> tuple[Architecture, dict[str, Tensor]]:
    """What is in a folder, by its headers. Raises ModelInvalid, OSError."""
    config, tensors = checkpoint.parts(Path(path))
    return architecture.read(config, tensors), tensors


def loaded(tensor: Tensor) -> torch.Tensor:
    """Its pages are read when they are used. Raises OSError."""
    if not tensor.nbytes:
        return torch.empty(tensor.shape, dtype=TYPES[tensor.type])
    # copy on write: torch wants memory that may be written, and what lies on the disk stays as it is
    data = np.memmap(tensor.file, np.uint8, "c", tensor.begin, (tensor.nbytes,))
    flat = torch.from_numpy(data)
    if tensor.begin % TYPES[tensor.type].itemsize:
        flat = flat.clone()
    return flat.view(TYPES[tensor.type]).reshape(tensor.shape)


def packed(base: str, tensors: Mapping[str, Tensor], a: Architecture) -> Packed:
    """Raises ModelInvalid, OSError."""
    assert a.gptq
    _check_groups(f"{base}.g_idx", tensors[f"{base}.g_idx"], tensors)
    words, zeros, scales, groups = (loaded(tensors[f"{base}.{part}"]) for part in GPTQ_PARTS)
    return Packed(words, zeros, scales, groups, a.gptq.bits, a.gptq.less)


# --- the child


def check(a: Architecture, tensors: Mapping[str, Tensor]) -> None:
    """Raises ModelInvalid for numbers that are none, and groups that there are not."""
    for name, tensor in tensors.items():
        if tensor.type == "I32":
            if name.endswith(".g_idx"):
                _check_groups(name, tensor, tensors)
            continue
        for piece in _pieces(tensor):
            if not bool(torch.isfinite(piece).all()):
                raise ModelInvalid(
                    f"the tensor {shown(name)} holds numbers that are none (NaN, infinity): the model is damaged, or "
                    "was not trained to its end"
                )


def _check_groups(name: str, tensor: Tensor, tensors: Mapping[str, Tensor]) -> None:
    count = tensors[f"{name.removesuffix('g_idx')}scales"].shape[0]
    for piece in _pieces(tensor):
        if int(piece.min()) < 0 or int(piece.max()) >= count:
            raise ModelInvalid(f"{shown(name)} names a group that is not among its {count}: the model is damaged")


def _pieces(tensor: Tensor) -> Iterator[torch.Tensor]:
    flat = loaded(tensor).reshape(-1)
    return (flat[at : at + PIECE] for at in range(0, flat.numel(), PIECE))


def judged(path: str) -> dict[str, object]:
    """What is known of a folder that passes. Raises ModelInvalid, OSError."""
    found, tensors = folder(path)
    own = {name: tensors[name] for name, _, _ in architecture.wanted(found, tensors)}
    check(found, own)
    return {"architecture": found.name, "bytes": sum(tensor.nbytes for tensor in own.values())}


if __name__ == "__main__":
    verdict(lambda _: judged(sys.argv[1]), "read this folder")

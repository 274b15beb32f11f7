"""How a checkpoint's weights are packed, by its configuration or, where that leaves it out, by what its tensors are."""

import re
from collections.abc import Mapping
from typing import Any

from llmd.daemon.errors import ModelInvalid
from llmd.quantize.checkpoints.safetensors import Tensor, shown

GPTQ, GPTQ_BITS = "gptq", (2, 4, 8)
GPTQ_PARTS = ("qweight", "qzeros", "scales", "g_idx")
# packed otherwise, and unpacked by the converter too
METHODS = (GPTQ, "fp8", "mxfp4", "compressed-tensors", "bitnet", "modelopt")
# GPTQ's parameters, as auto-gptq wrote them
BESIDE = "quantize_config.json"
# what others name a packed weight's parts
PARTS = {
    "bitsandbytes": r"\.(absmax|quant_map|quant_state(\.\w+)*|SCB)", "EXL2": r"\.(q_perm|q_scale_max)",
    "HQQ": r"\.W_q", "AQLM": r"\.(codebooks|codes)", "EETQ": r"\.weight_scales", "FP8": r"\.weight_scale_inv",
    "compressed-tensors": r"\.(weight_packed|weight_shape)",
}  # fmt: skip


def check_method(method: str) -> None:
    """Raises ModelInvalid for one that is not read."""
    if method and method not in METHODS:
        raise ModelInvalid(
            f"the model is quantized with {shown(method)}, which is not read: take it in full precision, or quantized "
            f"with one of {', '.join(METHODS)}"
        )


def completed(
    config: dict[str, Any], tensors: Mapping[str, Tensor], beside: Mapping[str, Any] | None
) -> dict[str, Any]:
    """A configuration that names no method, with the one that its tensors are of. `beside`: what BESIDE holds. Raises
    ModelInvalid where that cannot be read, with its name."""
    if any(t.type == "U32" and f"{_base(n)}.biases" in tensors for n, t in tensors.items() if n.endswith(".weight")):
        raise ModelInvalid(
            "the model is quantized with MLX, for Apple's machines, which is not read: take it in full precision"
        )
    for name, parts in PARTS.items():
        if any(re.search(f"{parts}$", tensor) for tensor in tensors):
            raise ModelInvalid(
                f"the model is quantized with {name}, and its config.json does not say how (quantization_config): take "
                "it in full precision, or with a whole configuration"
            )
    packed = next((name for name in tensors if name.endswith(".qweight")), None)
    if packed is None:
        return config
    if _is_awq(packed, tensors):
        check_method("awq")
    if beside is None:
        raise ModelInvalid(
            f"the model is quantized with GPTQ, and nothing says how: copy {BESIDE} too, or the configuration that has "
            "a quantization_config"
        )
    return {**config, "quantization_config": {**beside, "quant_method": GPTQ}}


def _base(name: str) -> str:
    return name.rpartition(".")[0]


def _is_awq(packed: str, tensors: Mapping[str, Tensor]) -> bool:
    """Its words hold a row's neighbours, GPTQ's a column's. (AutoAWQ, modules/linear/gemm.py.)"""
    scales = tensors.get(f"{_base(packed)}.scales")
    return scales is not None and len(scales.shape) == 2 and tensors[packed].shape[-1] * 8 == scales.shape[1]


def check_gptq(quantization: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """qweight [in · bits / 32, out], qzeros [groups, out · bits / 32], scales [groups, out], g_idx [in]; 32-bit words.
    (GPTQModel, nn_modules/qlinear.)"""
    bits, group = quantization.get("bits"), quantization.get("group_size")
    if bits not in GPTQ_BITS or type(bits) is not int:
        raise ModelInvalid(f"GPTQ with {str(bits)[:20]} bits is not read: {', '.join(map(str, GPTQ_BITS))} are")
    if type(group) is not int or not (group == -1 or group > 0):
        raise ModelInvalid("config.json is damaged: group_size of GPTQ takes -1 or a positive number")
    for name, packed in tensors.items():
        if not name.endswith(".qweight"):
            continue
        base = name.removesuffix("qweight")
        own = {part: tensors.get(base + part) for part in GPTQ_PARTS}
        if missing := [part for part, tensor in own.items() if tensor is None]:
            raise ModelInvalid(f"the tensor {shown(base + missing[0])} is missing: copy all of the model")
        if len(packed.shape) != 2:
            raise ModelInvalid(f"the tensor {shown(name)} has another shape than GPTQ's")
        rows, columns = packed.shape[0] * 32 // bits, packed.shape[1]
        groups = 1 if group == -1 else -(-rows // group)
        wanted = {
            "qweight": ("I32", packed.shape), "qzeros": ("I32", (groups, columns * bits // 32)),
            "scales": (None, (groups, columns)), "g_idx": ("I32", (rows,)),
        }  # fmt: skip
        for part, (kind, shape) in wanted.items():
            tensor = own[part]
            assert tensor is not None
            if tensor.shape != shape or (kind and tensor.type != kind):
                raise ModelInvalid(
                    f"the tensor {shown(base + part)} has the shape {list(tensor.shape)}, and {list(shape)} belongs to "
                    f"{bits} bits in groups of {group}: they do not belong together"
                )

"""Formats that refimpl refuses by name, each with a way to convert it."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from refimpl.errors import RefimplError
from refimpl.model.weight import DTYPES, StoredTensor

_PICKLE = (
    "convert it if you trust it, because pickles run code (transformers: "
    "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW))"
)
_GGUF = "pass the path of the .gguf file itself; of a split model, that of its first file"
_OTHER = "convert it (transformers: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW))"
CONVERSIONS = dict.fromkeys((".bin", ".pt", ".pth", ".ckpt"), _PICKLE) | {".gguf": _GGUF}
CONVERSIONS |= dict.fromkeys((".h5", ".msgpack", ".onnx"), _OTHER)

_ACCEPTED = {
    "quantised": (
        f"weights in {', '.join(DTYPES)}; FP8 (E4M3 with scales), MXFP4 or a GGUF file",
        "de-quantise it (transformers: model.dequantize().save_pretrained(DIR)) or use the "
        "original checkpoint",
    ),
    "multimodal": (
        "a text-only decoder, or a checkpoint that refimpl reads the text model of",
        "save only its language model (transformers: model.language_model.save_pretrained(DIR))",
    ),
    "adapter": (
        "the weights of a whole model",
        "merge it into its base model (peft: merge_and_unload().save_pretrained(DIR))",
    ),
}
_QUANTISED = re.compile(
    r"qweight|qzeros|g_idx|W_q|scales?$|_scale_inv$|absmax|quant_map|quant_state|\bSCB$"
)


def conversion(file: str | Path, otherwise: str = _OTHER) -> str:
    """How to convert a file of weights, by its suffix."""
    return CONVERSIONS.get(Path(file).suffix, otherwise)


def refusal(kind: str, problem: str, details: Sequence[str] = ()) -> RefimplError:
    """The refusal of a "quantised" or "multimodal" checkpoint, or of an "adapter"."""
    return RefimplError(problem, *_ACCEPTED[kind], details)


def refuse_quantised(tensors: Mapping[str, StoredTensor], unclaimed: list[str], path: Path) -> None:
    """Refuse a quantised checkpoint by the names and dtypes of its tensors."""
    names = [name for name in unclaimed if _QUANTISED.search(name)] + [
        name
        for name, tensor in tensors.items()
        if name.endswith(".weight") and re.match(r"F[468]_|[IU]\d+$", tensor.dtype)
    ]
    if names:
        problem = f"{path} is a quantised checkpoint ({len(names)} tensors such as {names[0]})"
        raise refusal("quantised", problem)

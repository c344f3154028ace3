"""Formats that refimpl refuses by name, each with a way to convert it."""

import re
from collections.abc import Mapping
from pathlib import Path

from refimpl.errors import RefimplError
from refimpl.model.weight import DTYPES, StoredTensor

_PICKLE = (
    "convert it if you trust it, because pickles run code (transformers: "
    "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW))"
)
_GGUF = (
    "de-quantise it (transformers: from_pretrained(DIR, gguf_file=FILE, quantization_config="
    "GgufConfig(dequantize=True)).save_pretrained(NEW))"
)
_OTHER = "convert it (transformers: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW))"
CONVERSIONS = dict.fromkeys((".bin", ".pt", ".pth", ".ckpt"), _PICKLE) | {".gguf": _GGUF}
CONVERSIONS |= dict.fromkeys((".h5", ".msgpack", ".onnx"), _OTHER)

_QUANTISED = re.compile(
    r"qweight|qzeros|g_idx|W_q|scales?$|_scale_inv$|absmax|quant_map|quant_state|\bSCB$"
)
_MULTIMODAL = re.compile(r"vision|visual|image|audio|multi_modal|mm_projector|language_model\.")
_ADAPTER = re.compile(r"\blora_|\badapter")


def conversion(file: str | Path, otherwise: str = _OTHER) -> str:
    """How to convert a file of weights, by its suffix."""
    return CONVERSIONS.get(Path(file).suffix, otherwise)


def quantised(problem: str) -> RefimplError:
    """The refusal of a quantised checkpoint."""
    return RefimplError(
        problem,
        f"weights in {', '.join(DTYPES)}",
        "de-quantise it (transformers: model.dequantize().save_pretrained(DIR)) or use the "
        "original checkpoint",
    )


def multimodal(problem: str) -> RefimplError:
    """The refusal of a multimodal model."""
    return RefimplError(
        problem,
        "a text-only decoder",
        "save only its language model (transformers: model.language_model.save_pretrained(DIR))",
    )


def adapter(problem: str) -> RefimplError:
    """The refusal of an adapter."""
    return RefimplError(
        problem,
        "the weights of a whole model",
        "merge it into its base model (peft: merge_and_unload().save_pretrained(DIR))",
    )


def refuse_formats(tensors: Mapping[str, StoredTensor], unclaimed: list[str], path: Path) -> None:
    """Refuse a quantised or multimodal checkpoint or an adapter by the names of its tensors."""
    low_precision = [
        name
        for name, tensor in tensors.items()
        if name.endswith(".weight") and re.match(r"F[468]_|[IU]\d+$", tensor.dtype)
    ]
    for names, kind, refusal in (
        (
            [*filter(_QUANTISED.search, unclaimed), *low_precision],
            "a quantised checkpoint",
            quantised,
        ),
        ([*filter(_MULTIMODAL.search, unclaimed)], "a multimodal checkpoint", multimodal),
        ([*filter(_ADAPTER.search, unclaimed)], "an adapter, not a model", adapter),
    ):
        if names:
            raise refusal(f"{path} is {kind} ({len(names)} tensors such as {names[0]})")

"""Checkpoints of a text model among others: its configuration, and which tensors are its own."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from refimpl.loading.config_keys import shown
from refimpl.loading.families import ALIASES, FAMILIES
from refimpl.loading.families.family import SIZES
from refimpl.loading.files.refused_formats import refusal

# `model_type` of checkpoints that compute from text alone what their text model computes, each as
# compared with transformers; some of their text models have a type of their own. Their heads
# neither scale nor cap logits, so text models that do (Cohere's, Granite's) are not among these.
COMPOSITES = (
    "gemma3", "mistral3", "llava", "llava_next", "idefics3", "smolvlm", "internvl", "qwen2_vl",
    "qwen2_5_vl", "qwen3_vl", "llama4", "qwen3_vl_moe", "lfm2_vl", "exaone4_5", "kimi_k25",
    "qwen3_5", "qwen3_5_moe", "gemma4", "gemma4_unified", "internvl_chat",
    "llava_next_video", "llava_onevision", "vipllava", "video_llava", "lighton_ocr", "got_ocr2",
    "ovis2", "deepseek_vl", "janus", "video_llama_3",
)  # fmt: skip
CAPPED = ("gemma4", "gemma4_unified")  # whose heads cap logits as their text models do
TEXT_FAMILIES = (
    "gemma3_text", "llama", "mistral", "ministral3", "qwen2", "qwen3", "llama4_text",
    "qwen3_moe", "lfm2", "exaone4", "deepseek_v3", "qwen3_5_text", "qwen3_5_moe_text",
    "gemma4_text", "gemma4_unified_text",
)  # fmt: skip
# Kinds whose files may hold the keys of the text model among those of images, and its type
FLAT = {"qwen2_vl": "qwen2_vl_text", "qwen2_5_vl": "qwen2_5_vl_text", "llava": "llama"}
OF_IMAGES = re.compile("(un)?(freeze|tune|use)?_?mm_|image_")
OTHERS = ("vision_config", "audio_config", "perceiver_config", "pixel_shuffle_factor")  # not text
# Sizes that published files omit: defaults of the configuration classes in transformers.
DEFAULTS: dict[str, dict[str, int]] = {
    family: dict(zip(SIZES, sizes, strict=True))
    for family, sizes in {
        "gemma3_text": (262208, 2304, 9216, 26, 8),
        "llama": (32000, 4096, 11008, 32, 32),
        "mistral": (32000, 4096, 14336, 32, 32),
    }.items()
}
OTHER_PARTS = (
    "vision_tower", "vision_model", "visual", "multi_modal_projector", "connector", "image_newline",
    "audio_tower", "embed_vision", "embed_audio", "vision_embedder",
    "mm_projector", "mlp1", "projector", "aligner", "image_tower", "video_tower",
    "vqmodel", "generation_head", "generation_aligner", "generation_embeddings",
    "visual_embeddings_table", "vision_encoder", "vision_projection",
)  # fmt: skip
# Where the text model's tensors and its head may be
PLACES = (
    ("model.language_model.", "lm_head"),
    ("language_model.model.", "language_model.lm_head"),
    ("model.text_model.", "lm_head"),
    ("model.", "lm_head"),
)
TIED = "tie_word_embeddings"
OUTER = (TIED, "quantization_config", "quantization", "compression_config")  # hold for the text
SECTIONS = ("mrope_section", "mrope_interleaved")  # three positions per token: equal ones in a text


def text_entries(entries: Mapping[str, Any], source: str) -> Mapping[str, Any] | None:
    """The `config.json` of the text model of a composite checkpoint; None if it is not one."""
    kind, inner = entries.get("model_type"), entries.get("text_config", entries.get("llm_config"))
    if kind not in COMPOSITES and not any(entries.get(key) for key in ("text_config", *OTHERS)):
        return None
    flat = inner is None and kind in FLAT and "hidden_size" in entries
    if kind not in COMPOSITES or not (flat or isinstance(inner, dict)):
        raise refusal("multimodal", f"{source} describes a multimodal model ({shown(kind)})")
    ours = dict(entries if flat else inner or {})
    if flat:
        ours = {k: v for k, v in ours.items() if not OF_IMAGES.match(k)}
        ours["model_type"] = FLAT[kind]
    ours = {k: v for k, v in ours.items() if k not in OTHERS and not k.endswith("_token_id")}
    name = shown(ours.get("model_type")).strip('"')
    family = (FAMILIES | ALIASES).get(name)
    capped = ours.get("final_logit_softcapping") and kind not in CAPPED
    if family is None or family.model_type not in TEXT_FAMILIES or capped:
        raise refusal("multimodal", f"{source} describes a multimodal model ({kind} of {name})")
    text = {**DEFAULTS.get(name, {}), **ours}
    for key in ("rope_scaling", "rope_parameters"):
        if isinstance(rope := text.get(key), dict) and SECTIONS[0] in rope:
            plain = {k: v for k, v in rope.items() if k not in SECTIONS}
            text[key] = {k: "default" if v == "mrope" else v for k, v in plain.items()}
    outer = {key: entries[key] for key in OUTER if entries.get(key) is not None}
    if (kind in FLAT and text.get(TIED) is True) or kind == "internvl_chat":
        outer.pop(TIED, None)  # one of both is enough; InternVL's own class has no head to tie
    return text | outer


def part(name: str) -> str:
    """The part of a checkpoint that has a tensor."""
    return name.removeprefix("model.").split(".")[0]


def parts(names: Iterable[str]) -> list[str]:
    """Parts of a checkpoint with their number of tensors, such as "vision_tower (2 tensors)"."""
    count = Counter(map(part, names))
    return [f"{name} ({n} tensor{'' if n == 1 else 's'})" for name, n in count.items()]

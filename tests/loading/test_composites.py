"""Checkpoints of a text model among others: the text is read, and all other parts stay."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import config_of
from conftest import FIXTURES
from gates import GATES, worst_token
from program import ran
from refusals import refusal_of
from safetensors.numpy import load_file, save_file

from refimpl import Pattern, forward, inspect, prune, read_model
from refimpl.loading.config_json import CAPPED, COMPOSITES, TEXT_NAMES, read_config

IDS = np.arange(2, 26).reshape(2, 12)
OTHERS = ("vision_tower.blocks.0.weight", "multi_modal_projector.bias")
VISION = {"vision_config": {"hidden_size": 3, "num_hidden_layers": 1}}


def composite(
    folder: Path, fixture: str, place: tuple[str, str], **config: Any
) -> Path:
    """A fixture as the text model of a checkpoint with a vision tower."""
    base, head = place
    stored = load_file(FIXTURES / fixture / "model.safetensors")
    tensors = {
        name.replace("lm_head", head)
        if name.startswith("lm_head")
        else base + name[6:]: x
        for name, x in stored.items()
    } | {name: np.arange(3, dtype=np.float32) for name in OTHERS}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


@pytest.mark.parametrize("place", TEXT_NAMES)
@pytest.mark.parametrize(
    ("kind", "fixture", "key"),
    [
        ("gemma3", "gemma3", "text_config"),
        ("llava", "llama", "text_config"),
        ("llava", "llama", ""),
        ("internvl_chat", "qwen2", "llm_config"),
        ("lfm2_vl", "lfm2", "text_config"),
        ("exaone4_5", "exaone4", "text_config"),
    ],
)
def test_the_text_model_is_that_of_its_own_checkpoint(
    kind: str, fixture: str, key: str, place: tuple[str, str], tmp_path: Path
) -> None:
    text = {key: config_of(fixture)}
    if not key:  # among keys of images, as the authors of LLaVA wrote it
        text = config_of(fixture) | {"mm_hidden_size": 3, "image_aspect_ratio": "pad"}
        text["freeze_mm_mlp_adapter"] = text["use_mm_proj"] = True
    folder = composite(
        tmp_path / "m", fixture, place, **text | VISION | {"model_type": kind}
    )
    model, alone = read_model(folder), read_model(FIXTURES / fixture)
    assert model.config == alone.config
    assert [tensor.name for tensor in model.ignored] == [*OTHERS[::-1]]
    ours, theirs = (forward(x, IDS, trace=True).trace for x in (model, alone))
    assert ours.keys() == theirs.keys()
    for point, value in theirs.items():
        np.testing.assert_array_equal(ours[point], value, point)


@pytest.mark.parametrize("flat", [True, False])
def test_rotary_sections_are_plain_in_a_text(flat: bool, tmp_path: Path) -> None:
    entries = config_of("qwen2") | {"rope_parameters": None, "rope_theta": 5000.0}
    sections = {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    text = entries | sections | {"model_type": "qwen2_vl_text"}
    config = text | {"image_token_id": 7} if flat else {"text_config": text}
    folder = composite(
        tmp_path / "m",
        "qwen2",
        TEXT_NAMES[3],
        **config | VISION | {"model_type": "qwen2_vl"},
    )
    alone = tmp_path / "alone"
    shutil.copytree(FIXTURES / "qwen2", alone)
    (alone / "config.json").write_text(json.dumps(entries), "utf-8")
    np.testing.assert_array_equal(
        *(forward(read_model(x), IDS).logits for x in (folder, alone))
    )


def test_pruning_copies_the_other_parts(tmp_path: Path) -> None:
    folder = composite(
        tmp_path / "m",
        "llama",
        TEXT_NAMES[1],
        model_type="llava",
        text_config=config_of("llama"),
        **VISION,
    )
    ran("prune", folder, "--nm", "2:4", "--pruner", "magnitude", "-o", tmp_path / "out")
    prune(
        read_model(FIXTURES / "llama"), tmp_path / "alone", Pattern(2, 4), "magnitude"
    )
    before, after, alone = (
        load_file(x / "model.safetensors")
        for x in (folder, tmp_path / "out", tmp_path / "alone")
    )
    assert before.keys() == after.keys()
    for name, x in after.items():
        inner = name.replace("language_model.model.", "model.").replace(
            "language_model.", ""
        )
        expected = before[name] if name in OTHERS else alone[inner]
        np.testing.assert_array_equal(x, expected, name)
    assert (tmp_path / "out" / "config.json").read_bytes() == (
        folder / "config.json"
    ).read_bytes()
    assert inspect(read_model(tmp_path / "out")).ignored[1] == "vision_tower (1 tensor)"
    assert "ignored     multi_modal_projector (1 tensor), vision" in ran(
        "inspect", tmp_path / "out"
    )


@pytest.mark.parametrize(
    "name",
    [
        "language_model.model.layers.0.mlp.extra",
        "language_model.extra",
        "model.layers.9.x",
    ],
)
def test_an_unknown_tensor_is_refused(name: str, tmp_path: Path) -> None:
    text = {"text_config": config_of("llama")}
    folder = composite(
        tmp_path / "m", "llama", TEXT_NAMES[1], model_type="llava", **text, **VISION
    )
    file = folder / "model.safetensors"
    save_file(load_file(file) | {name: np.ones(3, np.float32)}, file)
    refusal_of(read_model, folder, says=name)


def test_what_no_one_has_compared_is_refused() -> None:
    for kind, text in (
        ("paligemma", "llama"),
        ("llava", "cohere"),
        ("llava", "gemma2"),
    ):
        config = {"model_type": kind, "text_config": config_of(text)} | VISION
        refusal_of(read_config, config, says="multimodal")


TINY_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 101,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 12,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 6,
}
TINY_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "depth": 1,
    "embed_dim": 16,
    "num_heads": 2,
    "out_hidden_size": 32,
    "num_position_embeddings": 4,
    "deepstack_visual_indexes": [0],
    "fullatt_block_indexes": [0],
}


def as_published(kind: str, file: Path) -> None:
    """What transformers 5.24 saves in another layout than that of the files its authors wrote."""
    tensors = load_file(file)
    if (
        kind == "kimi_k25"
    ):  # it also renames the blocks of the text model, and loads them by either
        tensors = {
            name.replace("model.blocks.", "model.layers.")
            if "language" in name
            else name: x
            for name, x in tensors.items()
        }
    for name, x in tensors.items():
        if kind == "qwen3_vl_moe" and "mlp.experts." in name:
            tensors[name] = np.ascontiguousarray(x.swapaxes(1, 2))
    save_file(tensors, file, {"format": "pt"})


OURS = {"internvl_chat"}  # kinds whose code is not in transformers
KINDS = [(x, x == "kimi_k25") for x in COMPOSITES if x not in OURS] + [
    ("qwen3_vl_moe", True)
]


@pytest.mark.torch
@pytest.mark.parametrize(("kind", "published"), KINDS)
def test_transformers_computes_the_same(
    kind: str, published: bool, tmp_path: Path
) -> None:
    torch, transformers = map(pytest.importorskip, ("torch", "transformers"))
    parts: dict[str, Any] = {}
    if kind in CAPPED:
        parts = {
            "text_config": config_of(kind) | {"pad_token_id": 0},
            "vision_config": {},
        }
    config = transformers.AutoConfig.for_model(kind, **parts)
    text = {} if parts else TINY_TEXT  # some sizes are of kinds of blocks
    for part, tiny in ((config.text_config, text), (config.vision_config, TINY_VISION)):
        for key, value in tiny.items():
            if hasattr(part, key):
                setattr(part, key, value)
        for key in ("image_size", "patch_size"):
            if isinstance(getattr(part, key, None), int) and kind == "internvl":
                setattr(part, key, [tiny[key], tiny[key]])
        if kind in ("qwen2_vl", "qwen2_5_vl") and hasattr(part, "rope_parameters"):
            part.rope_parameters = part.rope_parameters | {"mrope_section": [1, 1, 2]}
        if getattr(part, "layer_types", None) and not parts:
            count = TINY_TEXT["num_hidden_layers"]
            last = kind.startswith("qwen3_5")  # the first blocks have no attention
            part.layer_types = (
                part.layer_types[-count:] if last else part.layer_types[:count]
            )
    if kind == "kimi_k25":  # whose latent attention has as many heads of keys
        config.text_config.num_key_value_heads = TINY_TEXT["num_attention_heads"]
    tokens = [
        name
        for name in config.to_dict()
        if name.endswith(("_token_id", "_token_index"))
    ]
    for name in tokens:  # of no token that is asked for
        setattr(config, name, 100)
    torch.manual_seed(0)
    eager = {"attn_implementation": "eager", "experts_implementation": "eager"}
    theirs = transformers.AutoModelForImageTextToText.from_config(
        config, **eager
    ).double()
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "vision" not in name and "visual" not in name:
                weight.copy_(torch.randn_like(weight) * 0.2)
    theirs.float().save_pretrained(tmp_path / "m")
    if published:
        as_published(kind, tmp_path / "m" / "model.safetensors")
    model = read_model(tmp_path / "m")
    assert model.ignored
    prune(model, tmp_path / "out", Pattern(2, 4), "magnitude")
    for folder in (tmp_path / "m", tmp_path / "out"):
        again, report = transformers.AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.float64, output_loading_info=True, **eager
        )
        assert not any(report.values())
        # transformers 5.24: the whole Llama 4 asks its text model for images, and fails
        whole = again.language_model if kind == "llama4" else again
        with torch.no_grad():
            logits = whole(torch.tensor(IDS)).logits.numpy()
        ours = forward(read_model(folder), IDS, dtype="f8").logits
        assert worst_token(ours, logits) <= GATES["float32"]  # of its float32 inside

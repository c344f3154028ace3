"""What configurations mean, as tables: published models, omitted and changed keys, mistakes."""

import json
from pathlib import Path
from typing import Any

from refimpl.model.config import BlockKind
from refimpl.model.experts import Experts
from refimpl.model.position_tables import Rope

FILE = Path(__file__).parent / "published_configs.jsonl"
# By the checkpoint's name: where a public copy of its `config.json` is, the file, and what it reads
# as, or what the refusal says
PUBLISHED: dict[str, dict[str, Any]] = {
    line["checkpoint"]: line
    for line in map(json.loads, FILE.read_text("utf-8").splitlines())
}
LINES = [
    *map(
        json.loads,
        FILE.with_name("changed_configs.jsonl").read_text("utf-8").splitlines(),
    )
]


def published(name: str) -> dict[str, Any]:
    config: dict[str, Any] = PUBLISHED[name]["config"]
    return config


def changed(key: str) -> list[tuple[str, dict[str, Any], Any]]:
    """Fixtures, changes of their config.json (`...` deletes a key), and what then has this key.

    Each line of the file has one such key: the blocks' windows, whether they rotate, a field of the
    configuration and its value, what the refusal says, or that transformers says the same.
    """
    found = (line for line in LINES if key in line)
    return [
        (
            x["fixture"],
            dict.fromkeys(x.get("without", ()), ...) | x.get("changes", {}),
            x[key],
        )
        for x in found
    ]


WINDOWS, ROTATING, OMITTED, WRONG = map(
    changed, ("windows", "rotates", "compared", "refused")
)
STATES = {"full_attn_layers": [1], "kda_layers": [2], "head_dim": 10, "num_heads": 2}
LOCAL, GLOBAL = BlockKind(5, Rope(1e4, 10)), BlockKind(None, Rope(1e6, 10))
MEANS: list[tuple[str, dict[str, Any], str, Any]] = [  # what a field is
    *((case, changes, *fact) for case, changes, fact in changed("means")),
    (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "proportional",
                "rope_theta": 300.0,
                "factor": 2.0,
            }
        },
        "blocks",
        (BlockKind(None, Rope(300.0, 8, "proportional", 2.0, turning_dim=8)),) * 4,
    ),
    ("llama", {"rope_parameters": ...}, "blocks", (BlockKind(None, Rope(1e4, 8)),) * 4),
    (
        "gpt_neox",
        {"rope_parameters": ...},
        "blocks",
        (BlockKind(None, Rope(1e4, 4)),) * 3,
    ),
    ("gemma3", {"rope_parameters": ...}, "blocks", (LOCAL,) * 5 + (GLOBAL, LOCAL)),
    (
        "granite_swa",
        {"rope_parameters": ..., "layer_rope_theta": [9.0, 0, 0.0]},
        "blocks",
        (BlockKind(None, Rope(9.0, 8)), BlockKind(5, None), BlockKind(5, None)),
    ),
    (
        "granite_swa",
        {"layer_rope_theta": ...},
        "blocks",
        (BlockKind(None, Rope(1e3, 8)), *(BlockKind(5, Rope(1e3, 8)),) * 2),
    ),
    (
        "apertus",
        {"rope_parameters": ...},
        "blocks",
        (BlockKind(None, Rope(12e6, 8, "llama3", factor=8.0)),) * 2,
    ),
    (
        "minimax_m2",
        {"rope_parameters": ..., "rotary_dim": 4},
        "blocks",
        (BlockKind(None, Rope(5e6, 4), mixture=True),) * 2,
    ),
    ("hunyuan_v1_moe", {"moe_topk": [3, 3]}, "experts", Experts(5, 3, 20, 20)),
    (
        "nemotron",
        {"rope_parameters": ...},
        "blocks",
        (BlockKind(None, Rope(1e4, 6)),) * 2,
    ),
]
LLAMA_4: list[
    dict[str, Any]
] = [  # changes of Scout, compared with transformers on four blocks
    {},
    published("llama-4-maverick"),
    {"moe_layers": [1, 3]},
    {"moe_layers": []},
    {"no_rope_layers": [0, 1] * 2},
    {"no_rope_layer_interval": 3},
    {"attention_chunk_size": 3},
    {"attn_temperature_tuning": False},
    {"layer_types": ["full_attention", "chunked_attention"] * 2},
    dict.fromkeys(
        (
            "interleave_moe_layer_step",
            "attention_chunk_size",
            "use_qk_norm",
            "rope_theta",
            "rope_scaling",
            "rms_norm_eps",
            "max_position_embeddings",
        ),
        ...,
    ),
]

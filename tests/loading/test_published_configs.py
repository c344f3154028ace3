"""`config.json` files that others wrote and published: what each reads as, or why it is refused.

`PYTHONPATH=.:tests python tests/loading/test_published_configs.py` writes what they read as;
test_config_transformers.py compares the models.
"""

import json
import re
from dataclasses import fields, is_dataclass
from math import isclose
from typing import Any

import pytest
from config_tables import FILE, PUBLISHED, published
from refusals import refusal_of

from refimpl.convert.block_formats import block_size
from refimpl.loading.config_json import ConfigFacts, read_config, text_entries
from refimpl.loading.families import ALIASES, FAMILIES
from refimpl.loading.files.safetensors_file import QUANTISATION

SPELLINGS = {  # of what almost every file states
    "hidden_size": ("hidden_size", "n_embd", "n_embed", "d_model"),
    "num_blocks": ("num_hidden_layers", "num_layers", "n_layer", "n_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads"),
    "vocab_size": ("vocab_size",),
}


def read(entries: dict[str, Any]) -> ConfigFacts:
    """Read a file as `convert` does: what it says of its quantisation, then the rest."""
    if entries.get(QUANTISATION):
        block_size(entries[QUANTISATION], "config.json")
    return read_config(
        {key: value for key, value in entries.items() if key != QUANTISATION}
    )


def facts(value: Any) -> Any:
    """A value as in JSON: of a dataclass, the fields that do not have the default."""
    if is_dataclass(value):
        named = [
            (field.name, getattr(value, field.name), field.default)
            for field in fields(value)
        ]
        return {name: facts(own) for name, own, default in named if own != default}
    return [facts(x) for x in value] if isinstance(value, tuple) else value


def meaning(hub: ConfigFacts) -> dict[str, Any]:
    """What a file reads as: the kinds of its blocks, and which block is of which kind."""
    kinds = list(dict.fromkeys(hub.config.blocks))
    blocks = "".join(str(kinds.index(kind)) for kind in hub.config.blocks)
    own = {"blocks": blocks, "kinds": facts(tuple(kinds)), "tied": hub.tied}
    return facts(hub.config) | own | {"biased": sorted(hub.biased)}


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """The numbers, words and empty values of nested JSON, by their paths."""
    if not isinstance(value, dict | list):
        return {path: value}
    items = dict(value if isinstance(value, dict) else enumerate(value))
    inner = {
        x: y for key in items for x, y in leaves(items[key], f"{path}/{key}").items()
    }
    return inner or {path: "empty"}


def same(x: Any, y: Any) -> bool:
    """Whether two values are equal; powers and logarithms end in other bits on other systems."""
    both = isinstance(x, float) and isinstance(y, float)
    return isclose(x, y, rel_tol=1e-12) if both else x == y


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_configuration(name: str) -> None:
    line, entries = PUBLISHED[name], published(name)
    assert line["source"]
    if "refused" in line:
        problem = refusal_of(read, entries).problem
        assert re.search(line["refused"], problem), problem
        return
    hub, text = read(entries), text_entries(entries, "config.json") or entries
    ours, theirs = leaves(meaning(hub)), leaves(line["reads"])
    assert {
        x for x in ours | theirs if not same(ours.get(x, ""), theirs.get(x, ""))
    } == set()
    assert hub.family.model_type == (FAMILIES | ALIASES)[text["model_type"]].model_type
    for fact, spellings in SPELLINGS.items():
        stated = [text[key] for key in spellings if key in text]
        assert stated == [getattr(hub.config, fact)] * len(stated), fact


if __name__ == "__main__":
    for line in PUBLISHED.values():
        if "refused" not in line:
            line["reads"] = meaning(read(line["config"]))
    FILE.write_text(
        "".join(json.dumps(line) + "\n" for line in PUBLISHED.values()), "utf-8"
    )

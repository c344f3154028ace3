"""The tables of docs/reference/families.md and one of names.md, from the code.

Write it with `PYTHONPATH=.:tests python tests/tools/families_page.py`.

Mechanisms are read off the models of the fixtures, deviations are measured against transformers'
values in these fixtures, and the graphs are run by ONNX Runtime.
"""

import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from gates import CASES, GATES, UNRECORDED, expected_of, model_of, worst_point
from regions import fill

from refimpl import Model, forward
from refimpl.loading.config_json import COMPOSITES, TEXT_FAMILIES
from refimpl.loading.families import FAMILIES, REFUSED
from refimpl.model.config import BlockKind, Config, Mixer
from refimpl.model.experts import Experts
from refimpl.model.mixers.softmax_attention import Attention
from refimpl.onnx.export import export
from refimpl.onnx.session import onnxruntime

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "families.md"
NAMES_PAGE = PAGE.with_name("names.md")
DTYPES = ("float64", "float32")
OPTIONAL = re.compile(r"(post|q|q_a|kv_a|width|rope|embed|state)_norm$|^sinks$|_proj.bias$")
HEAD = f"| family | mechanisms | {' | '.join(DTYPES)} | ONNX |\n|---|---|---|---|---|\n"


def settings(part: Any) -> Iterator[str]:
    """Fields of a configuration that are not at their defaults: words, or the names of others."""
    for x in fields(part):
        value = getattr(part, x.name)
        number = type(value) in (int, float) and x.default is MISSING and x.name != "window"
        shown = isinstance(part, Config | BlockKind | Experts) or isinstance(value, str | bool)
        if number or not shown or x.name == "family" or value in (x.default, None, False, ()):
            continue
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mixer):
            yield from () if value.name == Attention.name else [value.name.replace("_", " ")]
            yield from settings(value)
        elif x.name == "blocks":
            yield from (setting for kind in value for setting in settings(kind))
        else:
            yield x.name
            yield from settings(value) if is_dataclass(value) else ()


def mechanisms(model: Model) -> list[str]:
    """What the configuration of a model sets, and weights that not all models have."""
    roles = (n.split(".", 2)[-1].removesuffix(".weight") for n in model.weights)
    some = {x if x.endswith(("norm", "sinks")) else "bias" for x in roles if OPTIONAL.search(x)}
    return [*settings(model.config), *sorted(some)]


def deviation(case: str, dtype: str) -> float:
    """The worst token's error over all trace points of a fixture."""
    ids, expected = expected_of(case)
    return worst_point(forward(model_of(case), ids, trace=True, dtype=dtype).trace, expected)[0]


def runs_as_graph(case: str, folder: Path) -> bool:
    """Whether ONNX Runtime computes the same float32 logits from the exported graph."""
    (ids, _), model, path = expected_of(case), model_of(case), folder / f"{case}.onnx"
    if case in UNRECORDED:
        return False
    export(model, path, outputs="trace")
    session = onnxruntime().InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(names, {"token_ids": ids}), strict=True))
    right = forward(model, ids, trace=True).trace
    return outputs.keys() == right.keys() and worst_point(outputs, right)[0] < GATES["float32"]


def table() -> str:
    """One row per family, over all its fixtures."""
    cases: dict[str, list[str]] = {name: [] for name in FAMILIES}
    for case in CASES:
        cases[model_of(case).config.family].append(case)
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            (
                f"`{family}`",
                "; ".join(dict.fromkeys(m for case in own for m in mechanisms(model_of(case)))),
                *(f"{max(deviation(case, dtype) for case in own):.0e}" for dtype in DTYPES),
                "yes" if all(runs_as_graph(case, Path(folder)) for case in own) else "no",
            )
            for family, own in cases.items()
        ]
    return HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def names() -> str:
    """The families, as two lists."""
    experts = {model_of(x).config.family for x in CASES if model_of(x).config.experts}
    dense = [f"`{x}`" for x in FAMILIES if x not in experts]
    mixed = [f"`{x}`" for x in FAMILIES if x in experts]
    lists = (("dense", dense), ("mixtures of experts", mixed))
    return "\n" + "\n".join(f"- {len(x)} {what}: {', '.join(x)}" for what, x in lists) + "\n\n"


def refused() -> str:
    """One row per reason for which families are refused."""
    families: dict[str, list[str]] = {}
    for family, reason in REFUSED.items():
        families.setdefault(reason, []).append(f"`{family}`")
    rows = (f"| {', '.join(own)} | {has} |\n" for has, own in families.items())
    return "| family | what it has |\n|---|---|\n" + "".join(rows)


def composites() -> str:
    """The checkpoints with other parts, and the families of their text models."""
    kinds, families = (", ".join(f"`{x}`" for x in names) for names in (COMPOSITES, TEXT_FAMILIES))
    return f"| checkpoint | family of its text model |\n|---|---|\n| {kinds} | {families} |\n"


def mixer_weights() -> str:
    """One row per mixer: its linears, and its weights that are not pruned."""
    rows: dict[str, tuple[dict[str, object], dict[str, object]]] = {}
    for config in (model_of(case).config for case in CASES):
        for mixer in (kind.mixer for kind in config.blocks):
            pruned, kept = rows.setdefault(mixer.name.replace("_", " "), ({}, {}))
            shapes = mixer.shapes(config.hidden_size)
            pruned |= shapes.linears
            kept |= shapes.matrices | shapes.norms | shapes.arrays
    lines = (
        f"| {x} | {' | '.join(map(listed, parts))} |\n" for x, parts in rows.items() if parts[0]
    )
    return "| mixer | linears | not pruned |\n|---|---|---|\n" + "".join(lines)


def listed(found: Iterable[str]) -> str:
    """Names, as code."""
    return ", ".join(f"`{name}`" for name in found)


def lists() -> dict[Path, dict[str, str]]:
    """All lists and tables that take no time, by page."""
    texts = {"names": names(), "composites": composites(), "refused": refused()}
    pages = {PAGE: texts, NAMES_PAGE: {"mixers": mixer_weights()}}
    return {page: {name: f"\n{x}" for name, x in y.items()} for page, y in pages.items()}


if __name__ == "__main__":
    for page, texts in lists().items():
        fill(page, texts)
    fill(PAGE, {"families": f"\n{table()}"})

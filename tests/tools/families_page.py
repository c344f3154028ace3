"""The tables of docs/reference/families.md and one of names.md, from the code.

Write it with `PYTHONPATH=.:tests python tests/tools/families_page.py`.

Mechanisms are read off the models of the fixtures, deviations are measured against transformers'
values in these fixtures, and the graphs are run by ONNX Runtime.
"""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from gates import CASES, GATES, UNRECORDED, expected_of, model_of, worst_point
from regions import fill

from refimpl import Model, forward
from refimpl.loading.config_json import COMPOSITES, TEXT_FAMILIES
from refimpl.loading.families import FAMILIES, REFUSED
from refimpl.model.config import BlockKind, Config
from refimpl.model.mixers.softmax_attention import Attention, SharedAttention
from refimpl.model.position_tables import Rope
from refimpl.onnx.export import export
from refimpl.onnx.session import onnxruntime

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "families.md"
NAMES_PAGE = PAGE.with_name("names.md")
DTYPES = ("float64", "float32")
HEAD = f"| family | mechanisms | {' | '.join(DTYPES)} | ONNX |\n|---|---|---|---|---|\n"


def norms(model: Model, roles: set[str]) -> Iterator[str]:
    """The kind of the norms, and where they are."""
    config, family = model.config, FAMILIES[model.config.family]
    kind = "RMS norm" if config.norm == "rms" else "layer norm"
    details = {
        "gain + 1": family.norm_offset != 0,
        "no weights": "attn_norm" in config.weightless_norms,
        "no offset": config.norm == "layer" and not family.norm_bias,
    }
    shown = [detail for detail, holds in details.items() if holds]
    yield f"{kind} ({', '.join(shown)})" if shown else kind
    stored = (model.weights.get(f"blocks.0.{role}.weight") for role in ("attn_norm", "mlp_norm"))
    attn, mlp = (weight and weight.stored.name for weight in stored)
    if attn and attn == mlp:
        yield "one norm for attention and MLP"
    before = "attn_norm" in roles | set(config.weightless_norms)
    if family.mixer_of:
        yield "norms before or after, by what mixes tokens"
    elif "attn_post_norm" in roles:
        yield "norms before and after" if before else "norms after only"
    if "embed_norm.weight" in model.weights:
        yield "a norm of embeddings"
    for role, where in {
        "q_norm": "per head",
        "q_width_norm": "over all heads",
        "q_rope_norm": "after the rotation",
    }.items():
        if role in roles | set(config.weightless_norms):
            yield f"q and k norm {where}" + ("" if role in roles else " (no weights)")
    if "v_norm" in config.weightless_norms:
        yield "v norm (no weights)"


def rotation(rope: Rope | None, config: Config) -> str:
    """The positions of one kind of block."""
    if rope is None:
        return "blocks without rotation"
    part = "partial rotation" if rope.rotary_dim < config.head_dim else "rotary"
    part += " of interleaved pairs" if rope.interleaved else ""
    return part if rope.scaling == "default" else f"{part}, scaled ({rope.scaling})"


def positions(model: Model) -> Iterator[str]:
    """How positions enter, and which tokens a block sees."""
    config, kinds = model.config, tuple[BlockKind, ...](dict.fromkeys(model.config.blocks))
    if "pos_embed.weight" in model.weights:
        yield "learned positions"
    elif config.alibi:
        yield "ALiBi in bfloat16" if config.alibi.rounded else "ALiBi"
    else:
        yield from dict.fromkeys(rotation(kind.rope, config) for kind in kinds)
    windows = {kind.window is not None for kind in kinds}
    what = "attention within chunks" if any(kind.chunked for kind in kinds) else "windows"
    if True in windows:
        yield f"{what} in some blocks" if False in windows else what
    if any(kind.temperature for kind in kinds):
        yield "queries that grow with the position"
    if len({kind.rope.theta for kind in kinds if kind.rope}) > 1:
        yield "two rotary bases"


def mlp(model: Model) -> Iterator[str]:
    """The MLP, or the experts in its place."""
    config, experts = model.config, model.config.experts
    yield f"{'gated' if config.gated else 'plain'} {config.activation}"
    if config.gate_limit is not None:
        yield "clamped gate"
    if experts is not None:
        details = {
            experts.scoring: True,
            "normalised": experts.normalised,
            "scaled": experts.scaling != 1,
            "in groups": experts.groups > 1,
            "shared expert": experts.shared_size > 0,
            "shares of inputs": experts.of_inputs,
            "beside an MLP": any(kind.mixture == "beside" for kind in config.blocks),
        }
        yield f"experts ({', '.join(detail for detail, holds in details.items() if holds)})"
        if not all(kind.mixture for kind in config.blocks):
            yield "an MLP in some blocks"


def others(model: Model, roles: set[str]) -> Iterator[str]:
    """Constants, biases, and how the file stores the linears."""
    config, family = model.config, FAMILIES[model.config.family]
    parts = {
        "an embedding per block": "block_embed_gate" in roles,
        "a multiplier per block": "block_scale" in roles,
        "parallel residual": config.parallel_residual,
        "attention sinks": "sinks" in roles,
        "soft caps": config.attn_soft_cap or config.final_soft_cap,
        "q, k, v limited": config.qkv_limit,
    }
    yield from (words for words, holds in parts.items() if holds)
    multipliers = {
        "embedding": config.embed_scale,
        "attention": config.attention_scale * config.head_dim**0.5,
        "residual": config.residual_scale,
        "logits": config.logit_scale,
        "MLP": config.mlp_scale,
    }
    if scaled := [name for name, factor in multipliers.items() if abs(factor - 1) > 1e-9]:
        yield f"multipliers ({', '.join(scaled)})"
    biased = [name.removesuffix("_proj") for name in config.linears[0] if f"{name}:bias" in roles]
    if biased:
        every = len(biased) == len(config.linears[0])
        yield "biases" if every else f"biases of {', '.join(biased)}"
    if "lm_head.bias" in model.weights:
        yield "bias of the head"
    layouts = family.names.values()
    if any(location.fused for location in layouts):
        grouped = any(location.grouped for location in layouts)
        yield "fused linears, head by head" if grouped else "fused linears"
    if any(location.transposed for location in layouts):
        yield "linears stored [in, out]"


def mixers(model: Model) -> Iterator[str]:
    """What mixes tokens in other ways than plain attention."""
    for mixer in dict.fromkeys(kind.mixer for kind in model.config.blocks):
        if isinstance(mixer, SharedAttention):
            yield "keys and values of earlier blocks, where MLPs may be wider"
        elif isinstance(mixer, Attention) and mixer.keys_as_values:
            yield "keys as values in some blocks"
        elif isinstance(mixer, Attention) and mixer.gate_width:
            per = "head" if mixer.gate_width == 1 else "channel"
            yield f"gate per {per}"
        elif mixer.points and not isinstance(mixer, Attention):
            every = all(kind.mixer == mixer for kind in model.config.blocks)
            yield mixer.name.replace("_", " ") + ("" if every else " in some blocks")
    if any(kind.mixture is None for kind in model.config.blocks):
        yield "blocks of a mixer or an MLP alone"
    shapes = (x.get("q_proj") for x in model.config.linears)
    if len({shape for shape in shapes if shape}) > 1:
        yield "heads of each block"


def mechanisms(model: Model) -> list[str]:
    """What the forward does for this model, in words."""
    inside = (n.split(".", 2)[2] for n in model.weights if n.startswith("blocks."))
    roles = {n.removesuffix(".weight").replace(".bias", ":bias") for n in inside}
    parts = norms(model, roles), positions(model), mixers(model), mlp(model), others(model, roles)
    return [words for part in parts for words in part]


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

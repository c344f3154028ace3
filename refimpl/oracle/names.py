"""Names that other programs give to the values of steps: of modules, hooks and tensors."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from refimpl.errors import RefimplError
from refimpl.loading.files.file_reading import json_object, read_file, reading
from refimpl.model.layout import OWN_TENSOR, Layout
from refimpl.model.mixers.softmax_attention import Attention
from refimpl.model.model import Model
from refimpl.oracle.case import Case

TRANSFORMERS = "transformers"  # the word for the names of its modules
INPUT = ":input"  # behind a module's name: what it reads first, not what it returns
LOGITS = "logits"  # the output of the model itself
NAMES = "a JSON object: steps, such as blocks.{}.q, with the name of a module, or a list of names"


@dataclass(frozen=True)
class ModuleOutput:
    """Where the value of a step is: in the first module that is there, or what it reads (":input").

    It is rows of the output, if the weight is fused.
    """

    names: tuple[str, ...]
    layout: Layout = OWN_TENSOR


Sources = dict[str, ModuleOutput]
"""Where a program's values are, by step."""


def numbered(names: Sequence[str], block: int) -> tuple[str, ...]:
    """Names of one block: its number in place of `{}`, the next in place of `{+1}`."""
    return tuple(x.replace("{}", str(block)).replace("{+1}", str(block + 1)) for x in names)


def named_sources(word: str, case: Case) -> Sources:
    """Where values are in transformers' modules, or by a JSON file of names by step."""
    if word == TRANSFORMERS:
        return transformers_sources(case.model)
    with reading(Path(word), NAMES):
        content = json_object(read_file(Path(word)), word, NAMES)
    sources: Sources = {}
    for pattern, modules in content.items():
        names, found = modules if isinstance(modules, list) else [modules], Sources()
        if all(isinstance(name, str) for name in names):
            for i in range(case.model.config.num_blocks if "{}" in pattern else 1):
                (step,) = numbered([pattern], i)
                if step in case.expected:
                    found[step] = ModuleOutput(numbered(names, i))
        if not found:
            raise RefimplError(
                f"{word}: {pattern!r}: {modules!r}", NAMES, "correct the step or the module's name"
            )
        sources |= found
    return sources


def transformers_sources(model: Model) -> Sources:
    """Where transformers' modules hold the steps; none returns what is rotated or clipped."""
    config, blocks, last = model.config, range(model.config.num_blocks), model.config.num_blocks - 1

    def module(role: str) -> str:
        weight = model.weights.get(f"{role}.weight")
        return weight.stored.name.rpartition(".")[0] if weight else ""

    whole = []  # the module of each block: that of a linear, up to the block's number
    for i in blocks:
        one = module(f"blocks.{i}.{next(iter(config.linears[i]))}")
        start = re.match(rf"(?:.*?\.)?{i}(?=\.)", one)
        whole.append(start[0] if start else "")
    sources: Sources = {}

    def add(step: str, *names: str, layout: Layout = OWN_TENSOR) -> None:
        if every := tuple(name for name in names if name not in ("", INPUT)):
            sources[step] = ModuleOutput(every, layout)

    plain = config.embed_scale == 1 and not {"pos_embed.weight", "embed_norm.weight"} & {
        *model.weights
    }
    add("embed", whole[0] + INPUT, module("embed") if plain else "")
    for i in blocks:
        at, of = f"blocks.{i}", f"blocks.{i}."
        norm = {x: module(f"{of}{x}") for x in ("attn_norm", "mlp_norm", "experts_norm")}
        add(f"{of}resid_pre", whole[i] + INPUT, whole[i - 1] if i else "")
        add(f"{of}attn_norm", norm["attn_norm"])
        with_weights = [x for x in "qkv" if f"{x}_norm" not in config.weightless_norms]
        for x in with_weights if isinstance(config.mixer(i), Attention) else "":
            name, limited = f"{at}.{x}_proj", config.qkv_limit is not None
            if named := module(f"{of}{x}_norm") or (not limited and module(f"{of}{x}_width_norm")):
                add(of + x, named)
            elif not limited and f"{name}.weight" in model.weights:
                add(of + x, module(name), layout=model.weights[f"{name}.weight"].layout)
        scaled = config.residual_scale != 1
        ends = [x for x in ("o_proj", "out_proj") if x in config.linears[i]]
        for part, linear in (("attn", ends[0] if len(ends) == 1 else ""), ("mlp", "down_proj")):
            after = module(f"{of}{part}_post_norm") or module(of + linear)
            if part == "mlp" and config.blocks[i].mixture and not after:
                after = module(f"{of}router").rpartition(".")[0]
            add(f"{of}{part}_out", "" if scaled else after)
        if not config.parallel_residual and norm["mlp_norm"]:
            add(f"{of}resid_mid", norm["mlp_norm"] + INPUT)
        add(f"{of}mlp_norm", norm["mlp_norm"])
        add(f"{of}experts_norm", norm["experts_norm"])
        add(f"{of}block_embed_norm", module(f"{of}block_embed_gate") + INPUT)
        add(f"{of}block_embed_out", module(f"{of}block_embed_post_norm"))
        following = whole[i + 1] if i < last else module("final_norm")
        add(f"{of}resid_post", whole[i], following + INPUT)
    head = module("lm_head")
    head = "lm_head" if head == module("embed") else head  # tied
    add("final_norm", module("final_norm"), head + INPUT)
    as_is = config.logit_scale == 1 and config.final_soft_cap is None
    add("logits", LOGITS, head if as_is else "", "lm_head" if as_is else "")
    return sources

"""Names that other programs give to the values of steps: of modules, hooks and tensors."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from refimpl.errors import RefimplError
from refimpl.loading.files.file_reading import json_object, read_file, reading
from refimpl.loading.gguf.architectures import ARCHITECTURES
from refimpl.model.layout import WHOLE, Layout
from refimpl.model.mixers.sizes import Attention
from refimpl.model.model import Model
from refimpl.oracle.case import Case

INPUT = ":input"  # behind a module's name: what it reads first, not what it returns
LOGITS = "logits"  # the output of the model itself
AGAIN = ":2"  # behind a module's name: its second call
NAMES = "a JSON object: steps, such as blocks.{}.q, with the name of a module, or a list of names"


@dataclass(frozen=True)
class ModuleOutput:
    """Where the value of a step is: in the first module that is there, or what it reads (":input").

    It is rows of the output, if the weight is fused; `paired` channels of a head rotate together;
    the output may hold the `last` tokens of a sequence alone.
    """

    names: tuple[str, ...]
    layout: Layout = WHOLE
    paired: bool = False
    last: bool = False


Sources = dict[str, ModuleOutput]
"""Where a program's values are, by step."""


def expanded(patterns: Mapping[str, Sequence[str]], blocks: int) -> dict[str, tuple[str, ...]]:
    """Names by step from names by pattern; `{}` is the block, `{+1}` the next."""
    return {
        pattern.replace("{}", str(i)): tuple(
            name.replace("{}", str(i)).replace("{+1}", str(i + 1)) for name in names
        )
        for pattern, names in patterns.items()
        for i in range(blocks if "{}" in pattern else 1)
    }


def named_sources(word: str, case: Case) -> Sources:
    """Where values are by a built-in map, or a JSON file of names by step, as in `expanded`."""
    if built_in := NAME_MAPS.get(word):
        return built_in(case.model)
    with reading(Path(word), NAMES):
        content = json_object(read_file(Path(word)), word, NAMES)
    sources: Sources = {}
    for pattern, modules in content.items():
        every, held = modules if isinstance(modules, list) else [modules], Sources()
        if all(isinstance(name, str) for name in every):
            names = expanded({pattern: every}, case.model.config.num_blocks)
            held = {step: ModuleOutput(x) for step, x in names.items() if step in case.expected}
        if not held:
            raise RefimplError(
                f"{word}: {pattern!r}: {modules!r}", NAMES, "correct the step or the module's name"
            )
        sources |= held
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

    def add(step: str, *names: str, layout: Layout = WHOLE) -> None:
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


def mlx_sources(model: Model) -> Sources:
    """Where mlx-lm's modules hold the steps; the rotation is called for q, then for k."""
    sources = {
        step: replace(x, names=(*x.names, *(re.sub(r"^.*\blayers\.", "h.", n) for n in x.names)))
        for step, x in transformers_sources(model).items()
    }
    for i in range(model.config.num_blocks):
        if not isinstance(model.config.mixer(i), Attention):
            continue
        attention = model.weights[f"blocks.{i}.o_proj.weight"].stored.name.rsplit(".", 2)[0]
        for name, call in (("q_rope", ""), ("k_rope", AGAIN)):
            sources[f"blocks.{i}.{name}"] = ModuleOutput((f"{attention}.rope{call}",))
    return sources


def transformer_lens_sources(model: Model) -> Sources:
    """Where TransformerLens' cache holds the steps; norms of heads are behind q's and k's hooks."""
    block = "blocks.{}."
    hooks = {
        **{x: f"hook_{x}" for x in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")},
        "attn_norm": "ln1.hook_out",
        "mlp_norm": "ln2.hook_out",
        "v": "attn.hook_v",
        "q_rope": "attn.hook_rot_q",
        "k_rope": "attn.hook_rot_k",
    }
    if not {"blocks.0.q_norm.weight", "blocks.0.q_width_norm.weight"} & {*model.weights}:
        hooks |= {"q": "attn.hook_q", "k": "attn.hook_k"}
    patterns = {block + step: [block + hook] for step, hook in hooks.items()}
    patterns |= {"embed": ["blocks.0.hook_resid_pre"], "final_norm": ["ln_final.hook_out"]}
    patterns["logits"] = [LOGITS, "unembed.hook_out"]
    names = expanded(patterns, model.config.num_blocks)
    return {step: ModuleOutput(x) for step, x in names.items()}


def ggml_sources(model: Model) -> Sources:
    """Where llama.cpp's tensors hold the steps: the first of a name, the last of an operation."""
    config, weights = model.config, model.weights
    limited, scaled = config.qkv_limit is not None, config.residual_scale != 1
    embed = ["inpL"] if "pos_embed.weight" in weights else ["embd", "inp_embd"]
    patterns: dict[str, list[str]] = {
        "embed": embed if config.embed_scale == 1 else ["inp_scaled", "embd:SCALE"],
        "blocks.{}.attn_norm": ["attn_norm-{}"],
        "blocks.{}.resid_mid": [] if config.parallel_residual else ["ffn_inp-{}", "sa_out-{}"],
        "blocks.{}.mlp_norm": ["ffn_norm-{}"],
        "blocks.{}.resid_post": ["l_out-{}"],
        "final_norm": ["result_norm"],
        "logits": [LOGITS, "result_output"],
    }
    for x in "qkv":
        name, normed = f"{x.upper()}cur", f"{x.upper()}cur_normed-{{}}"
        linear = [f"{name}-{{}}:{operation}" for operation in ("ADD", "MUL_MAT")]
        has_norm = {f"blocks.0.{x}_norm.weight", f"blocks.0.{x}_width_norm.weight"} & {*weights}
        patterns[f"blocks.{{}}.{x}"] = [normed] if has_norm else [*linear, f"{name}-{{}}"]
        if limited:
            patterns[f"blocks.{{}}.{x}"] = []
        elif x != "v":
            patterns[f"blocks.{{}}.{x}_rope"] = [f"{name}-{{}}:ROPE"]
    for part, names in (("attn", ["attn_out-{}"]), ("mlp", ["ffn_out-{}", "ffn_moe_out-{}"])):
        post = f"{'ffn' if part == 'mlp' else 'attn'}_post_norm-{{}}"
        names = [post] if f"blocks.0.{part}_post_norm.weight" in weights else names
        patterns[f"blocks.{{}}.{part}_out"] = [] if scaled else names
    arranged = {
        x.model_type for x in ARCHITECTURES.values() if x.arranged.get("q_proj") == "paired"
    }
    paired = config.family in {*arranged, *LIKE_LLAMA}
    return {
        step: ModuleOutput(x, paired=paired and step.endswith((".q", ".k", "_rope")), last=True)
        for step, x in expanded(patterns, config.num_blocks).items()
        if x
    }


LIKE_LLAMA = ("mistral",)  # families whose files have llama.cpp's architecture llama, too
NAME_MAPS: Mapping[str, Callable[[Model], Sources]] = {
    "transformers": transformers_sources,
    "mlx": mlx_sources,
    "transformer_lens": transformer_lens_sources,
    "ggml": ggml_sources,
}
"""Built-in maps of names; where two know as many outputs of a program, the first counts."""

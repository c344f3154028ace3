"""Outputs of a candidate's modules under the names of steps, so that a forward needs no exporter.

Hooks collect the outputs in a dictionary, by the modules' names; transformers'
`model_addition_debugger_context` writes them to a folder.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.errors import RefimplError, listed
from refimpl.loading.files.file_reading import json_object, read_file, reading
from refimpl.model.attention import split_heads
from refimpl.model.layout import WHOLE, Layout, cut
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.oracle.case import Case
from refimpl.oracle.judging.candidate_arrays import array_of, stored_arrays

INPUT = ":input"  # behind a module's name: what it reads first, not what it returns
LOGITS = "logits"  # the output of the model itself
DATA = "data"  # the tensor of a dumped file
DUMPED = re.compile(
    r"[^.]+?(?:\.(?P<module>.+?))?_"
    r"(?P<what>outputs(?:_0)?|outputs_logits|inputs_args_0|inputs_kwargs_hidden_states)"
)
NAMES = "a JSON object: steps, such as blocks.{}.q, with the name of a module, or a list of names"
_DUMP_AGAIN = "run model_addition_debugger_context(model, debug_path=..., use_repr=False)"


@dataclass(frozen=True)
class ModuleOutput:
    """Where the value of a step is.

    Args:
        names: Modules, with ":input" for what one reads; the first that is there counts.
        layout: Which rows of the module's output, if its weight is fused.
    """

    names: tuple[str, ...]
    layout: Layout = WHOLE


class DumpFolder(Mapping[str, Array]):
    """What `model_addition_debugger_context(..., use_repr=False)` wrote; read when asked for."""

    def __init__(self, folder: Path) -> None:
        self.files: dict[str, Path] = {}
        with reading(folder, "a readable folder"):
            paths = sorted(folder.glob("*.safetensors"))
        for path in paths:
            if found := DUMPED.fullmatch(path.stem):
                module, what = found["module"], found["what"]
                if what == "outputs_logits":
                    self.files[f"{module}.{LOGITS}" if module else LOGITS] = path
                elif module:
                    self.files[module + (INPUT if what.startswith("inputs") else "")] = path
        if not self.files:
            raise RefimplError(
                f"{folder} holds no outputs of modules",
                "files such as LlamaForCausalLM.model.norm_outputs.safetensors",
                _DUMP_AGAIN,
            )

    def __getitem__(self, name: str) -> Array:
        arrays = stored_arrays(self.files[name])
        if DATA not in arrays:
            raise RefimplError(
                f"{self.files[name]} holds {listed(list(arrays)) or 'no tensor'}",
                f"one tensor named {DATA}, as transformers writes",
                _DUMP_AGAIN,
            )
        return np.array(arrays[DATA])  # a copy, as mapped files are few

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def module_steps(
    case: Case, outputs: Mapping[str, Any], names: Mapping[str, Sequence[str]] | None = None
) -> dict[str, Array]:
    """The steps of a case that outputs of modules hold; `check` them with `only` these.

    An output is [N, S, width] or [N S, width]; of heads also [N, S, heads, head_dim], or
    [N, heads, S, head_dim] if there are not as many heads as tokens. Of a tuple the first counts.

    Args:
        case: From `read_case`.
        outputs: Arrays or torch tensors by the names of modules (of `named_modules()`), and what a
            module reads behind its name and ":input". Prefixes such as "model." may be absent.
        names: Modules by step; those of transformers, and only what they hold, if None.

    Returns:
        Arrays by step, in the order of execution.

    Raises:
        RefimplError: No output belongs to a step, or a name of several outputs.

    Example:
        >>> from refimpl.oracle.case import read_case
        >>> case = read_case("fixtures/cases/llama")
        >>> q = case.expected["blocks.0.q"].swapaxes(1, 2).reshape(2, 16, -1)
        >>> list(module_steps(case, {"model.layers.0.self_attn.q_proj": q}))
        ['blocks.0.q']
    """
    if names is None:
        sources = transformers_sources(case.model)
    else:
        sources = {step: ModuleOutput(tuple(modules)) for step, modules in names.items()}
    keys = list(outputs)
    steps: dict[str, Array] = {}
    for step in case.expected:
        source = sources.get(step, ModuleOutput(()))
        key = next(filter(None, (_key(name, keys) for name in source.names)), None)
        if key is not None:
            value = outputs[key]
            value = value[0] if isinstance(value, tuple | list) else value
            steps[step] = _as_step(array_of(value), source.layout, case, step)
    if not steps:
        wanted = [name for source in sources.values() for name in source.names]
        raise RefimplError(
            f"no output belongs to a step; there are {', '.join(keys[:3]) or 'none'}",
            f"names of modules such as {', '.join(wanted[:3])}",
            "name the modules of your program in a file, and add --names FILE",
        )
    return steps


def asked_steps(case: Case, held: Collection[str]) -> tuple[str, ...]:
    """The steps that are held; all of transformers' if these are not half of them: another's."""
    every = case.expected.keys() & transformers_sources(case.model)
    return tuple(held if 2 * len(held) >= len(every) else every)


def read_names(path: Path, case: Case) -> dict[str, tuple[str, ...]]:
    """Names of modules by step from a JSON file; `{}` is the block, `{+1}` the next."""
    with reading(path, NAMES):
        content = json_object(read_file(path), str(path), NAMES)
    names: dict[str, tuple[str, ...]] = {}
    for pattern, modules in content.items():
        every = modules if isinstance(modules, list) else [modules]
        blocks = range(case.model.config.num_blocks if "{}" in pattern else 1)
        steps = [pattern.replace("{}", str(i)) for i in blocks]
        if not all(isinstance(name, str) for name in every) or not case.expected.keys() & {*steps}:
            raise RefimplError(
                f"{path}: {pattern!r}: {modules!r}", NAMES, "correct the step or the module's name"
            )
        for i, step in enumerate(steps):
            if step in case.expected:
                at = [x.replace("{}", str(i)).replace("{+1}", str(i + 1)) for x in every]
                names[step] = tuple(at)
    return names


def transformers_sources(model: Model) -> dict[str, ModuleOutput]:
    """Where transformers' modules hold the steps; a module has the name of its tensors.

    The rotated queries and keys are no module's output, nor is what a limit has clipped.
    """
    config, blocks, last = model.config, range(model.config.num_blocks), model.config.num_blocks - 1

    def module(role: str) -> str:
        weight = model.weights.get(f"{role}.weight")
        return weight.stored.name.rpartition(".")[0] if weight else ""

    whole = []  # the module of each block: that of a linear, up to the block's number
    for i in blocks:
        start = re.match(rf"(?:.*?\.)?{i}(?=\.)", module(f"blocks.{i}.o_proj"))
        whole.append(start[0] if start else "")
    sources: dict[str, ModuleOutput] = {}

    def add(step: str, *names: str, layout: Layout = WHOLE) -> None:
        if every := tuple(name for name in names if name not in ("", INPUT)):
            sources[step] = ModuleOutput(every, layout)

    plain = config.embed_scale == 1 and not {"pos_embed.weight", "embed_norm.weight"} & {
        *model.weights
    }
    add("embed", whole[0] + INPUT, module("embed") if plain else "")
    for i in blocks:
        at, of = f"blocks.{i}", f"blocks.{i}."
        norm = {x: module(f"{of}{x}") for x in ("attn_norm", "mlp_norm")}
        add(f"{of}resid_pre", whole[i] + INPUT, whole[i - 1] if i else "")
        add(f"{of}attn_norm", norm["attn_norm"])
        for x in "qkv":
            name, limited = f"{at}.{x}_proj", config.qkv_limit is not None
            if named := module(f"{of}{x}_norm") or (not limited and module(f"{of}{x}_width_norm")):
                add(of + x, named)
            elif not limited:
                add(of + x, module(name), layout=model.weights[f"{name}.weight"].layout)
        scaled = config.residual_scale != 1
        for part, linear in (("attn", "o_proj"), ("mlp", "down_proj")):
            after = module(f"{of}{part}_post_norm") or module(of + linear)
            if part == "mlp" and config.blocks[i].mixture and not after:
                after = module(f"{of}router").rpartition(".")[0]
            add(f"{of}{part}_out", "" if scaled else after)
        if not config.parallel_residual and norm["mlp_norm"]:
            add(f"{of}resid_mid", norm["mlp_norm"] + INPUT)
        add(f"{of}mlp_norm", norm["mlp_norm"])
        following = whole[i + 1] if i < last else module("final_norm")
        add(f"{of}resid_post", whole[i], following + INPUT)
    head = module("lm_head")
    head = "lm_head" if head == module("embed") else head  # tied
    add("final_norm", module("final_norm"), head + INPUT)
    as_is = config.logit_scale == 1 and config.final_soft_cap is None
    add("logits", LOGITS, head if as_is else "", "lm_head" if as_is else "")
    return sources


def _key(name: str, keys: Sequence[str]) -> str | None:
    """The key of a module, whose prefix may be absent on either side."""
    if name in keys:
        return name
    found = [key for key in keys if _is_tail(name, key) or _is_tail(key, name)]
    if len(found) > 1:
        raise RefimplError(
            f"{name} is the end of several names: {', '.join(found[:3])}",
            "one output of each module",
            "remove the others, or name the modules in a file and add --names FILE",
        )
    return found[0] if found else None


def _is_tail(short: str, long: str) -> bool:
    """Whether a name lacks only a prefix without a block's number of the other."""
    prefix = long.removesuffix(f".{short}")
    return prefix != long and not any(part.isdigit() for part in prefix.split("."))


def _as_step(x: Array, layout: Layout, case: Case, step: str) -> Array:
    """An output in the shape of its step; as it is if its size is another, which diverges."""
    shape, (n, s) = case.expected[step].shape, case.inputs["token_ids"].shape
    if len(shape) < 3 or x.size % (n * s):
        return x
    heads = shape[1] if len(shape) == 4 else 1
    if len(shape) == 4 and heads != s and x.shape == (n, heads, s, shape[3]):
        return x
    rows = x.reshape(n, s, -1)
    if len(layout.rows) > 1 and rows.shape[-1] == sum(layout.rows):
        own = replace(layout, transposed=False, stack=0)
        rows = np.moveaxis(cut(np.moveaxis(rows, -1, 0), own), 0, -1)
    if rows.shape[-1] != heads * shape[-1]:
        return x
    return case.recipe.sampled(split_heads(rows, shape[3]) if len(shape) == 4 else rows, s)

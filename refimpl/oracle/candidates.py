"""What another program wrote: files of arrays by names, read as the steps of a case."""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np

from refimpl.errors import RefimplError, reading
from refimpl.loading.checkpoint import read_model
from refimpl.loading.files.documents import json_object, read_file
from refimpl.loading.files.safetensors_file import ARRAY_DTYPES, SafetensorsFile
from refimpl.loading.samples import Tokens
from refimpl.model.attention import merge_heads, split_heads
from refimpl.model.experts import ROUTER
from refimpl.model.mixers.latent_attention import LatentAttention
from refimpl.model.mixers.softmax_attention import Attention
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.state import checked_ids
from refimpl.model.weight import extract
from refimpl.oracle.case import Case, computed_case, read_case
from refimpl.oracle.case_folders import FACTS, FORWARD, matching
from refimpl.oracle.check import Report, check
from refimpl.oracle.measures import Arrays
from refimpl.oracle.recipe import Recipe
from refimpl.oracle.vectors import KERNELS, check_vectors
from refimpl.running.file_system import MIB, open_file

TRANSFORMERS = "transformers"  # the word for the names of its modules
PREFIX = r"^(.*?\.)??(?=\d+(\.|$))|^.*\."  # of a module's name, up to a block's number
INPUT = ":input"  # behind a module's name: what it reads first, not what it returns
LOGITS = "logits"  # the output of the model itself
NAMES = "a JSON object: steps, such as blocks.{}.q, with the name of a module, or a list of names"
IDS = ("token_ids", "input_ids")  # names of token ids
DENSEST = 16  # arrays are at most so many times as large as their archive,
SMALL = 64 * MIB  # or no larger than this
NUMBERS = {dtype.name for dtype in ARRAY_DTYPES.values()}
PAIR = np.dtype("V2")  # what NumPy makes of bfloat16


Sources = dict[str, tuple[str, ...]]
"""Modules by step: the first that is there returns the value, or reads it (":input")."""


def read_outputs(path: Path) -> tuple[Arrays, str | None]:
    """The arrays of a safetensors or `.npz` file, and the dtype that it states."""
    with reading(path), open_file(path) as file:
        head = file.read(9)
    if (
        head.startswith(b"PK") and head[4:] != b"\0\0\0\0{"
    ):  # a header's length may begin so, too
        return _npz_arrays(path), None
    if head[8:] != b"{":
        raise RefimplError(
            f"{path} is no file of arrays",
            "a safetensors file, or an archive .npz of numpy.savez",
            f"save the arrays; for a graph, run refimpl validate MODEL --graph {path}",
        )
    tensors = SafetensorsFile(path)
    return tensors.arrays, tensors.metadata.get("dtype")


def _npz_arrays(path: Path) -> Arrays:
    """The arrays of an `.npz` file; nothing is unpickled."""
    arrays: dict[str, Array] = {}
    try:
        with reading(path), open_file(path) as file, np.load(file) as archive:
            limit = max(SMALL, DENSEST * os.fstat(file.fileno()).st_size)
            if (size := sum(x.file_size for x in archive.zip.infolist())) > limit:
                raise ValueError(f"{size / MIB:,.0f} MiB, more than {limit / MIB:,.0f}")
            for name, x in archive.items():
                if x.dtype.name not in NUMBERS and x.dtype != PAIR:
                    raise ValueError(f"{name}: dtype {x.dtype}")
                arrays[name] = x.view(ml_dtypes.bfloat16) if x.dtype == PAIR else x
    except RefimplError:
        raise
    except (
        Exception
    ) as error:  # zlib.error, EOFError, RuntimeError, even tokenize.TokenError
        raise RefimplError(
            f"{path} holds no whole arrays ({error})",
            f"what numpy.savez writes, of {', '.join(sorted(NUMBERS))}",
            "save the arrays again, each of numbers: docs/how-to/candidates.md has the lines",
        ) from error
    return arrays


def checked_file(
    path: Path,
    actual: Path,
    only: tuple[str, ...] = (),
    names: Path | None = None,
    ids: Array | None = None,
    dtype: str | None = None,
    *,
    download: bool = False,
) -> Report:
    """Check a file of a candidate's arrays against a case, or the forward of a model."""
    outputs, stated = read_outputs(actual)
    if any((path / f"{name}.json").is_file() for name in KERNELS):
        return check_vectors(path, outputs, only, dtype or stated)
    case = _case(path, outputs, ids, only, download)
    arrays, found = candidate_steps(case, outputs, names)
    report = check(case, arrays, only or found or ("*",), dtype or stated)
    return replace(
        report, uncovered=tuple(x for x in case.expected if found and x not in found)
    )


def _case(
    path: Path, outputs: Arrays, ids: Array | None, only: Sequence[str], download: bool
) -> Case:
    """The case in a folder, or the forward of a model on ids, those of the candidate if None.

    The forward has the inputs of linears, too, that `only` names, such as `blocks.0.attn_heads`.
    """
    if ids is None:
        ids = next((outputs[name] for name in IDS if name in outputs), None)
    if (path / FACTS).exists() or (
        path.is_dir() and not (path / "config.json").exists()
    ):
        case = read_case(path, download=download)
        right = case.inputs["token_ids"]
        if ids is not None and not np.array_equal(np.atleast_2d(ids), right):
            raise RefimplError(
                f"the candidate has token ids of shape {list(np.shape(ids))}, which are not those "
                f"of {path}",
                f"token_ids in {path / 'inputs.safetensors'}, of shape {list(right.shape)}",
                "run the program on these, or pass the model in place of the case",
            )
        return case
    if ids is None:
        raise RefimplError(
            "the candidate does not hold the token ids that it was computed from",
            f"an array of them named {' or '.join(IDS)}, or `tokens=FILE`",
            "add `tokens=ids.npy`",
        )
    model = read_model(path, download=download)
    tokens = Tokens(checked_ids(ids, model.config), "of the candidate", "ids")
    return computed_case(
        model, tokens, Recipe(only=(*FORWARD, *matching(only, FORWARD))), path
    )


def candidate_steps(
    case: Case, outputs: Arrays, names: Path | None = None
) -> tuple[Arrays, tuple[str, ...]]:
    """The steps that a candidate has, by their own names or those of a program's modules.

    Also those that are asked for, none for all of the case: the forward's if it has no others.
    """
    outputs = {name: x for name, x in outputs.items() if name not in IDS}
    steps = case.expected.keys() & outputs  # a program, too, may have logits
    if names is None and (steps - {LOGITS} or steps == outputs.keys()):
        forward = matching(case.expected, FORWARD)
        return outputs, () if steps - {*forward} else tuple(forward)
    word = TRANSFORMERS if names is None else str(names)
    sources, arrays = named_sources(word, case), dict[str, Array]()
    every = [step for step in case.expected if step in sources]
    for step in every:
        keys = filter(None, (_key(name, [*outputs]) for name in sources[step]))
        if key := next(keys, ""):
            arrays[step] = _as_step(
                outputs[key], case, step, fused=word == TRANSFORMERS
            )
    if not arrays:
        wanted = [*dict.fromkeys(name for names in sources.values() for name in names)]
        raise RefimplError(
            f"no output belongs to a step; there are {', '.join([*outputs][:3]) or 'none'}",
            f"names such as {', '.join(wanted[:3])}",
            "name the modules of your program in a file, and add `names=FILE`",
        )
    some = word == TRANSFORMERS and 2 * len(arrays) >= len(every)
    return arrays, tuple(arrays if some else every)


def _key(name: str, keys: Sequence[str]) -> str | None:
    """The only key of a module, whose prefix may be absent on either side, or another one."""
    if name in keys:
        return name
    end = re.sub(PREFIX, "", name)
    alike = [key for key in keys if re.sub(PREFIX, "", key) == end]
    found = [
        key
        for key in alike
        if f".{key}".endswith(f".{name}") or name.endswith(f".{key}")
    ]
    found = found or alike
    return found[0] if len(found) == 1 else None


def _as_step(x: Array, case: Case, step: str, fused: bool) -> Array:
    """An output, or the rows of a fused one, in the shape of its step; as it is if none fits.

    A router's is packed bits, from the numbers of the experts of each token, or shares of all.
    """
    truth, (n, s) = case.expected[step], case.inputs["token_ids"].shape
    heads, width = truth.shape[1] if truth.ndim == 4 else 1, truth.shape[-1]
    experts = case.model.config.experts
    if truth.ndim < 3 or x.size % (n * s):
        return x
    if experts and step.endswith(ROUTER):
        x, one = x.reshape(n, s, -1), np.eye(experts.num_experts, dtype=bool)
        chosen = (
            one[x % experts.num_experts].any(axis=-2)
            if x.dtype.kind in "iu"
            else x != 0
        )
        return np.packbits(chosen, axis=-1)
    if truth.ndim == 4 and heads != s and x.shape == truth.shape:
        rows = merge_heads(x)
    else:
        rows = x.reshape(n, s, -1)
    weight = case.model.weights.get(f"{step}_proj.weight") if fused else None
    if weight and rows.shape[-1] == sum(weight.layout.rows) > heads * width:
        layout = replace(weight.layout, transposed=False, stack=0)
        rows = np.moveaxis(extract(np.moveaxis(rows, -1, 0), layout), 0, -1)
    if rows.shape[-1] != heads * width:
        return x
    return split_heads(rows, width) if truth.ndim == 4 else rows


def numbered(names: Sequence[str], block: int) -> tuple[str, ...]:
    """Names of one block: its number in place of `{}`, the next in place of `{+1}`."""
    return tuple(
        x.replace("{}", str(block)).replace("{+1}", str(block + 1)) for x in names
    )


def named_sources(word: str, case: Case) -> Sources:
    """Where values are in transformers' modules, or by a JSON file of names by step."""
    if word == TRANSFORMERS:
        return transformers_sources(case.model)
    with reading(Path(word), NAMES):
        content = json_object(read_file(Path(word)), word, NAMES)
    sources: Sources = {}
    for pattern, modules in content.items():
        names = modules if isinstance(modules, list) else [modules]
        blocks = range(case.model.config.num_blocks if "{}" in pattern else 1)
        found = {
            step: numbered(names, i)
            for i in blocks
            if all(isinstance(name, str) for name in names)
            for step in numbered([pattern], i)
            if step in case.expected
        }
        if not found:
            raise RefimplError(
                f"{word}: {pattern!r}: {modules!r}",
                NAMES,
                "correct the step or the module's name",
            )
        sources |= found
    return sources


def transformers_sources(model: Model) -> Sources:
    """Where transformers' modules hold the steps; none returns what is rotated or clipped."""
    config, weights, sources = model.config, model.weights, Sources()

    def module(role: str) -> str:
        weight = weights.get(f"{role}.weight")
        return weight.stored.name.rpartition(".")[0] if weight else ""

    def whole(i: int) -> str:
        """The module of a block: that of a linear, up to the block's number."""
        one = module(f"blocks.{i}.{next(iter(config.linears[i]))}")
        start = re.match(rf"(?:.*?\.)?{i}(?=\.)", one)
        return start[0] if start else ""

    def add(step: str, *names: str) -> None:
        if every := tuple(name for name in names if name not in ("", INPUT)):
            sources[step] = every

    changed = {
        "pos_embed.weight",
        "embed_norm.weight",
    } & weights.keys() or config.embed_scale != 1
    add("embed", whole(0) + INPUT, "" if changed else module("embed"))
    for i, kind in enumerate(config.blocks):
        of, mixer = f"blocks.{i}.", config.mixer(i)
        add(f"{of}resid_pre", whole(i) + INPUT, whole(i - 1) if i else "")
        for norm in ("attn_norm", "mlp_norm", "experts_norm"):
            add(of + norm, module(of + norm))
        if isinstance(mixer, Attention):
            for x in "qkv":
                kinds = ("norm", "width_norm", "proj")[
                    : 3 if config.qkv_limit is None else 1
                ]
                add(
                    of + x,
                    next(
                        filter(None, (module(f"{of}{x}_{kind}") for kind in kinds)), ""
                    ),
                )
            if (
                "v_norm" in config.weightless_norms
            ):  # beside those with weights; not what v_proj is
                add(f"{of}v", module(f"{of}q_norm").replace("q_norm", "v_norm"))
        rotated = () if isinstance(mixer, LatentAttention) else ("q_rope", "k_rope")
        for x in rotated[kind.temperature is not None :]:  # unscaled queries
            add(of + x, of + x)
        ends = [x for x in ("o_proj", "out_proj") if x in config.linears[i]]
        # The MLP in transformers is the module around its router.
        mixture = re.sub(
            r"(\.(gate|router|proj|wg|layer))+$", "", module(f"{of}router")
        )
        down = module(f"{of}down_proj") or mixture
        if config.mlp_scale != 1:  # by the module around it
            down = down.rpartition(".")[0]
        for part, end in (
            ("attn", module(of + ends[0]) if len(ends) == 1 else ""),
            ("mlp", down),
        ):
            after = module(f"{of}{part}_post_norm") or end
            if config.residual_scale == 1:
                add(f"{of}{part}_out", after, after.replace("block_sparse_moe", "mlp"))
        if (
            mixture and config.experts
        ):  # experts, or shares of all; transformers 5 has other names
            end = "" if config.experts.of_inputs else ":2"
            homes = mixture, mixture.replace("block_sparse_moe", "mlp")
            add(
                of + ROUTER,
                *(f"{x}.{y}{end}" for x in homes for y in ("gate", "router")),
            )
        if not config.parallel_residual:
            add(f"{of}resid_mid", module(f"{of}mlp_norm") + INPUT)
        add(f"{of}block_embed_norm", module(f"{of}block_embed_gate") + INPUT)
        add(f"{of}block_embed_out", module(f"{of}block_embed_post_norm"))
        after = whole(i + 1) if i + 1 < config.num_blocks else module("final_norm")
        add(f"{of}resid_post", whole(i), after + INPUT)
    head = module("lm_head")
    head = "lm_head" if head == module("embed") else head  # tied
    as_is = config.logit_scale == 1 and config.final_soft_cap is None
    add("final_norm", module("final_norm"), head + INPUT)
    add("logits", LOGITS, *(head, "lm_head") if as_is else ())
    return sources

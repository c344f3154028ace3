"""What another program wrote, as the steps of a case."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.candidates.names import (
    NAME_MAPS,
    ModuleOutput,
    Sources,
    named_sources,
    transformers_sources,
)
from refimpl.candidates.program_outputs import IDS, ProgramOutputs
from refimpl.errors import RefimplError
from refimpl.loading.checkpoint import read_model
from refimpl.model.attention import split_heads
from refimpl.model.layout import cut
from refimpl.model.ops import Array
from refimpl.model.token_ids import checked_ids
from refimpl.oracle.case import Case, computed_case, read_case
from refimpl.oracle.case_folders import FACTS, FORWARD, matching
from refimpl.oracle.judging.measures import array_of
from refimpl.oracle.recipe import Recipe
from refimpl.tokens import Tokens

UNIT_OF_SUM = 2.0**-24  # a sum in float32 errs by so much of all sizes, for each number


@dataclass(frozen=True)
class CandidateSteps:
    """The steps that a candidate holds by some `names`, and which part of them is `covered`."""

    arrays: Mapping[str, Array]
    asked: tuple[str, ...] = ()
    names: str = ""
    covered: str = ""


def candidate_case(
    path: Path, ids: Array | None, candidate: ProgramOutputs | None, *, download: bool = False
) -> Case:
    """The case in a folder, or the forward of a model on ids, those of the candidate if None."""
    if ids is None and candidate is not None:
        ids = candidate.ids
    model_files = path.is_dir() and [path / "config.json", *path.glob("*.gguf")]
    if (path / FACTS).exists() or (model_files and not any(x.exists() for x in model_files)):
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
            f"an array of them named {' or '.join(IDS)}, or --tokens FILE",
            "add --tokens ids.npy",
        )
    model = read_model(path, download=download)
    tokens = Tokens(checked_ids(ids, model.config), "of the candidate", "ids")
    return computed_case(model, tokens, Recipe(only=FORWARD), path)


def candidate_steps(
    case: Case, candidate: ProgramOutputs, names: Path | None = None, decode: bool = False
) -> CandidateSteps:
    """The steps that a candidate holds, by a map of names; if None, the map that knows most.

    If a built-in map knows more than twice as many steps as the candidate holds, the names may be
    another program's: then all are asked for. `decode`: it holds the last tokens of each sequence.
    """
    outputs, keys = candidate.outputs, [name for name in candidate.outputs if name not in IDS]
    word = str(names) if names is not None else candidate.names or _map_of(case, keys)
    if not word and not decode:
        return CandidateSteps({name: outputs[name] for name in keys}, candidate.only)
    if word:
        sources = named_sources(word, case)
    else:
        trace = [x for x in matching(case.expected, FORWARD) if not x.endswith(".keep")]
        sources = {step: ModuleOutput((step,)) for step in trace}
    if decode:
        sources = {step: replace(x, last=True) for step, x in sources.items()}
    arrays, shown, total = dict[str, Array](), 0, 0
    for step, key in _found(case, sources, keys).items():
        truth, x = case.expected[step], _array(outputs[key])
        x = x if word or x.ndim != 4 else x.swapaxes(1, 2)  # our heads stand before the tokens
        x = _as_step(x, sources[step], case, step)
        partial = (candidate.half_unit or isinstance(x, np.ma.MaskedArray)) and x.dtype.kind != "c"
        if partial and x.shape == truth.shape:
            known = ~np.ma.getmaskarray(x) & ~np.isnan(np.ma.getdata(x))
            shown, total = shown + int(known.sum()), total + known.size
            x = completed(x, truth, candidate.half_unit, candidate.sums.get(key))
        arrays[step] = np.ma.getdata(x)
    every = [step for step in case.expected if step in sources]
    asked = arrays if word in NAME_MAPS and 2 * len(arrays) >= len(every) else every
    covered = f"{shown:,} of {total:,} numbers" + ", and sums" * bool(candidate.sums)
    return CandidateSteps(arrays, candidate.only or tuple(asked), word, (total and covered) or "")


def module_steps(
    case: Case, outputs: Mapping[str, Any], names: Mapping[str, Sequence[str]] | None = None
) -> dict[str, Array]:
    """The steps of a case that outputs of modules hold, as arrays or tensors; of a tuple the first.

    An output is [N, S, width] or [N S, width], of heads also [N, S, heads, head_dim]; ":input"
    behind a module's name is what it reads. `names` are modules by step, transformers' if None.
    """
    if names is None:
        sources = transformers_sources(case.model)
    else:
        sources = {step: ModuleOutput(tuple(modules)) for step, modules in names.items()}
    return {
        step: _as_step(_array(outputs[key]), sources[step], case, step)
        for step, key in _found(case, sources, [*outputs]).items()
    }


def completed(x: Array, truth: Array, half_unit: float = 0.0, total: float | None = None) -> Array:
    """The numbers of a candidate, and those of the case where it shows none, in float32 or fewer.

    It is masked where it has no tokens. Printed numbers are off by `half_unit`, NaN where none was,
    and `total` is their sum: of numbers with this print, the result has the nearest to the case's.
    """
    held, values, result = ~np.ma.getmaskarray(x), np.ma.getdata(x), truth.copy()
    if not half_unit:
        result[held] = values[held]
        return result.astype(values.dtype)
    shown = held & ~np.isnan(values)
    with np.errstate(all="ignore"):  # a candidate's numbers may be of any size
        result[shown] += _beyond(values[shown] - truth[shown], half_unit)
        hidden = held & ~shown
        if total is not None and hidden.any():
            slack = UNIT_OF_SUM * held.sum() * np.abs(result[held]).sum() + half_unit
            result[hidden] += _beyond(total - result[held].sum(), slack) / hidden.sum()
        return result.astype(np.float32)


def _beyond(difference: Array, allowed: float) -> Array:
    """By how much differences are larger than what is allowed, with their sign."""
    return np.sign(difference) * np.maximum(np.abs(difference) - allowed, 0)


def _array(value: Any) -> Array:
    """An output as an array; of a tuple the first counts."""
    value = value[0] if isinstance(value, tuple | list) else value
    return value if isinstance(value, np.ndarray) else array_of(value)


def _map_of(case: Case, keys: Sequence[str]) -> str:
    """The map of names that knows most steps by some keys; "" if the keys are steps' own names."""
    most, best = len(case.expected.keys() & {*keys}), ""
    for word, read in NAME_MAPS.items() if most < len(keys) else ():
        sources = read(case.model)
        known = [x for step, x in sources.items() if step in case.expected]
        count = sum(any(_keys(name, keys) for name in x.names) for x in known)
        most, best = max((most, best), (count, word), key=lambda pair: pair[0])
    return best


def _found(case: Case, sources: Sources, keys: Sequence[str]) -> dict[str, str]:
    """The key of each step that a map of names finds, in the order of execution."""
    found: dict[str, str] = {}
    for step in case.expected:
        names = sources[step].names if step in sources else ()
        if (key := next(filter(None, (_key(name, keys) for name in names)), None)) is not None:
            found[step] = key
    if not found:
        wanted = [name for source in sources.values() for name in source.names]
        raise RefimplError(
            f"no output belongs to a step; there are {', '.join(keys[:3]) or 'none'}",
            f"names such as {', '.join(wanted[:3])}; or those of {', '.join(NAME_MAPS)}",
            "name the modules of your program in a file, and add --names FILE",
        )
    return found


def _keys(name: str, keys: Sequence[str]) -> list[str]:
    """The keys of a module, whose prefix may be absent on either side."""
    if name in keys:
        return [name]
    return [key for key in keys if _is_tail(name, key) or _is_tail(key, name)]


def _key(name: str, keys: Sequence[str]) -> str | None:
    """The only key of a module."""
    if len(found := _keys(name, keys)) > 1:
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


def _as_step(x: Array, source: ModuleOutput, case: Case, step: str) -> Array:
    """An output in the shape of its step, masked before the last tokens; as it is if none fits."""
    shape, (n, s) = case.expected[step].shape, case.inputs["token_ids"].shape
    if len(shape) < 3:
        return x
    heads, width = shape[1] if len(shape) == 4 else 1, shape[-1]
    if len(shape) == 4 and heads != s and x.shape == (n, heads, s, width):
        return x
    count, rest = divmod(x.size, n * heads * width)
    if source.last and 0 < count < s and not rest:
        x = x.swapaxes(1, 2) if x.shape == (n, heads, count, width) and heads != count else x
        rows = np.ma.masked_all((n, s, heads * width), x.dtype)  # type: ignore[no-untyped-call]
        rows[:, s - count :] = x.reshape(n, count, -1)
    elif x.size % (n * s):
        return x
    else:
        rows = x.reshape(n, s, -1)
    layout = source.layout
    if len(layout.rows) > 1 and rows.shape[-1] == sum(layout.rows):
        own = replace(layout, transposed=False, stack=0)
        rows = np.moveaxis(cut(np.moveaxis(rows, -1, 0), own), 0, -1)
    if rows.shape[-1] != heads * width:
        return x
    if source.paired:
        rows = rows.reshape(n, s, heads, width // 2, 2).swapaxes(-1, -2).reshape(n, s, -1)
    return case.sampled(split_heads(rows, width) if len(shape) == 4 else rows)

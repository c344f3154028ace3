"""Unit vectors: inputs and outputs of one kernel, small, in shapes at which kernels go wrong.

`vectors.toml` lists them; functions of the forward and of the method compute them.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from inspect import signature
from math import inf
from pathlib import Path
from tomllib import loads
from types import SimpleNamespace
from typing import Annotated, Any, Literal, get_type_hints
from zlib import crc32

import numpy as np
from msgspec import Meta

from refimpl.arguments import require
from refimpl.errors import RefimplError
from refimpl.loading.files.documents import Document, converted, plain, read_document
from refimpl.loading.files.safetensors_file import SafetensorsFile, write_arrays
from refimpl.model.ops import Array
from refimpl.model.position_tables import causal_bias
from refimpl.model.stream import SUMS
from refimpl.oracle.case import Case
from refimpl.oracle.case_folders import matching
from refimpl.oracle.check import Report
from refimpl.oracle.diagnosis import where_wrong
from refimpl.oracle.measures import (
    EPS,
    Arrays,
    coarsest,
    error_of,
    step_result,
    tolerance_of,
)
from refimpl.oracle.mutations import function_at
from refimpl.oracle.recipe import Recipe
from refimpl.oracle.rounding import rounding
from refimpl.oracle.truth import FEWER_BITS
from refimpl.running.outputs import check_folder, json_text, whole
from refimpl.version import SPEC

KERNELS: dict[str, Any] = loads(
    (Path(__file__).parent / "vectors.toml").read_text("utf-8")
)
JUDGED = ("float64", "float32")  # dtypes
NAMED = "unit vectors", "what refimpl vectors wrote", "run refimpl vectors again"
Cast = Callable[[Any], Any]


class KernelFacts(Document, frozen=True):
    """The flags and facts of a kernel's vectors by name; tolerances by output and dtype.

    Refimpl's own errors, of which these follow, are in units of the dtype.
    """

    spec: Annotated[int, Meta(ge=SPEC, le=SPEC)]
    vectors: dict[str, dict[str, Any]]
    own_errors: dict[str, float]
    tolerances: dict[str, dict[str, float]]


def vectors_of(kernel: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Array]]]:
    """The vectors of a kernel.

    Yields:
        KERNEL.FLAGS; what `vectors.toml` says of the vector, with its flags; its inputs by name.
    """
    for flags, *change in KERNELS[kernel]["at"]:
        name = f"{kernel}.{re.sub('[^a-z0-9]+', '_', flags.lower())}"
        facts = {
            "flags": flags.split(", "),
            **KERNELS[kernel]["facts"],
            **dict(*change),
        }
        yield name, facts, _drawn(name, facts)


def _drawn(vector: str, facts: Mapping[str, Any]) -> dict[str, Array]:
    """Inputs of few bits, each drawn by its own name; positions, their mask, and sums of tokens."""
    arrays = dict[str, Array]()
    for name, words in facts["inputs"].items():
        shape = [int(x) if x.isdigit() else facts[x] for x in words.split()]
        low, high = facts.get("range", {}).get(name, (-127, 127))
        rng = np.random.default_rng([0, crc32(f"{vector}.{name}".encode())])
        x = rng.integers(low, high + 1, shape) / 64
        for *index, number in facts.get("set", {}).get(name, ()):
            x[tuple(slice(None) if i == "" else i for i in index)] = number
        arrays[name] = x.astype(np.float32)
        if name in SUMS:
            arrays["total"] = SUMS[name](arrays.pop(name)).astype(np.float32)
        elif name == "positions":
            arrays[name] = np.arange(len(x))
        elif words == "S S":
            arrays[name] = causal_bias(
                np.arange(len(x)), facts.get("window"), np.float32
            )
    return arrays


def outputs_of(
    vector: str, facts: Mapping[str, Any], inputs: Arrays, cast: Cast
) -> dict[str, Array]:
    """What refimpl makes of inputs in some dtype; decisions are packed bits.

    Args:
        vector: KERNEL.FLAGS.
        facts: Those of the vector: the function, and the values of its parameters that are no
            arrays. Any other parameter is None, or has its default.
        inputs: Arrays by the names of parameters, or of weights.
        cast: Rounds a float array to the dtype.

    Returns:
        Arrays by VECTOR.OUTPUT.
    """
    place, *names = facts["function"]
    arrays = {k: cast(x) if x.dtype.kind == "f" else x for k, x in inputs.items()}
    function = function_at(place)
    hints, values = get_type_hints(function), {**facts, **arrays}
    given: dict[str, Any] = {}
    for name, x in signature(function).parameters.items():
        if name == "weights":
            given[name] = arrays
        elif isinstance(value := values.get(name), dict):
            given[name] = converted(value, hints[name])
        elif name in values or x.default is x.empty:
            given[name] = value
    result = function(**given)
    results = map(np.asarray, result if isinstance(result, tuple) else (result,))
    return {
        f"{vector}.{name}": np.packbits(x, axis=-1) if x.dtype == np.bool_ else x
        for name, x in zip(names, results, strict=False)
    }


def write_vectors(kernel: str, folder: Path) -> Path:
    """Write the vectors of a kernel into a new folder, and return it.

    Args:
        kernel: Its name in `vectors.toml`, or all.
        folder: For KERNEL.json and KERNEL.safetensors.

    Raises:
        RefimplError: An unknown kernel, or a folder that exists.
    """
    require(kernel, Literal[("all", *KERNELS)], "KERNEL")
    check_folder(folder, {}, None)
    with whole(folder) as new:
        new.mkdir()
        for name in KERNELS if kernel == "all" else [kernel]:
            vectors, arrays, allowed = (
                {},
                dict[str, Array](),
                dict[str, dict[str, float]](),
            )
            own: dict[str, float] = {}
            for vector, facts, inputs in vectors_of(name):
                computed = partial(outputs_of, vector, facts, inputs)
                truth = computed(np.float64)
                arrays |= truth
                arrays |= {f"{vector}.{k}": x for k, x in inputs.items()}
                own |= own_units(truth, computed)
                for step, x in truth.items():
                    errors = {dtype: own[step] * EPS[dtype] for dtype in JUDGED}
                    allowed[step] = {
                        k: tolerance_of(step, x, y, k) for k, y in errors.items()
                    }
                vectors[vector] = facts
            document = plain(KernelFacts(SPEC, vectors, own, allowed))
            (new / f"{name}.json").write_text(json_text(document), "utf-8")
            write_arrays(new / f"{name}.safetensors", arrays)
    return folder


def own_units(truth: Arrays, computed: Callable[[Cast], Arrays]) -> dict[str, float]:
    """Refimpl's own errors in units of float32, as of steps that are computed from their inputs."""
    own = dict.fromkeys(truth, 0.0)
    for fewer in FEWER_BITS:
        outputs, unit = computed(rounding(fewer=fewer).of), EPS["float32"] * 2**fewer
        for step, x in truth.items():
            own[step] = max(own[step], error_of(step, outputs[step], x)[0] / unit)
    return own


def check_vectors(
    folder: Path, arrays: Arrays, only: tuple[str, ...], dtype: str | None
) -> Report:
    """Judge outputs, each as a step of a case that is computed from its inputs.

    Args:
        folder: From `write_vectors`.
        arrays: The candidate's, by VECTOR.OUTPUT.
        only: Outputs that are asked for, as shell patterns; all if empty.
        dtype: The candidate's dtype; the coarsest of its float arrays if None.
    """
    truth, own = dict[str, Array](), dict[str, float]()
    for path in (
        x for x in (folder / f"{name}.json" for name in KERNELS) if x.is_file()
    ):
        kernel = read_document(path, NAMED, None, lambda x: converted(x, KernelFacts))
        stored = SafetensorsFile(path.with_suffix(".safetensors")).arrays
        own |= kernel.own_errors
        truth |= {step: x for step, x in stored.items() if step in own}
    asked = matching(truth, only or ("*",))
    if not asked or not truth.keys() & arrays:
        names = f"names such as {', '.join([*truth][:3])}"
        problem = (
            f"no output is named in the file ({', '.join([*arrays][:3])}), or by `only`"
        )
        raise RefimplError(problem, names, "use these names")
    dtype = dtype or coarsest(arrays) or "float32"
    results = []
    for step in asked:
        right, error = truth[step], own[step] * EPS[dtype] if dtype in JUDGED else inf
        result = step_result(
            step, arrays, right, error, tolerance_of(step, right, error, dtype)
        )
        if result.status == "divergent":
            seen: Any = SimpleNamespace(values=truth, actual=arrays)
            result = replace(result, diagnose=partial(where_wrong, seen, result))
        results.append(result)
    model: Any = SimpleNamespace(config=SimpleNamespace(family="none"))
    case = Case(folder, folder.name, model, Recipe(), {}, truth)
    return Report(case, dtype, tuple(results), ())

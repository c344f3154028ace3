"""A case: a folder with a model, its inputs, and the expected value of every step."""

import fnmatch
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.arguments import checked
from refimpl.errors import RefimplError
from refimpl.loading.checkpoint import read_model
from refimpl.loading.files.documents import converted, filled, plain, reading_document
from refimpl.loading.files.safetensors_file import SafetensorsFile, write_arrays
from refimpl.loading.samples import Tokens, random_tokens
from refimpl.method.perturbation import noise
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.state import checked_ids
from refimpl.oracle import case_folders
from refimpl.oracle.case_folders import (
    FACTS,
    FORWARD,
    NEXT,
    CaseFolder,
    case_folder,
    family_model,
)
from refimpl.oracle.dense_steps import StepInputs
from refimpl.oracle.measures import Arrays, OwnErrors, measure_of
from refimpl.oracle.recipe import Recipe
from refimpl.oracle.rounding import RoundedArray, RoundedModel
from refimpl.oracle.steps import steps
from refimpl.running.blas import blas_kernel
from refimpl.running.file_system import file_digest
from refimpl.running.outputs import check_folder, whole
from refimpl.version import SPEC, __version__

INPUTS, EXPECTED = "inputs.safetensors", "expected.safetensors"
ERRORS = "errors.safetensors"
FACTOR = (
    "factor."  # with a block: of SparseGPT's factors up to there, among errors of steps
)


@dataclass(frozen=True, eq=False)
class Case:
    """A model, its inputs, and what a candidate is checked against (docs/how-to/check.md).

    Inputs are `token_ids` [N, S], int64, and `noise` [L, N, S, D], float64, `noise.1` and so on of
    each draw that steps read. Errors are refimpl's own by way and dtype, then by step: measured
    when they are asked for, or those of the folder, the worst of some kernels of BLAS.
    """

    folder: Path
    name: str
    model: Model
    recipe: Recipe
    inputs: Arrays
    expected: Arrays
    errors: dict[str, OwnErrors] = field(default_factory=dict)


@checked
def make_case(model: Model, tokens: Tokens, recipe: Recipe, folder: str | Path) -> Case:
    """Compute every step in float64, and write a case; the folder appears whole or not at all.

    Raises:
        RefimplError: A folder that exists or cannot be written; as `steps` raises it.
    """
    folder = Path(folder)
    check_folder(folder, {}, None)
    case = computed_case(model, tokens, recipe, folder)
    facts = case_folders.CaseFacts(
        schema=case_folders.SCHEMA,
        spec=SPEC,
        versions={
            "refimpl": __version__,
            "numpy": np.__version__,
            "kernels": blas_kernel(),
        },
        model=model.hub_id or os.path.relpath(model.path, folder),
        family=model.config.family,
        tokens=filled(case_folders.CaseTokens, tokens, shape=tokens.ids.shape),
        recipe=plain(recipe),
        sha256=_hashes(model, case.inputs),
        steps=[
            filled(
                case_folders.StepFacts,
                x,
                name=k,
                dtype=x.dtype.name,
                measure=measure_of(k),
            )
            for k, x in case.expected.items()
        ],
    )
    with whole(folder) as new:
        new.mkdir()
        for name, arrays in ((INPUTS, case.inputs), (EXPECTED, case.expected)):
            write_arrays(new / name, arrays)
        lines = [
            f" {json.dumps(key)}: {json.dumps(x)}" for key, x in plain(facts).items()
        ]
        table = ",\n".join(f"  {json.dumps(plain(step))}" for step in facts.steps)
        lines[-1] = f' "steps": [\n{table}\n ]'  # a line per fact, and one per step
        (new / FACTS).write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
    return case


@checked
def forward_case(
    name: str | Path, folder: Path, samples: int = 1, seq_len: int = 8, seed: int = 0
) -> CaseFolder:
    """Write a case of the forward of a model, or of a family's tiny one, on a few random tokens."""
    model = read_model(family_model(str(name)) or name)
    tokens = random_tokens(model.config.vocab_size, samples, seq_len, seed)
    make_case(model, tokens, Recipe(only=FORWARD), folder)
    return case_folder(folder)


@checked
def computed_case(
    model: Model, tokens: Tokens, recipe: Recipe, folder: Path = Path()
) -> Case:
    """Compute every step in float64; as `make_case`, which writes the case, too."""
    ids, config = tokens.ids, model.config
    if recipe.shown and max(recipe.shown) >= config.num_blocks:
        raise RefimplError(
            f"`shown={max(recipe.shown)}`: the model has {config.num_blocks} blocks",
            f"blocks from 0 to {config.num_blocks - 1}",
            "choose other blocks",
        )
    if ids.shape[1] < 2 and not recipe.only:
        raise RefimplError(
            "samples of 1 token, of which perplexity predicts none",
            "samples of 2 or more tokens",
            "use a longer `seq_len`, or add `only='blocks.*'`",
        )
    expected = steps(model, ids, recipe)
    if unknown := [p for p in recipe.only if not fnmatch.filter(expected, p)]:
        raise RefimplError(
            f"`only={unknown[0]}`: no step of the forward or the experiments matches",
            f"names such as {', '.join([*expected][:3]) or 'blocks.0.q'}, or a pattern of some",
            "choose other steps, or omit `only` for the whole method",
        )
    if still := [
        k for k, x in expected.items() if k.endswith(".drift") and not x.all()
    ]:
        raise RefimplError(
            f"{still[0]} is 0: the block loses no weight, so it has no absorption coefficient",
            "a sparsity with which every block loses weights that matter",
            "use a larger `sparsity`, or `only='blocks.*'`",
        )
    shape, inputs = (ids.shape[1], config.hidden_size), {"token_ids": ids}
    for draw, name in enumerate(_noises(recipe, expected)):
        inputs[name] = np.array(
            [
                [noise(recipe.seed, n, block, draw, shape) for n in range(len(ids))]
                for block in range(config.num_blocks)
            ]
        )
    return Case(folder, folder.name or model.name, model, recipe, inputs, expected)


@checked
def read_case(folder: str | Path, *, download: bool = False) -> Case:
    """Read a case, and check that its model and inputs are the ones it was made from.

    `download` is that of `read_model`, for a model of the Hugging Face hub.

    Raises:
        RefimplError: Not a case, of another schema or spec, or with other inputs or another model.
    """
    folder = Path(folder)
    facts = case_folder(folder).facts
    if facts.spec != SPEC:
        raise RefimplError(
            f"{folder} has spec {facts.spec}",
            f"spec {SPEC}, that of refimpl {__version__}",
            f"use the refimpl that made the case, or {NEXT}",
        )
    with reading_document(folder / FACTS, ("the facts of a case", "a recipe", NEXT)):
        recipe = converted(facts.recipe, Recipe, "recipe", exact=True)
    inputs, arrays = (
        SafetensorsFile(folder / name).arrays for name in (INPUTS, EXPECTED)
    )
    found, has = (
        {k: (x.shape, x.dtype.name) for k, x in y.items()} for y in (inputs, arrays)
    )
    steps = {x.name: (x.shape, x.dtype) for x in facts.steps}
    wrong = sorted({x for x, _ in has.items() ^ steps.items()})[:3]
    model_path = folder / facts.model
    is_id = "@" in facts.model and not model_path.exists()
    model = read_model(facts.model if is_id else model_path, download=download)
    size = (*facts.tokens.shape, model.config.hidden_size)
    noise_of = (model.config.num_blocks, *size), "float64"
    needed = dict.fromkeys(_noises(recipe, arrays), noise_of)
    if wrong or found != {"token_ids": (size[:-1], "int64")} | needed:
        raise RefimplError(
            f"{folder} is not a whole case (steps {wrong}, inputs {found})",
            f"the steps of {FACTS} in {EXPECTED}; in {INPUTS} token_ids [N, S] of int64, and the "
            "noise of every draw, [blocks, N, S, width] of float64",
            NEXT,
        )
    expected = {step.name: arrays[step.name] for step in facts.steps}
    checked_ids(inputs["token_ids"], model.config)
    hashes = _hashes(model, inputs)
    name = os.path.basename(os.path.realpath(folder))
    case = Case(folder, name, model, recipe, inputs, expected)
    case.errors.update(_stored_errors(case))
    if other := [
        name for name, value in hashes.items() if facts.sha256.get(name) != value
    ]:
        raise RefimplError(
            f"{folder}: {', '.join(other)} changed since the case was made",
            "the model and inputs with the SHA-256 in case.json",
            f"restore them, or {NEXT}",
        )
    return case


def _stored_errors(case: Case) -> dict[str, OwnErrors]:
    """Refimpl's own errors by way and dtype, then by step, if the folder of the case has them."""
    path = case.folder / ERRORS
    if not path.exists():
        return {}
    blocks = range(0 if case.recipe.only else case.model.config.num_blocks)
    names = [*case.expected, *(f"{FACTOR}{i}" for i in blocks)]
    arrays = SafetensorsFile(path).arrays
    if any(x.shape != (len(names),) or np.isnan(x).any() for x in arrays.values()):
        raise RefimplError(
            f"{path} does not hold an error of each step", "that of the case", NEXT
        )
    return {way: dict(zip(names, x.tolist(), strict=True)) for way, x in arrays.items()}


def case_inputs(
    case: Case,
    given: Mapping[str, Array] = {},
    dtype: npt.DTypeLike = np.float64,
    rounded: type[RoundedArray] | None = None,
) -> StepInputs:
    """Given values, and those of a case, as a computation in some dtype reads them."""
    model = (
        case.model
        if rounded is None
        else case.model.as_kind(RoundedModel, kind=rounded)
    )
    dtype = dtype if rounded is None else rounded.held
    return StepInputs(
        model, case.recipe, case.inputs["token_ids"], dtype, given, rounded
    )


def _noises(recipe: Recipe, steps: Iterable[str]) -> list[str]:
    """Names of the draws that the experiments among some steps read."""
    first = {step.split(".")[0] for step in steps}
    draws = max("perturbed" in first, recipe.draws * ("coarse" in first))
    return [f"noise.{draw}" if draw else "noise" for draw in range(draws)]


def _hashes(model: Model, inputs: Arrays) -> dict[str, Any]:
    """SHA-256 of the model's files and of the inputs' bytes, by name."""
    hashes = {
        f"model {x.name}": file_digest(x) for x in sorted(x.path for x in model.files)
    }
    for name, value in sorted(inputs.items()):
        little = value.astype(value.dtype.newbyteorder("<"))
        hashes[name] = hashlib.sha256(little.tobytes()).hexdigest()
    return hashes

"""When two computations agree: the worst token's relative error, and how small it must be."""

import fcntl
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from runpy import run_path
from tempfile import mkdtemp
from typing import Any, TypeVar

import numpy as np
import pytest
from conftest import FIXTURES, MADE
from safetensors.numpy import load_file

from refimpl import Model, read_model
from refimpl.model.ops import Array
from refimpl.oracle.case import Case, read_case

M = TypeVar("M", bound=Model)

CASES = sorted(path.parent.name for path in FIXTURES.glob("*/expected.safetensors"))
# Without the last token, which is predicted and never an input, its rotary tables are others.
SAME_TABLES = [case for case in CASES if case != "llama_dynamic"]
# Whose blocks ONNX has no operators for
UNRECORDED = ("qwen3_5", "qwen3_5_moe", "qwen3_next", "olmo_hybrid")
# In bfloat16 by hooks: outputs of recurrences, from attn_norm on, and shares with edges
NOT_RESOLVED = ("granite_hybrid", "olmo_hybrid", "phimoe", "qwen3_next")
GRAPH_CASES = [case for case in CASES if case not in UNRECORDED]
# One of each way in which files store linears, and blocks differ; the others are thorough.
LAYOUTS = (
    "llama_sharded",
    "gpt2",
    "phi3",
    "gpt_neox",
    "mixtral",
    "gemma3",
    "bamba",
    "deepseek_v2",
)
GATES = {"float32": 1e-5, "float64": 1e-12}
assert len(CASES) >= 13, f"expected at least 13 cases in {FIXTURES}, found {CASES}"


def layouts(cases: Iterable[str], plain: Collection[str] = LAYOUTS) -> list[Any]:
    """Cases as parameters, of which a plain run takes those of `plain`."""
    return [
        case if case in plain else pytest.param(case, marks=pytest.mark.thorough)
        for case in cases
    ]


def worst_token(actual: Array, expected: Array) -> float:
    """The largest ``||actual_t - expected_t|| / ||expected_t||`` of a token, [..., D] both.

    Infinite where a token should be 0 and is not, or is not finite.
    """
    assert actual.shape == expected.shape, (
        f"shape {actual.shape}, expected {expected.shape}"
    )
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    if not np.isfinite(actual).all():
        return np.inf
    nothing = ~np.any(expected, axis=-1)
    if np.any(actual[nothing]):
        return np.inf
    error, size = (np.linalg.norm(x, axis=-1) for x in (actual - expected, expected))
    return float(np.max(error / np.where(nothing, 1, size)))


def errors_of(
    actual: Mapping[str, Array], expected: Mapping[str, Array]
) -> dict[str, float]:
    """The `worst_token` of each trace point of a fixture, which stores four tokens of most."""
    return {
        name: worst_token(stored(actual[name], x), x) for name, x in expected.items()
    }


def stored(actual: Array, expected: Array) -> Array:
    """All tokens of [..., S, D], or the four that a fixture has, from the first to the last."""
    if actual.shape[-2] == expected.shape[-2]:
        return actual
    last = actual.shape[-2] - 1
    return actual[..., [last * n // 3 for n in range(4)], :]


def worst_point(
    actual: Mapping[str, Array], expected: Mapping[str, Array]
) -> tuple[float, str]:
    """The largest `worst_token` of all trace points, and the name of that point."""
    return max((error, name) for name, error in errors_of(actual, expected).items())


@cache
def model_of(case: str) -> Model:
    return read_model(FIXTURES / case)


def model_as(case: str, kind: type[M]) -> M:
    return model_of(case).as_kind(kind)


def bits(value: Any) -> Any:
    """Everything in a result but how long it took, so that equal means equal bit for bit."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, tuple | list):
        return type(value), [bits(x) for x in value]
    if isinstance(value, dict):
        return {key: bits(x) for key, x in value.items()}
    if hasattr(value, "__dataclass_fields__"):
        names = [field.name for field in fields(value) if field.name != "run"]
        return type(value), [(name, bits(getattr(value, name))) for name in names]
    return value.hex() if isinstance(value, float) else value


@cache
def expected_of(case: str) -> tuple[Array, dict[str, Array]]:
    """A fixture's token ids [B, S] and its expected values by trace point, float64.

    Most points have four tokens; a `resid_pre` is the `resid_post` before it.
    """
    values = load_file(FIXTURES / case / "expected.safetensors")
    return values.pop("token_ids"), values


@cache
def case_of(name: str) -> Case:
    """A case of the wheel, or of another family, which the run makes when it is asked for."""
    return read_case(case_folder_of(name))


def case_folder_of(name: str) -> Path:
    """The folder of the case of a family."""
    folder = FIXTURES / "cases" / name
    make = run_path(str(FIXTURES / "make_cases.py"))["make"]
    return folder if folder.exists() else made_once(name, lambda new: make(name, new))


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """A folder of the run that one of its processes makes; the others wait for it."""
    folder = Path(os.environ.get(MADE) or mkdtemp()) / name
    os.environ.setdefault(MADE, str(folder.parent))
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            make(folder)
    return folder

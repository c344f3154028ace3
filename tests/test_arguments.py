"""Hostile values at every public function and dataclass: each is refused by our error."""

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import FIXTURES
from gates import case_of, model_of
from hypothesis import assume, given
from hypothesis import strategies as st
from refusals import refusal_of
from tables import cases

import refimpl
from refimpl import Noise, Pattern, Probes, PrunerOptions, RefimplError, Request, score
from refimpl.allocation.scores_json import read_scores
from refimpl.arguments import described, is_of_type, members
from refimpl.loading.samples import Tokens, Windows, random_tokens
from refimpl.oracle.recipe import Recipe
from refimpl.running.settings import Settings

API = (FIXTURES.parent / "docs" / "reference" / "api.md").read_text("utf-8")
MASKED = np.ma.masked_array([1, 2, 3], [0, 1, 0])  # type: ignore[no-untyped-call]
NAN, INF = float("nan"), float("inf")
# By the type of a good value, what is none, whatever the function is.
HOSTILE: Mapping[type, tuple[Any, ...]] = {
    bool: (1.5, "yes", [], 2),
    int: (1.5, True, "3", [], NAN, b"1", 1j),
    float: (True, "0.5", [], NAN, 1j, b"1", np.array([0.5])),
    str: (5, 1.5, b"x", ["x"], True, "no such word"),
    tuple: (5, "x", [0.1], {}, ("x",), (True,)),
    dict: (5, "x", [1], {1: 2}, {"no such option": 1.0}),
    np.ndarray: ("abc", object(), [[1], [2, 3]], {}, MASKED, [None]),
    Path: (5, 1.5, b"x", ["x"], True),
    object: (5, "x", [], {}, 1.5, True, int),
}
# Results: no function takes one that somebody else made, but for scores and allocations.
RESULTS = {
    *(
        "Allocation",
        "Case",
        "Evaluation",
        "Explanation",
        "Forward",
        "Inspection",
        "Model",
    ),
    *("PowerLaw", "Report", "RunningDivergence", "Scores"),
}
# Formulas over arrays, which other kinds of arrays pass, too: those that an export records.
OF_ARRAYS = (
    "refimpl.model.",
    "refimpl.method.absorption",
    "refimpl.method.perturbation",
)
# Of a case that `check` has checked, or of a spectrum: it calls them, and nobody else.
OF_STEPS = {"case_inputs", "computed_again", "every_array"}
OF_STEPS |= {"is_step", "peak", "steps"}
OF_STEPS |= {"count_ties", "follows_a_choice", "keep_ties", "lowest", "rounding_ties"}
OF_STEPS |= {"positions", "router_ties", "score_behind", "ties_of"}
# What a package that adds a base or a pruner writes, and what its functions are called with.
OF_RECORDS = {"spread", "by_share", "floored", "relative", "mean_score", "compensated"}
OF_RECORDS |= {"inverse_of_upper", "require_finite"}
RECORDS = {"Base", "Option", "Pruner", "BaseInputs", "BlockInputs", "LinearInputs"}
LEFT_OUT = RESULTS | OF_STEPS | OF_RECORDS | RECORDS
GOOD = [  # and not elsewhere
    ("progress", True),
    ("memory", 5),
    ("eta", 5),
    ("only", ("x",)),
    ("bases", []),
    ("bases", {}),
    *((x, {"no such option": 1.0}) for x in ("actual", "scores")),
    *((x, "no such word") for x in ("name", "prompt")),
]


def public() -> Iterator[tuple[str, Any]]:
    """Every function and dataclass on the page of the library, by its whole name."""
    for module in re.findall(r"automodule:: (\S+)", API):
        names = vars(import_module(module))
        for name in names.get("__all__", names):
            found = names[name]
            here = module == "refimpl.api" or getattr(found, "__module__", "") == module
            if (
                here
                and not name.startswith("_")
                and (inspect.isfunction(found) or is_dataclass(found))
            ):
                yield f"{module}.{name}", found


def arguments(folder: Path) -> dict[str, dict[str, Any]]:
    """Good arguments of each function and dataclass that is checked, by the names of parameters."""
    model, tokens, case = model_of("llama"), random_tokens(264, 2, 8), case_of("gpt2")
    vector, matrix, weights = (
        np.array([0.5, 0.75]),
        np.eye(4),
        "fixtures/llama/model.safetensors",
    )
    usual: dict[str, Any] = {
        "model": model,
        "dense": model,
        "pruned": model,
        "tokens": tokens,
        "plan": Noise(),
        "request": Request(correct=None),
        "dtype": "float32",
        "threads": 1,
        "memory": "64M",
        "progress": print,
        "settings": Settings(),
        "force": False,
        "trace": False,
        "download": False,
        "config": None,
        "which": 0,
        "block": 0,
        "step": "norm",
        "token_ids": tokens.ids,
        "measure": dict,
        "bases": ["uniform"],
        "scores": score(model, tokens, threads=1),
        "folder": folder / "case",
        "m": 5.0,
        "statistic": "mean",
        "group": 2,
        "fit": "mid",
        "xmin": "shipped",
        "num_units": 2,
        "num_blocks": 2,
        "sparsity": 0.5,
        "lam": 0.1,
        "epsilon": 0.1,
        "a": 0.1,
        "beta": 0.1,
        "compat": "exact",
        "steepness": 8.0,
        "strength": 0.05,
        "max_correction": 0.1,
        "scale": "raw",
        "lo": 0.0,
        "count": 5,
        "rows": 4,
        "columns": 4,
        "damping": 0.01,
        "width": 2,
        "text": "2:4",
        "shape": (4, 4),
        "pattern": Pattern(2, 4),
        "pruner": PrunerOptions("magnitude"),
        "recipe": Recipe(),
        "case": case,
        "only": ("*",),
        "actual": dict(case.expected),
        "eigenvalues": np.arange(1.0, 9),
        "path": weights,
        "windows": Windows((tokens.ids[0],), None, 8, "ids", "ids"),
        "sizes": np.array([10, 10]),
        "second_moment": np.ones(4),
        "drift": np.triu(np.ones((2, 2))),
        "sparsity_per_unit": np.array([0.5, 0.5]),
        **dict.fromkeys(("weight", "outer", "hessian", "zero", "score"), matrix),
        **dict.fromkeys(
            ("outlier_percent", "alpha", "error", "signal", "ratio", "u"), vector
        ),
        **dict.fromkeys(("base", "x", "quotas"), vector),
    }
    own: dict[
        str, dict[str, Any]
    ] = {  # of functions whose parameter means something else
        "score": {"finished": folder / "p"},
        "evaluate": {"finished": folder / "p"},
        "explain": {},
        "prune": {
            "out": folder / "out",
            "target": Pattern(2, 4),
            "scores": {"format": 4},
        },
        "read_model": {"path": "fixtures/llama"},
        "text_tokens": {
            "path": "fixtures/text.txt",
            "tokenizer_json": "fixtures/llama/tokenizer.json",
            "samples": 2,
            "seq_len": 8,
        },
        "random_tokens": {"vocab_size": 9, "samples": 2, "seq_len": 8, "seed": 0},
        "owl_outlier_percent": {"scores": (matrix,)},
        "dlp_score": {"scores": (matrix,)},
        "dlp": {"score": vector},
        "base_named": {"name": "owl"},
        "pruner_named": {"name": "wanda"},
        "total_count": {"total": 10},
        "apportion": {"total": 1},
        "sparsegpt": {"target": 5},
        "admm": {"target": 5},
        "refitted": {"keep": matrix > 0},
        "computed_case": {"recipe": Recipe(only=("embed",))},
        "read_case": {"folder": "fixtures/cases/opt"},
        "Noise": vars(Noise()),
        "Probes": vars(Probes(delta=0.1, samples=1)),
        "Settings": {
            "dtype": "float32",
            "threads": 1,
            "progress": print,
            "finished": folder,
        },
        "forward_case": {"name": "llama", "folder": folder / "f"},
        "Pattern": {"pruned": 2, "group": 4},
        "Request": vars(Request(correct="absorption")),
    }
    good = {}
    for full_name in CHECKED:
        function, name = FUNCTIONS[full_name], full_name.rpartition(".")[2]
        known = usual | own.get(name, {})
        if is_dataclass(function):
            good[full_name] = own.get(name) or vars(function())
        else:
            wanted = {*inspect.signature(function).parameters}
            if "settings" in wanted:  # any of its fields, too
                wanted |= {"dtype", "threads", "memory", "progress"}
            good[full_name] = {key: known[key] for key in wanted if key in known}
    return good


def hostile_to(good: Any) -> tuple[Any, ...]:
    """Values that are none where this one is good."""
    if callable(good):
        return tuple(value for value in HOSTILE[object] if not callable(value))
    kinds = [
        kind for kind in HOSTILE if isinstance(good, Mapping if kind is dict else kind)
    ]
    return HOSTILE[kinds[0]]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return arguments(tmp_path_factory.mktemp("good"))


FUNCTIONS = {
    name: x for x, name in {x: name for name, x in reversed([*public()])}.items()
}
CHECKED = [
    name
    for name, function in FUNCTIONS.items()
    if name.rpartition(".")[2] not in LEFT_OUT
    and (not name.startswith(OF_ARRAYS) or is_dataclass(function))
]


def test_required_arguments_are_known(good: dict[str, dict[str, Any]]) -> None:
    for name in CHECKED:
        wanted = inspect.signature(FUNCTIONS[name]).parameters.values()
        needed = {
            x.name for x in wanted if x.default is x.empty and x.kind < x.VAR_KEYWORD
        }
        assert needed - {"args", "options"} <= good[name].keys(), name


@pytest.mark.parametrize("name", CHECKED)
def test_hostile_values_are_refused(
    name: str, good: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(FIXTURES.parent)
    function, arguments = FUNCTIONS[name], good[name]
    accepted, raised = [], []
    for key, value in arguments.items():
        for hostile in hostile_to(value):
            if (key, hostile) in GOOD:
                continue
            try:
                function(**arguments | {key: hostile})
                accepted.append((key, hostile))
            except RefimplError as error:
                if not (error.problem and error.expected and error.remedy):
                    raised.append((key, hostile, repr(error)))
            except Exception as error:  # every other one is a mistake of ours
                raised.append((key, hostile, repr(error)))
    assert (accepted, raised) == ([], [])


@given(st.data())
def test_any_value_of_another_type_is_refused(data: st.DataObject) -> None:
    """Values that nobody thought of, at the dataclasses that say what is asked for."""
    name = data.draw(
        st.sampled_from([name for name in CHECKED if is_dataclass(FUNCTIONS[name])])
    )
    kind = FUNCTIONS[name]
    good = {"pruned": 2, "group": 4} if kind is Pattern else vars(kind())
    key = data.draw(st.sampled_from([*good]))
    value = data.draw(
        st.from_type(type).flatmap(st.from_type).filter(lambda x: not plain(x))
    )
    assume(not (key == "progress" and callable(value)))
    refusal_of(kind, **good | {key: value})


def plain(value: object) -> bool:
    """Whether some field of some dataclass takes a value of this type."""
    return value is None or isinstance(
        value, int | float | str | tuple | Mapping | np.number
    )


def test_an_alias_is_what_it_stands_for() -> None:
    """As NumPy's own types are from Python 3.12 on."""
    plain = getattr(npt.ArrayLike, "__value__", npt.ArrayLike)
    array, number = (type("Alias", (), {"__value__": x}) for x in (plain, int | None))
    assert members(number) == (int, type(None))
    assert described(array) == described(npt.ArrayLike)
    assert [is_of_type(x, array) for x in ([1.0], MASKED, "abc")] == [
        True,
        False,
        False,
    ]
    assert [is_of_type(x, number) for x in (1, None, True, 1.5)] == [
        True,
        True,
        False,
        False,
    ]


def test_numbers_of_numpy_are_as_good_as_those_of_python_and_decimals_are_none() -> (
    None
):
    assert not any(
        is_of_type(Decimal(x), kind) for x in ("1", "sNaN") for kind in (int, float)
    )
    wanted = Request(sparsity=np.float64(0.5), lo=np.float32(0.25))
    plan = Noise(seed=np.int64(3), draws=np.uint8(2))  # type: ignore[arg-type]
    assert (wanted, plan) == (Request(sparsity=0.5, lo=0.25), Noise(seed=3, draws=2))
    assert {type(x) for x in (wanted.sparsity, wanted.lo)} == {float}
    assert {type(x) for x in (plan.seed, plan.draws)} == {int}


@pytest.mark.parametrize("call", cases(".", "out_of_range"))
def test_values_out_of_range_are_refused(call: str) -> None:
    refusal_of(lambda: eval(call))


def test_more_probed_samples_than_there_are() -> None:
    model, tokens = model_of("llama"), random_tokens(264, 2, 8)
    assert score(model, tokens, Probes(samples=99)).measured_samples == 2
    one = random_tokens(
        264, 1, 8
    )  # the default of measured strength is for as many or more
    assert (
        score(model, one, request=Request(correct="divergence")).measured_samples == 1
    )


def test_ids_behind_a_mask_are_refused() -> None:
    model = model_of("llama")
    refusal_of(refimpl.forward, model, MASKED, says="token-ids")
    refusal_of(Tokens, np.ma.masked_array([[1, 2]]), "mine", "ids", says="ids")  # type: ignore[no-untyped-call]


def test_scores_are_read_from_a_path_as_text(tmp_path: Path) -> None:
    refusal_of(read_scores, str(tmp_path / "none.json"), says="cannot be read")

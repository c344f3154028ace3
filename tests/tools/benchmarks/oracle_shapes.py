"""Right candidates of the oracle: tiny random models of all families, computed in several ways.

PYTHONPATH=.:tests python tests/tools/benchmarks/oracle_shapes.py --shapes 2000 --jobs 2
"""

import argparse
import json
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cache, partial
from itertools import chain
from math import exp, log
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

sys.path.extend(map(str, Path(__file__).parents[1:3]))

from candidates import Arrays, written
from conftest import FIXTURES
from gates import CASES, GATES, worst_token
from mistakes import ALL, arrays_of, project
from transformers_forward import random_model, transformers_forward

from refimpl import RefimplError, read_model
from refimpl.loading.samples import Tokens
from refimpl.oracle.case import Case, case_inputs, entries, make_case
from refimpl.oracle.check import check
from refimpl.oracle.recipe import BASES, Recipe
from refimpl.oracle.rounding import Bfloat16, Float16, RoundedArray
from refimpl.oracle.steps import every_array

FORWARD = ("embed", "blocks.*", "final_norm", "logits", "perturbed.*", "coarse.*")
PROJECT = ("gemma2", "gemma3", "gpt2", "gpt_neox", "llama", "mistral", "opt", "phi3", "qwen2",
           "qwen3")  # fmt: skip
Product = Callable[[Any, Any, type[RoundedArray]], Any]


def in_halves(a: Any, b: Any, kind: type[RoundedArray]) -> Any:
    """A product as the sum of two, each of them rounded."""
    half = a.shape[-1] // 2
    return kind.of(a[..., :half] @ b[..., :half, :]) + kind.of(a[..., half:] @ b[..., half:, :])


def in_turn(a: Any, b: Any, _: type[RoundedArray]) -> Any:
    """A product of each sequence alone."""
    if a.ndim < 3:
        return a @ b
    return np.stack([x @ (b[i] if b.ndim == a.ndim else b) for i, x in enumerate(a)])


PRODUCTS: Mapping[str, Product] = {
    "reversed sums": lambda a, b, _: a[..., ::-1] @ b[..., ::-1, :],
    "split sums": in_halves,
    "wide accumulators": lambda a, b, kind: (
        a.astype(wide := np.longdouble if kind.held == np.float64 else np.float64) @ b.astype(wide)
    ).astype(kind.held),
    "batch of one": in_turn,
}


@cache
def arithmetic(way: str, dtype: str) -> type[RoundedArray]:
    """Numbers of a dtype whose products are computed in some way."""

    class Kind({"float16": Float16, "bfloat16": Bfloat16}.get(dtype, RoundedArray)):  # type: ignore[misc]
        def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
            if ufunc is not np.matmul or inputs[1].ndim < 2:
                return super().__array_ufunc__(ufunc, method, *inputs, **options)
            return self.of(PRODUCTS[way](*map(self._operands, inputs), type(self)))

    if dtype in ("float32", "float64"):
        Kind.held = Kind.narrow = np.dtype(dtype).type
    return Kind


def recipe_of(number: int, rng: np.random.Generator, blocks: int, widths: set[int]) -> Recipe:
    """What is computed, at sparsities where some blocks lose nothing or everything, too."""

    def one(*values: Any) -> Any:
        return values[rng.integers(len(values))]

    def between(low: float, high: float) -> float:
        return exp(rng.uniform(log(low), log(high)))

    patterns = [
        x for x in ("1:2", "2:4", "1:4", "3:4", "4:8") if all(n % int(x[2:]) == 0 for n in widths)
    ]
    sparsity = rng.uniform(0.02, 0.98)
    bases = tuple(rng.permutation([*BASES])[: 1 + rng.integers(7)].tolist())
    return Recipe(
        eta=between(1e-4, 0.3), sink=one("include", "exclude"), seed=number, sparsity=sparsity,
        coarse_eta=between(0.1, 1.0), draws=one(1, 2, 3), bases=bases,
        beta=2 * min(sparsity, 1 - sparsity) / 8, strength=one(-0.1, 0.05, 0.1, 0.3),
        max_correction=one(0.02, 0.05), pattern=one("", *patterns, *patterns),
        damping=one(0.01, 0.1), shown=tuple(i for i in range(blocks) if one(0, 1, 1)),
    )  # fmt: skip


def drawn_case(number: int, away: Path) -> Case:
    """A case of a tiny random model, all of its parameters random.

    Of half of them, and if an expert has no token: the forward and the experiments by noise.
    """
    import torch
    from random_configs import drawn
    from safetensors.torch import load_file, save_file

    rng, fixture = np.random.default_rng([number, 21]), CASES[number % len(CASES)]
    torch.manual_seed(number)
    for attempt in range(9):  # until transformers runs a configuration, and refimpl reads it
        folder = away / f"model-{attempt}"
        config = drawn(json.loads((FIXTURES / fixture / "config.json").read_text()), rng)
        sequences, length = rng.integers(1, 5), rng.integers(5, 33)
        length += length == 6  # by their number, `traced` tells tokens from heads: 2, 4 or 6
        ids = rng.integers(3, 30, (sequences, length))
        with suppress(Exception):
            random_model(config, ids, folder)
            read_model(folder)
            break
    file, stored = folder / "model.safetensors", ("float32", "float16", "bfloat16")
    kept = getattr(torch, stored[rng.integers(3)])
    save_file({k: x.to(kept) for k, x in load_file(file).items()}, file)
    model = read_model(folder)
    widths = {width for linears in model.config.linears for _, width in linears.values()}
    recipe = recipe_of(number, rng, model.config.num_blocks, widths)
    tokens = Tokens(ids, f"drawn uniformly with seed {number}", "ids")
    part = replace(recipe, only=FORWARD, shown=(), pattern="")
    try:
        chosen = recipe if rng.random() < 0.5 else part
        return make_case(model, tokens, chosen, away / "case")
    except RefimplError as error:
        if "no token is routed" not in str(error):
            raise
        return make_case(model, tokens, part, away / "part")


@cache
def right() -> Any:
    """The sample project, in this process."""
    import torch

    torch.set_num_threads(1)
    return project()


Way = tuple[str, bool, Callable[[], Arrays]]


def implemented(case: Case, number: int) -> bool:
    """Whether the sample project has the family, and the options that were drawn."""
    if case.recipe.only or CASES[number % len(CASES)] not in PROJECT:
        return False
    with suppress(ValueError, KeyError, RuntimeError):
        logits = arrays_of(right(), case, "float64", pruners=False)["logits"]
        return worst_token(logits, case.expected["logits"]) < GATES["float64"]
    return False


def ways_of(case: Case, turn: int, dtype: str) -> Iterator[Way]:
    """Ways to compute a case by turns: their names, whether each is step by step, its arrays."""
    fused = turn % 2 or case.model.config_file.get("alibi")  # eager Falcon adds it twice
    word, attention = ("fused", "sdpa") if fused else ("eager", "eager")
    yield (
        f"transformers, {word}",
        False,
        lambda: transformers_forward(case.model, dtype, attention)(case.inputs["token_ids"]),
    )

    def products(way: str, given: Arrays) -> Arrays:
        inputs = case_inputs(case, given, rounded=arithmetic(way, dtype))
        return written(case, every_array(inputs), dtype)

    for i, given in enumerate([{}] if case.recipe.only else [{}, entries(case)]):
        way = [*PRODUCTS][(turn // 2 + i) % len(PRODUCTS)]
        yield way, bool(i), partial(products, way, given)


def tried(number: int) -> list[dict[str, Any]]:
    """One shape, in half of the dtypes by turns: the verdicts on its right candidates."""
    dtypes = ALL[number % 2 :: 2]  # and the other half in the next round of the families
    warnings.simplefilter("ignore")
    facts: dict[str, Any] = {"shape": number, "family": CASES[number % len(CASES)]}
    with tempfile.TemporaryDirectory() as away:
        try:
            case = drawn_case(number, Path(away))
        except Exception as error:  # of transformers, or of ours
            return [facts | {"way": "no case", "dtype": x, **problem(error)} for x in dtypes]
        own, lines = implemented(case, number), []
        for dtype in dtypes:
            ways = [*ways_of(case, (number + ALL.index(dtype)) // 2, dtype)]
            if own:
                ways += [("sample project", x, partial(arrays_of, right(), case, dtype, x))
                         for x in (False, True)]  # fmt: skip
            for way, stepwise, arrays in ways:
                found = judgement(case, arrays, dtype, stepwise, way.startswith("transformers"))
                kind = way + ", step by step" * stepwise
                lines.append(facts | {"way": kind, "dtype": dtype} | found)
    return lines


def problem(error: Exception, verdict: str = "not run") -> dict[str, str]:
    """What is said of a case or a candidate that there is not."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(where.filename).name}, {where.name}"
    return {"verdict": verdict, "first": f"{place}: {type(error).__name__} {error}"[:300]}


def judgement(
    case: Case, arrays: Callable[[], Arrays], dtype: str, stepwise: bool, peer: bool
) -> dict[str, Any]:
    """The verdict on a right candidate for a case; peers may refuse a configuration."""
    try:
        actual = arrays()
        assert np.isfinite(actual["logits"].astype(np.float64)).all(), "beyond the dtype"
    except Exception as error:  # of the candidate, or of this program
        refused = peer or isinstance(error, RefimplError | AssertionError)
        return problem(error, "not run" if refused else "crash")
    try:
        report = check(case, actual, tuple(actual), dtype, stepwise)
    except Exception as error:  # refused, if refimpl itself cannot compute the case in the dtype
        return problem(error, "not run" if isinstance(error, RefimplError) else "crash")
    status = Counter(step.status for step in report.steps)
    line = {"verdict": report.verdict, "steps": len(report.steps), **status}
    line["used"] = max(
        (s.error / s.tolerance for s in report.steps if s.tolerance and s.status == "pass"
         and not s.near_ties), default=0.0,
    )  # fmt: skip
    if (first := report.first) is not None:
        line |= {"first": first.step, "error": first.error, "tolerance": first.tolerance}
        line |= {"own": first.own, "fault": first.fault, "recipe": asdict(case.recipe)}
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", type=int, default=20, help="how many models")
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    given = parser.parse_args()
    right()  # imported once, for all processes
    verdicts, numbers = Counter[tuple[str, str]](), range(given.first, given.first + given.shapes)
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("fork")) as pool:
        for line in chain.from_iterable(pool.map(tried, numbers)):
            verdicts[line["dtype"], line["verdict"]] += 1
            if line["verdict"] in ("fail", "crash"):
                print(json.dumps(line, default=str), flush=True)
    for (dtype, verdict), count in sorted(verdicts.items()):
        print(f"{dtype:8} {verdict:10} {count:,}")
    sys.exit(any(verdict in ("fail", "crash") for _, verdict in verdicts))


if __name__ == "__main__":
    main()

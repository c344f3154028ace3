"""How good the oracle is: mistakes that it names, and correct candidates that it accepts.

    python tests/benchmarks/oracle_quality.py                        # mistakes, and 20 shapes
    python tests/benchmarks/oracle_quality.py --shapes 1000 --jobs 2 --log shapes.jsonl
    python tests/benchmarks/oracle_quality.py --page docs/results/oracle.md --log shapes.jsonl

Mistakes: every entry of `tests/mistakes.py`, in each dtype where it is one. All of them have to be
caught in float64 and float32, at the step where they were made. In 16 bits one counts where its
effect is at least twice what is allowed: the largest error that it makes at that step (of any
block), in float64, against the truth.

Shapes: the sample project, right, on tiny random models of the ten families. None may be divergent.
Shapes are numbered, and their number is their seed; `--first` goes on at one. Results are added to
the log, a line each.
"""

import argparse
import json
import re
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib.metadata import version
from math import exp, inf, log
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

TESTS = Path(__file__).parent.parent
sys.path.insert(0, str(TESTS))

from candidates import Arrays  # noqa: E402
from crafted_cases import oracle_case  # noqa: E402
from mistakes import ALL, AREAS, MISTAKES, Mistake, arrays_of, project  # noqa: E402

import refimpl.oracle.near_ties as tying  # noqa: E402
import refimpl.oracle.step_tolerances as limiting  # noqa: E402
from refimpl import RefimplError, read_model  # noqa: E402
from refimpl.oracle.case import Case, make_case  # noqa: E402
from refimpl.oracle.check import check  # noqa: E402
from refimpl.oracle.judging.measures import error_of, measure_of  # noqa: E402
from refimpl.oracle.reference_errors import reference_run  # noqa: E402
from refimpl.oracle.steps import Recipe  # noqa: E402
from refimpl.show.table import aligned  # noqa: E402
from refimpl.tokens import Tokens  # noqa: E402

WAYS = ("from the tokens", "step-wise")
LARGEST = "largest error / tolerance"
COUNTS = 2.0  # times what is allowed, from which on a mistake has to be caught in 16 bits
FAMILIES = (
    "gemma2", "gemma3_text", "gpt2", "gpt_neox", "llama", "mistral", "opt", "phi3", "qwen2",
    "qwen3",
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What became of a mistake in a dtype.

    Args:
        ratio: Its effect, in units of what is allowed; in 64 and 32 bits its error.
        step: The first divergent one, or "".
        result: "caught", "elsewhere" (at another step), "undetectable", "not judged" or "missed".
        differ: Of a discrete step, how many decisions or counts.
    """

    ratio: float
    step: str
    result: str
    differ: int = 0


@contextmanager
def allowing(times: float) -> Iterator[None]:
    """Let `check` allow so many times as much."""
    limit = limiting.tolerance_of

    def more(*words: Any) -> float:
        return times * limit(*words)

    with (
        np.errstate(all="ignore"),  # limits may be of any size
        patch.object(limiting, "tolerance_of", more),
        patch.multiple(
            tying,
            tolerance_of=more,
            TIE_SHARE=times * tying.TIE_SHARE,
            ERROR_FACTOR=times * tying.ERROR_FACTOR,
        ),
    ):
        limiting.step_tolerances.cache_clear()
        yield
    limiting.step_tolerances.cache_clear()


def kind_of(step: str) -> str:
    """A step, of any block."""
    return re.sub(r"\.\d+\.", ".*.", step)


def ratio_of(case: Case, dtype: str, step: str, actual: Arrays) -> float:
    """How many times as much `check` would have to allow to let a step through."""
    if step not in actual:
        return inf
    truth = case.expected[step]
    own = reference_run(case, dtype).errors[step]
    error, _, fault = error_of(step, actual[step], truth, measure_of(step, truth.dtype))
    if error == 0 or (fault and error == inf):
        return inf if fault else 0.0
    if own == inf:
        return 0.0  # refimpl itself is not near it, so that nothing is too far off
    tolerance = limiting.step_tolerances(case, dtype)[step]
    if tolerance and step != "owl.signal" and not step.startswith("sparsegpt"):
        return error / tolerance

    def passes(power: float) -> bool:
        with allowing(2.0**power):
            return check(case, {step: actual[step]}, (step,), dtype).first is None

    low, high = -20.0, 20.0
    if not passes(high):
        return error / tolerance if tolerance else inf
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return 2.0**high


def judge(mistake: Mistake, case: Case) -> dict[str, Found]:
    """What became of a mistake, by dtype."""
    wrong = project(mistake)
    exact = arrays_of(wrong, case, "float64")
    made = {}
    for dtype in mistake.dtypes:
        actual = exact if dtype == "float64" else arrays_of(wrong, case, dtype)
        report = check(case, actual, dtype=dtype)
        first = "" if report.first is None else report.first.step
        differ = 0
        if dtype in ALL[:2]:
            step = first or mistake.step
            ratio = ratio_of(case, dtype, step, actual)
            result = "missed" if not first else "caught" if first == mistake.step else "elsewhere"
            if report.first is not None and case.expected[step].dtype.kind != "f":
                differ = int(report.first.error)
        else:
            kind = kind_of(mistake.step)
            ratios = {
                name: ratio_of(case, dtype, name, exact)
                for name in case.expected
                if kind_of(name) == kind
            }
            ratio = max(ratios.values())
            large = {name for name, x in ratios.items() if x >= COUNTS}
            judged = {s.step for s in report.steps if s.status in ("pass", "divergent")}
            if first:
                result = "caught" if kind_of(first) == kind else "elsewhere"
            elif not large:
                result = "undetectable"
            else:
                result = "missed" if large & judged else "not judged"
        made[dtype] = Found(ratio, first, result, differ)
    return made


def judge_all() -> tuple[dict[str, dict[str, Found]], list[str]]:
    """Every mistake, and where the right candidate is refused on the same cases."""
    made: dict[str, dict[str, Found]] = {}
    refused = []
    with tempfile.TemporaryDirectory() as away:
        right = project()
        for name in dict.fromkeys(x.case for x in MISTAKES.values()):
            case = oracle_case(name, Path(away))
            for dtype in ALL:
                first = check(case, arrays_of(right, case, dtype), dtype=dtype).first
                if first is not None:
                    refused.append(f"{name}, {dtype}, at {first.step}")
            for mistake, entry in MISTAKES.items():
                if entry.case == name:
                    made[mistake] = judge(entry, case)
    return {name: made[name] for name in MISTAKES}, refused


def shown(found: Found | None) -> str:
    """A cell: a mistake as a multiple of the tolerance; in parentheses if it is not caught."""
    if found is None:
        return ""
    number = f"{found.ratio:.2g}" if found.ratio < 100 else f"{found.ratio:.0e}"
    number = number.replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")
    if found.ratio == inf:
        number = f"{found.differ} differ" if found.differ else "any"
    return {
        "caught": number,
        "elsewhere": f"({number}), at {found.step}",
        "undetectable": f"({number})",
        "not judged": f"({number}: not judged)",
        "missed": f"MISSED: {number}",
    }[found.result]


def mistakes_text(made: dict[str, dict[str, Found]], refused: list[str]) -> str:
    """A table for each area, and how many were caught."""
    lines = []
    for area, mistakes in AREAS.items():
        columns: dict[str, list[str]] = {
            area: list(mistakes),
            "case": [x.case for x in mistakes.values()],
            "expected at": [x.step for x in mistakes.values()],
            "found at": [made[name]["float32"].step for name in mistakes],
        }
        for dtype in ALL:
            columns[dtype] = [shown(made[name].get(dtype)) for name in mistakes]
        lines += ["", *(line.rstrip() for line in aligned(columns))]
    return "\n".join([*lines, "", *totals(made), *(f"right, refused: {x}" for x in refused)])


def totals(made: dict[str, dict[str, Found]]) -> list[str]:
    """How many were caught, by dtype."""
    lines = []
    for dtype in ALL:
        counted = Counter(x[dtype].result for x in made.values() if dtype in x)
        parts = ", ".join(f"{n} {result}" for result, n in counted.most_common())
        lines.append(f"{dtype}: {counted.total()} mistakes: {parts}")
    return lines


@dataclass(frozen=True)
class Shape:
    """A tiny random model, what is computed of it, and on what.

    Args:
        settings: Of transformers' configuration.
        recipe: What is computed.
        tokens: How many sequences, of how many tokens.
        stored: Dtype of the file.
    """

    settings: dict[str, Any]
    recipe: Recipe
    tokens: tuple[int, int]
    stored: str


@dataclass(frozen=True)
class Draw:
    """Choices by a seed."""

    rng: np.random.Generator

    def one(self, *values: Any) -> Any:
        """One of some values."""
        return values[self.rng.integers(len(values))]

    def whole(self, low: int, high: int, step: int = 1) -> int:
        """A multiple of a step, from low to high."""
        return step * int(self.rng.integers(-(-low // step), high // step + 1))

    def between(self, low: float, high: float) -> float:
        """A number whose logarithm is uniform."""
        return exp(self.rng.uniform(log(low), log(high)))


def shape_of(number: int, draw: Draw) -> Shape:
    """One of the families, by turns, with random sizes and choices."""
    family = FAMILIES[number % len(FAMILIES)]
    kv_heads, groups, blocks = draw.one(1, 2, 3), draw.one(1, 2, 3), draw.one(1, 2, 3, 4)
    heads, head_dim, step = kv_heads * groups, draw.one(4, 6, 8, 12, 16), draw.one(1, 2, 4, 8)
    inner, hidden = draw.whole(8, 72, step), heads * head_dim
    if family in ("mistral", "qwen3"):
        hidden = draw.whole(8, 64, step)
    elif family in ("gemma2", "gemma3_text", "llama"):
        hidden = heads * draw.one(4, 6, 8, 12, 16)
    samples, length = draw.whole(1, 4), draw.whole(4, 20)
    settings = {
        "model_type": family, "hidden_size": hidden, "num_attention_heads": heads,
        "num_hidden_layers": blocks, "vocab_size": draw.whole(20, 150),
        "max_position_embeddings": 64, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    plain = family in ("gpt2", "gpt_neox", "opt")
    settings |= (plain_settings if plain else gated_settings)(family, draw, length, blocks, inner)
    if not plain:
        settings["num_key_value_heads"] = kv_heads
    if not plain and family not in ("phi3", "qwen2"):
        settings["head_dim"] = head_dim
    if family == "gpt_neox":
        part = draw.one(0.5, 1.0) if head_dim % 4 == 0 else 1.0
        settings["rope_parameters"]["partial_rotary_factor"] = part
    widths = (hidden, heads * head_dim, inner)
    return Shape(settings, recipe_of(number, draw, blocks, widths), (samples, length),
                 draw.one("float32", "float16", "bfloat16"))  # fmt: skip


def rope(draw: Draw) -> dict[str, Any]:
    """Rotary positions."""
    return {"rope_type": "default", "rope_theta": draw.between(50, 1e6)}


def plain_settings(family: str, draw: Draw, *sizes: int) -> dict[str, Any]:
    """Of families with LayerNorm and no gate."""
    inner, eps = sizes[-1], draw.one(1e-6, 1e-5, 1e-3)
    act, either = draw.one("gelu", "gelu_new", "relu"), draw.one(True, False)
    if family == "gpt2":
        return {"n_inner": inner, "layer_norm_epsilon": eps, "activation_function": act}
    if family == "opt":
        return {"ffn_dim": inner, "enable_bias": either, "activation_function": act}
    made = {"intermediate_size": inner, "layer_norm_eps": eps, "hidden_act": act}
    return made | {"rope_parameters": rope(draw), "tie_word_embeddings": either}


def gated_settings(family: str, draw: Draw, length: int, blocks: int, inner: int) -> dict[str, Any]:
    """Of families with RMSNorm and a gate."""
    made = {
        "intermediate_size": inner, "rms_norm_eps": draw.one(1e-6, 1e-5, 1e-3),
        "rope_parameters": rope(draw), "tie_word_embeddings": draw.one(True, False),
    }  # fmt: skip
    window = draw.whole(2, length + 2)
    if family == "llama":
        made |= {"attention_bias": draw.one(True, False), "mlp_bias": draw.one(True, False)}
        made["rope_parameters"] |= draw.one({}, {"rope_type": "linear", "factor": 2.5})
    elif family == "qwen3":
        made["attention_bias"] = draw.one(True, False)
    elif family == "qwen2":
        made |= {"use_sliding_window": draw.one(True, False), "sliding_window": window}
        made["max_window_layers"] = draw.whole(0, blocks)
    else:
        made["sliding_window"] = window if family[:5] == "gemma" else draw.one(None, window)
    if family == "gemma2":
        for where in ("attn_logit", "final_logit"):
            made[f"{where}_softcapping"] = draw.one(None, draw.between(2, 50))
    if family == "gemma3_text":
        far = rope(draw) | {"rope_type": "linear", "factor": draw.between(1, 8)}
        near = made["rope_parameters"]
        made["rope_parameters"] = {"full_attention": far, "sliding_attention": near}
        kinds = ("full_attention", "sliding_attention")
        made["layer_types"] = [draw.one(*kinds) for _ in range(blocks)]
    if family[:5] == "gemma":
        made["query_pre_attn_scalar"] = draw.whole(4, 16)
    return made


def recipe_of(number: int, draw: Draw, blocks: int, widths: tuple[int, ...]) -> Recipe:
    """What is computed. Sparsities are such that no block is at 0 or 1."""
    fitting = [
        x for x in ("1:2", "2:4", "1:4", "3:4", "4:8") if all(n % int(x[2:]) == 0 for n in widths)
    ]
    bases = draw.rng.permutation(["owl", "alphapruning", "dlp", "uniform"])[: draw.whole(1, 4)]
    return Recipe(
        eta=draw.between(1e-4, 0.3), noise_scale=draw.one("token", "sequence"),
        noise_shape=draw.one("isotropic", "channel"), norm=draw.one("token", "sequence"),
        sink=draw.one("include", "exclude"), seed=number, sparsity=draw.rng.uniform(0.3, 0.6),
        bases=tuple(bases.tolist()), strength=draw.one(-0.1, 0.05, 0.1, 0.3),
        max_correction=draw.one(0.02, 0.05), pattern=draw.one("", *fitting, *fitting),
        damping=draw.one(0.01, 0.1), shown=tuple(i for i in range(blocks) if draw.one(0, 1, 1)),
    )  # fmt: skip


def drawn(number: int, away: Path) -> tuple[Case, Shape]:
    """A case of a tiny random model, all of its parameters random."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    rng = np.random.default_rng([number, 20])
    shape = shape_of(number, Draw(rng))
    family = shape.settings["model_type"]
    config = AutoConfig.for_model(**shape.settings)
    if family == "opt":
        config.word_embed_proj_dim = config.hidden_size
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    size, tensors = Draw(rng).between(0.5, 2), {}
    for name, parameter in sorted(model.named_parameters()):
        module = model.get_submodule(name.rpartition(".")[0])
        value = torch.from_numpy(rng.standard_normal(tuple(parameter.shape)))
        if parameter.ndim == 1:  # gains and biases; Gemma's gains are around 0
            value = 0.4 * value + (name.endswith("weight") and family[:5] != "gemma")
        elif isinstance(module, torch.nn.Embedding):
            value = 0.6 * value
        else:  # GPT-2's are [in, out]
            value = 1.5 * size * value / getattr(module, "in_features", len(value)) ** 0.5
        if family == "gpt_neox":
            name = name.replace("lm_head", "embed_out")  # as in files
        tensors[name] = value.to(getattr(torch, shape.stored)).contiguous()
    folder = away / "model"
    folder.mkdir()
    config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors")
    ids = rng.integers(0, shape.settings["vocab_size"], shape.tokens)
    tokens = Tokens(ids, f"drawn uniformly with seed {number}", "ids")
    return make_case(read_model(folder), tokens, shape.recipe, away / "case"), shape


@cache
def right() -> Any:
    """The sample project, in this process."""
    import torch

    torch.set_num_threads(1)
    return project()


def tried(number: int, dtypes: tuple[str, ...], stepwise: bool) -> list[dict[str, Any]]:
    """One shape in some dtypes: what the right candidate was told."""
    reference_run.cache_clear()
    limiting.step_tolerances.cache_clear()
    with tempfile.TemporaryDirectory() as away:
        facts: dict[str, Any] = {"shape": number, "family": FAMILIES[number % len(FAMILIES)]}
        facts["way"] = WAYS[stepwise]
        try:
            case, shape = drawn(number, Path(away))
        except RefimplError as error:
            return [
                facts | {"dtype": x, "verdict": "no case", "first": error.problem} for x in dtypes
            ]
        made = []
        for dtype in dtypes:
            line = facts | {"dtype": dtype}
            try:
                report = check(
                    case, arrays_of(right(), case, dtype, stepwise), dtype=dtype, stepwise=stepwise
                )
            except RefimplError as error:
                made.append(line | {"verdict": "no case", "first": error.problem})
                continue
            except (ValueError, IndexError, RuntimeError) as error:  # of the candidate, or of ours
                where = traceback.extract_tb(error.__traceback__)[-1]
                place = f"{Path(where.filename).name}, {where.name}: {error}"
                made.append(line | {"verdict": "crash", "first": place})
                continue
            status = Counter(step.status for step in report.steps)
            line |= {"verdict": report.verdict, "steps": len(report.steps), **status}
            line["ties"] = [step.step for step in report.steps if step.near_ties]
            line["used"] = max(
                (s.error / s.tolerance for s in report.steps if s.tolerance and s.status == "pass"
                 and not s.near_ties), default=0.0,
            )  # fmt: skip
            if (first := report.first) is not None:
                line |= {"first": first.step, "error": first.error, "tolerance": first.tolerance}
                line |= {"own": first.own, "fault": first.fault, "settings": asdict(shape)}
            made.append(line)
    return made


def try_shapes(
    first: int, count: int, dtypes: tuple[str, ...], stepwise: bool, jobs: int, log: Path
) -> None:
    """Try shapes, and add a line for each and each dtype to the log."""
    numbers = range(first, first + count)
    with (
        ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool,
        log.open("a", encoding="utf-8") as opened,
    ):
        for lines in pool.map(
            partial(tried, dtypes=dtypes, stepwise=stepwise), numbers, chunksize=5
        ):
            for line in lines:
                opened.write(json.dumps(line, default=str) + "\n")
                if line["verdict"] in ("divergent", "crash"):
                    print({k: v for k, v in line.items() if k != "settings"}, flush=True)
            opened.flush()


def shapes_columns(log: Path) -> dict[str, list[str]]:
    """How many right candidates passed, stayed open, and were refused, by dtype and way."""
    known: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for x in map(json.loads, log.read_text("utf-8").splitlines()):
        known.setdefault((x["way"], x["dtype"]), {})[x["shape"]] = x
    verdicts = ("no case", "crash", "pass", "inconclusive", "divergent")
    columns: dict[str, list[str]] = {
        x: [] for x in ("dtype", "way", "shapes", *verdicts, "steps", "not judged", LARGEST)
    }
    for way, dtype in sorted(known, key=lambda x: (WAYS.index(x[0]), ALL.index(x[1]))):
        some = known[way, dtype].values()
        counted = Counter(x["verdict"] for x in some)
        steps = sum(x.get("steps", 0) for x in some)
        still_open = sum(x.get("conditional", 0) for x in some)
        row = {"dtype": dtype, "way": way, "shapes": f"{len(some):,}", "steps": f"{steps:,}"}
        row |= {verdict: f"{counted[verdict]:,}" for verdict in verdicts}
        row["not judged"] = f"{still_open / max(steps, 1):.1%}"
        row[LARGEST] = f"{max(x.get('used', 0.0) for x in some):.0%}"
        for name, cell in row.items():
            columns[name].append(cell)
    return columns


def markdown(columns: dict[str, list[str]]) -> str:
    """A plain table."""
    rows = [list(columns), ["---"] * len(columns), *zip(*columns.values(), strict=True)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def mistakes_page(made: dict[str, dict[str, Found]]) -> str:
    """The mistakes for the results page: a table for each area."""
    parts = ["\n".join(f"- {line}" for line in totals(made))]
    for area, mistakes in AREAS.items():
        columns = {
            area: list(mistakes),
            "case": [x.case for x in mistakes.values()],
            "caught at": [f"`{made[name]['float32'].step}`" for name in mistakes],
        }
        for dtype in ALL:
            columns[dtype] = [shown(made[name].get(dtype)) for name in mistakes]
        parts.append(markdown(columns))
    return "\n\n".join(parts)


def fill(page: Path, region: str, text: str) -> None:
    """Put text between the marks of a region."""
    start, end = f"<!-- {region} -->\n", f"<!-- end of {region} -->"
    before, rest = page.read_text("utf-8").split(start)
    page.write_text(f"{before}{start}\n{text}\n\n{end}{rest.split(end)[1]}", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("mistakes", "shapes"), help="one of the two")
    parser.add_argument("--shapes", type=int, default=20, help="how many right candidates")
    parser.add_argument("--first", type=int, default=0, help="number of the first shape")
    parser.add_argument("--dtypes", nargs="+", choices=ALL, default=ALL, help="of the shapes")
    parser.add_argument("--stepwise", action="store_true", help="shapes: each step from the case's")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--log", type=Path, help="results of shapes, a line each, added to it")
    parser.add_argument("--page", type=Path, help="fill the marked regions of this page")
    given = parser.parse_args()
    packages = ("refimpl", "numpy", "torch", "transformers")
    print(", ".join(f"{name} {version(name)}" for name in packages), flush=True)
    failed = False
    if given.only != "shapes":
        made, refused = judge_all()
        print(mistakes_text(made, refused))
        failed = bool(refused) or any(
            x.result == "missed" or (x.result == "elsewhere" and dtype in ALL[:2])
            for by in made.values()
            for dtype, x in by.items()
        )
        if given.page:
            fill(given.page, "mistakes", mistakes_page(made))
    if given.only != "mistakes":
        with tempfile.TemporaryDirectory() as away:
            log = given.log or Path(away) / "shapes.jsonl"
            if given.shapes:
                try_shapes(
                    given.first, given.shapes, tuple(given.dtypes), given.stepwise, given.jobs, log
                )
            columns = shapes_columns(log)
        print("", *(line.rstrip() for line in aligned(columns)), sep="\n")
        failed |= any(x != "0" for x in columns["divergent"] + columns["crash"])
        if given.page:
            fill(given.page, "shapes", markdown(columns))
    sys.exit(int(failed))


if __name__ == "__main__":
    main()

"""Right candidates of the oracle: the sample project on tiny random models of the ten families."""

import json
import sys
import tempfile
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from itertools import chain
from math import exp, log
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

sys.path.extend(map(str, Path(__file__).parents[1:3]))

from mistakes import ALL, arrays_of, project
from oracle_mistakes import WAYS, logged

from refimpl import RefimplError, read_model
from refimpl.oracle.case import Case, make_case
from refimpl.oracle.check import check
from refimpl.oracle.recipe import Recipe
from refimpl.tokens import Tokens

LARGEST = "largest error / tolerance"
VERDICTS = ("no case", "crash", "pass", "resolved", "inconclusive", "divergent")
FAMILIES = (
    "gemma2", "gemma3_text", "gpt2", "gpt_neox", "llama", "mistral", "opt", "phi3", "qwen2",
    "qwen3",
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """Settings of transformers' configuration, the recipe, [sequences, tokens], dtype stored."""

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
    samples, length = draw.whole(1, 4), draw.whole(5, 64)
    settings = {
        "model_type": family, "hidden_size": hidden, "num_attention_heads": heads,
        "num_hidden_layers": blocks, "vocab_size": draw.whole(20, 150),
        "max_position_embeddings": 96, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2,
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
    """What is computed, at sparsities where some blocks lose nothing or everything, too."""
    fitting = [
        x for x in ("1:2", "2:4", "1:4", "3:4", "4:8") if all(n % int(x[2:]) == 0 for n in widths)
    ]
    sparsity = draw.rng.uniform(0.02, 0.98)
    bases = draw.rng.permutation(["owl", "alphapruning", "dlp", "uniform"])[: draw.whole(1, 4)]
    further = draw.rng.permutation(
        ["atp", "dlp_median", "alphapruning_mid", "alphapruning_linear"]
    )[: draw.whole(0, 4)]  # fmt: skip
    return Recipe(
        eta=draw.between(1e-4, 0.3), noise_scale=draw.one("token", "sequence"),
        noise_shape=draw.one("isotropic", "channel"), norm=draw.one("token", "sequence"),
        sink=draw.one("include", "exclude"), seed=number, sparsity=sparsity,
        coarse_eta=draw.between(0.1, 1.0), draws=draw.one(1, 2, 3),
        bases=(*bases.tolist(), *further.tolist()), beta=2 * min(sparsity, 1 - sparsity) / 8,
 strength=draw.one(-0.1, 0.05, 0.1, 0.3),
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


def tried(number: int, wanted: tuple[tuple[bool, str], ...]) -> list[dict[str, Any]]:
    """One shape, some ways (step-wise or not) and dtypes: the verdicts on the right candidate."""
    with tempfile.TemporaryDirectory() as away:
        facts: dict[str, Any] = {"shape": number, "family": FAMILIES[number % len(FAMILIES)]}
        lines = [facts | {"way": WAYS[stepwise], "dtype": dtype} for stepwise, dtype in wanted]
        try:
            case, shape = drawn(number, Path(away))
        except RefimplError as error:
            return [line | {"verdict": "no case", "first": error.problem} for line in lines]
        return [
            line | told(case, shape, dtype, stepwise)
            for line, (stepwise, dtype) in zip(lines, wanted, strict=True)
        ]


def told(case: Case, shape: Shape, dtype: str, stepwise: bool) -> dict[str, Any]:
    """The verdict on the right candidate for a case."""
    try:
        actual = arrays_of(right(), case, dtype, stepwise)
        report = check(case, actual, dtype=dtype, stepwise=stepwise)
    except RefimplError as error:
        return {"verdict": "no case", "first": error.problem}
    except (ValueError, IndexError, RuntimeError) as error:  # of the candidate, or of ours
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}, {where.name}: {error}"
        return {"verdict": "crash", "first": place}
    status = Counter(step.status for step in report.steps)
    line = {"verdict": report.verdict, "steps": len(report.steps), **status}
    line["ties"] = [step.step for step in report.steps if step.near_ties]
    line["used"] = max(
        (s.error / s.tolerance for s in report.steps if s.tolerance and s.status == "pass"
         and not s.near_ties), default=0.0,
    )  # fmt: skip
    if (first := report.first) is not None:
        line |= {"first": first.step, "error": first.error, "tolerance": first.tolerance}
        line |= {"own": first.own, "fault": first.fault, "settings": asdict(shape)}
    return line


def try_shapes(
    numbers: range, dtypes: tuple[str, ...], ways: tuple[bool, ...], jobs: int, log: Path
) -> None:
    """Try shapes, and add a line for each, each way and each dtype that the log does not hold."""
    have = {(x["shape"], x["way"], x["dtype"]) for x in logged(log)}
    work = {
        number: tuple(
            (stepwise, dtype) for stepwise in ways for dtype in dtypes
            if (number, WAYS[stepwise], dtype) not in have
        )
        for number in numbers
    }  # fmt: skip
    work = {number: wanted for number, wanted in work.items() if wanted}
    right()  # imported once, for all processes
    with (
        ProcessPoolExecutor(jobs, mp_context=get_context("fork")) as pool,
        log.open("a", encoding="utf-8") as opened,
    ):
        for line in chain.from_iterable(pool.map(tried, work.keys(), work.values())):
            print(json.dumps(line, default=str), file=opened, flush=True)
            if line["verdict"] in ("divergent", "crash"):
                print({k: v for k, v in line.items() if k != "settings"}, flush=True)


def shape_rows(log: Path) -> list[dict[str, str]]:
    """How many right candidates passed, stayed open, and were refused, by dtype and way."""
    known: dict[tuple[int, int], dict[int, dict[str, Any]]] = {}
    for x in logged(log):
        key = WAYS.index(x["way"]), ALL.index(x["dtype"])
        known.setdefault(key, {})[x["shape"]] = x
    rows = []
    for (way, dtype), lines in sorted(known.items()):
        counted = Counter(x["verdict"] for x in lines.values())
        steps, *unjudged = (
            sum(x.get(key, 0) for x in lines.values())
            for key in ("steps", "conditional", "unresolved")
        )
        still_open = sum(unjudged)
        rows.append(
            {"dtype": ALL[dtype], "way": WAYS[way], "shapes": f"{len(lines):,}"}
            | {verdict: f"{counted[verdict]:,}" for verdict in VERDICTS}
            | {"steps": f"{steps:,}", "not judged": f"{still_open / max(steps, 1):.1%}"}
            | {LARGEST: f"{max(x.get('used', 0.0) for x in lines.values()):.0%}"}
        )
    return rows

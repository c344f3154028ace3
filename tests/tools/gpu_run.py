"""The sample project on a GPU (or the CPU), against every case, in every dtype, both ways.

    python tests/tools/gpu_run.py [--device cuda] [-o gpu.json] [--page docs/results/gpu.md]
    python tests/tools/gpu_run.py --device webgpu [-o webgpu.json] [--page docs/results/gpu.md]
    python tests/tools/gpu_run.py --device webgpu --driver ANOTHER_icd.json --dtypes float32 ...

It needs a checkout, torch and safetensors, and no network; transformers and onnxruntime are used
where they are installed. With WebGPU, whose code a software adapter runs, it needs no torch: the
graphs of every family and of a pruned model are the candidates. It prints tables, writes one JSON,
and exits with 1 if a right candidate diverges. For each kind of step, the tables have the share of
the tolerance that the largest error uses; its ratio to refimpl's own error, where the tolerance is
a multiple of that; and elsewhere its size in units of the dtype.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.extend(map(str, (*Path(__file__).parents[:3], Path(__file__).with_name("benchmarks"))))

import numpy as np
from figure import markdown
from gates import CASES as FIXTURES_WITH_TRACE
from gates import GRAPH_CASES, expected_of, worst_token
from machine import version_of
from mistakes import project
from regions import fill

from refimpl import Pattern, PrunerOptions, prune, read_model
from refimpl.model.forward import forward
from refimpl.onnx.validate import validate
from refimpl.oracle.case import Case, read_case
from refimpl.oracle.check import EXIT, Report, check
from refimpl.oracle.judging.measures import EPS, ERROR_FACTOR, FLOOR, FLOOR_16
from refimpl.show.oracle import stage_of

ROOT = Path(__file__).parents[2]
DTYPES = ("float64", "float32", "tf32", "bfloat16", "float16")
SHADED = ("float32", "float16")  # what an adapter may have
WAYS = ("chained", "stepwise")
CASES, REVEALING = (ROOT / "fixtures" / name for name in ("cases", "revealing"))
PACKAGES = (
    "refimpl", "numpy", "torch", "transformers", "onnxruntime", "onnxruntime-ep-webgpu",
)  # fmt: skip
TORCH = ("torch", "transformers")
ATTENTION = {"falcon_alibi": "sdpa"}  # see fixtures/make_fixtures.py
PRUNED = " pruned"
NODES = re.compile(r"of (\d+) nodes(?:, on the CPU ([^)]*))?\)")  # as `validate` says what ran
GATE = 1e-4  # of transformers' logits; it casts to float32 inside, also in float64


@dataclass(frozen=True)
class Work:
    """One case: the dtypes to run it in, the device, and the variant of the sample project."""

    folder: Path
    dtypes: tuple[str, ...]
    device: str
    variant: str = "none"


@dataclass(frozen=True)
class Variant:
    """The sample project, computing the same in another way: files, texts, and others for them."""

    edits: tuple[tuple[str, str, str], ...] = ()

    def made_in(self, folder: Path) -> None:
        """Edit the sample project of a folder."""
        for name, text, other in self.edits:
            lines = (folder / name).read_text("utf-8")
            assert text in lines, text
            (folder / name).write_text(lines.replace(text, other), "utf-8")


INVERSE = "torch.cholesky_inverse(torch.linalg.cholesky(h))"
SOLVED = INVERSE.replace("inverse(", "solve(torch.eye(len(h)).to(h), ")
LESS = "damping * h.diagonal()"
VARIANTS = {
    "none": Variant(),
    "solve": Variant((("pruning.py", INVERSE, SOLVED),)),
    "lu": Variant((("pruning.py", INVERSE, "torch.linalg.inv(h)"),)),
    "single": Variant(  # statistics, scores and SparseGPT in float32, as the peers have them
        tuple((name, ".double()", ".float()") for name in ("pruning.py", "signals.py"))
    ),
    "damping": Variant((("pruning.py", LESS, f"0.9 * {LESS}"),)),  # a mistake, the smallest to see
}


def settings(device: str) -> dict[str, Any]:
    """The card, its driver, the libraries, and what they may round."""
    if device == "webgpu":
        versions = {name: version_of(name) for name in PACKAGES if name not in TORCH}
        return {"device": device, "card": platform.machine(), "packages": versions}
    import torch

    card, driver = platform.processor() or platform.machine(), None
    if device == "cuda":
        card = torch.cuda.get_device_name()
        words = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        driver = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "device": device,
        "card": card,
        "driver": driver,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "blas": "MKL" if torch.backends.mkl.is_available() else "other",
        "threads": 1,
        "reduced_precision_reductions": False,
        "packages": {name: version_of(name) for name in PACKAGES},
    }


def exact_products(tf32: bool) -> None:
    """Products of float32 are float32 unless TF32 is asked for; sums of 16 bits are float32."""
    import torch

    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def case_results(work: Work) -> list[dict[str, Any]]:
    """A case in every dtype, both ways, and its graphs: verdicts, and the worst of each step."""
    import torch

    case, made, candidate = read_case(work.folder), [], project(VARIANTS[work.variant]).candidate
    for dtype in work.dtypes:
        exact_products(dtype == "tf32")
        kind = torch.float32 if dtype == "tf32" else getattr(torch, dtype)
        for way in WAYS:
            start = time.perf_counter()
            with torch.inference_mode():
                arrays = candidate(work.folder, kind, work.device, way == "stepwise")
            computed = time.perf_counter()
            report = check(case, arrays, dtype=dtype, stepwise=way == "stepwise")
            seconds = computed - start, time.perf_counter() - computed
            made.append(line(dtype, way, report, seconds))
    if version_of("onnxruntime") and work.folder.parent == CASES:
        made += graphs(case, work.device)
    return made


def graphs(case: Case, device: str) -> Iterator[dict[str, Any]]:
    """The case's exported graphs in float32, run by onnxruntime."""
    from refimpl.onnx.export import export
    from refimpl.onnx.foreign_graph import open_foreign
    from refimpl.onnx.session import check_device

    if device == "cuda" and "CUDAExecutionProvider" not in check_device("auto"):
        return
    plan = case.recipe.perturbation
    wanted = {
        "trace": ("embed", "blocks.*", "final_norm", "logits"),
        "experiment": ("perturbed.*", "absorption_coefficient"),
    }
    for name, steps in wanted.items():
        with tempfile.TemporaryDirectory() as away:
            path, start = Path(away) / "graph.onnx", time.perf_counter()
            if name == "trace":
                export(case.model, path, outputs="trace")
            else:
                export(case.model, path, experiment=plan)
            graph = open_foreign(path, case.model, device=device)
            arrays, dtype = graph.run(case), graph.dtype
        computed = time.perf_counter()
        report = check(case, arrays, steps, dtype)
        seconds = computed - start, time.perf_counter() - computed
        yield line(dtype, f"graph of the {name}", report, seconds)


def shader_results(work: Work) -> list[dict[str, Any]]:
    """The graphs of a family's fixture, or of a pruned one, run by shaders in some dtypes."""
    rows = []
    with tempfile.TemporaryDirectory() as away:
        model = read_model(ROOT / "fixtures" / work.folder.name.removesuffix(PRUNED))
        if work.folder.name.endswith(PRUNED):
            prune(model, Path(away, "pruned"), Pattern(2, 4), PrunerOptions("magnitude"))
            model = read_model(Path(away, "pruned"))
        for dtype in work.dtypes:
            start = time.perf_counter()
            result = validate(model, device=work.device, dtype=dtype)
            seconds = (time.perf_counter() - start) / len(result.reports)
            for report in result.reports:
                trace = any(step.step == "logits" for step in report.steps)
                way = f"graph of the {'trace' if trace else 'experiment'}"
                row = line(dtype, way, report, (seconds, 0)) | {"case": work.folder.name}
                for step in row["steps"].values():
                    step["case"] = work.folder.name
                rows.append(row | ({"ran": result.ran} if report is result.reports[0] else {}))
    return rows


def line(dtype: str, way: str, report: Report, seconds: tuple[float, float]) -> dict[str, Any]:
    """The verdict on a candidate, and its worst deviation at each kind of step."""
    worst: dict[str, dict[str, Any]] = {}
    unit = EPS[dtype]
    floor = FLOOR_16 if unit > EPS["float32"] else FLOOR
    for step in report.steps:
        name = f"{stage_of(step.step)} {step.step.rsplit('.', 1)[-1]}"
        if step.status in ("pass", "divergent") and step.tolerance:
            entry = {"used": float(step.error / step.tolerance)}
            if not step.near_ties and ERROR_FACTOR * step.own > floor * unit:
                entry["ratio"] = float(step.error / step.own)
            elif not step.near_ties:
                entry["units"] = float(step.error / unit)
            entry |= {"case": report.case.name, "step": step.step}
            entry |= {"error": float(step.error), "tolerance": float(step.tolerance)}
            worst[name] = larger(worst.get(name, {}), entry)
    status = [step.status for step in report.steps]
    return {
        "case": report.case.name,
        "dtype": dtype,
        "way": way,
        "verdict": report.verdict,
        "first": report.first and report.first.step,
        "pass": status.count("pass"),
        "not_judged": status.count("conditional") + status.count("unresolved"),
        "near_ties": sum(len(step.near_ties) for step in report.steps),
        "seconds": [round(x, 3) for x in seconds],
        "steps": worst,
    }


def larger(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The entry of a kind of step that uses more of its tolerance, with the largest of both."""
    chosen = max(one, other, key=lambda x: x.get("used", -1.0))
    sizes = {k: [x[k] for x in (one, other) if k in x] for k in ("ratio", "units")}
    return chosen | {k: max(values) for k, values in sizes.items() if values}


def transformers_forward(device: str, real: list[Path]) -> Iterator[dict[str, Any]]:
    """Logits of transformers' own forward on fixtures and real models, against the right ones."""
    try:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils.logging import disable_progress_bar
    except ImportError:
        return
    disable_progress_bar()
    exact_products(False)
    for folder in (*(ROOT / "fixtures" / name for name in FIXTURES_WITH_TRACE), *real):
        if folder in real:
            ids = np.random.default_rng(0).integers(0, 1000, (1, 64))
            truth = forward(read_model(folder), ids, dtype=np.float64).logits
        else:
            ids, expected = expected_of(folder.name)
            truth = expected["logits"]
        for dtype in ("float64", "float32"):
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=getattr(torch, dtype),
                attn_implementation=ATTENTION.get(folder.name, "eager"),
                experts_implementation="eager",
            )
            with torch.inference_mode():
                logits = model.to(device)(torch.from_numpy(ids).to(device)).logits
            error = worst_token(logits.cpu().numpy(), truth)
            yield {"model": folder.name, "dtype": dtype, "error": error, "allowed": GATE}


def summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each way and dtype the verdicts, the worst deviation of each kind of step, and seconds."""
    made: dict[str, Any] = {}
    for x in lines:
        of = made.setdefault(f"{x['dtype']}, {x['way']}", {"steps": {}, "seconds": [0.0, 0.0]})
        of["verdicts"] = {v: of.get("verdicts", {}).get(v, 0) + (x["verdict"] == v) for v in EXIT}
        of["seconds"] = [round(a + b, 3) for a, b in zip(of["seconds"], x["seconds"], strict=True)]
        for name, step in x["steps"].items():
            of["steps"][name] = larger(of["steps"].get(name, {}), step)
    return made


def tables(document: dict[str, Any]) -> str:
    """A table with a row for each dtype and way, and one with a row for each kind of step."""
    heads = ("dtype, way", "cases", *EXIT, "largest error / tolerance", "at", "candidate, check, s")
    rows = []
    every = document["summary"]
    for name, of in every.items():
        worst = max(of["steps"].values(), key=lambda x: x["used"])
        place = f"`{worst['case']}`, `{worst['step']}`"
        verdicts, (one, other) = of["verdicts"], of["seconds"]
        seconds = f"{one:.0f}, {other:.0f}"
        rows.append(
            (
                name,
                sum(verdicts.values()),
                *verdicts.values(),
                f"{worst['used']:.0%}",
                place,
                seconds,
            )
        )
    steps = dict.fromkeys(step for of in every.values() for step in of["steps"])
    shown = [name for name in every if "graph" not in name] or [*every]
    texts = [markdown(heads, rows)]
    for what, form in (("used", "{:.0%}"), ("ratio", "{:.2g}"), ("units", "{:.2g}")):
        by_step = []
        for step in steps:
            sizes = [every[name]["steps"].get(step, {}).get(what) for name in shown]
            by_step.append((step, *("" if x is None else form.format(x) for x in sizes)))
        texts.append(markdown((f"step: {what}", *shown), by_step))
    return "\n\n".join(texts)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "webgpu", "cpu"), default="cuda")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--driver", type=Path, help="of Vulkan, for webgpu: the JSON of another")
    parser.add_argument("--cases", nargs="+", default=["*"], help="names, as patterns")
    parser.add_argument("--jobs", type=int, default=min(12, os.cpu_count() or 1), help="processes")
    parser.add_argument("--real", nargs="*", type=Path, default=[], help="folders of real models")
    parser.add_argument("--variant", choices=VARIANTS, default="none", help="of the sample project")
    parser.add_argument("--no-forward", action="store_true", help="without transformers' forward")
    parser.add_argument("-o", "--output", type=Path, help="the JSON")
    parser.add_argument("--page", type=Path, help="fill the marked region of this page")
    given = parser.parse_args()
    start = time.perf_counter()
    # A CPU has no TF32.
    dtypes = tuple(x for x in given.dtypes if x != "tf32" or given.device == "cuda")
    patterns = [root.glob(pattern) for root in (CASES, REVEALING) for pattern in given.cases]
    how = dtypes, given.device, given.variant
    work = [Work(path, *how) for paths in patterns for path in sorted(paths)]
    shaders = given.device == "webgpu"
    if given.driver:
        os.environ["VK_DRIVER_FILES"] = str(given.driver)
    if shaders:
        how = tuple(x for x in SHADED if x in given.dtypes), given.device
        work = [Work(Path(x), *how) for x in (*GRAPH_CASES, "llama" + PRUNED)]
    plain = given.no_forward or shaders
    forwards = [] if plain else [*transformers_forward(given.device, given.real)]
    run_case = shader_results if shaders else case_results
    if given.jobs == 1:
        results = [*map(run_case, work)]
    else:
        with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
            results = [*pool.map(run_case, work)]
    every = [x for some in results for x in some]
    document: dict[str, Any] = {"settings": settings(given.device), "summary": summary(every)}
    document["cases"] = [{k: v for k, v in x.items() if k != "steps"} for x in every]
    document["forward"] = forwards
    document["seconds"] = round(time.perf_counter() - start)
    document["jobs"] = given.jobs
    bad = {"divergent"}, {*EXIT} - {"pass"}  # shaders in float32 leave no step open
    wrong = [
        x for x in document["cases"] if x["verdict"] in bad[shaders and x["dtype"] == "float32"]
    ]
    far = [x for x in document["forward"] if x["error"] > x["allowed"]]
    text = tables(document)
    print(text)
    for x in (*wrong, *far):
        print("diverges:", x)
    if given.output:
        given.output.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    if given.page:
        name = given.driver.stem if given.driver else "webgpu" if shaders else "runs"
        left = [left_to_the_cpu(document)] if name == "webgpu" else []
        shown = text.partition("\n\n")[0] if given.driver else text
        fill(given.page, {name: "\n\n".join(["", _words(document), *left, shown, ""])})
    sys.exit(int(bool(wrong or far)))


def left_to_the_cpu(document: dict[str, Any]) -> str:
    """A table of the nodes that did not run on an adapter, of the graphs of all models."""
    heads = ("graphs", "nodes", "on the CPU", "models without any", "by operator")
    every: dict[str, list[tuple[int, Counter[str]]]] = {}
    for x in document["cases"]:
        graphs = NODES.findall(x.get("ran", ""))  # of the forward for one length, and for others
        named = zip(("forward pass", "experiment"), graphs[:: len(graphs) - 1], strict=False)
        for name, (nodes, text) in named:
            counts = (pair.split() for pair in text.split(", ") if pair)
            left = Counter({operator: int(number) for number, operator in counts})
            every.setdefault(f"{x['dtype']}, {name}", []).append((int(nodes), left))
    rows = []
    for name, models in every.items():
        left = sum((some for _, some in models), Counter[str]())
        operators = ", ".join(f"{n:,} {operator}" for operator, n in sorted(left.items()))
        alone = f"{sum(not some for _, some in models)} of {len(models)}"
        nodes = sum(n for n, _ in models)
        rows.append((name, f"{nodes:,}", f"{left.total():,}", alone, operators))
    return markdown(heads, rows)


def _words(document: dict[str, Any]) -> str:
    """Where it ran, for how long, and transformers' forward, in a sentence each."""
    facts, forwards = document["settings"], document["forward"]
    packages = ", ".join(f"{k} {v}" for k, v in facts["packages"].items() if v)
    words = f"{facts['card']}, {packages}. {document['jobs']} processes took "
    words += f"{document['seconds']} s."
    if ran := [x["ran"] for x in document["cases"] if "ran" in x and x["case"] == "llama"]:
        words += f" The graphs of `llama` ran so: {ran[0]}."
    if forwards:
        worst = max(forwards, key=lambda x: x["error"])
        words += f" transformers' forward of {len({x['model'] for x in forwards})} models: at most "
        words += f"{worst['error']:.1e} from the right logits ({worst['model']}, {worst['dtype']})."
    return words


if __name__ == "__main__":
    main()

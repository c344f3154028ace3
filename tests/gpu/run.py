"""The sample project on a GPU (or the CPU), against every case, in every dtype, both ways.

    python tests/gpu/run.py [--device cuda] [-o gpu.json] [--page docs/results/gpu.md]

It needs a checkout, torch and safetensors, and no network; transformers and onnxruntime are used
where they are installed. It prints a table, writes one JSON, and exits with 1 if a right candidate
diverges.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "sample_project"))

import torch
from candidate import candidate
from gates import CASES as FIXTURES_WITH_TRACE
from gates import expected_of, worst_token

from refimpl.oracle.case import read_case
from refimpl.oracle.check import EXIT, check
from refimpl.show.oracle import stage_of

TESTS = Path(__file__).parent.parent
DTYPES = ("float64", "float32", "tf32", "bfloat16", "float16")
FOLDERS = {
    "cases": TESTS.parent / "fixtures/cases",
    "revealing": TESTS.parent / "fixtures/revealing",
}
PACKAGES = ("refimpl", "numpy", "torch", "transformers", "onnxruntime")
GATE = {"float64": 1e-12, "float32": 1e-4}


def settings(device: str) -> dict[str, Any]:
    """The card, its driver, the libraries, and what they may round."""
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
        "threads": torch.get_num_threads(),
        "reduced_precision_reductions": False,
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def exact_products(tf32: bool) -> None:
    """Products of float32 are float32 unless TF32 is asked for; sums of 16 bits are float32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def checked(folder: Path, dtype: str, device: str, stepwise: bool) -> dict[str, Any]:
    """One case in one dtype: the verdict, and the worst deviation of each kind of step."""
    exact_products(dtype == "tf32")
    kind = torch.float32 if dtype == "tf32" else getattr(torch, dtype)
    start = time.perf_counter()
    with torch.inference_mode():
        arrays = candidate(folder, kind, device, stepwise)
    seconds = time.perf_counter() - start
    report = check(read_case(folder), arrays, dtype=dtype, stepwise=stepwise)
    steps: dict[str, dict[str, Any]] = {}
    for step in report.steps:
        name = f"{stage_of(step.step)} {step.step.rsplit('.', 1)[-1]}"
        if step.status == "pass" and step.tolerance:
            used = float(step.error / step.tolerance)
            if used >= steps.get(name, {"used": -1.0})["used"]:
                size = {"error": float(step.error), "tolerance": float(step.tolerance)}
                steps[name] = {"used": used, "step": step.step, **size}
    status = [step.status for step in report.steps]
    first = report.first
    return {
        "case": folder.name,
        "dtype": dtype,
        "way": "stepwise" if stepwise else "chained",
        "verdict": report.verdict,
        "first": first and first.step,
        "pass": status.count("pass"),
        "not_judged": status.count("conditional") + status.count("unresolved"),
        "near_ties": sum(len(step.near_ties) for step in report.steps),
        "seconds": round(seconds, 3),
        "steps": steps,
    }


def transformers_forward(device: str) -> Iterator[dict[str, Any]]:
    """Logits of transformers' own forward on the fixtures, against their expected ones."""
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        return
    for name in FIXTURES_WITH_TRACE:
        ids, expected = expected_of(name)
        for dtype, gate in GATE.items():
            exact_products(False)
            model = AutoModelForCausalLM.from_pretrained(
                TESTS.parent / "fixtures" / name,
                dtype=getattr(torch, dtype),
                attn_implementation="eager",
            )
            with torch.inference_mode():
                logits = model.to(device)(torch.from_numpy(ids).to(device)).logits
            error = worst_token(logits.cpu().numpy(), expected["logits"])
            # Casts to float32 inside of transformers are not lifted here, so float64 is no gate.
            expected_gate = GATE["float32"] if dtype == "float64" else gate
            yield {"fixture": name, "dtype": dtype, "error": error, "allowed": expected_gate}


def table(document: dict[str, Any]) -> str:
    """A row per dtype and way."""
    lines = [
        "| dtype | way | cases | pass | resolved | inconclusive | divergent "
        "| largest error / tolerance | at |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    keys = dict.fromkeys((x["dtype"], x["way"]) for x in document["cases"])
    for key in keys:
        rows = [x for x in document["cases"] if (x["dtype"], x["way"]) == key]
        verdicts = [x["verdict"] for x in rows]
        worst = max((y for x in rows for y in x["steps"].values()), key=lambda y: y["used"])
        counts = " | ".join(str(verdicts.count(v)) for v in EXIT)
        lines.append(
            f"| {key[0]} | {key[1]} | {len(rows)} | {counts} | "
            f"{worst['used']:.0%} | `{worst['step']}` |"
        )
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--cases", nargs="+", default=["*"], help="names, as patterns")
    parser.add_argument("--no-forward", action="store_true", help="without transformers' forward")
    parser.add_argument("-o", "--output", type=Path, help="the JSON")
    parser.add_argument("--page", type=Path, help="fill the marked region of this page")
    given = parser.parse_args()
    folders = [
        path
        for root in FOLDERS.values()
        for pattern in given.cases
        for path in sorted(root.glob(pattern))
    ]
    document = {"settings": settings(given.device), "cases": [], "forward": []}
    for folder in folders:
        for dtype in given.dtypes:
            if dtype == "tf32" and given.device == "cpu":
                continue  # a CPU has none
            for stepwise in (False, True):
                document["cases"].append(checked(folder, dtype, given.device, stepwise))
    if not given.no_forward:
        document["forward"] = list(transformers_forward(given.device))
    wrong = [x for x in document["cases"] if x["verdict"] == "divergent"]
    far = [x for x in document["forward"] if x["error"] > x["allowed"]]
    text = table(document)
    print(text)
    for x in (*wrong, *far):
        print("diverges:", {k: v for k, v in x.items() if k != "steps"})
    if given.output:
        given.output.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    if given.page:
        before, rest = given.page.read_text("utf-8").split("<!-- runs -->\n")
        facts = document["settings"]
        words = (
            f"{facts['card']}, {', '.join(f'{k} {v}' for k, v in facts['packages'].items() if v)}"
        )
        after = rest.split("<!-- end of runs -->")[1]
        given.page.write_text(
            f"{before}<!-- runs -->\n\n{words}\n\n{text}\n\n<!-- end of runs -->{after}", "utf-8"
        )
    sys.exit(int(bool(wrong or far)))


if __name__ == "__main__":
    main()

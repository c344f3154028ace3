"""How far a right candidate is off, against what `refimpl check` allows, over the ten cases.

    python tests/tools/benchmarks/oracle_factor.py [--dtype float64] [--variant lu] [--by name]

The candidate is the sample project, in torch, or a variant of it that computes the same in another
way. For each stage (or name of a step in it):

- ratio: the largest error / own, where ERROR_FACTOR times refimpl's own error is more than the
  floor, so that it decides;
- units: the largest error in units of the dtype, where it is less, so that the floor decides;
- used: the largest share of the tolerance;
- not judged: steps after a near tie;
- differ: counts, decisions and rounded weights that differ as near ties.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

from figure import markdown

from refimpl.oracle.case import read_case
from refimpl.oracle.check import check, read_candidate
from refimpl.oracle.judging.measures import EPS, ERROR_FACTOR, FLOOR, FLOOR_16, StepResult
from refimpl.show.oracle import stage_of

TOOLS = Path(__file__).parents[1]
CASES = TOOLS.parents[1] / "fixtures" / "cases"


INVERSE = "torch.cholesky_inverse(torch.linalg.cholesky(h))"
VARIANTS: dict[str, tuple[tuple[str, str, str], ...]] = {  # file, text, what stands for it
    "none": (),
    "solve": (
        ("pruning.py", INVERSE, INVERSE.replace("inverse(", "solve(torch.eye(len(h)).to(h), ")),
    ),
    "lu": (("pruning.py", INVERSE, "torch.linalg.inv(h)"),),
    "single": (  # statistics, scores and SparseGPT in float32, as the peers have them
        ("pruning.py", ".double()", ".float()"),
        ("signals.py", ".double()", ".float()"),
    ),
    "damping": (  # a mistake, the smallest that has to be seen
        ("pruning.py", "damping * h.diagonal()", "0.9 * damping * h.diagonal()"),
    ),
}


def judged(dtype: str, device: str, variant: str) -> dict[str, tuple[StepResult, ...]]:
    """Every step of the candidate in every case."""
    found = {}
    with tempfile.TemporaryDirectory() as away:
        project, actual = Path(away) / "project", Path(away) / "actual.safetensors"
        shutil.copytree(TOOLS / "sample_project", project)
        for name, text, instead in VARIANTS[variant]:
            lines = (project / name).read_text("utf-8")
            assert text in lines, text
            (project / name).write_text(lines.replace(text, instead), "utf-8")
        for folder in sorted(CASES.iterdir()):
            words = [folder, "-o", actual, "--dtype", dtype, "--device", device]
            subprocess.run([sys.executable, project / "candidate.py", *words], check=True)
            found[folder.name] = check(read_case(folder), read_candidate(actual), dtype=dtype).steps
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=tuple(EPS), default="float32")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--variant", choices=tuple(VARIANTS), default="none")
    parser.add_argument("--by", choices=("stage", "name"), default="stage")
    given = parser.parse_args()
    unit = EPS[given.dtype]
    floor = FLOOR_16 if unit > EPS["float32"] else FLOOR
    cases = judged(given.dtype, given.device, given.variant)

    groups: dict[str, list[StepResult]] = defaultdict(list)
    for steps in cases.values():
        for step in steps:
            stage, last = stage_of(step.step), step.step.rsplit(".", 1)[-1]
            groups[stage if given.by == "stage" else f"{stage} {last}"].append(step)
    rows = []
    for name, steps in groups.items():
        floats = [s for s in steps if s.tolerance > 0 and s.status in ("pass", "divergent")]
        floats = [s for s in floats if not s.near_ties]
        large = [s for s in floats if ERROR_FACTOR * s.own > floor * unit]
        small = [s for s in floats if ERROR_FACTOR * s.own <= floor * unit]
        rows.append(
            (
                name, len(steps), len(large) or "",
                largest([s.error / s.own for s in large]),
                largest([s.error / unit for s in small]),
                largest([s.error / s.tolerance for s in floats], "{:.0%}"),
                sum(s.status in ("conditional", "unresolved") for s in steps) or "",
                sum(len(s.near_ties) for s in steps) or "",
            )
        )  # fmt: skip
    where = f"{given.dtype} on {given.device}, {len(cases)} cases"
    print(f"\nfactor {ERROR_FACTOR:g}, floor {floor:g}: {where}")
    print(", ".join(f"{name} {version(name)}" for name in ("refimpl", "numpy", "torch")), "\n")
    heads = ("steps", "own over the floor", "ratio", "units", "used", "not judged", "differ")
    print(markdown((given.by, *heads), rows))
    for name, steps in cases.items():
        if off := [s for s in steps if s.status == "divergent"]:
            print(f"{name}: {len(off)} divergent, first at {off[0].step}")


def largest(numbers: list[float], form: str = "{:.2g}") -> str:
    """The largest number, if there is one."""
    return form.format(max(numbers)) if numbers else ""


if __name__ == "__main__":
    main()

"""The oracle's verdicts do not depend on the kernel of BLAS: a check measures nothing."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from candidates import StoredModel, write_arrays, written
from crafted_cases import oracle_case
from processes import ENV

from refimpl.loading.files.safetensors_file import SafetensorsFile
from refimpl.oracle.check import check
from refimpl.oracle.rounding import ARITHMETIC
from refimpl.oracle.steps import steps

KERNELS = ("Haswell", "SkylakeX", "Prescott")
CASES = ("llama", "opt")  # whose errors are stored


def saved(folder: Path, dtype: str) -> None:
    """Right candidates in a dtype, and ones with an error of half to twice each tolerance."""
    for name in CASES:
        case = oracle_case(name)
        model = (
            case.model.as_kind(StoredModel, kind=ARITHMETIC[dtype])
            if "16" in dtype
            else case.model
        )
        wide = "float32" if "16" in dtype else dtype
        arrays = steps(model, case.inputs["token_ids"], case.recipe, wide)
        right = written(case, arrays, dtype)
        write_arrays(folder / f"{name}-right.safetensors", right)
        rng, known = np.random.default_rng(0), check(case, right, dtype=dtype).steps
        off = {
            x.step: 0.5 * 4 ** rng.random() * x.tolerance for x in known if x.tolerance
        }
        wrong = {
            k: (x * (1 + off.get(k, 0.0))).astype(x.dtype) for k, x in right.items()
        }
        write_arrays(folder / f"{name}-wrong.safetensors", wrong)


def judged(folder: Path, dtype: str) -> Iterator[Any]:
    """The verdicts on the candidates of a folder, and on each step its status and tolerance."""
    for path in sorted(folder.iterdir()):
        case = oracle_case(path.stem.split("-")[0])
        report = check(case, SafetensorsFile(path).arrays, dtype=dtype)
        found = {x.step: [x.status, f"{x.tolerance:.6g}"] for x in report.steps}
        yield [path.stem, report.verdict, found]


def under_each(*words: object) -> list[Any]:
    """What this file prints under each kernel."""
    running = [
        subprocess.Popen(
            [sys.executable, __file__, *map(str, words)],
            stdout=subprocess.PIPE,
            text=True,
            env=ENV | {"OPENBLAS_CORETYPE": kernel, "OPENBLAS_NUM_THREADS": "1"},
        )
        for kernel in KERNELS
    ]
    kernels, found = zip(
        *(json.loads(x.communicate()[0]) for x in running), strict=True
    )
    assert len(set(kernels)) > 1, kernels  # a processor may lack one
    return list(found)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_saved_candidates_have_the_same_verdicts(dtype: str, tmp_path: Path) -> None:
    saved(tmp_path, dtype)
    first, *others = under_each(dtype, tmp_path)
    assert {x[1] for x in first} >= {"fail"}
    assert all(x == first for x in others)


if __name__ == "__main__":
    from threadpoolctl import threadpool_info

    used = [
        x["architecture"] for x in threadpool_info() if x["internal_api"] == "openblas"
    ]
    print(json.dumps([used[0], list(judged(Path(sys.argv[2]), sys.argv[1]))]))

"""The oracle's verdicts on its table of mistakes do not depend on the kernel of BLAS.

Tolerances are made of refimpl's own errors, which a kernel changes. In 16 bits a mistake whose
error is near its tolerance may be on either side of it.
"""

import json
import subprocess
import sys

import pytest
from candidates import needs_torch
from conftest import HERE
from crafted_cases import oracle_case
from kernels import environment
from mistakes import ALL, MISTAKES, arrays_of, project

from refimpl.oracle.check import check

PAIR = ("Haswell", "Prescott")


def verdicts(dtype: str) -> dict[str, list[str | None]]:
    """The verdict on each mistake's case in a dtype, and the first divergent step."""
    found: dict[str, list[str | None]] = {}
    for name in sorted(MISTAKES, key=lambda name: MISTAKES[name].case):  # a case is computed once
        mistake = MISTAKES[name]
        if dtype in mistake.dtypes:
            case = oracle_case(mistake.case)
            report = check(case, arrays_of(project(mistake), case, dtype), dtype=dtype)
            found[name] = [report.verdict, report.first and report.first.step]
    return found


def accepted(found: dict[str, list[str | None]]) -> set[str]:
    return {name for name, (verdict, _) in found.items() if verdict in ("pass", "resolved")}


@needs_torch
@pytest.mark.parametrize("dtype", ALL)
def test_verdicts_are_the_same_under_two_kernels(dtype: str) -> None:
    """In 16 bits the same mistakes are accepted; others may be divergent or inconclusive."""
    running = [
        subprocess.Popen(
            [sys.executable, __file__, dtype],
            stdout=subprocess.PIPE,
            text=True,
            env={**environment(kernel, 1), "PYTHONPATH": f"{HERE}:{HERE.parent}"},
        )
        for kernel in PAIR
    ]
    kernels, found = zip(*(json.loads(x.communicate()[0]) for x in running), strict=True)
    assert len(set(kernels)) == len(PAIR), kernels
    assert accepted(found[0]) == accepted(found[1])
    assert found[0] == found[1] or dtype.endswith("16")


if __name__ == "__main__":
    import torch
    from threadpoolctl import threadpool_info

    torch.set_num_threads(1)
    used = [x["architecture"] for x in threadpool_info() if x["internal_api"] == "openblas"]
    print(json.dumps([used[0], verdicts(sys.argv[1])]))

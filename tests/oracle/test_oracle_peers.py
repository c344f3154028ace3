"""A real implementation as a candidate: transformers' forward."""

from importlib.util import find_spec

import pytest
from candidates import EACH_CASE
from gates import case_of
from transformers_forward import transformers_forward

from refimpl.oracle.check import check


@pytest.mark.torch
@pytest.mark.skipif(find_spec("transformers") is None, reason="needs transformers")
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", EACH_CASE)
def test_transformers_passes(name: str, dtype: str) -> None:
    case = case_of(name)
    arrays = transformers_forward(case.model, dtype)(case.inputs["token_ids"])
    points = tuple(arrays)
    report = check(case, arrays, points, dtype)
    assert report.verdict == "pass", report.first
    assert len(report.steps) == len(points)

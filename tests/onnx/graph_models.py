"""Models and graphs that the tests of this folder share."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from gates import model_of
from onnx.reference import ReferenceEvaluator

from refimpl import Model, Pattern, PrunerOptions, prune, read_model
from refimpl.model.ops import Array
from refimpl.onnx.session import Session

HALF = Pattern(2, 4)
REAL = Path(os.environ.get("REFIMPL_REAL", "real"))


def pruned(case: str, folder: Path, pattern: Pattern = HALF) -> Model:
    """A fixture's model, pruned by magnitude; made once per folder."""
    path = folder / f"{case}-{pattern}".replace(":", "-")
    if not path.exists():
        prune(model_of(case), path, pattern, PrunerOptions("magnitude"))
    return read_model(path)


def prunable(model: Model) -> int:
    return int(model.config.block_sizes.sum())


def axes(value: onnx.ValueInfoProto) -> list[str | int]:
    """Names or sizes of the axes of an input or output."""
    return [
        axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim
    ]


def reference_session(path: Path) -> Session:
    """A graph in onnx's own evaluator."""
    evaluator = ReferenceEvaluator(str(path))

    def run(
        inputs: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        names = list(outputs or evaluator.output_names)
        with np.errstate(all="ignore"):
            return dict(zip(names, evaluator.run(names, dict(inputs)), strict=True))

    return Session(run, f"onnx {onnx.__version__}, cpu")


def real_model(name: str, text: Path) -> Model:
    """A real model; skips the test without it or its text."""
    folder = REAL / name
    if not (folder / "config.json").exists() or not text.exists():
        pytest.skip(f"no {name} or text in {REAL}: see docs/how-to/real-models.md")
    return read_model(folder)

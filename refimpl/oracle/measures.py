"""Steps: how each is measured, why it goes wrong, its error against the truth, its tolerance."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import inf, isfinite
from typing import Any, Literal

import ml_dtypes
import numpy as np

from refimpl.model.ops import Array
from refimpl.oracle.case_folders import FORWARD, StepMeasure, matching

Arrays = Mapping[str, Array]
"""Arrays by the name of their step, or of their weight."""
OwnErrors = Mapping[str, float]
"""Refimpl's own errors by step."""

# What trace points read of their block, by names; others note it.
READS: Mapping[str, tuple[str, ...]] = {
    name: tuple(read.split())
    for names, read in {
        "attn_norm": "resid_pre",
        "q k v": "attn_norm latent",
        "q_rope k_rope": "q k",
        "latent conv_in": "attn_norm",
        "conv_out": "conv_in",
        "state_out": "attn_norm conv_in conv_out",
        "attn_heads": "attn_norm q k v q_rope k_rope",  # a step if it is asked for
        "attn_out": "attn_norm q k v q_rope k_rope conv_out state_out",
        "resid_mid": "resid_pre attn_out",
        "mlp_norm": "resid_pre resid_mid",
        "router_norm experts_norm": "resid_mid",
        "router.keep": "mlp_norm router_norm",
        "mlp_hidden": "mlp_norm",  # the same
        "mlp_out": "mlp_norm router_norm experts_norm router.keep",
        "block_embed_norm": "resid_mid mlp_out",
        "block_embed": "token_ids",
        "block_embed_out": "block_embed_norm block_embed",
        "resid_post": "resid_mid mlp_out block_embed_out",
    }.items()
    for name in names.split()
}
MEASURES: Mapping[str, StepMeasure] = {  # by the last word of a step; rows for others
    "drift": "numbers",
    "absorption_coefficient": "numbers",
    "signal": "numbers",
    "perplexity": "numbers",
    "alignment": "lost",
    "stderr": "shares",
    "divergence": "shares",
    "base": "shares",
    "corrected": "shares",
    "counts": "counts",
    "keep": "bits",
    "squares": "typical rows",
    "products": "typical rows",
    "weight": "weight rows",
}
FAULTS = {
    "NaN": "a row of the mask with only -inf, or exp, log or a root out of range",
    "Inf": "numbers beyond the dtype: exp without subtracting the maximum, or a step in 16 bits",
    "0": "an output that was never written",
    "dtype": "a graph or a runtime in another precision",
    "shape": "a graph for one batch size or length, or axes in another order",
}


def measure_of(step: str) -> StepMeasure:
    """How a step is measured (docs/explanation/tolerances.md).

    Of "weight" and "typical rows" none counts as less than a share of the root mean square of all
    (`LEAST`); "lost" is the error of ``1 - A`` of an alignment A.
    """
    return MEASURES.get(step.rsplit(".", 1)[-1], "rows")


def reads_of(step: str) -> tuple[str, ...]:
    """The names of the points of its block that a trace point reads."""
    return READS.get(step.split(".", 2)[2], ()) if step.startswith("blocks.") else ()


# Errors that are a share of the truth, and the tolerance from which on a step is not resolved:
# of sixteen parts of equal size and any direction, a missing one changes a row by a quarter; a
# number or sum that is half as large, or another coefficient, is off by 0.5, an alignment of 1
# by 1.
RESOLVABLE: Mapping[str, float] = {
    "rows": 0.25,
    "weight rows": 0.25,
    "typical rows": 0.5,
    "numbers": 0.5,
    "shares": 0.5,
    "lost": 1.0,
}
LEAST = {
    "weight rows": 0.25,
    "typical rows": 1.0,
}  # that a row counts as, of a typical one

ERROR_FACTOR = 8.0  # of refimpl's own error
FLOOR = 64.0  # units in the last place, where that error happens to be small
FLOOR_16 = 4.0  # the same in 16 bits, where 64 units are half of a number
COSINE = 3.0  # six halves: a product, two norms, their product, the quotient, and as it is written
SPARSEGPT_FACTOR = 4.0  # right inverses of a Hessian differ by more than rounding
BITS = {"float64": 52, "float32": 23, "float16": 10, "bfloat16": 7, "tf32": 10}
EPS = {dtype: 2.0**-bits for dtype, bits in BITS.items()}
NARROW = ("float16", "bfloat16", "tf32")  # in which the forward alone is judged

Status = Literal["pass", "divergent", "missing", "conditional", "unresolved"]
Positions = tuple[tuple[int, ...], ...]
"""Indices into a step's array."""


@dataclass(frozen=True)
class StepResult:
    """The judgement on one step; "conditional" and "unresolved" say that there can be none."""

    step: str
    status: Status
    error: float = 0.0
    tolerance: float = 0.0
    own: float = 0.0
    where: tuple[int, ...] = ()
    fault: str = ""
    near_ties: Positions = ()
    diagnose: Callable[[], str] = field(default=str, compare=False, repr=False)

    @cached_property
    def diagnosis(self) -> str:
        """The mistake that gives the candidate's numbers, or where they are wrong."""
        return self.diagnose()


def error_of(
    step: str, actual: Array, truth: Array
) -> tuple[float, tuple[int, ...], str]:
    """The error of an array, the index of its worst place, and a fault (always divergent) or "".

    Of rows [..., D] it is ``max_t ||a_t - e_t|| / max(||e_t||, least)``.
    """
    measure = measure_of(step)
    if actual.shape != truth.shape:
        return inf, (), f"shape {list(actual.shape)}, expected {list(truth.shape)}"
    if measure in ("counts", "bits"):
        if actual.dtype.kind not in "iub":
            return inf, (), f"dtype {actual.dtype}, expected {truth.dtype}"
        if measure == "bits":
            if actual.size and not 0 <= actual.min() <= actual.max() <= 255:
                return inf, (), "numbers that are no bytes"
            actual, truth = (
                np.unpackbits(x.astype(np.uint8), axis=-1) for x in (actual, truth)
            )
        wrong = np.argwhere(actual != truth)
        return float(len(wrong)), tuple(wrong[0].tolist()) if len(wrong) else (), ""
    if actual.dtype.kind != "f" and actual.dtype.name != "bfloat16":
        return inf, (), f"dtype {actual.dtype}, expected a float"
    with np.errstate(all="ignore"):  # a candidate's numbers may be of any size
        exact, truth = actual.astype(np.float64), truth.astype(np.float64)
        if not measure.endswith("rows"):
            exact, truth = exact[..., None], truth[..., None]
        nan, absent = (
            np.isnan(exact),
            np.isnan(truth),
        )  # of linears that a block does not have
        exact, truth = (np.where(absent, 0.0, x) for x in (exact, truth))
        odd = (
            ("NaN", nan > absent),
            ("NaN missing", nan < absent),
            ("Inf", np.isinf(exact)),
        )
        for name, bad in odd:
            if bad.any():
                first = tuple(np.argwhere(bad)[0].tolist())[:-1]
                return inf, first, f"{bad.sum():,} {name} among {actual.size:,} numbers"
        fault = (
            f"all {actual.size:,} numbers are 0"
            if truth.any() and not exact.any()
            else ""
        )
        least = 0.0
        if measure in LEAST:
            least = LEAST[measure] * float(
                np.sqrt(np.mean(np.square(truth)) * truth.shape[-1])
            )
        elif measure == "shares":
            least = float(truth.max()) or 1.0
        elif measure == "lost":
            exact, truth = (np.maximum(1 - x, 0.0) for x in (exact, truth))
        missed = np.linalg.norm(exact - truth, axis=-1)
        size = np.maximum(np.linalg.norm(truth, axis=-1), least)
        errors = np.where(missed > 0, missed / size, 0.0)
    token = np.unravel_index(int(errors.argmax()), errors.shape)
    return float(errors.max()), tuple(map(int, token)), fault


def tolerance_of(step: str, truth: Array, own: float, dtype: str) -> float:
    """The largest error that a step may have (its truth in float64), if refimpl's own is this.

    ``8 own + 64 eps``, in 16 bits ``8 own + 4 eps``; for SparseGPT four times that; 0 for counts
    and bits. An alpha errs by ``alpha - 1`` times as much as the eigenvalues that it is made of. An
    alignment A is computed in float32 or more; its units are those of A, its error of ``1 - A``.
    """
    measure = measure_of(step)
    if measure in ("counts", "bits"):
        return 0.0
    if measure == "lost":
        units = FLOOR if dtype == "float64" else COSINE
        least = max(1 - float(truth.max()), EPS["float64"])
        return ERROR_FACTOR * own + units * EPS[dtype] / least
    eps = EPS[dtype]
    factor = SPARSEGPT_FACTOR if step.startswith("sparsegpt") else 1.0
    if step.startswith("alphapruning") and step.endswith(".signal"):
        factor = max(1.0, float(np.nanmax(truth)) - 1)
    return factor * (
        ERROR_FACTOR * own + (FLOOR_16 if dtype in NARROW else FLOOR) * eps
    )


def kind_of(step: str) -> str:
    """The kind of a step: a trace point of all blocks, or a stage of the method."""
    if stage_of(step) == "forward":
        return ".".join("*" if part.isdigit() else part for part in step.split("."))
    return stage_of(step)


def stage_of(step: str) -> str:
    """The part of the method that a step belongs to."""
    first, last = step.split(".")[0], step.rsplit(".", 1)[-1]
    if matching([step], FORWARD):
        return "forward"
    if first in ("perturbed", "coarse", "absorption_coefficient"):
        return "experiment"
    if last in ("signal", "perplexity"):
        return {"signal": "signals"}.get(last, last)
    return (
        "allocation"
        if last in ("base", "corrected", "counts") and first != last
        else first
    )


def step_result(
    step: str, actual: Arrays, truth: Array, own: float, tolerance: float
) -> StepResult:
    """Judge one step by its error."""
    if step not in actual:
        return StepResult(step, "missing", inf, tolerance, own, fault="missing")
    if not isfinite(own):
        return StepResult(
            step, "unresolved", fault="refimpl itself is not near it in this dtype"
        )
    error, where, fault = error_of(step, actual[step], truth)
    status: Status = "divergent"
    if not fault and error <= tolerance:
        status = "pass"
        if tolerance >= RESOLVABLE.get(measure_of(step), inf):
            share = f"{error / tolerance:.2g} of a tolerance of {tolerance:.2g}"
            status, fault = "unresolved", f"not resolvable in this dtype: {share}"
    return StepResult(step, status, error, tolerance, own, where, fault)


def coarsest(arrays: Arrays) -> str:
    """The coarsest dtype of some floats; none if there are no floats."""
    names = EPS.keys() & {x.dtype.name for x in arrays.values()}
    return max(names, key=EPS.__getitem__, default="")


def array_of(value: Any) -> Array:
    """An array, or a torch tensor from any device, as an array; torch is not imported."""
    if not hasattr(value, "detach"):
        return np.asarray(value)
    value = value.detach().cpu()
    if str(value.dtype) == "torch.bfloat16":  # which NumPy cannot read
        return np.asarray(value.float()).astype(ml_dtypes.bfloat16)
    return np.asarray(value)

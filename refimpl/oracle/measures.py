"""Steps: how each is measured, why it goes wrong, its error against the truth, its tolerance."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from math import inf, isfinite
from typing import Any, Literal

import ml_dtypes
import numpy as np

from refimpl.errors import RefimplError
from refimpl.model.ops import Array
from refimpl.oracle.case_folders import StepMeasure


@dataclass(frozen=True)
class StepRecord:
    """A kind of step: how it is measured (docs/explanation/tolerances.md), and why it goes wrong.

    Of "weight" and "typical rows" none counts as less than a share of the root mean square of all
    (`LEAST`); "lost" is the error of ``1 - A`` of an alignment A. Trace points say what
    they read of their block, later steps note it themselves (`StepInputs.of`). `exact` ones are
    computed in float32 or more in every dtype. A semicolon separates two causes.
    """

    measure: StepMeasure
    causes: str
    reads: tuple[str, ...] = ()
    domain: tuple[float, float] = (-inf, inf)
    exact: bool = False


STREAM = "a sum that lacks a term, or has it twice"
NORM = "another eps, or eps outside the root; weights stored minus 1; RMSNorm in place of LayerNorm"
STATISTIC = "a mean over tokens in place of a sum; the dense model's statistics; another input"
SIGNAL = "another statistic, threshold or fit; another linear's input; singular values, not squared"

# fmt: off
RECORDS: Mapping[str, StepRecord] = {  # by pattern of names; the first one counts
    "embed": StepRecord("rows", "the scale of the embeddings (Gemma: the root of D); the first "
        "learned position; token ids that were shifted or padded"),
    "blocks.*.resid_pre": StepRecord("rows", "a block that was skipped, or run twice"),
    "blocks.*.attn_norm": StepRecord("rows", NORM, reads=("resid_pre",)),
    "blocks.*.[qkv]": StepRecord("rows", "a weight that was changed, transposed, or taken from "
        "another block; a fused tensor cut in the wrong order; a missing bias, or norm of each "
        "head", reads=("attn_norm", "latent")),
    "blocks.*.[qk]_rope": StepRecord("rows", "theta, or its scaling; pairs of channels: i and "
        "i + h/2; positions, which begin at 0; how many channels rotate", reads=("q", "k")),
    "blocks.*.latent": StepRecord("rows", "the eps of its norm; the rotated part taken for a part "
        "of it", reads=("attn_norm",)),
    "blocks.*.conv_in": StepRecord("rows", "the parts of in_proj in another order; a missing gate",
        reads=("attn_norm",)),
    "blocks.*.conv_out": StepRecord("rows", "taps in reverse; a window that is not causal; a "
        "missing bias or activation", reads=("conv_in",)),
    "blocks.*.state_out": StepRecord("rows", "the decay; keys without length 1; D x left out; "
        "heads of another group", reads=("attn_norm", "conv_in", "conv_out")),
    "blocks.*.attn_out": StepRecord("rows", "token 0 is right: the scale, the causal mask (shifted "
        "by one, or absent), the soft cap; token 0 is wrong: the order of heads, o_proj, the norm "
        "after it; right up to some token: the window",
        reads=("attn_norm", "q", "k", "v", "q_rope", "k_rope", "conv_out", "state_out")),
    "blocks.*.resid_mid": StepRecord("rows", STREAM, reads=("resid_pre", "attn_out")),
    "blocks.*.mlp_norm": StepRecord("rows", f"a parallel residual; {NORM}",
        reads=("resid_pre", "resid_mid")),
    "blocks.*.mlp_out": StepRecord("rows", "the activation: exact GELU or its tanh form, SiLU; "
        "gate_proj and up_proj swapped; down_proj: a missing bias; the norm after it, or a factor",
        reads=("mlp_norm", "router_norm", "experts_norm", "router.keep")),
    "blocks.*.block_embed_norm": StepRecord("rows", STREAM, reads=("resid_mid", "mlp_out")),
    "blocks.*.block_embed": StepRecord("rows", f"the columns of another block; a factor; {NORM}",
        reads=("token_ids",)),
    "blocks.*.block_embed_out": StepRecord("rows", "the activation of the gate; the norm after it",
        reads=("block_embed_norm", "block_embed")),
    "blocks.*.resid_post": StepRecord("rows", STREAM,
        reads=("resid_mid", "mlp_out", "block_embed_out")),
    "blocks.*.router.keep": StepRecord("bits", "one expert more or fewer per token; softmax or "
        "sigmoid; the correction of scores; the router's input or bias",
        reads=("mlp_norm", "router_norm")),
    "blocks.*.router_norm": StepRecord("rows", f"a missing factor; {NORM}", reads=("resid_mid",)),
    "blocks.*.experts_norm": StepRecord("rows", NORM, reads=("resid_mid",)),
    "final_norm": StepRecord("rows", f"no norm behind the last block; {NORM}"),
    "logits": StepRecord("rows", "lm_head: tied to the embeddings, or a weight of its own; the "
        "soft cap of the logits, or their factor"),
    "*.drift": StepRecord("numbers", "noise: its scale, its axes, one for all draws; added before "
        "the block; norms of all tokens together; sinks; the order of the means",
        domain=(0, inf)),
    "*.alignment": StepRecord("lost", "the difference in place of the perturbed state; one norm "
        "twice", domain=(-1, 1)),
    "*absorption_coefficient": StepRecord("numbers", "a ratio of means in place of a mean of "
        "ratios; the inverse; another denominator; tokens without a drift", domain=(0, inf)),
    "*.stderr": StepRecord("shares", "n in place of n - 1; over tokens or draws, not sequences",
        domain=(0, inf)),
    "*.divergence": StepRecord("shares", "KL in the wrong direction; no final norm; a base of 2; a "
        "sum over tokens in place of a mean"),
    "alphapruning*.signal": StepRecord("numbers", SIGNAL, domain=(0, inf), exact=True),
    "*.signal": StepRecord("numbers", SIGNAL, domain=(0, inf)),
    "*.base": StepRecord("shares", "a spread that is halved or doubled; the sign; not projected "
        "onto the budget; a mean over blocks, not weights", domain=(0, 1), exact=True),
    "*.corrected": StepRecord("shares", "the sign; log r that is not clipped or not centred; "
        "another strength or limit; not projected onto the budget again",
        domain=(0, 1), exact=True),
    "*.counts": StepRecord("counts", "quotas rounded one by one, not by the largest remainder; "
        "another order of linears; the budget, rounded half to even"),
    "*.squares": StepRecord("typical rows", STATISTIC, domain=(0, inf)),
    "*.products": StepRecord("typical rows", f"a factor 2 / n or damping; {STATISTIC}"),
    "*score": StepRecord("rows", "the square of the norm; a sum per token, not per sequence",
        domain=(0, inf)),
    "*.keep": StepRecord("bits", "inverted bits (1 is kept), or packed from the lowest; ties: the "
        "lower index goes first; the group that is compared; counts; SparseGPT: dead inputs, "
        "damping, the factor of the inverse, the update of later columns"),
    "*.weight": StepRecord("weight rows", "the update of later columns, or its order; a factor of "
        "H in place of one of its inverse; weights that are not rounded to the file's dtype"),
    "*.perplexity": StepRecord("numbers", "the token itself in place of the next one; a mean of "
        "perplexities; nats, or a power of 2", domain=(1, inf)),
}
# fmt: on
FAULTS = {
    "NaN": "a row of the mask with only -inf, or exp, log or a root out of range",
    "Inf": "numbers beyond the dtype: exp without subtracting the maximum, or a step in 16 bits",
    "0": "an output that was never written",
    "negative": "a sign, a difference or a clip: the step is a norm, a square, a ratio or a share",
    "dtype": "a graph or a runtime in another precision",
    "shape": "a graph for one batch size or length, or axes in another order",
    "missing": "a graph without an output of this name",
}
SINGLE, HALF, COARSE = 1e-9, 1e-4, 2e-2  # errors above the first two suggest float32 or 16 bits


@cache
def record_of(step: str) -> StepRecord:
    """The record of a step, by its name."""
    for pattern, record in RECORDS.items():
        if fnmatchcase(step, pattern):
            return record
    raise RefimplError(
        f"step {step} is of no known kind",
        ", ".join(RECORDS),
        "make the case again with refimpl case make",
    )


def usual_causes(step: str, dtype: str, error: float, fault: str) -> tuple[str, ...]:
    """Usual causes of an error or another fault of a step, the likeliest first."""
    causes = tuple(text for word, text in FAULTS.items() if word in fault.split())
    if dtype == "float64" and isfinite(error) and SINGLE < error < 1e-5:
        causes += ("float32 in some step: the error has the size of its rounding",)
    if dtype == "float32" and HALF < error < COARSE:
        causes += ("16 bits (or TF32) in some step, if later points have errors of the same size",)
    return (*causes, *record_of(step).causes.split("; "))


UNRESOLVED = "refimpl itself is not near it in this dtype"
# Errors that are a share of the truth, and the tolerance from which on a step is not resolved:
# of sixteen parts of equal size and any direction, a missing one changes a row by a quarter; a
# number or sum that is half as large, or another coefficient, is off by 0.5, an alignment of 1
# by 1.
RESOLVABLE: Mapping[str, float] = {
    "rows": 0.25, "weight rows": 0.25,
    "typical rows": 0.5, "numbers": 0.5, "shares": 0.5, "lost": 1.0,
}  # fmt: skip
LEAST = {"weight rows": 0.25, "typical rows": 1.0}  # that a row counts as, of a typical one
COARSE_DRIFT = 1 / 16  # tolerance: below, a drift of 1 that passes is nearly right, as many are 1
UNCHANGED = 2.0**-49  # what rounding in float64 leaves of ``1 - A`` where nothing was lost
FORWARD = ("embed", "blocks", "final_norm", "logits")  # first words of the trace points

ERROR_FACTOR = 8.0  # of refimpl's own error
FLOOR = 64.0  # units in the last place, where that error happens to be small
FLOOR_16 = 4.0  # the same in 16 bits, where 64 units are half of a number
COSINE = 3.0  # six halves: a product, two norms, their product, the quotient, and as it is written
SPARSEGPT_FACTOR = 4.0  # right inverses of a Hessian differ by more than rounding
BITS = {"float64": 52, "float32": 23, "float16": 10, "bfloat16": 7, "tf32": 10}
EPS = {dtype: 2.0**-bits for dtype, bits in BITS.items()}

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

    def causes(self, dtype: str) -> tuple[str, ...]:
        """The usual causes of an error that starts at this step, the likeliest first."""
        return usual_causes(self.step, dtype, self.error, self.fault)


def error_of(step: str, actual: Array, truth: Array) -> tuple[float, tuple[int, ...], str]:
    """The error of an array, the index of its worst place, and a fault (always divergent) or ""."""
    measure, (low, high) = record_of(step).measure, record_of(step).domain
    if actual.shape != truth.shape:
        return inf, (), f"shape {list(actual.shape)}, expected {list(truth.shape)}"
    if measure in ("counts", "bits"):
        if actual.dtype.kind not in "iub":
            return inf, (), f"dtype {actual.dtype}, expected {truth.dtype}"
        if measure == "bits":
            if actual.size and not 0 <= actual.min() <= actual.max() <= 255:
                return inf, (), "numbers that are no bytes"
            actual, truth = (np.unpackbits(x.astype(np.uint8), axis=-1) for x in (actual, truth))
        wrong = np.argwhere(actual != truth)
        return float(len(wrong)), tuple(wrong[0].tolist()) if len(wrong) else (), ""
    if actual.dtype.kind != "f" and actual.dtype.name != "bfloat16":
        return inf, (), f"dtype {actual.dtype}, expected a float"
    with np.errstate(all="ignore"):  # a candidate's numbers may be of any size
        exact = actual.astype(np.float64)
        slack = 4 * float(ml_dtypes.finfo(actual.dtype).eps)  # type: ignore[no-untyped-call]
        outside = (exact < low - slack * abs(low)) | (exact > high * (1 + slack))
        if outside.any():
            kind = f"outside {low:g} to {high:g}" if low or (exact >= 0).all() else "negative"
            fault = f"{outside.sum():,} {kind} among {actual.size:,} numbers, which cannot be"
            return inf, (), fault
        unknown = np.isnan(truth)  # a coefficient of a block that lost nothing
        if unknown.any():
            if not np.isnan(exact[unknown]).all():
                return inf, (), "NaN expected, and the candidate has a number"
            exact, truth = (np.where(unknown, 0.0, x) for x in (exact, truth))
        if not measure.endswith("rows"):
            exact, truth = exact[..., None], truth[..., None]
        for name, bad in (("NaN", np.isnan(exact)), ("Inf", np.isinf(exact))):
            if bad.any():
                first = tuple(np.argwhere(bad)[0].tolist())[:-1]
                return inf, first, f"{bad.sum():,} {name} among {actual.size:,} numbers"
        fault = f"all {actual.size:,} numbers are 0" if truth.any() and not exact.any() else ""
        least = 0.0
        if measure in LEAST:
            least = LEAST[measure] * float(np.sqrt(np.mean(np.square(truth)) * truth.shape[-1]))
        elif measure == "shares":
            least = float(truth.max()) or 1.0
        elif measure == "lost":
            exact, truth = lost(exact), lost(truth)
        return *worst_token(exact, truth, least), fault


def worst_token(
    actual: Array, expected: Array, least: float = 0.0
) -> tuple[float, tuple[int, ...]]:
    """Error of rows [..., D], ``max_t ||a_t - e_t|| / max(||e_t||, least)``, and its place."""
    exact, truth = (x.astype(np.float64) for x in (actual, expected))
    missed = np.linalg.norm(exact - truth, axis=-1)
    size = np.maximum(np.linalg.norm(truth, axis=-1), least)
    errors = np.where((size == 0) & (missed > 0), inf, missed / np.where(size == 0, 1, size))
    token = np.unravel_index(int(errors.argmax()), errors.shape)
    return float(errors.max()), tuple(map(int, token))


def lost(alignment: Array) -> Array:
    """``1 - A`` of alignments A, 0 where rounding leaves it below."""
    return np.maximum(1 - alignment, 0.0)


def tolerance_of(step: str, truth: Array, own: float, dtype: str, stepwise: bool = False) -> float:
    """The largest error that a step may have (its truth in float64), if refimpl's own is this.

    ``8 own + 64 eps``, in 16 bits ``8 own + 4 eps``; for SparseGPT four times that; 0 for counts
    and bits. An alpha errs by ``alpha - 1`` times as much as the eigenvalues that it is made of. An
    alignment A is computed in float32 or more; its units are those of A, its error of ``1 - A``.
    """
    measure = record_of(step).measure
    if measure in ("counts", "bits"):
        return 0.0
    if measure == "lost":
        units = FLOOR if dtype == "float64" else COSINE
        return ERROR_FACTOR * own + units * min(EPS[dtype], EPS["float32"]) / _least_lost(truth)
    eps = EPS[arithmetic_of(step, dtype, stepwise)]
    factor = SPARSEGPT_FACTOR if step.startswith("sparsegpt") else 1.0
    if step.startswith("alphapruning") and step.endswith(".signal"):
        factor = max(1.0, float(truth.max()) - 1)
    return factor * (ERROR_FACTOR * own + (FLOOR_16 if eps > EPS["float32"] else FLOOR) * eps)


def arithmetic_of(step: str, dtype: str, stepwise: bool) -> str:
    """The dtype of a step: step by step float32 at least, if no state of the model is behind it."""
    return (
        "float32" if stepwise and record_of(step).exact and EPS[dtype] > EPS["float32"] else dtype
    )


def kind_of(step: str) -> str:
    """The kind of a step: a trace point of all blocks, or a stage of the method."""
    if step.split(".")[0] in FORWARD:
        return ".".join("*" if part.isdigit() else part for part in step.split("."))
    return stage_of(step)


def stage_of(step: str) -> str:
    """The part of the method that a step belongs to."""
    first, last = step.split(".")[0], step.rsplit(".", 1)[-1]
    if first in FORWARD:
        return "forward"
    if first in ("perturbed", "coarse", "absorption_coefficient"):
        return "experiment"
    if last in ("signal", "perplexity"):
        return {"signal": "signals"}.get(last, last)
    return "allocation" if last in ("base", "corrected", "counts") else first


def judges_sparsegpt(dtype: str) -> bool:
    """Whether SparseGPT's steps are judged in a dtype: in fewer bits they are not reproducible."""
    return EPS[dtype] <= EPS["float32"]


def writing_error(step: str, truth: Array, array: Array, dtype: str, stepwise: bool) -> float:
    """What a step is off by where it is written in fewer bits than it is computed in."""
    unit = EPS.get(array.dtype.name, 0.0) / 2
    if record_of(step).measure == "lost":
        return unit / _least_lost(truth) if unit > EPS["float32"] else 0.0
    return unit if arithmetic_of(step, dtype, stepwise) != dtype else 0.0


def _least_lost(alignment: Array) -> float:
    """The smallest ``1 - A`` of alignments A, except where nothing was lost."""
    left = lost(alignment)
    return float(np.min(left[left > UNCHANGED], initial=1.0))


def step_result(
    step: str,
    actual: Mapping[str, Array],
    truth: Array,
    own: float,
    tolerance: float,
    ties: Callable[[], Positions] = lambda: (),
) -> StepResult:
    """Judge one step; `ties` is asked for near ties only if the step is off otherwise."""
    if step not in actual:
        return StepResult(step, "missing", inf, tolerance, own, fault="missing")
    if not isfinite(own):
        return StepResult(step, "unresolved", fault=UNRESOLVED)
    measure = record_of(step).measure
    error, where, fault = error_of(step, actual[step], truth)
    # An error of 1 is that of zeros: the dtype does not resolve such a perturbation or sum.
    unresolved = own >= 1 and measure in RESOLVABLE
    if error <= tolerance and tolerance >= 1:
        fault = ""
    status: Status = "unresolved"
    near: Positions = ()
    zero_by_zero = step.endswith("absorption_coefficient") and "NaN" in fault
    if not fault and error <= tolerance:
        if tolerance < RESOLVABLE.get(measure, inf):
            status = "pass"
        else:
            share = f"{error / tolerance:.2g} of a tolerance of {tolerance:.2g}"
            fault = f"not resolvable in this dtype: {share}"
    elif unresolved and (not fault or zero_by_zero):
        fault = f"{fault}; {UNRESOLVED}" if fault else UNRESOLVED
    else:
        near = () if fault else ties()
        status = "pass" if near else "divergent"
    return StepResult(step, status, error, tolerance, own, where, fault, near)


def array_of(value: Any) -> Array:
    """An array, or a torch tensor from any device, as an array; torch is not imported."""
    if not hasattr(value, "detach"):
        return np.asarray(value)
    value = value.detach().cpu()
    if str(value.dtype) == "torch.bfloat16":  # which NumPy cannot read
        return np.asarray(value.float()).astype(ml_dtypes.bfloat16)
    return np.asarray(value)

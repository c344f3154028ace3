"""The records of the steps: how each is measured, what it can be, and why it usually goes wrong."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from math import inf, isfinite
from typing import Literal

from refimpl.errors import RefimplError

StepMeasure = Literal[
    "rows", "weight rows", "typical rows", "numbers", "lost", "shares", "counts", "bits"
]  # fmt: skip


@dataclass(frozen=True)
class StepRecord:
    """A kind of step: how it is measured (docs/explanation/tolerances.md), and why it goes wrong.

    Of "weight" and "typical rows" none counts as less than a share of the root mean square of all
    (`measures.LEAST`); "lost" is the error of ``1 - A`` of an alignment A. Trace points say what
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

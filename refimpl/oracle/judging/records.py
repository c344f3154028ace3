"""The records of the steps: how each is measured, what it can be, and why it usually goes wrong."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from math import inf, isfinite
from typing import Any, Literal

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
    computed in float32 or more in every dtype.
    """

    measure: StepMeasure
    causes: tuple[str, ...]
    reads: tuple[str, ...] = ()
    domain: tuple[float, float] = (-inf, inf)
    exact: bool = False


STREAM = (
    "a sum that lacks a term, or has it twice",
    "a block that was skipped, run twice, or run with the weights of another block",
)
NORM = (
    "another eps, or eps outside the root",
    "weights that are stored minus 1 (Gemma)",
    "RMSNorm in place of LayerNorm, or vice versa; a missing bias",
)
STATISTIC = (
    "a sum over tokens in place of a mean, or sequences that were counted twice",
    "statistics of the dense model: the input of block l passed the pruned blocks before it",
    "the input of another linear (o_proj reads the heads, down_proj the activation)",
    "a sum in 16 bits or float32",
)
SIGNAL = (
    "OWL: at least in place of more than m times the mean, the median, another m, a fraction "
    "in place of a percentage, or outliers of each linear in place of the block",
    "DLP: the median in place of the mean, the lower of two medians, or a mean of the linears' "
    "means",
    "AlphaPruning: singular values that are not squared, another start of the tail, histogram "
    "or exponent (n of the tail, not n - 1)",
    "scores: the input of another linear, no activations, no square root, sums of one sequence "
    "or per token",
)


def _record(measure: StepMeasure, *causes: str, **fields: Any) -> StepRecord:
    """A record with its causes."""
    return StepRecord(measure, causes, **fields)


# fmt: off
RECORDS: Mapping[str, StepRecord] = {  # by pattern of names; the first one counts
    "embed": _record("rows", "the scale of the embeddings (Gemma: the root of D)",
        "learned positions: their first row (OPT: 2), or positions that do not begin at 0",
        "token ids that were shifted or padded"),
    "blocks.*.resid_pre": _record("rows", *STREAM[1:]),
    "blocks.*.predicted": _record("rows",
        "coefficients of the transposed matrix, or of the stream after its norm alone (1 / D)",
        "a prediction in place of a stream plus its prediction", reads=("resid_pre",)),
    "blocks.*.attn_norm": _record("rows", *NORM, reads=("resid_pre", "predicted")),
    "blocks.*.[qkv]": _record("rows",
        "a weight that was changed, transposed, or taken from another block", "a missing bias",
        "a fused tensor cut in the wrong order (thirds, or head by head)",
        "a missing norm of each head, of all heads together, or after the rotation",
        reads=("attn_norm", "latent")),
    "blocks.*.[qk]_rope": _record("rows",
        "theta, or its scaling (linear, llama3), or those of another kind of block",
        "pairs: channel i rotates with channel i + h/2, not with its neighbour; the direction",
        "positions: the first is 0 in each sequence of a batch",
        "the number of channels of a head that rotate, or a block that does not rotate",
        reads=("q", "k")),
    "blocks.*.latent": _record("rows",
        "the eps of its norm, which is 1e-6 whatever that of the others; a missing norm",
        "the rotated part of the keys taken for channels of it, or vice versa",
        reads=("attn_norm",)),
    "blocks.*.conv_in": _record("rows",
        "the parts of in_proj in another order (b, c, v; q, k, v), or head by head",
        "a gate before the convolution that was skipped", reads=("attn_norm",)),
    "blocks.*.conv_out": _record("rows",
        "the taps in reverse: the last one is of the token itself; a window that is not causal",
        "tokens of the sequence before it in the batch; a missing bias, a missing activation",
        reads=("conv_in",)),
    "blocks.*.state_out": _record("rows",
        "the decay: exp(-exp(A_log) softplus(W_a x + dt_bias)), in float32 or more",
        "queries and keys that do not have length 1; queries not divided by the root of d",
        "the correction of v by what the state, already decayed, holds for the key",
        "heads: a key head, or a group, serves consecutive heads",
        "Mamba: a time step without its bias, softplus or limits; D x that was left out",
        reads=("attn_norm", "conv_in", "conv_out")),
    "blocks.*.attn_out": _record("rows",
        "token 0 is right, later ones are not: the scale of q k^T, a softmax over another axis, "
        "the causal mask (shifted by one, or absent), the soft cap of the scores, if there is one",
        "token 0 is wrong, too: another key and value head for a query head (tiled, not repeated)",
        "or o_proj: heads merged in another order, a missing bias; the norm after it, or a factor",
        "right up to some token: the window, if there is one: one token more or less, or that of "
        "another kind of block",
        "the rotation (theta, positions), where rotated heads are not compared",
        reads=("attn_norm", "q", "k", "v", "q_rope", "k_rope", "conv_out", "state_out")),
    "blocks.*.resid_mid": _record("rows", *STREAM[:1],
        reads=("resid_pre", "attn_out")),
    "blocks.*.mlp_norm": _record("rows",
        "a parallel residual, in which the MLP reads the block's input", *NORM,
        reads=("resid_pre", "resid_mid")),
    "blocks.*.mlp_out": _record("rows",
        "the activation: exact GELU in place of its tanh form, GELU in place of SiLU",
        "gate_proj and up_proj swapped",
        "down_proj: a missing bias; the norm after it, or a factor",
        reads=("mlp_norm", "router_norm", "experts_norm", "router.keep")),
    "blocks.*.block_embed_norm": _record("rows", *STREAM[:1],
        reads=("resid_mid", "mlp_out")),
    "blocks.*.block_embed": _record("rows",
        "the columns of another block, in the table or in the projection of the first stream",
        "a factor: 1 / sqrt(D) of the projection, sqrt(P) of the row, 1 / sqrt(2) of their sum",
        "the stream before this block in place of the embedding", *NORM, reads=("token_ids",)),
    "blocks.*.block_embed_out": _record("rows",
        "the activation of the gate; the norm after the projection",
        reads=("block_embed_norm", "block_embed")),
    "blocks.*.resid_post": _record("rows", *STREAM,
        reads=("resid_mid", "mlp_out", "block_embed_out")),
    "blocks.*.router.keep": _record("bits",
        "one expert more or fewer per token; equal scores, of which the lower index counts",
        "scores that the choice is made of: softmax or sigmoid, a correction that is added to "
        "them for the choice alone, groups of which some take part",
        "the router's input: it is router_norm, or else mlp_norm; its bias",
        reads=("mlp_norm", "router_norm")),
    "blocks.*.router_norm": _record("rows", "the factors of its channels, or 1 / sqrt(D), missing",
        *NORM, reads=("resid_mid",)),
    "blocks.*.experts_norm": _record("rows", *NORM, reads=("resid_mid",)),
    "final_norm": _record("rows", "no norm behind the last block", *NORM),
    "logits": _record("rows", "lm_head: tied to the embeddings, or a weight of its own",
        "the soft cap of the logits, or their factor, which some families divide by",
        "added or missing rows of the vocabulary"),
    "*.drift": _record("numbers",
        "noise: another axis of blocks or sequences, or the same noise after every block or in "
        "every draw",
        "its scale: eta ||h|| exactly, per token or per sequence, after it is shaped by channel",
        "the wrong block: noise is added after block l, to resid_post, not before it",
        "a clean state that was perturbed, is that of another block, or has passed the final norm",
        "norms of all tokens together in place of norms per token, or vice versa; not relative",
        "sinks: tokens of more than 20 medians get no noise and do not count (sink = exclude)",
        "the mean: over tokens, then draws, then sequences",
        "pruned.*: another base or count, or a statistic of pruned blocks in place of the dense",
        domain=(0, inf)),
    "*.alignment": _record("lost",
        "signs or norms: it is the cosine between the perturbed and the clean state",
        "the difference of the states in place of the perturbed one; one norm twice",
        domain=(-1, 1)),
    "*absorption_coefficient": _record("numbers",
        "a ratio of means: it is the mean of the tokens' ratios, over tokens, then sequences",
        "another denominator: it is the drift after the perturbed block itself, and the numerator "
        "that after the last block", "the inverse ratio, or a geometric mean",
        "tokens without a drift, which do not count", domain=(0, inf)),
    "*.stderr": _record("shares",
        "n in place of n - 1, or a deviation that is not divided by the root of n",
        "over tokens or draws: it is over the means of sequences", domain=(0, inf)),
    "*.divergence": _record("shares",
        "KL in the wrong direction or with the reverse sign: it is of the clean distribution from "
        "the perturbed one",
        "distributions without the final norm, or of logits in place of probabilities",
        "a base of 2, a sum over tokens in place of a mean, or the last token alone"),
    "alphapruning*.signal": _record("numbers", *SIGNAL, domain=(0, inf), exact=True),
    "*.signal": _record("numbers", *SIGNAL, domain=(0, inf)),
    "*.base": _record("shares",
        "a spread that is halved or doubled, or a signal that is not stretched onto it",
        "the sign: a block with outliers, a small score or a heavy tail is pruned less",
        "AlphaPruning: the mean of the linears' alphas, scaled (not shifted) to the budget",
        "a base that is not projected onto the budget; a mean over blocks, not weights",
        domain=(0, 1), exact=True),
    "*.corrected": _record("shares", "the sign: a block that amplifies is pruned less",
        "log r that is not clipped at log 3, or not centred; another base of the logarithm; r - 1",
        "another strength or limit, or a correction that is added to the projected base",
        "a sum that was not projected onto the budget again, or scaled to it by a factor",
        "divergence: errors at the end, relative to their geometric mean",
        domain=(0, 1), exact=True),
    "*.counts": _record("counts",
        "quotas rounded one by one: they follow the largest remainder, ties the lower index",
        "blocks first, then the linears of each, in the order q, k, v, o, gate, up, down",
        "the budget: S N rounded to the nearest whole number, half to even"),
    "*.squares": _record("typical rows", *STATISTIC, domain=(0, inf)),
    "*.products": _record("typical rows", "a factor 2 / n or damping: the products have neither",
        *STATISTIC),
    "*score": _record("rows", "the square of the norm: the score is |W| sqrt(c)",
        "c per token: it is the sum over tokens divided by the number of sequences",
        domain=(0, inf)),
    "*.keep": _record("bits", "an inverted decision (1 is kept), or bits packed from the lowest",
        "ties: the lower index goes first",
        "rows: Wanda compares within a row, SparseGPT within 128 columns of all rows",
        "the counts: n div R in each row, the others in the rows whose next score is lowest",
        "n:m: n of m consecutive inputs are zeros",
        "SparseGPT: dead inputs, damping (a share of the mean of the diagonal), the diagonal of "
        "the factor of the inverse, or a decision on weights before their compensation",
        "SparseGPT: other columns decided together (128), or in another order, or no update of "
        "the columns after these"),
    "*.weight": _record("weight rows",
        "the update of later columns after each column, or its order",
        "a factor of H in place of one of its inverse; the damping",
        "weights that are not rounded to the file's dtype",
        "an error that is not divided by the diagonal of the factor",
        "kept values that changed (Wanda changes none), or pruned ones that are not 0"),
    "*.perplexity": _record("numbers",
        "the token itself in place of the next one, or a counted last position",
        "a mean of the sequences' perplexities: it is exp of one mean of nats",
        "the nats themselves, or a power of 2: it is exp of the mean nats",
        "a sum over the vocabulary in 16 bits", domain=(1, inf)),
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
    return causes + record_of(step).causes

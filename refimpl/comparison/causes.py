"""What usually is the reason when a trace point, or a later step, is the first to go wrong."""

from math import isfinite

STREAM = (
    "a sum that lacks a term, or adds it twice",
    "a block left out, run twice, or given another block's weights",
)
NORM = (
    "its eps, or eps outside the root",
    "weights that are stored minus 1 (Gemma)",
    "RMSNorm for LayerNorm, or the other way round; a bias left away",
)
PROJECTION = (
    "a weight that was changed, transposed, or taken from another block",
    "a bias left away",
    "a fused tensor cut in the wrong order (thirds, or head by head)",
    "the norm of each head left away, or put after the rotation",
)
ROTATION = (
    "theta, or its scaling (linear, llama3), or those of another kind of block",
    "pairs: channel i goes with i + h/2, not with its neighbour",
    "positions: the first is 0, and each sequence of a batch begins anew",
    "how many channels of a head rotate",
)
COEFFICIENT = (
    "a ratio of means for the mean of each token's ratio, over tokens, then sequences",
    "another block's drift below the fraction: it is that of the perturbed block itself",
    "tokens without a drift, which are left out",
)
STATISTIC = (
    "a sum over tokens for a mean, or over sequences that were counted twice",
    "statistics of the dense model: block l reads what passed the pruned blocks before it",
    "the input of another linear (o_proj reads heads, down_proj the activation)",
    "16 bits or float32 while summing",
)
CAUSES = {
    "embed": (
        "the scale of the embeddings (Gemma: the root of D)",
        "learned positions: their first row (OPT: 2), or positions that do not begin at 0",
        "token ids that were shifted or padded",
    ),
    "resid_pre": STREAM[1:],
    "attn_norm": NORM,
    "q": PROJECTION,
    "k": PROJECTION,
    "v": PROJECTION,
    "q_rope": ROTATION,
    "k_rope": ROTATION,
    "attn_out": (
        "the causal mask: shifted by one, or absent",
        "the window: one token more or less, or that of another kind of block",
        "the scale of q k^T, or the soft cap of the scores",
        "which key and value head a query head reads",
        "o_proj: heads merged in another order, a bias left away; the norm after it",
    ),
    "resid_mid": STREAM[:1],
    "mlp_norm": ("the parallel residual: there the MLP reads the block's input", *NORM),
    "mlp_out": (
        "the activation: exact GELU for its tanh form, GELU for SiLU",
        "gate_proj and up_proj swapped",
        "down_proj: a bias left away; the norm after it",
    ),
    "resid_post": STREAM,
    "final_norm": NORM,
    "logits": (
        "lm_head tied to the embeddings, or not",
        "the soft cap of the logits",
        "rows added to the vocabulary, or left away",
    ),
    "drift": (
        "the clean state taken after the push, or of another block",
        "norms of all tokens together for norms per token, or the other way round",
    ),
    "alignment": ("signs or norms: it is the cosine between the push and what is left of it",),
    "coefficient": COEFFICIENT,
    "absorption_coefficient": COEFFICIENT,
    "signal": (
        "OWL: at least for more than M times the mean, or the median for the mean",
        "DLP: the median for the mean, a mean of the linears' means",
        "AlphaPruning: singular values that are not squared, or the start of the tail",
        "scores: sums per token for sums per sequence",
    ),
    "base": (
        "a spread that is halved or doubled, or the sign: what stands out is pruned less",
        "a base that is not projected onto the budget; blocks for weights in its mean",
    ),
    "corrected": (
        "the sign: what amplifies is pruned less",
        "log r that is not clipped at log 3, or not centred; strength and limit of the correction",
        "a sum that was not projected onto the budget again",
    ),
    "counts": (
        "quotas rounded one by one: it is the largest remainder, ties to the lower index",
        "blocks first, then the linears of each, in the order q, k, v, o, gate, up, down",
        "the budget: S N to the nearest whole number, half to even",
    ),
    "squares": STATISTIC,
    "products": ("2 / n is not in it yet, nor the damping", *STATISTIC),
    "score": (
        "the square of the norm for the norm: |W| sqrt(c)",
        "c per token: it is the sum over tokens by the number of sequences",
    ),
    "keep": (
        "what goes for what stays, or bits packed from the lowest",
        "rows: Wanda compares within a row, SparseGPT within 128 columns of all rows",
        "the count: n div R of each row, the others from the rows whose next score is lowest",
        "n:m: n are zeros, of m consecutive inputs",
        "SparseGPT: dead inputs, the damping, a decision on weights before their compensation",
    ),
    "weight": (
        "the update of the columns after each one, or its order",
        "a factor of H for one of its inverse; the damping",
        "weights that are not rounded to the file's dtype",
        "values that were kept and changed (Wanda changes none)",
    ),
    "perplexity": (
        "the token itself for the next one, or the last position counted",
        "a mean over sequences of perplexities: it is one mean of nats, then exp",
        "16 bits in the sum over the vocabulary",
    ),
}
FAULTS = {
    "NaN": "a row of the mask with nothing but -inf, or exp, log or a root out of range",
    "Inf": "numbers beyond the dtype: exp without its maximum taken off, or 16 bits on the way",
    "0": "an output that was never written",
    "dtype": "a graph or a runtime in another precision",
    "shape": "a graph for one batch size or length, or axes in another order",
    "missing": "a graph that does not hand this point out under its name",
}
SINGLE, HALF = 1e-9, 1e-4  # errors from these on are of another precision's size
COARSE = 2e-2


def usual_causes(point: str, dtype: str, error: float, fault: str) -> tuple[str, ...]:
    """What usually makes a trace point the first to go wrong, the likeliest first.

    Args:
        point: Its name, with or without its block.
        dtype: What it should be computed in.
        error: Relative error of its worst token.
        fault: What else is wrong with it, or nothing.

    Returns:
        Texts.

    Source:
        ours.

    Example:
        >>> usual_causes("blocks.0.q_rope", "float32", 0.5, "")[0]
        'theta, or its scaling (linear, llama3), or those of another kind of block'
        >>> usual_causes("embed", "float64", 3e-8, "")[0]
        'float32 somewhere on the way: the error has the size of its rounding'
    """
    named = tuple(text for word, text in FAULTS.items() if word in fault.split())
    if dtype == "float64" and isfinite(error) and SINGLE < error < 1e-5:
        named += ("float32 somewhere on the way: the error has the size of its rounding",)
    if dtype == "float32" and HALF < error < COARSE:
        named += ("16 bits (or TF32) somewhere on the way, if later points are as far off",)
    return named + CAUSES.get(point.rsplit(".", 1)[-1], ())

"""The prose of docs/performance.md: of each row, and what was tried where it falls short."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """The words about one row of the results."""

    heading: str
    introduction: str
    tried: str = ""


SECTIONS = {
    "scoring-hooked": Section(
        "Scoring against hooked forwards",
        """
Time of torch / time of `refimpl.score`, one sequence. What one would write first: transformers,
eager, a forward hook that pushes one block's output, the whole model run for
every block.""",
        tried="""
Sharing saves half of the block passes and the head; the rest of the goal must come from the rate,
see there. Short sequences cost us most: below 512 tokens a product of [T, D] by a weight spends a
share of its time on packing the weight. States laid side by side, about 1,024 tokens to a product,
took a block of SmolLM2-135M from 0.67 to 0.81 of the machine's rate at 128 tokens, and one of
Llama-3.2-1B from 0.83 to 0.91 at 256; at 512 tokens they gain nothing. It is not done: which states
lie side by side would depend on the memory, the engine and what was taken up, and a BLAS may round
a row by how many there are, so that results would be equal to the bit only by luck.""",
    ),
    "scoring-batched": Section(
        "Scoring against the same sharing and batching",
        """
The rival keeps every state that was pushed so far in one batch, with the clean one, and takes it
through each block once; attention is matrix products and a softmax, or torch's fused kernel.""",
        tried="""
Torch's fused kernel never writes the scores of attention, which NumPy must. Keys that every query
of a tile sees need no mask, the division by the sum can wait until after the values, and the gate
can be applied in pieces in place: together 6 % of a block of SmolLM2-135M at 512 tokens, nothing of
one of Llama-3.2-1B.""",
    ),
    "rate": Section(
        "Arithmetic rate",
        """
Operations counted from the shapes, for one sequence of T tokens: a block with N weights in its
linears and H heads of h channels takes `2 T N + 2 h H T (T + 1)` operations (only keys that a token
sees); scoring takes L clean block passes and L (L - 1) / 2 pushed ones. Norms, rotation, softmax,
activations, noise, measuring and reading are not counted, but timed. The machine's rate is NumPy's
float32 product on all threads, before and after each scoring, in the same process. By the clock,
waiting counts, and so do other programs; per second of a processor, neither does.""",
        tried="""
The products alone reach 0.96 of the rate at 512 tokens of SmolLM2-135M, 0.95 at 512 and 0.87 at 256
tokens of Llama-3.2-1B; what else is done is in the profile below. With one short sequence, reading
the weights and the signals of OWL and DLP, which are computed once whatever the number of samples,
took 4 % at 135M and about 20 % at 1B. Tensors are read side by side since, and scores computed in
pieces that stay in the cache. Reading the next block while the last states move gave no difference
that could be told from the noise of a busy machine, and costs a block of memory.""",
    ),
    "memory": Section(
        "Memory",
        """
The largest resident memory of the command, mapped pages included (VmHWM), on a random bfloat16
model; the same at 4, 8 and 16 blocks.""",
    ),
    "spectra": Section(
        "AlphaPruning's spectra",
        """
The original: `svdvals` in float32, and a Python loop over the candidates for the
tail. Its alphas are compared in float64, too, because a choice between tails that fit equally well
may turn on float32's rounding.""",
        tried="""
On one thread the singular values themselves are nearly all of it. Eigenvalues of W W^T in their
place took half the time of all spectra, fits included, and changed no alpha by more than 2.4e-14 of
itself (6 blocks of SmolLM2-135M); matrices whose spectrum reaches below 1e-9 of its largest value
would keep singular values. On all cores ours compute one linear per core.""",
    ),
    "wanda": Section(
        "OWL and Wanda",
        """
OWL's statistic: a dense pass with hooks and the scores of a block together. Wanda: the pass with
hooks, a sort of every row, the pass through the pruned block, and the file written. Times without
start and imports; memory of the whole process.""",
        tried="""
Both sides take every sample through every block, OWL once and Wanda twice: 435 and 870 GFLOP of
products on SmolLM2-135M. At the machine's full rate (190 GFLOP/s by the clock) these are 2.3 s and
4.6 s, more than the 2.0 s that the goal leaves for OWL, and most of the 6.1 s for Wanda: the
original spends little else. In pruning, the lowest of every row are found by partition in place of
a stable sort, and scores in pieces.""",
    ),
    "sparsegpt": Section(
        "SparseGPT",
        """
The original's steps (the inverse of the Hessian, its Cholesky factor, column by column) in torch,
float32; ours in float64.""",
        tried="""
Most of it are products in float64, at half the rate of float32. Two steps could be saved: H = V V^T
gives what a column owes to those before it, V_ji d_j / V_ii summed over their losses d, so neither
the inverse of the Hessian nor that of its factor is needed; and losses are summed in strips of 32
columns that stay in the cache: 1.3 times faster, with the same decisions and weights equal to
3e-16. It is not done: the code would no longer read as the method's formula.""",
    ),
    "forward": Section(
        "Forward and evaluation",
        """
`refimpl.forward` to the logits of a batch, and `refimpl.evaluate` (perplexity) on the same number
of windows. onnxruntime runs the graph that refimpl exports; its ratio is stated, without a
goal.""",
        tried="""
`refimpl.forward` leaves threads to the BLAS: what is no product runs on one core, and every call
reads and casts the weights. `evaluate` takes a sequence to each core.""",
    ),
    "startup": Section(
        "Start",
        """
Seconds of the processor, the interpreter's own start included: what a single thread takes on an
idle machine; by the clock it is longer where others use the machine.""",
    ),
    "growth": Section(
        "Growth of the cost",
        """
Four sizes each, the others fixed at 8 blocks, 128 tokens, width 512. A straight line through the
logarithms gives the exponent; beside it the exponent of the operations counted by the formula above
at the same sizes: about 2 in blocks (`L (L + 1) / 2` passes), 1 in tokens and more as attention's
square grows, and 2 in width. A measured exponent below the formula's means that fixed costs still
show. The goal is on the difference.""",
    ),
}
SEVEN_B = """
Pruning holds a block in float32 twice, dense and pruned, the pages that it was read from, and on
each thread the scores of a linear in float64, in three copies while they are made and in two while
the lowest are found. Giving the pages back once they are cast, making scores in place, and pruning
the largest linears first, before the results of the others are there, took a run of two such blocks
from 4.3 to 3.6 GB, and all 32 blocks from 4.47 to what the table says."""
OVERLOADED = """
Others used it. By the clock that is unfair to the rivals: torch's threads wait for the slowest
of them after every operation."""
BY_PROCESSOR = """
So seconds are those of the processor, summed over threads, with torch, onnxruntime and BLAS
on one thread: `--processor`. Other programs do not count then, except by what they do to caches;
neither does waiting, nor how well either side uses several cores. Run it without `--processor` on
an idle machine for all cores, by the clock."""

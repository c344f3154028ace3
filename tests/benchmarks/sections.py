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
        "Scoring compared with hooked forwards",
        """
The ratio is the time of torch divided by the time of `refimpl.score`, on one sequence. The torch
program is what one would write first: transformers with eager attention and a forward hook that
perturbs the output of one block, and one run of the whole model for every block.""",
        tried="""
Sharing saves half of the block passes and the head. The rest of the goal would have to come from
a higher arithmetic rate (see that section). Short sequences cost refimpl most: below 512 tokens,
a product of [T, D] by a weight spends part of its time on packing the weight. The figures here are
older than stacks: now perturbed states of neighbouring blocks share each product, about 512 tokens
of them. Which do follows from their addresses alone, so results stay equal bit for bit for every
memory, number of threads, executor and resumed run. Scoring SmolLM2-135M on one thread (float32,
medians of three alternating runs, processor time beside other programs) went from 14.1 to 12.4 s on
2 x 128 tokens, from 13.4 to 12.8 s on 1 x 256, and from 25.3 to 25.0 s on 1 x 512. The peak of
memory rose from 130 to 136 MB, from 132 to 135 MB, and from 144 to 160 MB. With 1,024 tokens in a
stack, 2 x 128 tokens were 1.19 times as fast as before, not 1.14 (two runs), and the peak on
1 x 512 was 182 MB.""",
    ),
    "scoring-batched": Section(
        "Scoring compared with the same sharing and batching",
        """
This torch program keeps the clean state and all perturbed states in one batch, and passes the
batch through each block once. Attention is computed as matrix products and a softmax, or by
torch's fused kernel.""",
        tried="""
Torch's fused kernel never stores the scores of attention; NumPy has to. Since these figures, keys
that every query of a tile sees get no mask, the division by the sum comes after the product with
the values, and activations change their argument in place, in pieces. When tried, this saved 6 % of
a block of SmolLM2-135M at 512 tokens, and nothing of one of Llama-3.2-1B.""",
    ),
    "rate": Section(
        "Arithmetic rate",
        """
The rate counts the operations from the shapes, for one sequence of T tokens. A block with N
weights in its linears and H heads of h channels takes `2 T N + 2 h H T (T + 1)` operations (only
keys that a token sees). Scoring takes L passes of clean states and L (L - 1) / 2 passes of
perturbed ones. Norms, rotation, softmax, activations, noise, measurements and reading are not
counted as operations, but their time is included. The machine's rate is that of NumPy's float32
matrix product on all threads, before and after each scoring, in the same process. Wall-clock
time includes waiting and depends on other programs; processor time does neither.""",
        tried="""
The matrix products alone reach 0.96 of the machine's rate at 512 tokens of SmolLM2-135M, and
0.95 at 512 and 0.87 at 256 tokens of Llama-3.2-1B; the profile below shows the other steps. With
one short sequence, reading the weights and computing the signals of OWL and DLP (once for any
number of samples) took 4 % at 135M and about 20 % at 1B. Since then, refimpl reads several
tensors at the same time and computes scores in pieces that fit into the cache. Reading the next
block during the last states made no difference that we could distinguish from noise, and needs
the memory of one more block.""",
    ),
    "memory": Section(
        "Memory",
        """
The figure is the peak resident memory of the command, including mapped pages (VmHWM), on a
random bfloat16 model. The second row repeats the measurement with 4, 8 and 16 blocks.""",
    ),
    "spectra": Section(
        "AlphaPruning's spectra",
        """
The original computes `svdvals` in float32 and searches for the tail with a Python loop. Its
alphas are also compared in float64, because in float32 rounding can decide between tails that
fit equally well.""",
        tried="""
On one thread, the singular values take nearly all of the time. Computing eigenvalues of W W^T
instead halved the time of all spectra, including the fits, and changed no alpha by more than a
relative 2.4e-14 (6 blocks of SmolLM2-135M). Matrices with singular values below 1e-9 of the
largest would still need the singular values. On several cores, refimpl computes one linear per
core.""",
    ),
    "wanda": Section(
        "OWL and Wanda",
        """
OWL's statistic takes a dense pass with hooks, and the scores of all linears of a block. Wanda
takes a pass with hooks, a sort of every row, a pass through the pruned block, and writing the
file. Times exclude start and imports; memory is that of the whole process.""",
        tried="""
Both programs pass every sample through every block, once for OWL and twice for Wanda: 435 and
870 GFLOP of matrix products on SmolLM2-135M. At the machine's full rate (190 GFLOP/s of
wall-clock time), these take 2.3 s and 4.6 s. The goal allows 2.0 s for OWL and 6.1 s for Wanda,
so it is out of reach for OWL and close to the limit for Wanda: the original spends little time
on anything else. When pruning, refimpl finds the lowest scores of every row by partition instead
of a stable sort, and computes scores in pieces.""",
    ),
    "sparsegpt": Section(
        "SparseGPT",
        """
The original's steps (the inverse of the Hessian, its Cholesky factor, column by column) run in
torch in float32; refimpl computes in float64.""",
        tried="""
Most of the time goes into products in float64, at half the rate of float32. Two changes would
save time. First, H = V V^T gives what a column owes to the columns before it (V_ji d_j / V_ii
summed over their losses d), so neither the inverse of the Hessian nor that of its factor is
needed. Second, losses could be summed in strips of 32 columns that fit into the cache. Together
they were 1.3 times faster, with the same decisions and weights equal to 3e-16. We did not keep
them, because the code would no longer read like the formula of the method.""",
    ),
    "forward": Section(
        "Forward and evaluation",
        """
`refimpl.forward` computes the logits of a batch, and `refimpl.evaluate` the perplexity of the
same number of windows. onnxruntime runs the graph that refimpl exports; this comparison has no
goal.""",
        tried="""
`refimpl.forward` uses several threads only inside the BLAS, so all other operations run on one
core, and every call reads and casts the weights. `evaluate` gives each core its own sequence.""",
    ),
    "startup": Section(
        "Start of the program",
        """
The figures are processor seconds, including the start of the interpreter. The notes give the
wall-clock time, which also depends on other programs.""",
    ),
    "growth": Section(
        "Growth of the cost",
        """
Each row has four sizes; the other sizes are fixed at 8 blocks, 128 tokens and width 512. The
exponent is the slope of a straight line through the logarithms of the times. Next to it is the
exponent of the operations, counted by the formula above at the same sizes: about 2 in blocks (`L
(L + 1) / 2` passes), 1 in tokens and more as the quadratic part of attention grows, and 2 in
width. A measured exponent below that of the operations means that fixed costs still matter. The
goal applies to the difference.""",
    ),
}
SEVEN_B = """
Pruning keeps a block in float32 twice (dense and pruned), the mapped pages of the block, and, on
each thread, the scores of a linear in float64: three copies while they are computed, and two
while the lowest are found. Three changes reduced the peak of a run of two such blocks from 4.3
to 3.6 GB, and that of all 32 blocks from 4.47 GB to the value in the table: release the pages
after the cast, compute scores in place, and prune the largest linears first, while there are few
other results."""
OVERLOADED = """
Other programs used the machine. Wall-clock times then put torch at a disadvantage, because its
threads wait for the slowest one after every operation."""
BY_PROCESSOR = """
Therefore, the seconds are processor time, summed over threads, with torch, onnxruntime and BLAS
on one thread (`--processor`). Processor time excludes other programs, except for their effect on
caches. It also excludes waiting, and does not show how well a program uses several cores. To
measure wall-clock time on all cores, run the command without `--processor` on an idle machine."""

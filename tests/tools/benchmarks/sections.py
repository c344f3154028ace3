"""The prose of docs/performance.md: of each row, what limits it, and what was tried."""

from dataclasses import dataclass
from typing import NamedTuple


class Attempt(NamedTuple):
    """Something that was tried to make a row faster: a line of its table."""

    what: str
    gave: str
    kept: bool


@dataclass(frozen=True)
class Section:
    """The words about one row of the results."""

    heading: str
    introduction: str
    limit: str = ""  # what keeps the row from its goal; paragraphs are separated by empty lines
    tried: tuple[Attempt, ...] = ()


SECTIONS = {
    "scoring-hooked": Section(
        "Scoring compared with hooked forwards",
        """
The ratio is the time of torch divided by the time of `refimpl.score` (or of the command, where the
whole process is measured), which computes no signals of bases here. The torch program is what one
would write first: transformers with its default attention, torch's fused kernel, a forward hook
that perturbs the output of one block, and one run of the whole model for every block.""",
        """
Sharing saves half of the block passes and the head. Where that is less than the goal, the rest
would have to come from a higher arithmetic rate.

Short sequences cost refimpl most: below 512 tokens, a product of [T, D] by a weight spends part of
its time on packing the weight. Therefore, perturbed states of neighbouring blocks share each
product, about 512 tokens of them. Their addresses alone decide which states share a product, so
results are equal bit for bit for every memory limit, number of threads, executor and resumed run.

On one thread of an Intel Xeon, whose product reaches 160 to 200 GFLOP/s, two stacked states of 256
tokens take 18.8 ms each to pass a block of SmolLM2-135M, of which 13.5 ms are products, at 0.79 of
the machine's rate (medians of 12 passes, processor time). If all other work took no time at all,
these products would still be 72 % of a pass. Products of 512 rows reach 0.84 to 0.89 of the rate if
they use the same arrays again and again, and 0.70 to 0.76 if each uses other arrays, so NumPy's
products also wait for memory.""",
        (
            Attempt(
                "stacks of 512 tokens",
                "SmolLM2-135M on one thread: 14.1 to 12.4 s on 2 x 128 tokens, 13.4 to 12.8 s on "
                "1 x 256, 25.3 to 25.0 s on 1 x 512 (processor time, medians of three alternating "
                "runs); peaks of 130 to 136, 132 to 135 and 144 to 160 MB",
                kept=True,
            ),
            Attempt(
                "stacks of 1,024 tokens",
                "2 x 128 tokens: 1.19 times as fast as without stacks, in place of 1.14 (two "
                "runs); one thread of the Xeon: 8.5 and 8.7 s, with stacks of 512 tokens 8.6 and "
                "9.0 s; peak on 1 x 512: 182 MB",
                kept=False,
            ),
            Attempt(
                "q, k and v in one product, gate and up in another",
                "q, k and v: 3 to 6 % less time; gate and up: between 1 % less and 3 % more; all "
                "products of a block of SmolLM2-135M: -1.2 to 1.0 % at 128 to 1,024 rows (lower "
                "quartiles of 61 alternating runs on one thread of an AMD EPYC, measured twice)",
                kept=False,
            ),
            Attempt("norms without an array of squares", "2 % of a block pass", kept=True),
            Attempt(
                "attention of a few heads at a time, on tiles of 64 queries",
                "1 % of a block pass",
                kept=True,
            ),
            Attempt("activations in place with one buffer", "1 % of a block pass", kept=False),
            Attempt(
                "one product for the query heads that share a key head",
                "1 % of a block pass",
                kept=False,
            ),
            Attempt("rotation in place", "nothing", kept=False),
            Attempt("huge pages for all arrays", "nothing", kept=False),
        ),
    ),
    "scoring-batched": Section(
        "Scoring compared with the same sharing and batching",
        """
This torch program keeps the clean state and all perturbed states in one batch, and passes the batch
through each block once. Attention is computed as matrix products and a softmax, or by torch's fused
kernel.""",
        "Torch's fused kernel never stores the scores of attention; NumPy has to.",
        (
            Attempt(
                "no mask for keys that every query of a tile sees, the division by the sum after "
                "the product with the values, activations in place and in pieces",
                "6 % of a block of SmolLM2-135M at 512 tokens, nothing of one of Llama-3.2-1B",
                kept=True,
            ),
        ),
    ),
    "rate": Section(
        "Arithmetic rate",
        """
The rate counts the operations from the shapes, for one sequence of T tokens. A block with N weights
in its linears and H heads of h channels takes `2 T N + 2 h H T (T + 1)` operations (only keys that
a token sees). Scoring takes L passes of clean states and L (L - 1) / 2 passes of perturbed ones.
Norms, rotation, softmax, activations, noise, measurements and reading are not counted as
operations, but their time is included; the signals of OWL and DLP are not computed, as no base asks
for them. The machine's rate is that of NumPy's float32 matrix product on all threads, before and
after each scoring, in the same process. Wall-clock time includes waiting and depends on other
programs; processor time does neither.""",
        """
The matrix products alone reach 0.96 of the machine's rate at 512 tokens of SmolLM2-135M, and 0.95
at 512 and 0.87 at 256 tokens of Llama-3.2-1B, on an AMD EPYC; the profile below shows the other
steps. With one short sequence, reading the weights takes a share that further samples would divide.
Worker threads share Python's lock, so many short calls of NumPy cost more on two threads than on
one.""",
        (
            Attempt(
                "freed memory stays on the heap while refimpl's threads are open (by default, "
                "glibc gives large arrays back to the system, which clears their pages again)",
                "Llama-3.2-1B, 1 x 256 tokens: 20.1 and 21.7 s in place of 22.8 and 22.5 s, of "
                "which the system took 0.7 and 1.4 in place of 4.9 and 4.0 s; peak 827 in place of "
                "785 MiB. Pruning it by Wanda, 4 x 512 tokens: 95 in place of 130 s of processor "
                "time; peak 1,079 in place of 1,086 MiB. SmolLM2-135M: as long, and 20 to 30 MiB "
                "less",
                kept=True,
            ),
            Attempt(
                "activations, norms and attention on 65,536 numbers at a time, not 16,384",
                "SmolLM2-135M: 3 % less time to score 1 x 256 tokens, 6 % less for OWL's statistic "
                "on 4 x 512 (two threads of an Intel Xeon, medians of three alternating runs)",
                kept=True,
            ),
            Attempt(
                "reading the next block during the last states",
                "no difference that we could distinguish from noise, for the memory of one more "
                "block",
                kept=False,
            ),
        ),
    ),
    "default": Section(
        "The default of `refimpl score`",
        """
`refimpl score FOLDER --json`, with its own text and number of samples, from the start of the
program to its end. `--json` adds the signals of OWL and DLP. The number of samples was chosen by
the error that it leaves: see [how to calibrate](how-to/calibrate.md).""",
    ),
    "memory": Section(
        "Memory",
        """
The figure is the peak resident memory of the command, including mapped pages (VmHWM), on a random
bfloat16 model. The second row repeats the measurement with 4, 8 and 16 blocks. The heap keeps freed
memory, and which pieces fit again differs from run to run by up to about 100 MB, so that row misses
its goal.""",
        """
Compared with commit bb3bb06, before the work on speed, `refimpl score` on SmolLM2-135M has a peak
of 181 MiB in place of 195 at 2 x 128 tokens, 177 in place of 202 at 1 x 256, and 230 in place of
262 at 2 x 512 (text, two threads, one run each).""",
    ),
    "spectra": Section(
        "AlphaPruning's spectra",
        """
The original computes `svdvals` in float32 and searches for the tail with a Python loop. Its alphas
are also compared in float64, because in float32 rounding can decide between tails that fit equally
well.""",
        """
On one thread, the spectra take nearly all of the time. In float32, refimpl computes eigenvalues of
W W^T in float64 in place of singular values, where a bound on their errors shows that they change
no choice of a tail and no alpha by more than 1e-6; elsewhere, and with `--dtype float64`, it
computes singular values. On several cores, refimpl computes one linear per core.""",
    ),
    "wanda": Section(
        "OWL and Wanda",
        """
OWL's statistic takes a dense pass with hooks, and the scores of all linears of a block. Wanda takes
a pass with hooks, a sort of every row, a pass through the pruned block, and writing the file. Times
exclude start and imports; memory is that of the whole process.""",
        """
Both programs pass every sample through every block, once for OWL and twice for Wanda: 435 and 870
GFLOP of matrix products on SmolLM2-135M. At the full rate of two cores, these take 2.3 s and 4.6 s
on an AMD EPYC (190 GFLOP/s), and 1.3 s and 2.5 s on an Intel Xeon (345 GFLOP/s).

On one thread of that Xeon, OWL's statistic took 5.7 s of processor time (one run with Python's
profiler): 54 % products, 15 % attention, 8 % sums of squares in float64, 13 % scores and outliers
in float64, 6 % reading, casting and checking the weights, 4 % the rest. On two threads it took 6.4
s, 3.6 s by the clock.

When pruning, refimpl finds the lowest scores of every row by one partition instead of a stable
sort, computes scores in pieces, and sets weights to zero by their bits. A model of one block gains
no memory from reading block by block: the last rows show that refimpl then needs as much as the
original.""",
    ),
    "sparsegpt": Section(
        "SparseGPT",
        """
The original's steps (the inverse of the Hessian, its Cholesky factor, column by column) run in
torch in float32; refimpl computes in float64.""",
        """
Most of the time goes into products in float64, at half the rate of float32. What columns owe to
those before them follows from how far those changed and from V, where H = V V^T. Therefore, refimpl
needs neither the inverse of the Hessian nor that of its whole factor.""",
        (
            Attempt(
                "one factor for q, k and v, one for gate and up, and the same ones for the three "
                "probes of a block",
                "`refimpl prune` of two blocks of 1024 x 3072, 4 x 256 tokens, SparseGPT at 0.5: "
                "scoring 8.7 in place of 10.6 s, pruning 3.6 s as before, the same file (medians "
                "of three alternating runs on an AMD EPYC)",
                kept=True,
            ),
            Attempt(
                "later columns brought up to date after 32 columns, in one product",
                "4096 x 4096: 3.7 s, 3.6 s without (medians of five alternating runs, two threads "
                "of an AMD EPYC)",
                kept=False,
            ),
        ),
    ),
    "forward": Section(
        "Forward and evaluation",
        """
`refimpl.logits` computes the logits of the sequences, each on a core, and `refimpl.evaluate` the
perplexity of the same number of windows, both with a `HeldModel`, whose weights stay in memory as
those of the rivals do. onnxruntime runs the graph that refimpl exports; this comparison has no
goal.""",
        """
The linears and the head take 275 GFLOP for 2 x 512 tokens of SmolLM2-135M. On one thread of an
Intel Xeon, `refimpl.logits` took 3.2 s (one run with Python's profiler, weights in memory): 67 %
products, 15 % attention, half of it products, 7 % a copy of the logits, which is no longer made, 2
% each for activation and rotation, 1 % norms, 6 % the rest.

`evaluate` runs one sequence on one core, because its results must not depend on the number of
threads, so a single window leaves a core idle.""",
        (
            Attempt(
                "weights kept between sequences (`HeldModel`)",
                "`refimpl.forward` of 1 x 256 tokens of Qwen2.5-0.5B: 1.2 s in place of 3.6 s "
                "(medians of five alternating runs on the Xeon)",
                kept=True,
            ),
            Attempt("bfloat16 cast by shifting its bits", "no faster than `ml_dtypes`", kept=False),
            Attempt(
                "heads of 128 rows at a time, not 512, so that both cores have work",
                "1 x 256 tokens of Qwen2.5-0.5B: 13 % less time; 2 x 512 of SmolLM2-135M: 3 % more "
                "(medians of five alternating runs)",
                kept=False,
            ),
        ),
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
Each row has the sizes that it names; the other sizes are fixed at 8 blocks, 128 tokens, width 512
and one sample (four samples for cores). The exponent is the slope of a straight line through the
logarithms of the times, which the list below the table gives. Next to it is the exponent of the
operations, counted by the formula above at the same sizes: about 2 in blocks (`L (L + 1) / 2`
passes), 1 in tokens and more as the quadratic part of attention grows, 2 in width, 1 in samples,
and -1 in cores, which share the operations. A measured exponent below that of the operations means
that fixed costs still matter. The goal applies to the difference.""",
    ),
}
OTHER_MACHINE = """
One run of commit 5f9a356 on this machine gave all tables, but for that of seven billion weights.
The processor decides which goals are reached, so the table of goals also has what another one gave,
at commit 688c3b8 and before:
"""
SEVEN_B = """
Pruning keeps a block in float32 twice (dense and pruned), a tensor as it is stored, and, on
each thread, the scores of a linear in float64: three copies while they are computed, and two
while the lowest are found. Three changes reduced the peak of a run of two such blocks from 4.3
to 3.6 GB, and that of all 32 blocks from 4.47 GB to the value in the table: release the pages
after the cast, compute scores in place, and prune the largest linears first, while there are few
other results."""
OLDER = """
The figures are older than the programs. Since then, the torch programs use torch's default
attention in place of eager attention where a row says so, other goals apply, and refimpl has become
faster. They will be measured again.
"""
ROOFLINE = """
The table adds up the profile's steps, in processor seconds of one thread. The bound is the counted
operations (see the arithmetic rate) divided by the rate of NumPy's float32 product of 4096 x 4096
matrices on one thread of the same process. In parentheses is the ratio of each part to the bound.
The last two rows are not part of scoring on one thread: the seconds in which worker threads wait,
summed over the threads of a run on all cores, and the processor time of `refimpl score
fixtures/llama`, which is nearly all start."""
LINES = """
A learner reads `forward`, `attention` and `ops`. Faster versions of their costly steps are in
`kernels`, a set of functions that `forward` receives. The table compares this checkout with
commit bb3bb06. Lines of code are those without docstrings, comments and empty lines. `forward` and
`ops` grew with the families of models that were added in between. The work on speed changed
neither: it changed `kernels` (from 39 to 102 lines of code) and `stream`."""
OVERLOADED = """
Other programs used the machine. Wall-clock times then put torch at a disadvantage, because its
threads wait for the slowest one after every operation."""
BY_PROCESSOR = """
Therefore, the seconds are processor time, summed over threads, with torch, onnxruntime and BLAS
on one thread (`--processor`). Processor time excludes other programs, except for their effect on
caches. It also excludes waiting, and does not show how well a program uses several cores. To
measure wall-clock time on all cores, run the command without `--processor` on an idle machine."""

"""What was tried where a row falls short; added to its section of docs/performance.md."""

TRIED: dict[str, str] = {
    "scoring-hooked": """
Sharing saves half of the block passes and the head; the rest of the goal must come from the rate,
see there. Short sequences cost us most: below 512 tokens a product of [T, D] by a weight spends a
share of its time on packing the weight. States laid side by side, about 1,024 tokens to a product,
took a block of SmolLM2-135M from 0.67 to 0.81 of the machine's rate at 128 tokens, and one of
Llama-3.2-1B from 0.83 to 0.91 at 256, with the same bits; at 512 tokens they gain nothing.""",
    "scoring-batched": """
Torch's fused kernel never writes the scores of attention, which NumPy must. Keys that every query
of a tile sees need no mask, the division by the sum can wait until after the values, and the gate
can be applied in pieces in place: together 6 % of a block of SmolLM2-135M at 512 tokens, nothing of
one of Llama-3.2-1B.""",
    "rate": """
The products alone reach 0.96 of the rate at 512 tokens of SmolLM2-135M, 0.95 at 512 and 0.87 at 256
tokens of Llama-3.2-1B; what else is done is in the profile below. With one short sequence, reading
the weights and the signals of OWL and DLP, which are computed once whatever the number of samples,
are 4 % at 135M and about 20 % at 1B. Reading the next block while the last states move gave no
difference that could be told from the noise of a busy machine, and costs a block of memory.""",
    "spectra": """
On one thread the singular values themselves are nearly all of it. Eigenvalues of W W^T in their
place took half the time of all spectra, fits included, and changed no alpha by more than 2.4e-14 of
itself (6 blocks of SmolLM2-135M); matrices whose spectrum reaches below 1e-9 of its largest value
would keep singular values. On all cores ours compute one linear per core.""",
    "wanda": """
Both sides take every sample through every block; for Wanda on SmolLM2-135M these products alone are
9.6 s at the machine's full rate, of the 11.8 s that the goal leaves. In ours (20.6 s) they take
9.0 s, the rest of the blocks 3.6 s, the decisions 5.4 s and the file 1.2 s. Finding the lowest of
every row by partition in place of a stable sort, as the exact counts do already, took the decisions
to 1.6 s and the whole to 16.7 s, with the same masks: 1.4 times faster than the original. That is
in since.""",
    "sparsegpt": """
Most of it are products in float64, at half the rate of float32. Two steps can be saved: H = V V^T
gives what a column owes to those before it, V_ji d_j / V_ii summed over their losses d, so neither
the inverse of the Hessian nor that of its factor is needed; and losses are summed in strips of 32
columns that stay in the cache. That took 1.3 of the time off, as a factor, with the same decisions
and weights equal to 3e-16.""",
    "seven-b": """
Pruning holds a block in float32 twice, dense and pruned, the pages that it was read from, and on
each thread the scores of a linear in float64, in three copies while they are made and in two while
the lowest are found. Giving the pages back once they are cast, making scores in place, and pruning
the largest linears first, before the results of the others are there, took a run of two such blocks
from 4.3 to 3.6 GB. That is in since; all 32 blocks were not run again.""",
}

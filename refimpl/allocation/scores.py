"""The results of scoring as arrays: the facts behind every allocation."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.allocation.request import Perturbation
from refimpl.arguments import Bools, Ints
from refimpl.loading.samples import TokenFacts
from refimpl.method.absorption import nan_mean
from refimpl.method.equal_marginals import Growth
from refimpl.model.config import Linears, linear_sizes
from refimpl.model.ops import Array
from refimpl.running.outputs import json_text, write_text
from refimpl.running.provenance import Run

Options = Mapping[str, int | float | str]


@dataclass(frozen=True)
class Absorption:
    """The experiment's result at one eta; standard errors are over sequences."""

    eta: float | None  # relative size of the noise; null for the pruning perturbation
    # R_k, [L, L]: perturbed block, observed block; null for earlier blocks
    drift: Array
    drift_stderr: Array
    alignment: Array  # A_k, [L, L]
    alignment_stderr: Array
    coefficient: Array  # r, [L]; null if no token had a drift
    stderr: Array  # of r, [L]; null for fewer than two sequences
    left_out: Ints  # [L]: tokens without a ratio, over all sequences and draws
    steps: Array  # [L, L]: mean of R_(k+1) / R_k, as drift; null for the last block too
    error_growth: Array  # g, [L]: mean growth of the error itself, ||e_L|| / ||e_l||
    error_growth_stderr: Array
    # p, [L]: mean r if later blocks passed the error on, ||h_l|| / ||h_L||
    passed_on: Array
    passed_on_stderr: Array
    divergence: Array | None = None  # [L]: mean KL in nats, if it was measured
    divergence_stderr: Array | None = None


@dataclass(frozen=True)
class Signal:
    """The signal of a base allocation, with the options with which it was measured.

    Values are per block [L], or per linear [L, linears] and NaN where a block has fewer linears.
    """

    options: Options
    values: Mapping[str, Array]

    @property
    def main(self) -> Array:
        """The numbers that allocations are made from."""
        return next(iter(self.values.values()))

    @property
    def of_blocks(self) -> Array:
        """The mean of each block, [L]."""
        return self.main if self.main.ndim == 1 else nan_mean(self.main, axis=1)


Signals = Mapping[str, Signal]
"""By the name of the base."""


@dataclass(frozen=True)
class PrunedAt:
    """The allocation at which the pruning perturbation pruned: weights per linear, [L, linears]."""

    base: str
    options: Options
    sparsity: float
    linear_pruned: Ints  # [L, linears]: weights pruned


@dataclass(frozen=True)
class ProbedErrors:
    """The effect of pruning each block alone, below, at and above its sparsity in the base."""

    sparsity: Array  # [3, L]: fraction pruned
    divergences: Array  # the same for each probed sample: mean KL in nats


@dataclass(frozen=True, repr=False)
class Scores:
    """All results of scoring one model.

    Args:
        model: Its name.
        family: Its family.
        linears: Per block, the shape [out, in] of every linear, in order.
        tokens: Source of the tokens.
        plan: The perturbation.
        sweep: One result per eta; the first one drives corrections.
        sinks: Tokens excluded as sinks per perturbed block, over all sequences, [L].
        sink_share: Share of the squared norm of the clean state after each block that tokens of
            more than 20 times the median norm hold, mean over the sequences, [L].
        signals: Importance of blocks and linears, by the name of the base that ranks by it.
        run: How the numbers were computed.
        measured_samples: How many samples were perturbed.
        pruned_at: Allocation of the pruning perturbation; None for the Gaussian one.
        probes: How the error of pruning grows, if it was measured.
        made_for: Fields of their request; for scores that were read from a file, those of its
            allocation, where the base is None if it was a file, too.
    """

    model: str
    family: str
    linears: Linears
    tokens: TokenFacts
    plan: Perturbation
    sweep: tuple[Absorption, ...]
    sinks: Ints
    sink_share: Array
    signals: Signals
    run: Run
    measured_samples: int
    pruned_at: PrunedAt | None = None
    probes: ProbedErrors | None = None
    made_for: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """The scores on one line: what was measured, on what."""
        tokens, plan = self.tokens, self.plan
        what = (
            f"eta {', '.join(f'{x:g}' for x in plan.etas if x)}"
            if plan.etas[0]
            else "pruning"
        )
        size = f"{self.measured_samples} of {tokens.samples} samples of {tokens.seq_len} tokens"
        return f"<Scores of {self.model}: {self.num_blocks} blocks, {what}, {size}>"

    def to_dict(self) -> dict[str, Any]:
        """The scores and the allocations that they were made for, as `scores.json` has them."""
        from refimpl.allocation.scores_json import scores_document  # which reads scores

        return scores_document(self)

    def save(self, path: str | Path) -> None:
        """Write `scores.json`: the scores, and the allocations that they were made for.

        Raises:
            RefimplError: The file cannot be written.
        """
        write_text(Path(path), json_text(self.to_dict()))

    @property
    def num_blocks(self) -> int:
        """Number of blocks, L."""
        return len(self.linears)

    @property
    def linear_sizes(self) -> Array:
        """Weights of each linear, [L, linears]; a block with fewer linears ends in zeros."""
        return linear_sizes(self.linears)


@dataclass(frozen=True)
class AllocationErrors:
    """Standard errors of an allocation of measured strength; with one sample, NaN."""

    samples: int  # probed samples
    sparsity: Array  # of the sparsity of each block, [L], from sampling: a jackknife
    own_rate: Array  # of the same, as kappa differs between blocks, [L]
    rate: Array  # of kappa of each block

    @property
    def precision(self) -> float:
        """The sampling error of a block's sparsity, root mean square; NaN if unknown."""
        return float(np.sqrt(nan_mean(np.square(self.sparsity))))

    @property
    def combined(self) -> Array:
        """The error of each block's sparsity: of sampling, and of the spread of kappa, [L]."""
        return np.hypot(self.sparsity, self.own_rate)


@dataclass(frozen=True)
class AllocationNumbers:
    """How many weights each block and linear loses."""

    total_weights: int  # prunable weights, N
    total_pruned: int  # weights to prune
    base_sparsity: Array  # [L]: the base, projected (not with compat peer)
    corrected_sparsity: Array  # [L]: the allocation
    num_pruned: Ints  # [L]: weights to prune
    linear_sparsity: Array  # [L, linears]
    linear_pruned: Ints  # [L, linears]: weights to prune
    clipped: Bools  # [L]: whether the logarithm of each block is at the clip
    growth: Growth | None  # of measured strength: how the error of each block grows
    errors: AllocationErrors | None  # standard errors of measured strength

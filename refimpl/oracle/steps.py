"""The whole method on one model: every array that a candidate is checked against, by name.

Names are in the order of execution, so the first that differs tells where to look. Everything is
computed by the functions that the commands call.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refimpl.allocation.allocate import allocate
from refimpl.allocation.request import Request
from refimpl.allocation.scores import Scores, Signals
from refimpl.allocation.targets import Targets, allocation_targets, pattern_targets
from refimpl.evaluation.batch import batches
from refimpl.evaluation.likelihood import Batches
from refimpl.method.perturbation import NoiseScale, NoiseShape, Norm, Perturbation, Sink
from refimpl.model.forward import forward
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.statistics import input_of
from refimpl.pruners.decision import Method, Pruner
from refimpl.pruners.pattern import parse_pattern
from refimpl.pruners.scores import wanda_score
from refimpl.pruning.pruned_blocks import PrunedBlock, pruned_blocks
from refimpl.running.settings import Settings
from refimpl.scoring.score import score
from refimpl.tokens import Tokens


@dataclass(frozen=True)
class Recipe:
    """The computation of a case, all of it on the same token ids.

    Args:
        eta: Relative magnitude of the noise.
        noise_scale: "token" or "sequence".
        noise_shape: "isotropic" or "channel".
        norm: "token" or "sequence".
        sink: "include" or "exclude".
        seed: Seed of the noise.
        sparsity: Target over all weights.
        bases: Base allocations, with their default options; pruners use the first.
        strength: Strength of the correction by absorption.
        max_correction: Largest correction of a block's sparsity.
        pattern: n:m, n zeros in each m consecutive inputs; empty for none.
        damping: Damping of SparseGPT's Hessian.
        shown: Blocks whose scores and weights are among the steps.
    """

    eta: float = 0.01
    noise_scale: NoiseScale = "token"
    noise_shape: NoiseShape = "isotropic"
    norm: Norm = "token"
    sink: Sink = "include"
    seed: int = 0
    sparsity: float = 0.5
    bases: tuple[str, ...] = ("owl", "alphapruning", "dlp", "uniform")
    strength: float = 0.1
    max_correction: float = 0.05
    pattern: str = "2:4"
    damping: float = 0.01
    shown: tuple[int, ...] = (0,)

    @property
    def perturbation(self) -> Perturbation:
        """The perturbation of the recipe."""
        return Perturbation(
            "gaussian", (self.eta,), self.noise_scale, self.noise_shape, self.norm, self.sink,
            seed=self.seed,
        )  # fmt: skip

    @property
    def signal_options(self) -> tuple[float, str, str, str]:
        """OWL's m, DLP's statistic, AlphaPruning's fit and xmin."""
        owl, dlp, alpha = (self.request(base).options for base in ("owl", "dlp", "alphapruning"))
        return float(owl["m"]), str(dlp["statistic"]), str(alpha["fit"]), str(alpha["xmin"])

    def request(self, base: str) -> Request:
        """The request for a base allocation and its correction."""
        return Request(
            base,
            sparsity=self.sparsity,
            correct="absorption",
            strength=self.strength,
            max_correction=self.max_correction,
        )

    def signals(self, arrays: Mapping[str, Array]) -> Signals:
        """The signals among some steps, with the options that they were computed with."""
        m, statistic, fit, xmin = self.signal_options
        owl, dlp = arrays["owl.signal"], arrays["dlp.signal"]
        return Signals(m, owl, statistic, dlp, fit, xmin, arrays.get("alphapruning.signal"))


def steps(
    model: Model,
    ids: npt.NDArray[np.int64],
    recipe: Recipe,
    dtype: npt.DTypeLike = np.float64,
    observe: Callable[[str, PrunedBlock], None] = lambda name, block: None,
) -> dict[str, Array]:
    """Compute every step of a recipe, as `score`, `allocate` and the pruners do.

    With L blocks, N sequences of S tokens, in this order:

    - the trace points, [N, S, ...];
    - `perturbed.{l}.drift` and `.alignment`, after block l and every later one, [L - l];
    - `absorption_coefficient` [L];
    - `owl.signal`, `dlp.signal` [L], `alphapruning.signal` [L, linears];
    - `{base}.base` and `{base}.corrected`, sparsities, [L]; `{base}.counts` [L, linears];
    - for each of `wanda`, `sparsegpt` and `pattern`, block by block through the pruned ones before:
      `{pruner}.blocks.3.mlp_norm.squares` [in] (`.products` [in, in] for sparsegpt, of the shown
      blocks), sums over the tokens of what linears read; `{pruner}.blocks.3.q_proj.keep`, bits,
      [out, in / 8]; of the shown blocks `.score` (not of sparsegpt, where scores change as columns
      go) and `.weight` (not of pattern), [out, in];
    - `dense.perplexity` and `{pruner}.perplexity` [1].

    Args:
        model: From `read_model`.
        ids: Token ids, [N, S].
        recipe: The computation.
        dtype: Of the computation, float32 or float64; statistics and scores are float64.
        observe: Called with the name of each pruner and each of its blocks.

    Raises:
        RefimplError: As `score`, `allocate` and `prune` raise it.

    Example:
        >>> from refimpl import read_model
        >>> arrays = steps(read_model("fixtures/llama"), np.arange(32).reshape(2, 16), Recipe())
        >>> list(arrays)[:2], arrays["perturbed.1.drift"].shape, len(arrays)
        (['embed', 'blocks.0.resid_pre'], (3,), 227)
    """
    arrays = dict(forward(model, ids, trace=True, dtype=dtype).trace)
    tokens = Tokens(ids, "of the case", "ids")
    first = "alphapruning" if "alphapruning" in recipe.bases else recipe.bases[0]
    scores = score(model, tokens, recipe.perturbation, recipe.request(first), dtype=dtype)
    arrays |= _measured(scores)
    targets: dict[str, Targets] = {}
    for base in recipe.bases:
        allocation = allocate(scores, recipe.request(base))
        targets[base] = allocation_targets(allocation)
        arrays[f"{base}.base"] = allocation.base_sparsity
        arrays[f"{base}.corrected"] = allocation.corrected_sparsity
        arrays[f"{base}.counts"] = allocation.linear_pruned
    config = model.config
    pruners: list[tuple[str, Method, Targets]] = [
        ("wanda", "wanda", targets[recipe.bases[0]]),
        ("sparsegpt", "sparsegpt", targets[recipe.bases[0]]),
    ]
    if recipe.pattern:
        pattern = parse_pattern(recipe.pattern)
        pruners.append(("pattern", "wanda", pattern_targets(pattern, config.linears, "exact")))
    perplexities: dict[str, Array] = {}
    sequences = batches(list(ids), [1] * len(ids), config)
    with Settings(dtype).open({}) as resources:
        workers = resources.workers
        dense = Batches(model, sequences, workers, dtype)
        for i in range(config.num_blocks):
            dense.pass_block(model.block(i, dtype))
        perplexities["dense.perplexity"] = _perplexity(dense)
        for name, method, wanted in pruners:
            pruned = Batches(model, sequences, workers, dtype)
            pruner = Pruner(method, recipe.damping)
            for block in pruned_blocks(model, wanted, pruner, ids, resources):
                pruned.pass_block(block.weights)
                observe(name, block)
                arrays |= _pruned(name, model, block, len(ids), recipe)
            perplexities[f"{name}.perplexity"] = _perplexity(pruned)
    return arrays | perplexities


def _measured(scores: Scores) -> Iterator[tuple[str, Array]]:
    """The experiment and the signals."""
    (experiment,), signals = scores.sweep, scores.signals
    for i in range(scores.num_blocks):
        yield f"perturbed.{i}.drift", experiment.drift[i, i:]
        yield f"perturbed.{i}.alignment", experiment.alignment[i, i:]
    yield "absorption_coefficient", experiment.coefficient
    yield "owl.signal", signals.owl_outlier_percent
    yield "dlp.signal", signals.dlp_score
    if signals.alpha is not None:
        yield "alphapruning.signal", signals.alpha


def _pruned(
    name: str, model: Model, block: PrunedBlock, sequences: int, recipe: Recipe
) -> Iterator[tuple[str, Array]]:
    """One block of a pruner: the sums over its linears' inputs, scores, decisions and weights."""
    prefix, shown = f"{name}.blocks.{block.index}", block.index in recipe.shown
    kind = "products" if name == "sparsegpt" else "squares"
    for point, total in block.sums.items():
        if kind == "squares" or shown:  # outer products are large
            yield f"{prefix}.{point}.{kind}", total
    dense = model.block(block.index, np.float64) if shown else {}
    for linear, pruned in block.linears.items():
        if shown and name != "sparsegpt":
            moment = block.sums[input_of(linear)] / sequences
            yield f"{prefix}.{linear}.score", wanda_score(dense[f"{linear}.weight"], moment)
        yield f"{prefix}.{linear}.keep", np.packbits(pruned.keep, axis=1)
        if shown and name != "pattern":  # there it follows from keep
            yield f"{prefix}.{linear}.weight", block.weights[f"{linear}.weight"]


def _perplexity(stream: Batches) -> Array:
    """``exp`` of the mean nats per predicted token, [1]."""
    nats = [x.log_probabilities for x in stream.likelihoods().values()]
    return np.exp([-np.concatenate(nats).mean()])

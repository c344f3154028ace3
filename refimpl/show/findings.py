"""What scores say, in sentences: on the terminal and at the top of a report."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from refimpl.allocation.scores import Absorption, AllocationErrors, Scores
from refimpl.bases.uniform import UNIFORM
from refimpl.method.absorption import nan_mean
from refimpl.method.perturbation import SINK_FACTOR, Probes
from refimpl.method.uncertainty import CONFIDENCE, t_quantile, told_apart
from refimpl.model.ops import Array
from refimpl.show.header import counted
from refimpl.show.table import measured

GROUPS, SOME = 3, 6  # of blocks that are named, and as many blocks of each
UNITS = {"divergence": "nats", "arrival": "of drift"}
BEST = "pruned best in docs/study.md"
# By correction, what it did to models that were pruned by it.
IN_STUDY = {
    "divergence": f"Allocation: divergence of measured strength on the base {UNIFORM.name}, which "
    f"{BEST}.",
    "absorption": "Allocation: the paper's correction. In docs/study/measured.md, it raised the "
    "perplexity of SmolLM2-135M by 20 % at 60 % sparsity, and made it 2 to 2.5 times as high at "
    "70 %.",
}


def headline(
    scores: Scores, request: Mapping[str, Any], errors: AllocationErrors | None, clipped: float
) -> list[str]:
    """What was done at the first eta, what came of it, what could make it wrong, and the study."""
    absorption, count = scores.sweep[0], scores.num_blocks
    said = costs(scores, str(request["correct"]), errors)
    if errors is None:
        at = f"At eta {absorption.eta:g}: " if len(scores.sweep) > 1 else ""
        said = [at + " ".join(findings(absorption, scores.measured_samples)), *sinks(scores)]
        if request["correct"] and clipped >= 0.5 and count > 1:
            blocks = f"{round(clipped * count)} of {counted(count, 'block')}"
            said.append(
                f"{blocks} are at the clip: there the correction is the clip, not the measurement."
            )
    return [perturbed(scores), " ".join(said), *filter(None, [in_study(request)])]


def in_study(request: Mapping[str, Any]) -> str | None:
    """What the study says of the allocation of a request, if it has such allocations."""
    correct, measured = request.get("correct"), request.get("strength") == "measured"
    if correct == "divergence" and not (measured and request.get("base") == UNIFORM.name):
        return None
    return IN_STUDY.get(str(correct))


def perturbed(scores: Scores) -> str:
    """What was done to the blocks."""
    at, plan = scores.pruned_at, scores.plan
    if at is None or not isinstance(plan, Probes):
        sizes = " and ".join(f"{eta:g}" for eta in plan.etas)
        return f"The paper's experiment: noise of eta {sizes} on each block's output."
    base = "" if at.base == UNIFORM.name else f" of base {at.base}"
    how = f"{plan.probe_pruner}, to a sparsity of {at.sparsity:.4g}{base}"
    return f"Each block was pruned alone by {how}."


def costs(scores: Scores, correct: str, errors: AllocationErrors | None) -> list[str]:
    """What pruning each block alone costs, which order is certain, and how sure the allocation."""
    said = list[str]()
    each: Array | None = getattr(scores.probes, f"{correct}s", None)
    if errors is None or each is None:
        return said
    if each.ndim == 3 and (at := each[:, 1]).any():  # linears are too many for a sentence
        mean, n = nan_mean(at, axis=0), len(at)
        groups = told_apart(np.log(np.where(at > 0, at, np.nan))) or [[int(np.nanargmax(mean))]]
        first = groups[0][0]
        error = float(np.std(at[:, first], ddof=1) / n**0.5) if n > 1 else np.nan
        size = f"{measured(float(mean[first]), error)} {UNITS[correct]}"
        times = float(mean[first] / np.nanmedian(mean))
        parts = [f"Block {first} costs {size}, {times:.2g} times the median"]
        for i, group in enumerate(groups[:GROUPS]):
            if names := sorted(group[i == 0 :]):
                sure = ", which cannot be told apart" if len(group) > 1 else ""
                parts.append(f"{'then' if i else 'with it'} {_listed(names)}{sure}")
        if more := sum(map(len, groups[GROUPS:])):
            parts.append(f"then {more} more")
        said.append(f"{'; '.join(parts)}.")
    if errors.samples < 2:
        return [*said, "One sample: no number has an error."]
    points, wanted = 100 * errors.precision, 100 * (scores.plan.precision or 0)
    of = f"{errors.samples} of {scores.tokens.samples} samples"
    sure = f"{points:.2g} percentage points ({of}, root mean square)"
    if wanted:
        sure += f"; {wanted:.3g} {'are enough' if points <= wanted else 'take more samples'}"
    return [*said, f"The sparsities of the blocks are known to {sure}."]


def _listed(blocks: list[int]) -> str:
    """Blocks by their numbers, or how many there are."""
    if len(blocks) > SOME:
        return f"{len(blocks)} blocks"
    *names, last = map(str, blocks)
    return f"blocks {', '.join(names)} and {last}" if names else f"block {last}"


def sinks(scores: Scores) -> list[str]:
    """What the coefficients would be without noise on sinks, if that changes any for certain."""
    quiet, samples = scores.without_sinks, scores.measured_samples
    if quiet is None:
        return []
    r = scores.sweep[0]
    error = np.hypot(np.nan_to_num(r.stderr), np.nan_to_num(quiet.stderr))
    margin = t_quantile(samples - 1) * error if samples > 1 else 0 * error
    if not (np.abs(r.coefficient - quiet.coefficient) > margin).any():
        return []
    at = int(np.argmax(quiet.share))
    less, more, uncertain = sides(quiet.coefficient, quiet.stderr, samples)
    return [
        f"After block {at}, tokens of more than {SINK_FACTOR:g} times the median norm hold "
        f"{quiet.share[at]:.1%} of the squared norm, and so of the noise. Without noise on such "
        f"tokens, later blocks amplify {more or 'none'} and absorb {less or 'none'}"
        + (f" ({uncertain} uncertain)." if uncertain else ".")
    ]


def sides(r: Array, error: Array, samples: int) -> tuple[int, int, int]:
    """How many blocks but the last are for certain below 1, above 1, and how many are neither."""
    margin = t_quantile(samples - 1) * error[:-1] if samples > 1 else 0 * error[:-1]
    margin = np.where(np.isfinite(margin), margin, 0)
    less, more = int((r[:-1] + margin < 1).sum()), int((r[:-1] - margin > 1).sum())
    return less, more, int(np.isfinite(r[:-1]).sum()) - less - more


def findings(absorption: Absorption, samples: int) -> list[str]:
    """Which way the blocks go, and the largest coefficient; the last block's is 1 by definition."""
    r, error = absorption.coefficient[:-1], absorption.stderr[:-1]
    if not len(r):
        return ["There is one block, and no later block that could absorb or amplify."]
    less, more, uncertain = sides(absorption.coefficient, absorption.stderr, samples)
    said = [
        f"Of {counted(len(r), 'block')}, later blocks amplify the perturbations of "
        f"{more or 'none'} and absorb those of {less or 'none'}."
    ]
    if samples < 2:
        said.append("One sample: these numbers have no error.")
    if uncertain:
        said.append(f"Uncertain at {CONFIDENCE:.0%} with {samples} samples: {uncertain}.")
    if unknown := int(np.isnan(r).sum()):
        said.append(f"Unknown: {unknown}.")
    if np.isfinite(r).any():
        at = int(np.nanargmax(r))
        said.append(f"Largest r: {measured(float(r[at]), float(error[at]))}, block {at}.")
    return said

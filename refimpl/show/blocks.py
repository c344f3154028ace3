"""What scores say: in sentences, and a row for each block; and what measuring takes."""

from textwrap import wrap

import numpy as np

from refimpl.allocation.allocate import Allocation
from refimpl.allocation.request import Noise, Probes, Request
from refimpl.allocation.scores import AllocationErrors, Scores
from refimpl.bases.uniform import UNIFORM
from refimpl.method.absorption import CONFIDENCE, t_quantile
from refimpl.method.correction import MAX_CORRECTION, STRENGTH
from refimpl.method.perturbation import SINK_FACTOR
from refimpl.model.ops import Array
from refimpl.show.table import (
    Table,
    aligned,
    allocation_facts,
    counted,
    model_facts,
    number,
    page_text,
    terminal_width,
    token_facts,
    with_error,
)

SCALE = "0 % ---------- 100 %"  # above bars of this length
_R, _DIVERGENCE, _SPARSITY, _PRUNED = (
    "r",
    "divergence, nats",
    "sparsity, %",
    "weights to prune",
)
_LEGEND = {  # of the columns of the table
    _R: "the relative error at the end, divided by that after this block. Above 1, later blocks "
    "amplify the relative error; below 1, they absorb it.",
    "g": "the growth of the error's own length, to which r is relative.",
    "p": "what r would be if the later blocks passed the error on unchanged.",
    _DIVERGENCE: "how far the predictions move (KL) when this block alone is pruned. More is "
    "worse: such a block loses fewer weights.",
}


def scores_table(scores: Scores, allocation: Allocation) -> str:
    """What was done and found, a row per block, and how it came about."""
    width = terminal_width()
    at, plan = scores.pruned_at, scores.plan
    if at is None or not isinstance(plan, Probes):
        sizes = " and ".join(f"{eta:g}" for eta in plan.etas)
        done = f"The paper's experiment: noise of eta {sizes} on each block's output."
    else:
        base = "" if at.base == UNIFORM.name else f", as base {at.base} allocates it"
        sparsity = f"{100 * at.sparsity:.4g}%"
        done = f"Each block was pruned alone by {plan.pruner} to a sparsity of {sparsity}{base}."
    texts = [done, " ".join(costs(scores, allocation.errors))]
    if allocation.errors is None:
        texts[1] = " ".join([*findings(scores), *sinks(scores)])
    said = [line for text in texts for line in wrap(text, width)]
    shown = _with_bars(columns(scores, allocation), allocation)
    legend = {
        f"{name.partition(',')[0]}:": [x]
        for name, x in _LEGEND.items()
        if name in shown
    }
    notes = [line for note in footer(scores, allocation) for line in wrap(note, width)]
    return page_text(
        said, Table(shown).lines(), legend, header(scores, allocation), notes
    )


def blocks_table(scores: Scores, allocation: Allocation) -> list[str]:
    """What each block costs and loses: the allocation alone."""
    said = wrap(" ".join(costs(scores, allocation.errors)), terminal_width())
    shown = columns(scores, allocation)
    few = {
        name: shown[name] for name in ("block", _DIVERGENCE, _SPARSITY) if name in shown
    }
    return [*said, "", *Table(_with_bars(few, allocation)).lines()]


def _with_bars(
    shown: dict[str, list[str]], allocation: Allocation
) -> dict[str, list[str]]:
    """The columns, and a bar beside the last one, the sparsity, as far as a line has room."""
    full = [round(len(SCALE) * x) for x in allocation.corrected_sparsity.tolist()]
    shown = shown | {SCALE: ["#" * n + "." * (len(SCALE) - n) for n in full]}
    for name in (SCALE, "p", "g"):
        if len(aligned(shown.items())[0]) > terminal_width():
            shown.pop(name, None)
    return shown


def costs(scores: Scores, errors: AllocationErrors | None) -> list[str]:
    """What pruning each block alone costs, and how sure the allocation is."""
    each, stderr = scores.sweep[0].divergence, scores.sweep[0].divergence_stderr
    if errors is None or each is None:
        return []
    first, times = int(np.nanargmax(each)), np.nanmax(each) / np.nanmedian(each)
    size = with_error(
        float(each[first]), np.nan if stderr is None else float(stderr[first])
    )
    said = [
        f"Pruning block {first} costs most: {size} nats, {times:.2g} times the median."
    ]
    if errors.samples < 2:
        return [*said, "One sample: no number has an error."]
    points, wanted = 100 * errors.precision, 100 * (scores.plan.precision or 0)
    of = f"{errors.samples} of {scores.tokens.samples} samples"
    said.append(
        f"The sparsities have a sampling error of {points:.2g} points, measured on {of}."
    )
    if wanted:
        goal = "is reached" if points <= wanted else "needs more --samples"
        said.append(f"The goal, {wanted:.3g} points, {goal}.")
    whole = 100 * float(np.sqrt(np.square(errors.combined).mean()))
    return [
        *said,
        f"With the spread of kappa over the blocks, the error is {whole:.2g} points.",
    ]


def sinks(scores: Scores) -> list[str]:
    """Which tokens dominate the noise."""
    share = scores.sink_share
    if (
        not isinstance(scores.plan, Noise)
        or scores.plan.sink == "exclude"
        or not share.any()
    ):
        return []
    at = int(np.argmax(share))
    return [
        f"After block {at}, tokens of more than {SINK_FACTOR:g} times the median norm hold "
        f"{share[at]:.1%} of the squared norm, and so of the noise. To spare such tokens, run "
        "again with --sink exclude."
    ]


def findings(scores: Scores) -> list[str]:
    """Which way the blocks go; the last block's coefficient is 1 by definition."""
    absorption, samples = scores.sweep[0], scores.measured_samples
    r = absorption.coefficient[:-1]
    times = t_quantile(samples - 1) if samples > 1 else 0.0

    def beyond_one(x: Array, error: Array) -> tuple[int, int]:
        """How many are above 1, and below, by more than chance."""
        margin = np.nan_to_num(times * error[:-1], posinf=0)
        return int((x[:-1] - margin > 1).sum()), int((x[:-1] + margin < 1).sum())

    if not len(r):
        return ["There is one block, and no later block that could absorb or amplify."]
    more, less = beyond_one(absorption.coefficient, absorption.stderr)
    grow, shrink = beyond_one(absorption.error_growth, absorption.error_growth_stderr)
    eta = (
        f"At eta {absorption.eta:g}, as in the allocation: l"
        if len(scores.sweep) > 1
        else "L"
    )
    unsure = int(np.isfinite(r).sum()) - less - more
    said = [
        f"{eta}ater blocks amplify the relative errors of {more} of {counted(len(r), 'block')} "
        f"and absorb those of {less}; {unsure} are uncertain at {CONFIDENCE:.0%}."
    ]
    if samples < 2:
        said.append("One sample: these numbers have no error.")
    itself = f"The errors themselves grow for {grow} and shrink for {shrink}"
    return [*said, f"{itself}; r also depends on the growth of the stream."]


def columns(scores: Scores, allocation: Allocation) -> dict[str, list[str]]:
    """The table: heading to a text per block, without columns that are empty or all the same."""
    absorption = scores.sweep[0]
    base, asked = allocation.request.record, allocation.request.options
    weights = scores.linear_sizes.sum(axis=1)

    def numbers(values: Array, errors: Array | None, form: str = "#.3g") -> list[str]:
        errors = np.full(len(values), np.nan) if errors is None else errors
        pairs = zip(values.tolist(), errors.tolist(), strict=True)
        return [with_error(x, e, form) for x, e in pairs]

    shown = {"block": [str(i) for i in range(scores.num_blocks)]}
    if np.ptp(weights):
        shown["weights"] = [f"{n:,}" for n in weights.tolist()]
    if (signal := scores.signals.get(base.name)) is not None:
        shown[base.column.format(**asked)] = [
            number(x, "#.4g") for x in signal.of_blocks
        ]
    for one in scores.sweep:
        name = f"{_R} at {one.eta:g}" if len(scores.sweep) > 1 else _R
        shown[name] = numbers(one.coefficient, one.stderr, "#.4g")
        if isinstance(scores.plan, Noise) and len(scores.sweep) == 1:
            shown["g"] = numbers(one.error_growth, one.error_growth_stderr, "#.4g")
            shown["p"] = numbers(one.passed_on, one.passed_on_stderr, "#.4g")
    if allocation.request.correct == "divergence" and absorption.divergence is not None:
        shown[_DIVERGENCE] = numbers(
            absorption.divergence, absorption.divergence_stderr
        )
    shown[_PRUNED] = [f"{n:,}" for n in allocation.num_pruned]
    if np.ptp(allocation.base_sparsity):
        shown["base, %"] = [number(100 * x, ".2f") for x in allocation.base_sparsity]
    errors = None if allocation.errors is None else 100 * allocation.errors.combined
    return shown | {
        _SPARSITY: numbers(100 * allocation.corrected_sparsity, errors, ".2f")
    }


def footer(scores: Scores, allocation: Allocation) -> list[str]:
    """The totals, and notes that explain the rows."""
    total, pruned, asked = (
        allocation.total_weights,
        allocation.total_pruned,
        allocation.request,
    )
    coefficient = scores.sweep[0].coefficient
    lines = [
        f"to prune: {pruned:,} of {total:,} ({pruned / total:.4%}), asked for {asked.sparsity:.4%}"
    ]
    if asked.compat == "peer":
        lines.append("compat peer restores no budget and rounds every row down")
    if np.ptp(allocation.linear_sparsity, axis=1).any():
        lines.append(
            "sparsities are per linear (all of them with --json); rows show block means"
        )
    if np.isnan(coefficient).any():
        lines.append("r is - where no token had a drift; such a block counts as r = 1")
    if scores.plan.sink == "exclude":
        lines.append(
            f"{counted(int(scores.sinks.sum()), 'token')} of all blocks excluded as sinks"
        )
    return lines


def header(scores: Scores, allocation: Allocation) -> dict[str, list[str]]:
    """What was measured, on what, and the request for the allocation; without usual settings."""
    request, usual, name = allocation.request, Request(), allocation.request.record.name
    facts = allocation_facts(request.sparsity, name, request.options, request.correct)
    if request.correct is not None and not request.measured:
        facts.append(f"strength {request.fixed_strength:g}")
    values = {
        name: getattr(request, name)
        for name in ("lo", "hi", "max_correction", "compat")
    }
    facts += [f"{name} {x}" for name, x in values.items() if x != getattr(usual, name)]
    weights = f"{allocation.total_weights:,} prunable weights"
    return {
        "model": [
            *model_facts(scores.model, scores.family, scores.num_blocks),
            weights,
        ],
        "tokens": token_facts(scores.tokens),
        "allocation": facts,
        "growth": _growth(allocation) if request.measured else [],
    }


def _growth(allocation: Allocation) -> list[str]:
    """How the errors grow that an allocation of measured strength is made of."""
    grows = allocation.growth
    assert grows is not None  # the strength is measured
    probed, fits = int(np.isfinite(grows.rate).sum()), int(grows.fits.sum())
    if not fits:
        grown = "no divergence grows as exp(kappa s)"
        return [f"{grown}: strength {STRENGTH}, at most {MAX_CORRECTION}"]
    rate = grows.common_rate or np.nan
    times = f"{np.exp(rate / 10):.3g} times the divergence"
    some = [f"{fits} of {counted(probed, 'probed block')} fit"] * (fits < probed)
    return [f"kappa {rate:.3g}: 10 points of sparsity more have {times}", *some]

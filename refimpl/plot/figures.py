"""The figures: functions that take scores, evaluations or arrays, and return matplotlib's Axes."""

from collections.abc import Mapping, Sequence
from math import isfinite, nan
from typing import TYPE_CHECKING, Any

import numpy as np

from refimpl.allocation.allocate import Allocation, allocate, request_for
from refimpl.allocation.scores import Absorption, Scores
from refimpl.arguments import integer, require
from refimpl.bases.uniform import UNIFORM
from refimpl.bench.cells import Comparison
from refimpl.bench.tables import Change, summaries
from refimpl.errors import RefimplError
from refimpl.evaluation.evaluate import (
    Evaluation,
    EvaluationDocument,
    evaluation_document,
)
from refimpl.evaluation.likelihood import LOG_MOST
from refimpl.loading.files.documents import converted
from refimpl.model.ops import Array
from refimpl.plot.style import (
    INK,
    Look,
    block_axis,
    dashes,
    figure_axes,
    looks,
    per_block,
    points,
    round_ticks,
    value_axis,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Series = Mapping[str, Any]
"""By name, values per block, [L]; or these and their standard errors, [2, L]."""
Errors = dict[str, tuple[Array, Array | None]]
Curves = tuple[str, str, dict[tuple[str, str], Array], float, list[str]]
"""Heading, measure, (sparsity, value, maybe error) by pruner and allocation, dense value, facts."""


def drift(scores: Scores, ax: "Axes | None" = None, which: int = 0) -> "Axes":
    """Draw the mean drift after each block, a row per perturbed block, as a heat map.

    Args:
        scores: From `score` or `read_scores`.
        ax: Where to draw; if None, a new figure.
        which: Index of the eta.

    Returns:
        The axes.
    """
    require(scores, Scores, "scores")
    require(which, integer(0, len(scores.sweep) - 1), "which")
    values = scores.sweep[which].drift
    known = values[np.isfinite(values) & (values > 0)]
    heading = f"Drift over depth, {_perturbed(scores.sweep[which])}"
    with figure_axes(ax, heading, _facts(scores)) as ax:
        from matplotlib.colors import LogNorm

        norm = LogNorm(*(known.min(), known.max()) if known.size else (1, 2))
        image = ax.imshow(
            np.ma.masked_invalid(values), norm=norm, cmap="viridis", aspect="auto"
        )
        ax.grid(False)
        block_axis(ax, len(values), "observed after block")
        block_axis(ax, len(values), "perturbed block", vertical=True)
        ax.set_xlim(-0.5, len(values) - 0.5)
        bar = ax.figure.colorbar(image, ax=ax, label="mean relative drift R, log scale")
        round_ticks(bar.ax.yaxis, known)
        bar.outline.set_visible(False)
        bar.solids.set_rasterized(True)
    return ax


def coefficients(scores: Scores | Series, ax: "Axes | None" = None) -> "Axes":
    """Draw the absorption coefficient r of each block, with its standard error.

    Args:
        scores: From `score` or `read_scores`: a series per eta; or r by the name of a series, [L],
            or with its standard errors, [2, L].
        ax: Where to draw; if None, a new figure.

    Returns:
        The axes. Above 1, later blocks amplify the perturbation; below 1, they absorb it.
    """
    heading, facts, series = "Absorption coefficients", list[str](), Errors()
    if isinstance(scores, Scores):
        series |= {_perturbed(x): (x.coefficient, x.stderr) for x in scores.sweep}
        facts = [*_facts(scores), *_bars(scores.measured_samples)]
    else:
        series = _pairs(scores)
    with figure_axes(ax, heading, facts) as ax:
        ax.axhline(1, color=INK, linewidth=0.8)
        per_block(ax, series, "perturbed block", "absorption coefficient r")
        if isinstance(scores, Scores):
            first, name = scores.sweep[0], "r if the error is passed on unchanged"
            points(
                ax,
                name,
                first.passed_on,
                first.passed_on_stderr,
                Look(INK, "None"),
                ":",
            )
    return ax


def divergence(scores: Scores | Series, ax: "Axes | None" = None) -> "Axes":
    """Draw what pruning each block alone costs: the KL divergence of the next-token distributions.

    Args:
        scores: From `score` or `read_scores`, measured by pruning; or the divergence by the name of
            a series, nats, [L], or with its standard errors, [2, L].
        ax: Where to draw; if None, a new figure.

    Returns:
        The axes.

    Raises:
        RefimplError: Scores without a divergence.
    """
    heading, facts = "Divergence of each block, pruned alone", list[str]()
    if not isinstance(scores, Scores):
        series = _pairs(scores)
    elif (d := scores.sweep[0].divergence) is not None:
        at = scores.pruned_at
        heading += "" if at is None else f" to {100 * at.sparsity:.4g} %"
        facts = [*_facts(scores), *_bars(scores.measured_samples)]
        series = {"": (d, scores.sweep[0].divergence_stderr)}
    else:
        raise RefimplError(
            f"the scores of {scores.model} have no divergence",
            "scores that were measured by pruning each block alone",
            "score with the correction divergence, which is the default",
        )
    with figure_axes(ax, heading, facts) as ax:
        per_block(ax, series, "pruned block", "divergence, nats")
    return ax


def allocation(
    scores: Scores | Allocation | Series, ax: "Axes | None" = None
) -> "Axes":
    """Draw the sparsity of each block: of the base, and of the allocation with its errors.

    Args:
        scores: From `score` or `read_scores`, which are allocated as they were made for; an
            allocation from `allocate`; or sparsities by the name of an allocation, [L],
            or with their standard errors, [2, L].
        ax: Where to draw; if None, a new figure.

    Returns:
        The axes.
    """
    facts, target = list[str](), None
    if isinstance(scores, Scores):
        facts = _facts(scores)
        scores = allocate(scores, request_for(scores))
    if isinstance(scores, Allocation):
        request, errors, base = (
            scores.request,
            scores.errors,
            scores.request.record.name,
        )
        target, series = request.sparsity, _pairs({base: scores.base_sparsity})
        if request.correct is not None:
            name = (
                request.correct
                if base == UNIFORM.name
                else f"{base} + {request.correct}"
            )
            series[name] = (
                scores.corrected_sparsity,
                None if errors is None else errors.combined,
            )
            facts += _bars(0 if errors is None else errors.samples)
    else:
        series = _pairs(scores)
    with figure_axes(ax, "Sparsity of each block", facts) as ax:
        if target is not None:
            ax.axhline(target, color=INK, linewidth=0.8, linestyle=":")
        for name, look in looks(series).items():
            points(ax, name, *series[name], look, "-")
            block_axis(ax, len(series[name][0]), "block")
        ax.set_ylabel("sparsity")
    return ax


def comparison(
    evaluations: Sequence[Evaluation | EvaluationDocument]
    | Comparison
    | Mapping[str, Any],
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw perplexity against sparsity, a line per pruner and allocation, with standard errors.

    Args:
        evaluations: From `evaluate`, all on the same text; a comparison of `refimpl bench`; or
            pairs (sparsity, perplexity) by the name of an allocation, where "dense" is the model
            that was not pruned.
        ax: Where to draw; if None, a new figure.

    Returns:
        The axes.

    Raises:
        RefimplError: Evaluations on different texts, which cannot be compared.
    """
    if isinstance(evaluations, Comparison):
        heading, measure, curves, dense, facts = bench_curves(evaluations)
    elif isinstance(evaluations, Mapping):
        curves = {
            ("", x): np.array(pairs, np.float64) for x, pairs in evaluations.items()
        }
        dense = float(curves.pop(("", "dense"), np.array([[0, nan]]))[0, 1])
        heading, measure, facts = "Perplexity against sparsity", "perplexity", []
    else:
        heading, measure, curves, dense, facts = measured_curves(evaluations)
    with figure_axes(ax, heading, facts) as ax:
        styles = looks(dict.fromkeys(name for _, name in curves))
        lines = dashes(dict.fromkeys(pruner for pruner, _ in curves))
        for (pruner, allocation), values in curves.items():
            label = f"{pruner}, {allocation}" if len(lines) > 1 else allocation
            x, y, error = (*values.T, None)[:3]
            points(ax, label, y, error, styles[allocation], line=lines[pruner], x=x)
        if isfinite(dense):
            ax.axhline(dense, color=INK, linewidth=0.8, linestyle=":", label="dense")
        every = sorted({float(x) for values in curves.values() for x in values[:, 0]})
        if len(every) <= 8:
            ax.set_xticks(every, [f"{x:.3g}" for x in every])
        ax.set_xlabel("sparsity")
        value_axis(
            ax, measure, [*(values[:, 1] for values in curves.values()), [dense]]
        )
    return ax


def _pairs(series: Series) -> Errors:
    """The values of each series, and their errors if they are known."""
    arrays = {name: np.asarray(x, np.float64) for name, x in series.items()}
    return {
        name: (x[0], x[1]) if x.ndim > 1 else (x, None) for name, x in arrays.items()
    }


def _perturbed(absorption: Absorption) -> str:
    """How a state was perturbed, in a few words."""
    return (
        "blocks pruned alone" if absorption.eta is None else f"eta {absorption.eta:g}"
    )


def _facts(scores: Scores) -> list[str]:
    """Of which model, and on what."""
    tokens = scores.tokens
    source = tokens.source.partition(", ")[0]
    return [
        scores.model,
        f"{scores.measured_samples} x {tokens.seq_len} tokens of {source}",
    ]


def _bars(samples: int) -> list[str]:
    """What the bars are."""
    return [f"bars: standard errors over {samples} samples"] if samples > 1 else []


def measured_curves(evaluations: Sequence[Evaluation | EvaluationDocument]) -> Curves:
    """The perplexities of models on one text; the one that was not pruned is the dense one."""
    documents = [
        converted(evaluation_document(x), EvaluationDocument)
        if isinstance(x, Evaluation)
        else x
        for x in evaluations
    ]
    texts = {(x.text.sha256, x.text.window): x.text for x in documents}
    if len(texts) != 1:
        raise RefimplError(
            f"evaluations on {len(texts)} texts, or cut in so many ways",
            "perplexities on the same windows of one text",
            "compare those of one text",
        )
    (text,) = texts.values()
    pairs: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    dense = nan
    for x in documents:
        measured = x.text.perplexity, x.text.perplexity_stderr
        value, error = (nan if y is None else y for y in measured)
        if x.pruning is None:
            dense = value
        else:  # of the uniform base, the correction alone is named
            name = x.pruning.allocation.removesuffix(" measured")
            key = x.pruning.method, name.removeprefix(f"{UNIFORM.name} + ")
            pairs.setdefault(key, []).append((x.pruning.sparsity, value, error))
    names = dict.fromkeys(
        x.model if x.pruning is None else x.pruning.model for x in documents
    )
    windows = f"{text.num_windows} windows of {text.window} tokens"
    facts = [*names, *dict.fromkeys(pruner for pruner, _ in pairs), windows]
    facts.append("bars: standard errors over windows")
    series = {key: np.array(sorted(x)) for key, x in pairs.items()}
    source = text.source.partition(", ")[0]
    return f"Perplexity on {source}", "perplexity", series, dense, facts


def bench_curves(comparison: Comparison) -> Curves:
    """Perplexities as multiples of the dense model's, the means over texts."""
    found, names = [*summaries(comparison)], ("model", "pruner", "text")
    models, pruners, texts = (
        [*dict.fromkeys(getattr(x, y) for x in found)] for y in names
    )
    changes: dict[tuple[str, str], dict[float, list[Change]]] = {}
    for x in found:
        label = f"{x.model}, {x.pruner}" if len(models) > 1 else x.pruner
        at = changes.setdefault((label, x.allocation), {})
        at.setdefault(x.sparsity, []).append(x.growth)
    series = {}
    for key, growth in changes.items():  # means in nats, as factors of the perplexity
        nats, errors = zip(*(np.transpose(x) for x in growth.values()), strict=True)
        factors = np.exp(np.minimum([x.mean() for x in nats], LOG_MOST))
        error = factors * [np.linalg.norm(x) / len(x) for x in errors]
        series[key] = np.column_stack([[*growth], factors, error])
    windows = max(
        (len(text.nats) for row in comparison.rows for text in row.texts), default=0
    )
    facts = [*models, *pruners, f"mean over {', '.join(texts)}", f"{windows} windows"]
    heading, facts = "Perplexity against sparsity", [*facts, "bars: standard errors"]
    return heading, "× dense perplexity", series, 1.0, facts

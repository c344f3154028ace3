"""The sections of a report: which pictures and tables stand in each."""

from collections.abc import Iterator, Sequence

from refimpl.report.absorption import absorption_figure, sweep_figure
from refimpl.report.allocation import allocation_figure
from refimpl.report.drift import drift_figure, map_figure, push_words
from refimpl.report.html import Figure, grid_html, table_html
from refimpl.report.inputs import Files, Pruned, Scored
from refimpl.report.linears import asked_figure, pruned_figure
from refimpl.report.lines import compared_figure, sparsities_figure
from refimpl.report.provenance import provenance_html
from refimpl.report.results import prunings_table, results_figures, results_table
from refimpl.show.header import counted


def sections(given: Files, etas: int) -> Iterator[tuple[str, str, str]]:
    """Anchor, title and content of every section."""
    for i, scored in enumerate(given.scored):
        whose = f": {scored.name}" if len(given.scored) > 1 else ""
        sweep = scored.scores.sweep
        for j, found in enumerate(sweep[:etas]):
            title = f"Absorption with {push_words(found)}{whose}"
            yield f"s{i}-{j}", title, grid_html(_experiment(f"s{i}-{j}", scored, j))
        if len(sweep) > 1:
            html = grid_html(_sweep(f"s{i}", scored))
            if left := len(sweep[etas:]):
                also = counted(left, "other eta")
                html += f"<p>Pictures of {also} are left out, so that the page is under 1 MB.</p>"
            yield f"s{i}-sweep", f"The sweep over eta{whose}", html
    if len(given.scored) > 1:
        yield "compared", "Scores side by side", grid_html([_compared(given.scored)])
    if given.pruned:
        table = table_html(prunings_table(given.pruned), "prunings")
        yield "pruned", "Pruned models", grid_html(_prunings(given.pruned)) + table
    if given.evaluated:
        table = table_html(results_table(given.evaluated), "results")
        pictures = grid_html(results_figures("results", given.evaluated), "grid loose")
        yield "results", "Evaluations", pictures + table
    yield "provenance", "How these numbers were made", provenance_html(given)


def _experiment(key: str, scored: Scored, which: int) -> Iterator[Figure]:
    """Pictures of the experiment at one eta, and of the allocation made of it."""
    found = scored.scores.sweep[which]
    yield drift_figure(f"{key}-drift", scored, found)
    yield map_figure(f"{key}-map", found, aligned=False)
    yield map_figure(f"{key}-turn", found, aligned=True)
    yield absorption_figure(f"{key}-r", scored, found)
    allocated = scored.allocated[which]
    yield allocation_figure(f"{key}-allocation", scored, allocated, push_words(found))
    yield asked_figure(f"{key}-linears", scored, allocated)


def _sweep(key: str, scored: Scored) -> Iterator[Figure]:
    """Pictures of all eta of a file."""
    sweep = scored.scores.sweep
    target = float(scored.given.document["requested_sparsity"])
    yield sweep_figure(f"{key}-eta", scored)
    yield compared_figure(
        f"{key}-etas",
        "Absorption coefficients at each eta",
        "The same numbers over the blocks.",
        {push_words(found): found.coefficient for found in sweep},
    )
    yield sparsities_figure(
        f"{key}-sparsities",
        "Corrected allocation at each eta",
        "What each eta's coefficients make of the base.",
        {
            push_words(found): allocated.corrected
            for found, allocated in zip(sweep, scored.allocated, strict=True)
        },
        target,
    )


def _prunings(pruned: Sequence[Pruned]) -> Iterator[Figure]:
    """Pictures of all prunings, and of several side by side."""
    for i, one in enumerate(pruned):
        yield pruned_figure(f"p{i}", one)
    if len(pruned) > 1:
        weights, asked = (pruned[0].counts[key].sum() for key in ("weights", "requested"))
        yield sparsities_figure(
            "prunings-blocks",
            "Prunings side by side",
            "The fraction pruned of every block; the line is what the first was asked for in all.",
            {
                one.name: one.counts["pruned"].sum(axis=1) / one.counts["weights"].sum(axis=1)
                for one in pruned
            },
            float(asked / weights),
        )


def _compared(scored: Sequence[Scored]) -> Figure:
    """Coefficients of several files, at the first eta of each."""
    first = {one.name: one.scores.sweep[0] for one in scored}
    return compared_figure(
        "compared-r",
        "Absorption coefficients side by side",
        "Of each file of scores, at its first eta.",
        {f"{name}, {push_words(found)}": found.coefficient for name, found in first.items()},
    )

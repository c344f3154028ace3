"""Figures of what pruning each block alone costs, and of how that grows with its sparsity."""

import numpy as np

from refimpl.report import figure as fig
from refimpl.report.inputs import ScoresInput
from refimpl.show.findings import costs
from refimpl.show.numbers import number


def cost_figures(ident: str, scored: ScoresInput) -> list[fig.ReportFigure]:
    """The divergence of every block with its errors, and its growth, if it was measured."""
    scores, allocation = scored.scores, scored.allocations[0]
    found, error = scores.sweep[0].divergence, scores.sweep[0].divergence_stderr
    if found is None or error is None:
        return []
    said = " ".join(costs(scores, "divergence", allocation.errors))
    count, probes, grows = len(found), scores.probes, allocation.growth
    kl, x = "divergence, nats", fig.blocks_axis("block pruned alone", count)
    whiskers = [(i, found[i] - e, found[i] + e) for i, e in enumerate(error) if e > 0]
    columns = {
        "block": map(str, range(count)),
        "divergence": map(number, found),
        "stderr": map(number, error),
    }
    figures = [
        fig.ReportFigure(
            f"{ident}-divergence",
            "What each block costs",
            "The mean KL divergence of the next-token distributions when the block alone is pruned "
            "as the base says. Bars: one standard error over sequences.",
            ("Divergence of every block that is pruned alone", said),
            [fig.Table.of("Divergence of every block", columns)],
            x,
            fig.spanning(kl, found, None, 0.12, np.nan_to_num(error)),
            [
                fig.Bars(whiskers, "whisker", True),
                fig.Points([*enumerate(found)], "mark other-hue", "circle", row=0),
            ],
        )
    ]
    if grows is None or probes is None or probes.divergence is None or probes.sparsity.ndim > 2:
        return figures
    s, d = probes.sparsity, probes.divergence
    level, rate = (np.array(grows[name], np.float64) for name in ("level", "rate"))
    fit = level * np.exp(rate * (s - s[1]))
    columns = {"block": map(str, range(count))}
    columns |= {f"at {s[k].mean():.3g}": map(number, d[k]) for k in range(3)}
    columns |= {"kappa": map(number, rate), "residual": map(number, grows["residual"])}
    figures.append(
        fig.ReportFigure(
            f"{ident}-growth",
            "How the divergence grows",
            "Dots: measured, at three sparsities of a block. Lines: its fit, whose slope is kappa; "
            f"the allocation uses the median of them, {grows['common_rate'] or np.nan:.3g}.",
            ("Divergence of every block over its sparsity", f"{count} lines, one per block."),
            [fig.Table.of("Divergence at each sparsity, and its growth", columns)],
            fig.spanning("fraction pruned", s.ravel()),
            fig.spanning(kl, d.ravel(), True),
            [
                *(
                    fig.Line(str(i), [*zip(s[:, i], fit[:, i], strict=True)], i, 1, every=False)
                    for i in range(count)
                ),
                fig.Points([*zip(s.ravel(), d.ravel(), strict=True)], "mark other-hue", "circle"),
            ],
            large=count > 8,
        )
    )
    return figures

"""The table of the study of measured strength, from `measured.jsonl`."""

from collections.abc import Mapping
from math import exp, expm1

import numpy as np
from effects import Row, change, nats
from grid import REPORTED

PLACE = ("model", "method", "sparsity", "seed")
HEAD = ("model, pruner, sparsity", "allocation", "predicted", *REPORTED, "kappa", "seconds")


def predicted(row: Row, probed: Row) -> float:
    """Change of the sum of the fitted divergences in percent of the perplexity.

    ``100 (exp(sum_l D_l(s_l) - D_l(S)) - 1)``, ``D_l(s) = a_l exp(kappa_l (s - S))``, if the
    divergences add up, and a nat of divergence costs a nat per token.
    """
    level, rate = np.array(probed["level"]), np.array(probed["rate"])
    more = np.array(row["block_sparsity"]) - row["sparsity"]
    return 100 * expm1(float((level * np.expm1(rate * more)).sum()))


def measured(done: Mapping[str, Row]) -> str:
    """A line per cell; changes are against the same place without a correction, uniform."""
    lines = [f"| {' | '.join(HEAD)} |", "| --- | --- |" + " ---: |" * (len(HEAD) - 2)]
    places = dict.fromkeys(tuple(row[key] for key in PLACE) for row in done.values())
    for place in places:
        rows = [row for row in done.values() if tuple(row[key] for key in PLACE) == place]
        uniform = {row["correction"]: row for row in rows if row["base"] == "uniform"}
        none, probed = uniform["none"], uniform.get("divergence")
        for row in rows:
            name = " + ".join(x for x in (row["base"], row["correction"]) if x != "none")
            cells = [f"{row['model']}, {row['method']}, {row['sparsity']:.0%}", name]
            foretold = row is not none and probed is not None
            cells.append(f"{predicted(row, probed):+.0f} %" if foretold and probed else "")
            for text in REPORTED:
                perplexity = f"{exp(nats(row, text)):.1f}"
                if row is not none:
                    mean, error = change(row, none, text)
                    perplexity += f" ({mean:+.1f} ± {error:.1f} %)"
                cells.append(perplexity)
            cells += [f"{row['kappa']:.1f}" if "kappa" in row else "", f"{row['seconds']:.0f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)

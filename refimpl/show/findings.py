"""What scores say, in sentences: on the terminal and at the top of a report."""

import numpy as np

from refimpl.allocation.scores import Absorption
from refimpl.show.header import counted
from refimpl.show.numbers import measured

SURE = 2  # standard errors from 1, within which the side of a coefficient is uncertain


def findings(absorption: Absorption) -> list[str]:
    """Which way the blocks go, and the largest coefficient; the last block's is 1 by definition."""
    r, error = absorption.coefficient[:-1], absorption.stderr[:-1]
    if not len(r):
        return ["There is one block, and no later block that could absorb or amplify."]
    margin = np.where(np.isfinite(error), SURE * error, 0)
    less, more = int((r + margin < 1).sum()), int((r - margin > 1).sum())
    said = [
        f"Later blocks absorb what is done to {counted(less, 'block') if less else 'no block'} "
        f"and amplify what is done to {more or 'none'}."
    ]
    if uncertain := int(np.isfinite(r).sum()) - less - more:
        said.append(f"Uncertain, within {SURE} standard errors of 1: {uncertain}.")
    if unknown := int(np.isnan(r).sum()):
        said.append(f"Unknown: {unknown}.")
    if np.isfinite(r).any():
        at = int(np.nanargmax(r))
        said.append(f"Largest r: {measured(float(r[at]), float(error[at]))}, block {at}.")
    return said

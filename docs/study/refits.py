"""Each pruner's output error beside its refit's: `python docs/study/refits.py MODEL TEXT`.

Block 0, two linears at 60 %, 8 x 512 tokens: squared output errors as shares of the squared output,
also after swaps and a refit. The page's table: SmolLM2-135M-Instruct, `sotu-1901-1979.txt`, refimpl
050e5de8, numpy 2.4.6, one core of an AMD EPYC beside other programs.
"""

import sys
import time

import numpy as np

import refimpl
from refimpl.arguments import Bools, Floats
from refimpl.model.stream import Stream, input_of
from refimpl.pruners.decision import decision
from refimpl.pruners.refit import refitted
from refimpl.pruning.block import input_sums

SEQUENCES, SPARSITY, SWAPS = 8, 0.6, 60
PRUNERS = {"magnitude": None, "wanda": "squares", "sparsegpt": "products", "admm": "products"}


def swapped(w: Floats, keep: Bools, h: Floats) -> Bools:
    """Swaps in each row: revive p, which costs least, then prune the q that costs least with it.

    dE = 2 (w_q g_q - w_p g_p) + w_p^2 H_pp + w_q^2 H_qq - 2 w_p w_q H_pq, g = H u, u what is lost.
    """
    keep, rows, own = keep.copy(), np.arange(len(w)), w * w * np.diag(h)
    g = np.where(keep, 0, w) @ h
    for _ in range(SWAPS):
        revived = np.where(keep, np.inf, own - 2 * w * g)
        p = revived.argmin(axis=1)
        both = own + 2 * w * g - 2 * w[rows, p][:, None] * w * h[p]
        pruned = np.where(keep, both, np.inf)
        q = pruned.argmin(axis=1)
        r = np.flatnonzero(revived[rows, p] + pruned[rows, q] < -1e-12 * np.abs(g).max())
        keep[r, p[r]], keep[r, q[r]] = True, False
        g[r] += w[r, q[r]][:, None] * h[q[r]] - w[r, p[r]][:, None] * h[p[r]]
    return keep


def report(name: str, w: Floats, outer: Floats) -> None:
    """Print the errors of one linear, of outer products over all sequences."""
    sums = {None: None, "squares": np.diag(outer), "products": outer}
    damped = outer + 0.01 * np.diag(outer).mean() * np.eye(len(outer))

    def error(new: Floats) -> float:
        return float(((new - w) @ outer * (new - w)).sum() / (w @ outer * w).sum())

    for pruner, needs in PRUNERS.items():
        times = [time.process_time()]
        how = sums[needs], SEQUENCES, round(SPARSITY * w.size), refimpl.PrunerOptions(pruner)
        keep, new = decision(w, *how)
        times.append(time.process_time())
        alone, refit = error(np.where(keep, w, 0) if new is None else new), refitted(w, keep, outer)
        times.append(time.process_time())
        print(f"{name} {pruner}: {alone:.4f} in {times[1] - times[0]:.1f} s; refitted", end=" ")
        print(f"{error(refit):.4f} in {times[2] - times[1]:.1f} s: {alone / error(refit):.2f} x")
        if pruner in ("wanda", "admm"):
            again = refitted(w, swapped(w, keep, damped), outer)
            print(f"  swapped and refitted {error(again):.4f}")


def main(path: str, text: str) -> None:
    """Print the errors of the two linears of the page."""
    model = refimpl.read_model(path)
    tokens = refimpl.text_tokens(text, f"{path}/tokenizer.json", samples=SEQUENCES, seq_len=512)
    stream, weights = Stream(model, dict(enumerate(tokens.ids)), np.float32), model.block(0, "f4")
    with refimpl.Settings(threads=1).open() as resources:
        sums: dict = dict(input_sums(stream, weights, "products", resources.workers)[1])
    for name in ("up_proj", "down_proj"):
        w = np.asarray(weights[f"{name}.weight"], np.float64)
        report(name, w, sums[input_of(name)].outer)


main(*sys.argv[1:])

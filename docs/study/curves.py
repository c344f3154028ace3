"""Cost curves and simple baselines: `python docs/study/curves.py TEXT MODEL [MODEL ...]`.

Costs are KL in nats from the dense model, pruned by Wanda: of each block alone, of all blocks
together, and of allocations at 60 %, on other samples than those that decide which weights go.
By form, a row has two medians over blocks: of the error of the cost that is predicted for 70 %,
and of its size.
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np

from refimpl import Request, Settings, read_model, text_tokens
from refimpl.allocation.allocate import base_only, linear_counts
from refimpl.model.forward import final_state
from refimpl.model.stream import Stream
from refimpl.pruners.decision import PrunerOptions
from refimpl.scoring.state_group import PrunedBlocks, divergences

AT, WANDA = np.array([0.4, 0.5, 0.6, 0.7]), PrunerOptions("wanda")  # the last is predicted
LENGTH = 64  # of samples: one for costs of blocks; four decide and three judge for allocations
FORMS = {  # f of ln D = ln a + k f(s); k is that of each block, the median over blocks, or 1
    "exponential, own rates": (lambda s: s, lambda k: k),
    "one rate": (lambda s: s, np.median),
    "a s^2": (lambda s: 2 * np.log(s), np.ones_like),
    "a s / (1 - s)": (lambda s: np.log(s / (1 - s)), np.ones_like),
}
TRIED = "uniform", "first block dense", "ATP", "ATP, other sign"


def final_states(model, ids, calibration, counts, pruner, resources):
    """Final states [S, D] of sequences [N, S], through blocks that are pruned one after another.

    By counts [V, L, linears], each block is also pruned in every later way, on the first sequences,
    with all others as in the first way. None leaves the model dense.
    """
    workers, dtype, config = resources.workers, resources.dtype, model.config
    stream = Stream(model, dict(enumerate(ids)), dtype)
    states = {(0, -1, n): h for n, h in stream.states.items()}
    for i in range(config.num_blocks):
        weights = model.block(i, dtype, workers.map)
        first = stream.states = {n: states[0, -1, n] for n in range(calibration)}
        pruned = {0: weights}
        if counts is not None:
            how = PrunedBlocks(counts, pruner)
            pruned = how.pruned(i, range(len(counts)), stream, weights, workers)
        begun = {(v, i, n): h for v in pruned if v > 0 for n, h in first.items()}
        ways = [(h, 0) for h in states.values()] + [(h, v) for (v, _, _), h in begun.items()]
        passed = workers.run([partial(stream.through, h, pruned[v]) for h, v in ways])
        states = dict(zip([*states, *begun], passed, strict=True))
        stream.advance({})
        resources.tick()
    last = partial(final_state, weights=model.head(dtype, slice(0)), config=config)
    ends = workers.run([partial(last, h.stream) for h in states.values()])
    return {key: x[0] for key, x in zip(states, ends, strict=True)}


def costs(model, counts, ids, calibration, dense, resources):
    """Mean KL of each state from the dense model's: by way, block and sequence."""
    ends = final_states(model, ids, calibration, counts, WANDA, resources)
    left, right = (
        {key: (key[2], h) for key, h in ends.items()},
        dict(list(dense.items())[: len(ids)]),
    )
    kl = divergences(model, right, left, resources.dtype, resources.workers)
    return {key: float(x.mean()) for key, x in kl.items()}


def report(model, text):
    """Print the row of a model."""
    sizes, blocks = model.config.linear_sizes, model.config.num_blocks
    ids = text_tokens(text, model.tokenizer_json, 7, LENGTH).ids
    both, n = np.concatenate([ids[::2], ids[1::2]]), len(ids[::2])
    with Settings(threads=1).open(model) as resources:
        dense = {
            k: h[None]
            for (_, _, k), h in final_states(model, both, n, None, WANDA, resources).items()
        }
        counts = np.stack([0 * sizes, *(linear_counts(np.full(blocks, s), sizes, s) for s in AT)])
        kl = costs(model, counts, both[:1], 1, dense, resources)
        alone = np.array([[kl[1 + v, i, 0] for i in range(blocks)] for v in range(len(AT))])
        together = [
            costs(model, x[None], both[:1], 1, dense, resources)[0, -1, 0] for x in counts[1:]
        ]
        row = [model.name.removesuffix("-Instruct")]
        for form, rate in FORMS.values():
            x = form(AT)
            slope = rate(np.polyfit(x[:3], np.log(alone[:3]), 1)[0])
            level = (np.log(alone[:3]) - slope * x[:3, None]).mean(axis=0)
            off = level + slope * x[3] - np.log(alone[3])
            middle, size = np.exp(np.median(off)) - 1, np.exp(np.median(np.abs(off))) - 1
            row.append(f"{100 * middle:+.0f} / {100 * size:.0f} %")
        row.append(", ".join(f"{x:.2g}" for x in together / alone.sum(axis=1)))
        first = sizes[0].sum() / sizes.sum()
        protected = np.full(blocks, 0.6 / (1 - first))
        protected[0] = 0
        tried = [np.full(blocks, 0.6), protected]
        for beta in (0.0055, -0.0055):
            asked = Request("atp", {"beta": beta}, 0.6, None)
            tried.append(base_only({}, asked, model.config.linears).corrected_sparsity)
        for s in tried:
            kl = costs(model, linear_counts(s, sizes, 0.6)[None], both, n, dense, resources)
            row.append(f"{np.mean([kl[0, -1, k] for k in range(n, len(both))]):.2f}")
        print("|", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    heads = ["model", *FORMS, "together / sum of single costs", *TRIED]
    print("|", " | ".join(heads), "|\n|", " | ".join(["---"] * len(heads)), "|")
    for folder in sys.argv[2:]:
        report(read_model(folder), Path(sys.argv[1]))

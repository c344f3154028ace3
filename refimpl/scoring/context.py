"""Costs in context: what one more weight costs in the pruned model, and a step to equal costs."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from refimpl.allocation.allocate import Allocation, linear_counts
from refimpl.arguments import AtLeastOne, integer, require
from refimpl.loading.samples import Tokens
from refimpl.method.equal_marginals import context_slopes, equal_marginals
from refimpl.model.forward import final_state
from refimpl.model.mixers.parts import Weights
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.state import checked_ids
from refimpl.model.stream import Stream, state_bytes
from refimpl.pruners.decision import PrunerOptions
from refimpl.running.settings import Resources, Settings, require_memory
from refimpl.scoring.state_group import PrunedBlocks, divergences, probe_counts

_DELTA, _LIMIT = 0.05, 0.06  # of a sparsity: how far it is probed, and moved

_Key = tuple[int, int, int]
"""A state: how its block is pruned, that block, and the sequence; of the pruned model, 0 and -1."""


def step_in_context(
    model: Model,
    tokens: Tokens,
    judges: Tokens,
    made: Allocation,
    pruner: PrunerOptions,
    settings: Settings,
) -> Allocation:
    """Move an allocation towards equal costs of the next weight in all blocks of the pruned model.

    Each block is pruned 0.05 less and more while all others stay pruned. No sparsity moves by more
    than 0.06, and the step is taken only if the divergence of the judges, samples as long, falls:
    `context` of the result has it without and with the step.

    Source: docs/explanation/method.md, "Costs in context".
    """
    config, asked, n = model.config, made.request, len(tokens.ids)
    length, blocks = tokens.ids.shape[1], range(config.num_blocks)
    require(judges.ids.shape[1], integer(length, length), "seq_len")
    require(len(judges.ids), AtLeastOne, "samples")
    ids = np.concatenate([checked_ids(x.ids, config) for x in (tokens, judges)])
    counts = probe_counts(made.linear_pruned, config.linear_sizes, _DELTA)
    s = counts.sum(axis=2) / config.block_sizes
    with settings.open(model) as resources:
        size = f"{2 * len(blocks) * n + 2 * len(ids)} states of {length} tokens"
        need = (2 * len(blocks) * n + 2 * len(ids)) * state_bytes(config, length, resources.dtype)
        require_memory(resources.memory, need, "all probes", size, "fewer `samples`")
        resources.total = 3 * len(blocks)
        every = final_states(model, ids, n, None, pruner, resources)
        dense = {k: h[None] for (_, _, k), h in every.items()}

        def costs(counts: Array) -> dict[_Key, float]:
            """KL of every state from the dense model's, mean over tokens."""
            ends = final_states(model, ids, n, counts, pruner, resources)
            left = {key: (key[2], h) for key, h in ends.items()}
            kl = divergences(model, dense, left, resources.dtype, resources.workers)
            return {key: float(x.mean()) for key, x in kl.items()}

        kl, judging = costs(counts), range(n, len(ids))
        at = np.mean([kl[0, -1, k] for k in range(n)])
        below, above = ([np.mean([kl[v, i, k] for k in range(n)]) for i in blocks] for v in (1, 2))
        cost = np.array([below, np.full(len(blocks), at), above])
        dense_rate = None if made.growth is None else made.growth.common_rate
        slopes, rate = context_slopes(cost, s[[1, 0, 2]], dense_rate or 0.0)
        low, high = np.clip([s[0] - _LIMIT, s[0] + _LIMIT], asked.lo, asked.hi)
        how = slopes / rate, np.full(len(blocks), rate), s[0], config.block_sizes, asked.sparsity
        moved = equal_marginals(*how, low, high)
        pruned = linear_counts(moved, config.linear_sizes, asked.sparsity)
        new = costs(pruned[None])
    judged = np.array([np.mean([x[0, -1, k] for k in judging]) for x in (kl, new)])
    if judged[1] >= judged[0]:
        return replace(made, context=judged)
    per_linear = np.where(config.linear_sizes > 0, moved[:, None], 0.0)
    return replace(made, corrected_sparsity=moved, num_pruned=pruned.sum(axis=1), errors=None,
                   linear_sparsity=per_linear, linear_pruned=pruned, context=judged)  # fmt: skip


def final_states(
    model: Model,
    ids: Array,
    calibration: int,
    counts: Array | None,
    pruner: PrunerOptions,
    resources: Resources,
) -> dict[_Key, Array]:
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
        pruned: Mapping[int, Weights] = {0: weights}
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

"""The perturbation by pruning: each block is pruned alone, and the state followed to the end."""

from collections.abc import Callable
from typing import Any

import torch
from experiment import followed, kept, meaned
from families import READS
from forward import Model, Weights, final_norm, head, passed
from pruning import packed, unpacked, wanda_keep
from signals import linears, squares, wanda_score
from torch import Tensor

States = list[Tensor]


def pruned_experiment(
    model: Model,
    blocks: list[Weights],
    states: tuple[States, States],
    steps: Weights,
    read: Callable[[str], Tensor],
    recipe: dict[str, Any],
) -> None:
    """Add its steps; states are those before and after each block."""
    before, after = states
    goals, starts = read("pruned.counts").tolist(), []
    for i, weights in enumerate(blocks):
        stored, changed, seen = model.stored(i), dict(weights), Weights()
        passed(model, i, weights, before[i], seen)
        for point in dict.fromkeys(READS.values()):
            steps[f"pruned.blocks.{i}.{point}.squares"] = squares(seen[point])
        for name, count in zip(linears(stored), goals[i], strict=True):
            weight, step = stored[f"{name}.weight"], f"pruned.blocks.{i}.{name}.keep"
            total = read(f"pruned.blocks.{i}.{READS[name]}.squares")
            keep = wanda_keep(wanda_score(weight, total, len(before[i])), count)
            steps[step] = packed(keep)
            stays = unpacked(read(step), weight.shape[1])
            changed[f"{name}.weight"] = weights[f"{name}.weight"] * stays
        pruned = passed(model, i, changed, before[i])
        takes_part = kept(after[i], recipe["sink"])[..., None]
        starts.append(torch.where(takes_part, pruned, after[i]))
    result = followed(model, blocks, after, starts, recipe)
    for i, (drift, alignment) in enumerate(zip(result.drift, result.alignment, strict=True)):
        steps |= {f"pruned.{i}.drift": drift, f"pruned.{i}.alignment": alignment}
    steps["pruned.absorption_coefficient"] = result.coefficient
    clean = log_probabilities(model, after[-1])
    divergences = []
    for h, end in zip(after, result.ends, strict=True):
        other = log_probabilities(model, end)
        loss = (clean.exp() * (clean - other)).sum(-1)
        divergences.append(meaned(loss, kept(h, recipe["sink"])))
    steps["pruned.divergence"] = torch.stack(divergences)


def log_probabilities(model: Model, x: Tensor) -> Tensor:
    """Of the next token, [N, S, V], float64, from states after the last block."""
    return head(model, final_norm(model, x)).double().log_softmax(-1)

"""The perturbation experiment: drift, alignment and the absorption coefficient of each block."""

from dataclasses import dataclass
from typing import Any

import torch
from forward import Model, Weights, passed
from torch import Tensor

SINK = 20  # medians of a token's norm


@dataclass(frozen=True)
class Experiment:
    """The effect of a perturbation after block l, at every later block and in the end."""

    drift: list[Tensor]  # of L, each [L - l]
    alignment: list[Tensor]
    coefficient: Tensor  # [L], NaN where no token has a drift
    stderr: Tensor  # [L], NaN of fewer than two sequences
    ends: list[Tensor]  # of L, the states after the last block


def experiment(
    model: Model, blocks: list[Weights], clean: list[Tensor], noise: Tensor, recipe: dict[str, Any]
) -> Experiment:
    """Perturb the states [N, S, D] after each block by noise [L, draws, N, S, D]."""
    starts = []
    for i, h in enumerate(clean):
        perturbation = shaped(noise[i].double(), h.double(), kept(h, recipe["sink"]), recipe)
        starts.append((h + perturbation.to(h.dtype)).flatten(0, 1))
    return followed(model, blocks, clean, starts, recipe)


def followed(
    model: Model, blocks: list[Weights], clean: list[Tensor], starts: list[Tensor],
    recipe: dict[str, Any],
) -> Experiment:  # fmt: skip
    """Follow states [draws N, S, D], each perturbed after one block, to the end."""
    drifts, alignments, coefficients, errors, ends = [], [], [], [], []
    last = len(blocks) - 1
    for i, state in enumerate(starts):
        sequences = len(clean[i])
        draws = len(state) // sequences
        keep = kept(clean[i], recipe["sink"]).repeat(draws, 1)
        effects = []
        for k in range(i, last + 1):
            state = state if k == i else passed(model, k, blocks[k], state)
            effects.append(compared(state, clean[k].repeat(draws, 1, 1), keep))
        ends.append(state)
        drifts.append(torch.stack([meaned(drift, drift.isfinite()) for drift, _ in effects]))
        alignments.append(torch.stack([meaned(cosine, cosine.isfinite()) for _, cosine in effects]))
        ratio = effects[-1][0] / effects[0][0]  # 0 / 0 is NaN, and left out
        coefficients.append(meaned(ratio, ratio.isfinite()))
        errors.append(standard_error(ratio, sequences))
    ratios, stderr = torch.stack(coefficients), torch.stack(errors)
    return Experiment(drifts, alignments, ratios, stderr, ends)


def kept(h: Tensor, sink: str) -> Tensor:
    """Which tokens take part, [N, S]."""
    norm = h.double().norm(dim=-1)
    if sink == "include":
        return torch.ones_like(norm, dtype=torch.bool)
    return norm <= SINK * norm.quantile(0.5, dim=-1, keepdim=True)


def shaped(noise: Tensor, h: Tensor, keep: Tensor, recipe: dict[str, Any]) -> Tensor:
    """The perturbation, [N, S, D]: noise, scaled; 0 for tokens left out."""
    mask = keep[..., None].double()
    noise = noise * mask
    expected = recipe.get("noise_norm") == "expected"  # the deviation of each number
    measured = torch.ones_like(h) if expected else noise
    size, unit = ((x * mask).norm(dim=-1, keepdim=True) for x in (h, measured))
    return torch.where(unit > 0, recipe["eta"] * size / unit, 0.0) * noise


def compared(state: Tensor, clean: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Drift and alignment, [N, S]; NaN where there is nothing to compare."""
    mask = keep[..., None].double()
    a, b = (x.double() * mask for x in (state, clean))
    sizes = a.norm(dim=-1) * b.norm(dim=-1)
    return (a - b).norm(dim=-1) / b.norm(dim=-1), (a * b).sum(-1) / sizes


def standard_error(ratio: Tensor, sequences: int) -> Tensor:
    """Over the sequences, of the mean of tokens and then of draws; ratios are [draws N, S]."""
    means = ratio.nanmean(1).unflatten(0, (-1, sequences)).nanmean(0)
    means = means[means.isfinite()]
    n = len(means)
    return (
        ((means - means.mean()).square().sum() / max(n - 1, 0) / n).sqrt()
        if n > 1
        else means.new_tensor(torch.nan)
    )


def meaned(x: Tensor, valid: Tensor) -> Tensor:
    """The mean over tokens, then over sequences, of what is valid in [N, S]; NaN if nothing is."""
    count = valid.sum(1)
    means = torch.where(valid, x, 0.0).sum(1) / count
    return means[count > 0].mean()

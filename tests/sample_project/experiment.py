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


def experiment(
    model: Model, blocks: list[Weights], clean: list[Tensor], noise: Tensor, recipe: dict[str, Any]
) -> Experiment:
    """Perturb the states [N, S, D] after each block, and follow them to the end."""
    drifts, alignments, coefficients = [], [], []
    last = len(blocks) - 1
    for i, start in enumerate(clean):
        keep = kept(start, recipe["sink"])
        perturbation = shaped(noise[i].double(), start.double(), keep, recipe)
        state = start + perturbation.to(start.dtype)
        effects = []
        for k in range(i, last + 1):
            state = state if k == i else passed(model, k, blocks[k], state)
            effects.append(compared(state, clean[k], keep, recipe["norm"]))
        drifts.append(torch.stack([meaned(drift, drift.isfinite()) for drift, _ in effects]))
        alignments.append(torch.stack([meaned(cosine, cosine.isfinite()) for _, cosine in effects]))
        ratio = effects[-1][0] / effects[0][0]  # 0 / 0 is NaN, and left out
        coefficients.append(meaned(ratio, ratio.isfinite()))
    return Experiment(drifts, alignments, torch.stack(coefficients))


def kept(h: Tensor, sink: str) -> Tensor:
    """Which tokens take part, [N, S]."""
    norm = h.double().norm(dim=-1)
    if sink == "include":
        return torch.ones_like(norm, dtype=torch.bool)
    return norm <= SINK * norm.quantile(0.5, dim=-1, keepdim=True)


def shaped(noise: Tensor, h: Tensor, keep: Tensor, recipe: dict[str, Any]) -> Tensor:
    """The perturbation, [N, S, D]: noise, shaped and scaled; 0 for tokens left out."""
    mask = keep[..., None].double()
    if recipe["noise_shape"] == "channel":
        count = mask.sum(1, keepdim=True)
        mean = (h * mask).sum(1, keepdim=True) / count
        noise = noise * (((h - mean).square() * mask).sum(1, keepdim=True) / count).sqrt()
    noise = noise * mask
    axes = -1 if recipe["noise_scale"] == "token" else (-2, -1)
    size, unit = ((x * mask).norm(dim=axes, keepdim=True) for x in (h, noise))
    return torch.where(unit > 0, recipe["eta"] * size / unit, 0.0) * noise


def compared(state: Tensor, clean: Tensor, keep: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """Drift and alignment, [N, S], or [N, 1] where one norm is taken over the tokens.

    NaN where there is nothing to compare.
    """
    mask = keep[..., None].double()
    a, b = (x.double() * mask for x in (state, clean))
    if norm == "sequence":
        a, b = (x.flatten(1)[:, None] for x in (a, b))
    sizes = a.norm(dim=-1) * b.norm(dim=-1)
    return (a - b).norm(dim=-1) / b.norm(dim=-1), (a * b).sum(-1) / sizes


def meaned(x: Tensor, valid: Tensor) -> Tensor:
    """The mean over tokens, then over sequences, of what is valid in [N, S]; NaN if nothing is."""
    count = valid.sum(1)
    means = torch.where(valid, x, 0.0).sum(1) / count
    return means[count > 0].mean()

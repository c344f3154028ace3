"""The perturbation experiment: drift, alignment, absorption coefficient and divergence."""

from typing import Any

import torch
from forward import Model, Weights, final_norm, head, passed
from torch import Tensor

SINK = 20  # medians of a token's norm
States = list[Tensor]
Effects = dict[str, Any]


def experiment(
    model: Model,
    blocks: list[Weights],
    clean: States,
    starts: States,
    recipe: dict[str, Any],
) -> Effects:
    """Follow states [draws N, S, D], each perturbed after one block, to the end."""
    found: Effects = {
        name: [] for name in ("drift", "alignment", "coefficient", "stderr", "ends")
    }
    for i, state in enumerate(starts):
        draws = len(state) // len(clean[i])
        keep, effects = kept(clean[i], recipe["sink"]).repeat(draws, 1), []
        for k in range(i, len(blocks)):
            state = state if k == i else passed(model, blocks[k], state)
            effects.append(compared(state, clean[k].repeat(draws, 1, 1), keep))
        ratio = effects[-1][0] / effects[0][0]  # 0 / 0 is NaN, and left out
        found["drift"].append(torch.stack([meaned(drift) for drift, _ in effects]))
        found["alignment"].append(
            torch.stack([meaned(cosine) for _, cosine in effects])
        )
        found["coefficient"].append(meaned(ratio))
        found["stderr"].append(standard_error(ratio, len(clean[i])))
        found["ends"].append(state)
    return found | {
        name: torch.stack(found[name]) for name in ("coefficient", "stderr")
    }


def kept(h: Tensor, sink: str) -> Tensor:
    """Which tokens take part, [N, S]."""
    norm = h.double().norm(dim=-1)
    if sink == "include":
        return torch.ones_like(norm, dtype=torch.bool)
    return norm <= SINK * norm.quantile(0.5, dim=-1, keepdim=True)


def noisy(noise: Tensor, h: Tensor, recipe: dict[str, Any]) -> Tensor:
    """States [N, S, D] with scaled noise [draws, N, S, D]; tokens left out stay as they are."""
    mask = kept(h, recipe["sink"])[..., None].double()
    noise = noise.double() * mask
    expected = recipe.get("noise_norm") == "expected"  # the deviation of each number
    measured = torch.ones_like(h).double() * mask if expected else noise
    size, unit = ((x * mask).norm(dim=-1, keepdim=True) for x in (h.double(), measured))
    perturbation = torch.where(unit > 0, recipe["eta"] * size / unit, 0.0) * noise
    return (h + perturbation.to(h.dtype)).flatten(0, 1)


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
    return (
        means.std() / len(means) ** 0.5
        if len(means) > 1
        else means.new_tensor(torch.nan)
    )


def meaned(x: Tensor, valid: Tensor | None = None) -> Tensor:
    """The mean over tokens, then over sequences, of what is valid, or finite, in [N, S]."""
    valid = x.isfinite() if valid is None else valid
    means = torch.where(valid, x, 0.0).sum(1) / valid.sum(1)
    return means[valid.any(1)].mean()


def divergences(
    model: Model, clean: States, ends: States, recipe: dict[str, Any]
) -> Tensor:
    """How far the predictions of each end are from the clean ones, in nats, [L]."""
    p, *others = (
        head(model, final_norm(model, x)).double().log_softmax(-1)
        for x in (clean[-1], *ends)
    )
    losses = [(p.exp() * (p - q)).sum(-1) for q in others]
    kept_of = [kept(h, recipe["sink"]) for h in clean]
    return torch.stack(
        [meaned(x, keep) for x, keep in zip(losses, kept_of, strict=True)]
    )

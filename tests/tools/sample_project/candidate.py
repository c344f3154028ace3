"""Compute a case of refimpl with torch: ``python candidate.py CASE -o ACTUAL.safetensors``."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from allocation import base, correction, counts, project, relative, signals
from experiment import divergences, experiment, kept, noisy
from forward import READS, Weights, embedded, final_norm, head, passed, read_model
from pruning import Pruned, linears, packed, pruned_block, squares, wanda_score
from safetensors.torch import load_file, save_file
from torch import Tensor

INSIDE = ("attn_heads", "mlp_hidden")  # inputs of linears that are no trace points


def candidate(case: Path, dtype: torch.dtype) -> Weights:
    """Every step of a case, by name."""
    facts = json.loads((case / "case.json").read_text())
    recipe = facts["recipe"]
    model = read_model(case / facts["model"], dtype)
    inputs = load_file(case / "inputs.safetensors", str(torch.get_default_device()))
    ids = inputs["token_ids"]
    stored = [model.stored(i) for i in range(model.layers)]
    blocks = [model.cast(x) for x in stored]
    steps: dict[str, Tensor] = {}

    def effects_of(
        starts: list[Tensor], prefix: str, scaled: dict[str, Any]
    ) -> dict[str, Any]:
        """Add the steps of an experiment."""
        found = experiment(model, blocks, after, starts, scaled)
        for i in range(model.layers):
            steps[f"{prefix}.{i}.drift"] = found["drift"][i]
            steps[f"{prefix}.{i}.alignment"] = found["alignment"][i]
        name = f"{prefix}.absorption_coefficient".removeprefix("perturbed.")
        steps[name] = found["coefficient"]
        return found

    def perplexity(x: Tensor) -> Tensor:
        """``exp`` of the mean nats per predicted token, from states after the last block, [1]."""
        logits = head(model, final_norm(model, x))[:, :-1].double().flatten(0, 1)
        return F.cross_entropy(logits, ids[:, 1:].flatten()).exp().reshape(1)

    def allocated(name: str, change: list[float]) -> tuple[list[float], list[float]]:
        """A base, and what a correction makes of it."""
        known = steps.get(f"{name}.signal")
        plain = base(name, None if known is None else known.tolist(), totals, recipe)
        moved = [s + c for s, c in zip(plain, change, strict=True)]
        whole, corrected = (
            project(x, totals, recipe["sparsity"]) for x in (plain, moved)
        )
        return whole, corrected

    x = steps["embed"] = embedded(model, ids)
    before, after, scores = [], [], []
    for i, weights in enumerate(blocks):
        before.append(x)
        seen: Weights = {}
        x = passed(model, weights, x, seen)
        after.append(x)
        steps |= {
            f"blocks.{i}.{name}": y for name, y in seen.items() if name not in INSIDE
        }
        some = [
            wanda_score(
                stored[i][f"{name}.weight"], squares(seen[READS[name]]), len(x)
            ).flatten()
            for name in linears(weights)
        ]
        scores.append(torch.cat(some))
    steps["final_norm"] = final_norm(model, x)
    steps["logits"] = head(model, steps["final_norm"])
    steps["dense.perplexity"] = perplexity(x)

    noise = [inputs[f"noise.{d}" if d else "noise"] for d in range(recipe["draws"])]
    for prefix, eta, draws in (
        ("perturbed", "eta", noise[:1]),
        ("coarse", "coarse_eta", noise),
    ):
        scaled = recipe | {"eta": recipe[eta]}
        starts = [
            noisy(torch.stack(draws, 1)[i], h, scaled) for i, h in enumerate(after)
        ]
        found = effects_of(starts, prefix, scaled)
    if len(ids) > 1:
        steps["coarse.stderr"] = found["stderr"]

    each = [[w[f"{name}.weight"] for name in linears(w)] for w in stored]
    sizes = [[w.numel() for w in block] for block in each]
    totals = [sum(x) for x in sizes]
    of_bases = {*recipe["bases"], "owl", "dlp"}
    measured = signals(scores, each)
    steps |= {f"{name}.signal": x for name, x in measured.items() if name in of_bases}
    change = correction(steps["absorption_coefficient"].tolist(), recipe)
    for name in recipe["bases"]:
        for kind, values in zip(
            ("base", "corrected"), allocated(name, change), strict=True
        ):
            steps[f"{name}.{kind}"] = torch.tensor(values, dtype=torch.float64)
        steps[f"{name}.counts"] = counts(values, sizes, recipe["sparsity"])
    first = recipe["bases"][0]
    alone = counts(steps[f"{first}.base"].tolist(), sizes, recipe["sparsity"])
    steps["pruned.counts"] = alone

    starts = []
    for i, goal in enumerate(alone.tolist()):
        pruned = pruned_block(model, "wanda", stored[i], goal, before[i])
        steps |= {f"pruned.blocks.{i}.{k}.squares": x for k, x in pruned.sums.items()}
        steps |= {
            f"pruned.blocks.{i}.{k}.keep": packed(x) for k, x in pruned.keep.items()
        }
        masks = {
            f"{k}.weight": x * pruned.keep[k] for k, x in weights_of(blocks[i]).items()
        }
        state = passed(model, blocks[i] | masks, before[i])
        starts.append(
            torch.where(kept(after[i], recipe["sink"])[..., None], state, after[i])
        )
    ends = effects_of(starts, "pruned", recipe)["ends"]
    steps["pruned.divergence"] = divergences(model, after, ends, recipe)
    change = correction(relative(steps["pruned.divergence"].tolist()), recipe)
    final = allocated(first, change)[1]
    steps["divergence.corrected"] = torch.tensor(final, dtype=torch.float64)

    goals = steps[f"{first}.counts"].tolist()
    zeros, _, group = recipe["pattern"].partition(":")
    for name in ("magnitude", "wanda", "sparsegpt", "pattern", "sparsegpt_pattern")[
        : 5 if zeros else 3
    ]:
        x = steps["embed"]
        for i, goal in enumerate(goals):
            goal = [(int(zeros), int(group))] * len(goal) if "pattern" in name else goal
            pruned = pruned_block(model, name, stored[i], goal, x, recipe["damping"])
            new = model.cast(pruned.weights)
            steps |= named(name, i, pruned, new if i in recipe["shown"] else {})
            x = passed(model, new, x)
        steps[f"{name}.perplexity"] = perplexity(x)
    return {name: x.cpu().clone().contiguous() for name, x in steps.items()}


def weights_of(block: Weights) -> Weights:
    """The weights of a block's linears."""
    return {name: block[f"{name}.weight"] for name in linears(block)}


def named(pruner: str, index: int, block: Pruned, shown: Weights) -> Weights:
    """A pruned block's steps, its weights if they are shown; of some pruners, decisions alone."""
    prefix, kind = (
        f"{pruner}.blocks.{index}",
        "products" if pruner == "sparsegpt" else "squares",
    )
    steps = {
        f"{prefix}.{linear}.keep": packed(keep) for linear, keep in block.keep.items()
    }
    if pruner in ("magnitude", "sparsegpt_pattern"):
        return steps
    if shown or kind == "squares":
        steps |= {f"{prefix}.{point}.{kind}": x for point, x in block.sums.items()}
    if shown:
        steps |= {f"{prefix}.{linear}.score": x for linear, x in block.scores.items()}
    if shown and pruner != "pattern":
        steps |= {
            f"{prefix}.{linear}.weight": x for linear, x in weights_of(shown).items()
        }
    return steps


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", type=Path, help="a case of refimpl, a folder")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="ACTUAL.safetensors"
    )
    dtypes = ("float32", "float64", "float16", "bfloat16")
    parser.add_argument("--dtype", choices=dtypes, default="float32")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args()
    torch.set_default_device(options.device)
    with torch.inference_mode():
        steps = candidate(options.case, getattr(torch, options.dtype))
    save_file(steps, options.output)
    print(
        f"{options.case.name}: {len(steps)} steps in {options.dtype} on {options.device}"
    )


if __name__ == "__main__":
    main()

"""Compute a case of refimpl with torch: ``python candidate.py CASE -o ACTUAL.safetensors``."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from allocation import BASES, correction, correction_by_error, counts, project
from experiment import experiment
from forward import Model, Weights, embedded, final_norm, head, passed, perplexity, read_model
from pruned_experiment import pruned_experiment
from pruning import Pruned, packed, pruned_blocks
from safetensors.torch import load_file, save_file
from signals import alpha, block_scores, eigenvalues, linears, outlier_percent
from torch import Tensor

INSIDE = ("attn_heads", "mlp_hidden")  # inputs of linears that are no trace points


def candidate(
    case: Path, dtype: torch.dtype, device: str, pruners: bool = True
) -> dict[str, Tensor]:
    """Every step of a case, by name; without pruners, only the steps before theirs."""
    facts = json.loads((case / "case.json").read_text())
    recipe = facts["recipe"]
    model = read_model(case / facts["model"], dtype, device)
    inputs = load_file(case / "inputs.safetensors", device)
    ids = inputs["token_ids"]
    steps: dict[str, Tensor] = {}

    def read(name: str) -> Tensor:
        """A step as later steps read it."""
        return steps[name]

    blocks = [model.cast(model.stored(i)) for i in range(model.layers)]
    x = steps["embed"] = embedded(model, ids)
    before, after = [], []
    for i, weights in enumerate(blocks):
        steps[f"blocks.{i}.resid_pre"] = x
        before.append(read(f"blocks.{i}.resid_pre"))
        seen: Weights = {}
        passed(model, i, weights, before[i], seen)
        steps |= {f"blocks.{i}.{name}": x for name, x in seen.items() if name not in INSIDE}
        x = read(f"blocks.{i}.resid_post")
        after.append(x)
    steps["final_norm"] = final_norm(model, x)
    steps["logits"] = head(model, read("final_norm"))

    noise = [inputs[f"noise.{d}" if d else "noise"] for d in range(recipe["draws"])]
    for prefix, eta, draws in (("", "eta", noise[:1]), ("coarse.", "coarse_eta", noise)):
        scaled = recipe | {"eta": recipe[eta]}
        result = experiment(model, blocks, after, torch.stack(draws, 1), scaled)
        for i in range(model.layers):
            steps[f"{prefix or 'perturbed.'}{i}.drift"] = result.drift[i]
            steps[f"{prefix or 'perturbed.'}{i}.alignment"] = result.alignment[i]
        steps[f"{prefix}absorption_coefficient"] = result.coefficient
    if len(ids) > 1:
        steps["coarse.stderr"] = result.stderr
    signals, sizes = measured(model, before)
    steps |= {
        f"{base}.signal": x
        for base, x in signals.items()
        if base in recipe["bases"] or base in ("owl", "dlp")
    }
    coefficient = read("absorption_coefficient").tolist()
    change = correction(coefficient, recipe["strength"], recipe["max_correction"])
    allocate(recipe, sizes, change, steps, read)
    pruned_experiment(model, blocks, (before, after), steps, read, recipe)
    divergence = read("pruned.divergence").tolist()
    change = correction_by_error(divergence, recipe["strength"], recipe["max_correction"])
    _, final = corrected_base(recipe["bases"][0], change, recipe, sizes, read)
    steps["divergence.corrected"] = torch.tensor(final, dtype=torch.float64)

    steps["dense.perplexity"] = perplexity(model, after[-1], ids)
    first = read(f"{recipe['bases'][0]}.counts").tolist()
    zeros, _, group = recipe["pattern"].partition(":")
    patterned = ["pattern", "sparsegpt_pattern"] if zeros else []
    for name in ("magnitude", "wanda", "sparsegpt", *patterned) if pruners else ():
        pattern = (int(zeros), int(group)) if name in patterned else None
        start = steps["embed"]
        pruned = pruned_blocks(model, name, first, pattern, recipe["damping"], start)
        for i, block in enumerate(pruned):
            steps |= named(name, i, block, i in recipe["shown"])
        steps[f"{name}.perplexity"] = perplexity(model, block.after, ids)
    return {name: x.cpu().clone().contiguous() for name, x in steps.items()}


Reader = Callable[[str], Tensor]


def allocate(
    recipe: dict[str, Any],
    sizes: list[list[int]],
    change: list[float],
    steps: Weights,
    read: Reader,
) -> None:
    """Add every base, corrected and counted."""
    for base in recipe["bases"]:
        projected, corrected = corrected_base(base, change, recipe, sizes, read)
        steps[f"{base}.base"] = torch.tensor(projected, dtype=torch.float64)
        steps[f"{base}.corrected"] = torch.tensor(corrected, dtype=torch.float64)
        whole = counts(read(f"{base}.corrected").tolist(), sizes, recipe["sparsity"])
        steps[f"{base}.counts"] = torch.tensor(whole)
    first = recipe["bases"][0]
    whole = counts(read(f"{first}.base").tolist(), sizes, recipe["sparsity"])
    steps["pruned.counts"] = torch.tensor(whole)


def corrected_base(
    base: str, change: list[float], recipe: dict[str, Any], sizes: list[list[int]], read: Reader
) -> tuple[list[float], list[float]]:
    """The base, and what is made of it."""
    signal = None
    if base not in ("uniform", "atp"):
        signal = read(f"{base}.signal").tolist()
    totals = [sum(x) for x in sizes]
    extra = {"beta": recipe["beta"]} if base == "atp" else {}
    unprojected = BASES[base](signal, totals, recipe["sparsity"], **extra)
    base_sparsity = project(unprojected, totals, recipe["sparsity"])
    moved = [s + c for s, c in zip(unprojected, change, strict=True)]
    corrected = project(moved, totals, recipe["sparsity"])
    return base_sparsity, corrected


def measured(model: Model, before: list[Tensor]) -> tuple[dict[str, Tensor], list[list[int]]]:
    """Signals of the dense model by base, and how many weights every linear has."""
    outliers, typical, medians, tails, middle, sizes = [], [], [], [], [], []
    for i in range(model.layers):
        stored = model.stored(i)
        scores = block_scores(model, i, stored, before[i])
        outliers.append(outlier_percent(scores))
        typical.append(scores.mean())
        medians.append(scores.quantile(0.5))
        weights = [stored[f"{name}.weight"] for name in linears(stored)]
        spectra = [eigenvalues(w) for w in weights]
        tails.append([alpha(x) for x in spectra])
        middle.append([alpha(x, "mid") for x in spectra])
        sizes.append([w.numel() for w in weights])
    signals = {"owl": torch.stack(outliers), "dlp": torch.stack(typical)}
    signals["dlp_median"] = torch.stack(medians)
    signals["alphapruning_mid"] = torch.tensor(middle, dtype=torch.float64)
    return signals | {"alphapruning": torch.tensor(tails, dtype=torch.float64)}, sizes


def named(pruner: str, index: int, block: Pruned, shown: bool) -> dict[str, Tensor]:
    """A pruned block's steps."""
    prefix, kind = f"{pruner}.blocks.{index}", "products" if pruner == "sparsegpt" else "squares"
    steps = {}
    brief = pruner in ("magnitude", "sparsegpt_pattern")  # their decisions alone are steps
    if not brief and (shown or kind == "squares"):
        steps |= {f"{prefix}.{point}.{kind}": x for point, x in block.sums.items()}
    for linear, keep in block.keep.items():
        steps[f"{prefix}.{linear}.keep"] = packed(keep)
        if shown and linear in block.scores:
            steps[f"{prefix}.{linear}.score"] = block.scores[linear]
        if shown and pruner in ("wanda", "sparsegpt"):
            steps[f"{prefix}.{linear}.weight"] = block.weights[f"{linear}.weight"]
    return steps


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", type=Path, help="a case of refimpl, a folder")
    parser.add_argument("-o", "--output", type=Path, required=True, help="ACTUAL.safetensors")
    dtypes = ("float32", "float64", "float16", "bfloat16")
    parser.add_argument("--dtype", choices=dtypes, default="float32")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--tf32", action="store_true", help="float32 products in TF32, on cuda")
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = options.tf32
    with torch.inference_mode():
        dtype = getattr(torch, options.dtype)
        steps = candidate(options.case, dtype, options.device)
    save_file(steps, options.output)
    device = torch.cuda.get_device_name(options.device) if options.device != "cpu" else "the CPU"
    name = options.case.name
    print(f"{name}: {len(steps)} steps in {options.dtype} on {device}, torch {torch.__version__}")


if __name__ == "__main__":
    main()

"""Compute a case of refimpl with torch: ``python candidate.py CASE -o ACTUAL.safetensors``.

With ``--stepwise`` each step is computed from the case's values of the steps before it.
"""

import argparse
import json
from pathlib import Path

import torch
from allocation import BASES, correction, counts, project
from experiment import experiment
from forward import Model, Weights, embedded, head, passed, perplexity, read_model, unembedded
from pruning import Pruned, pruned_blocks, stepwise_blocks
from safetensors.torch import load_file, save_file
from signals import alpha, block_scores, linears, outlier_percent
from torch import Tensor

VERSION = torch.__version__
INSIDE = ("attn_heads", "mlp_hidden")  # inputs of linears that are no trace points


def candidate(case: Path, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    """Every step of a case, by name."""
    facts = json.loads((case / "case.json").read_text())
    recipe = facts["recipe"]
    model = read_model(case / facts["model"], dtype, device)
    inputs = load_file(case / "inputs.safetensors", device)
    ids = inputs["token_ids"]
    steps: dict[str, Tensor] = {}

    blocks = [model.cast(model.stored(i)) for i in range(model.layers)]
    start = steps["embed"] = embedded(model, ids)
    clean = [start]
    for i, weights in enumerate(blocks):
        seen: Weights = {}
        clean.append(passed(model, i, weights, clean[-1], seen))
        steps |= {f"blocks.{i}.{name}": x for name, x in seen.items() if name not in INSIDE}
    head(model, clean[-1], steps)

    result = experiment(model, blocks, clean[1:], inputs["noise"], recipe)
    for i in range(model.layers):
        steps[f"perturbed.{i}.drift"] = result.drift[i]
        steps[f"perturbed.{i}.alignment"] = result.alignment[i]
    steps["absorption_coefficient"] = result.coefficient

    signals, sizes = measured(model, clean)
    steps |= {f"{base}.signal": x for base, x in signals.items()}
    change = correction(result.coefficient.tolist(), recipe["strength"], recipe["max_correction"])
    totals = [sum(x) for x in sizes]
    targets: dict[str, list[list[int]]] = {}
    for base in recipe["bases"]:
        signal = signals[base].tolist() if base in signals else None
        unprojected = BASES[base](signal, totals, recipe["sparsity"])
        base_sparsity = project(unprojected, totals, recipe["sparsity"])
        moved = [s + c for s, c in zip(unprojected, change, strict=True)]
        corrected = project(moved, totals, recipe["sparsity"])
        targets[base] = counts(corrected, sizes, recipe["sparsity"])
        steps[f"{base}.base"] = torch.tensor(base_sparsity, dtype=torch.float64)
        steps[f"{base}.corrected"] = torch.tensor(corrected, dtype=torch.float64)
        steps[f"{base}.counts"] = torch.tensor(targets[base])

    steps["dense.perplexity"] = perplexity(model, clean[-1], ids)
    first = targets[recipe["bases"][0]]
    zeros, _, group = recipe["pattern"].partition(":")
    for name in ("wanda", "sparsegpt", *(["pattern"] if zeros else [])):
        pattern = (int(zeros), int(group)) if name == "pattern" else None
        pruned = pruned_blocks(model, name, first, pattern, recipe["damping"], start)
        for i, block in enumerate(pruned):
            steps |= named(name, i, block, i in recipe["shown"])
        steps[f"{name}.perplexity"] = perplexity(model, block.after, ids)
    return {name: x.cpu().clone().contiguous() for name, x in steps.items()}


def stepwise(case: Path, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    """Every step of a case from the case's own values, with states and weights rounded once."""
    facts = json.loads((case / "case.json").read_text())
    options, inputs = facts["recipe"], load_file(case / "inputs.safetensors", device)
    model, tokens = read_model(case / facts["model"], dtype, device), inputs["token_ids"]
    expected = load_file(case / "expected.safetensors", device)

    def states(name: str) -> list[Tensor]:
        return [expected[f"blocks.{i}.{name}"].to(dtype) for i in range(model.layers)]

    steps, before, after = {}, states("resid_pre"), states("resid_post")
    steps["embed"] = embedded(model, tokens)
    dense = [model.cast(model.stored(i)) for i in range(model.layers)]
    for i in range(model.layers):
        points: Weights = {}
        passed(model, i, dense[i], before[i], points)
        steps |= {f"blocks.{i}.{x}": points[x] for x in points.keys() - set(INSIDE)}
    steps["final_norm"] = model.norm(after[-1], model.top(model.family.final_norm))
    steps["logits"] = unembedded(model, expected["final_norm"].to(dtype))
    steps["dense.perplexity"] = perplexity(model, after[-1], tokens)

    effects = experiment(model, dense, after, inputs["noise"], options)
    for i, (drift, alignment) in enumerate(zip(effects.drift, effects.alignment, strict=True)):
        steps |= {f"perturbed.{i}.drift": drift, f"perturbed.{i}.alignment": alignment}
    steps["absorption_coefficient"] = effects.coefficient

    computed, sizes = measured(model, before)
    steps |= {f"{name}.signal": x for name, x in computed.items()}
    budget, blocks = options["sparsity"], [sum(x) for x in sizes]
    r = expected["absorption_coefficient"].tolist()
    moves = correction(r, options["strength"], options["max_correction"])
    for name in options["bases"]:
        signal = expected[f"{name}.signal"].tolist() if name in computed else None
        wanted = BASES[name](signal, blocks, budget)
        base = project(wanted, blocks, budget)
        moved = [x + d for x, d in zip(wanted, moves, strict=True)]
        steps[f"{name}.base"] = torch.tensor(base, dtype=torch.float64)
        moved = project(moved, blocks, budget)
        steps[f"{name}.corrected"] = torch.tensor(moved, dtype=torch.float64)
        whole = counts(expected[f"{name}.corrected"].tolist(), sizes, budget)
        steps[f"{name}.counts"] = torch.tensor(whole)

    goals = expected[f"{options['bases'][0]}.counts"].tolist()
    for name in ("wanda", "sparsegpt", "pattern")[: 3 if options["pattern"] else 2]:
        numbers = [int(x) for x in options["pattern"].split(":")] if name == "pattern" else []
        pattern = (numbers[0], numbers[1]) if numbers else None
        damping, start = options["damping"], steps["embed"]
        pruned = stepwise_blocks(model, name, goals, pattern, damping, start, expected)
        for i, block in enumerate(pruned):
            steps |= named(name, i, block, i in options["shown"])
        steps[f"{name}.perplexity"] = perplexity(model, block.after, tokens)
    return {name: x.cpu().clone().contiguous() for name, x in steps.items()}


def measured(model: Model, clean: list[Tensor]) -> tuple[dict[str, Tensor], list[list[int]]]:
    """Signals of the dense model by base, and how many weights every linear has."""
    outliers, typical, tails, sizes = [], [], [], []
    for i in range(model.layers):
        stored = model.stored(i)
        scores = block_scores(model, i, stored, clean[i])
        outliers.append(outlier_percent(scores))
        typical.append(scores.mean())
        weights = [stored[f"{name}.weight"] for name in linears(stored)]
        tails.append([alpha(w) for w in weights])
        sizes.append([w.numel() for w in weights])
    signals = {"owl": torch.stack(outliers), "dlp": torch.stack(typical)}
    return signals | {"alphapruning": torch.tensor(tails, dtype=torch.float64)}, sizes


def named(pruner: str, index: int, block: Pruned, shown: bool) -> dict[str, Tensor]:
    """A pruned block's steps."""
    prefix, kind = f"{pruner}.blocks.{index}", "products" if pruner == "sparsegpt" else "squares"
    steps = {}
    if shown or kind == "squares":
        steps |= {f"{prefix}.{point}.{kind}": x for point, x in block.sums.items()}
    for linear, keep in block.keep.items():
        steps[f"{prefix}.{linear}.keep"] = packed(keep)
        if shown and linear in block.scores:
            steps[f"{prefix}.{linear}.score"] = block.scores[linear]
        if shown and pruner != "pattern":
            steps[f"{prefix}.{linear}.weight"] = block.weights[f"{linear}.weight"]
    return steps


def packed(keep: Tensor) -> Tensor:
    """Eight decisions in a byte, the first in its highest bit, rows filled up with zeros."""
    filled = torch.nn.functional.pad(keep.to(torch.uint8), (0, -keep.shape[1] % 8))
    places = 2 ** torch.arange(7, -1, -1, dtype=torch.uint8, device=keep.device)
    return (filled.unflatten(1, (-1, 8)) * places).sum(-1, dtype=torch.uint8)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", type=Path, help="a case of refimpl, a folder")
    parser.add_argument("-o", "--output", type=Path, required=True, help="ACTUAL.safetensors")
    dtypes = ("float32", "float64", "float16", "bfloat16")
    parser.add_argument("--dtype", choices=dtypes, default="float32")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--tf32", action="store_true", help="float32 products in TF32, on cuda")
    parser.add_argument("--stepwise", action="store_true", help="each step from the case's values")
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = options.tf32
    with torch.inference_mode():
        compute = stepwise if options.stepwise else candidate
        steps = compute(options.case, getattr(torch, options.dtype), options.device)
    save_file(steps, options.output)
    device = torch.cuda.get_device_name(options.device) if options.device != "cpu" else "the CPU"
    name, dtype = options.case.name, options.dtype
    print(f"{name}: {len(steps)} steps in {dtype} on {device}, torch {VERSION}")


if __name__ == "__main__":
    main()

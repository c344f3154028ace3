"""Compute a case of refimpl with torch: ``python candidate.py CASE -o ACTUAL.safetensors``.

With ``--stepwise`` each step begins with what the case says of the steps before it.
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
INSIDE = ("attn_heads", "mlp_hidden")  # what linears read and no trace point is


def candidate(case: Path, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    """Every step of a case, by name."""
    known = json.loads((case / "case.json").read_text())
    recipe = known["recipe"]
    model = read_model(case / known["model"], dtype, device)
    inputs = load_file(case / "inputs.safetensors", device)
    ids = inputs["token_ids"]
    made: dict[str, Tensor] = {}

    blocks = [model.cast(model.stored(i)) for i in range(model.layers)]
    start = made["embed"] = embedded(model, ids)
    clean = [start]
    for i, weights in enumerate(blocks):
        seen: Weights = {}
        clean.append(passed(model, i, weights, clean[-1], seen))
        made |= {f"blocks.{i}.{name}": x for name, x in seen.items() if name not in INSIDE}
    head(model, clean[-1], made)

    found = experiment(model, blocks, clean[1:], inputs["noise"], recipe)
    for i in range(model.layers):
        made[f"perturbed.{i}.drift"] = found.drift[i]
        made[f"perturbed.{i}.alignment"] = found.alignment[i]
    made["absorption_coefficient"] = found.coefficient

    signals, sizes = measured(model, clean)
    made |= {f"{base}.signal": x for base, x in signals.items()}
    change = correction(found.coefficient.tolist(), recipe["strength"], recipe["max_correction"])
    totals = [sum(x) for x in sizes]
    targets: dict[str, list[list[int]]] = {}
    for base in recipe["bases"]:
        signal = signals[base].tolist() if base in signals else None
        given = BASES[base](signal, totals, recipe["sparsity"])
        plain = project(given, totals, recipe["sparsity"])
        pushed = [s + c for s, c in zip(given, change, strict=True)]
        corrected = project(pushed, totals, recipe["sparsity"])
        targets[base] = counts(corrected, sizes, recipe["sparsity"])
        made[f"{base}.base"] = torch.tensor(plain, dtype=torch.float64)
        made[f"{base}.corrected"] = torch.tensor(corrected, dtype=torch.float64)
        made[f"{base}.counts"] = torch.tensor(targets[base])

    made["dense.perplexity"] = perplexity(model, clean[-1], ids)
    first = targets[recipe["bases"][0]]
    zeros, _, group = recipe["pattern"].partition(":")
    for name in ("wanda", "sparsegpt", *(["pattern"] if zeros else [])):
        pattern = (int(zeros), int(group)) if name == "pattern" else None
        pruned = pruned_blocks(model, name, first, pattern, recipe["damping"], start)
        for i, block in enumerate(pruned):
            made |= named(name, i, block, i in recipe["shown"])
        made[f"{name}.perplexity"] = perplexity(model, block.after, ids)
    return {name: x.cpu().clone().contiguous() for name, x in made.items()}


def stepwise(case: Path, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    """Every step of a case from the case's own values; states and weights rounded once."""
    facts = json.loads((case / "case.json").read_text())
    wish, inputs = facts["recipe"], load_file(case / "inputs.safetensors", device)
    model, tokens = read_model(case / facts["model"], dtype, device), inputs["token_ids"]
    known = load_file(case / "expected.safetensors", device)

    def states(name: str) -> list[Tensor]:
        return [known[f"blocks.{i}.{name}"].to(dtype) for i in range(model.layers)]

    steps, before, after = {}, states("resid_pre"), states("resid_post")
    steps["embed"] = embedded(model, tokens)
    dense = [model.cast(model.stored(i)) for i in range(model.layers)]
    for i in range(model.layers):
        points: Weights = {}
        passed(model, i, dense[i], before[i], points)
        steps |= {f"blocks.{i}.{x}": points[x] for x in points.keys() - set(INSIDE)}
    steps["final_norm"] = model.norm(after[-1], model.top(model.family.final_norm))
    steps["logits"] = unembedded(model, known["final_norm"].to(dtype))
    steps["dense.perplexity"] = perplexity(model, after[-1], tokens)

    push = experiment(model, dense, after, inputs["noise"], wish)
    for i, (drift, alignment) in enumerate(zip(push.drift, push.alignment, strict=True)):
        steps |= {f"perturbed.{i}.drift": drift, f"perturbed.{i}.alignment": alignment}
    steps["absorption_coefficient"] = push.coefficient

    found, sizes = measured(model, before)
    steps |= {f"{name}.signal": x for name, x in found.items()}
    budget, blocks = wish["sparsity"], [sum(x) for x in sizes]
    r = known["absorption_coefficient"].tolist()
    moves = correction(r, wish["strength"], wish["max_correction"])
    for name in wish["bases"]:
        given = known[f"{name}.signal"].tolist() if name in found else None
        wanted = BASES[name](given, blocks, budget)
        base = project(wanted, blocks, budget)
        moved = [x + d for x, d in zip(wanted, moves, strict=True)]
        steps[f"{name}.base"] = torch.tensor(base, dtype=torch.float64)
        moved = project(moved, blocks, budget)
        steps[f"{name}.corrected"] = torch.tensor(moved, dtype=torch.float64)
        whole = counts(known[f"{name}.corrected"].tolist(), sizes, budget)
        steps[f"{name}.counts"] = torch.tensor(whole)

    goals = known[f"{wish['bases'][0]}.counts"].tolist()
    for name in ("wanda", "sparsegpt", "pattern")[: 3 if wish["pattern"] else 2]:
        few = [int(x) for x in wish["pattern"].split(":")] if name == "pattern" else []
        pattern = (few[0], few[1]) if few else None
        way = stepwise_blocks(model, name, goals, pattern, wish["damping"], steps["embed"], known)
        for i, block in enumerate(way):
            steps |= named(name, i, block, i in wish["shown"])
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
    made = {}
    if shown or kind == "squares":
        made |= {f"{prefix}.{point}.{kind}": x for point, x in block.sums.items()}
    for linear, keep in block.keep.items():
        made[f"{prefix}.{linear}.keep"] = packed(keep)
        if shown and linear in block.scores:
            made[f"{prefix}.{linear}.score"] = block.scores[linear]
        if shown and pruner != "pattern":
            made[f"{prefix}.{linear}.weight"] = block.weights[f"{linear}.weight"]
    return made


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
    given = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = given.tf32
    with torch.inference_mode():
        compute = stepwise if given.stepwise else candidate
        made = compute(given.case, getattr(torch, given.dtype), given.device)
    save_file(made, given.output)
    where = torch.cuda.get_device_name(given.device) if given.device != "cpu" else "the CPU"
    print(f"{given.case.name}: {len(made)} steps in {given.dtype} on {where}, torch {VERSION}")


if __name__ == "__main__":
    main()

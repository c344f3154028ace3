"""Compute a case of refimpl with torch: ``python candidate.py CASE -o ACTUAL.safetensors``.

With ``--stepwise`` each step is computed from the case's values of the steps before it.
"""

import argparse
import json
from pathlib import Path

import torch
from allocation import BASES, correction, counts, project
from experiment import experiment
from forward import Model, Weights, embedded, final_norm, head, passed, perplexity, read_model
from pruning import Pruned, pruned_blocks
from safetensors.torch import load_file, save_file
from signals import alpha, block_scores, linears, outlier_percent
from torch import Tensor

INSIDE = ("attn_heads", "mlp_hidden")  # inputs of linears that are no trace points


def candidate(
    case: Path, dtype: torch.dtype, device: str, stepwise: bool = False
) -> dict[str, Tensor]:
    """Every step of a case, by name; stepwise, each reads the case's values of those before it."""
    facts = json.loads((case / "case.json").read_text())
    recipe = facts["recipe"]
    model = read_model(case / facts["model"], dtype, device)
    inputs = load_file(case / "inputs.safetensors", device)
    ids = inputs["token_ids"]
    given = load_file(case / "expected.safetensors", device) if stepwise else {}
    steps: dict[str, Tensor] = {}

    def read(name: str) -> Tensor:
        """A step as later steps read it: our value or, in the same dtype, the case's."""
        return given.get(name, steps[name]).to(steps[name].dtype)

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

    result = experiment(model, blocks, after, inputs["noise"], recipe)
    for i in range(model.layers):
        steps[f"perturbed.{i}.drift"] = result.drift[i]
        steps[f"perturbed.{i}.alignment"] = result.alignment[i]
    steps["absorption_coefficient"] = result.coefficient

    signals, sizes = measured(model, before)
    steps |= {f"{base}.signal": x for base, x in signals.items()}
    coefficient = read("absorption_coefficient").tolist()
    change = correction(coefficient, recipe["strength"], recipe["max_correction"])
    totals = [sum(x) for x in sizes]
    for base in recipe["bases"]:
        signal = read(f"{base}.signal").tolist() if base in signals else None
        unprojected = BASES[base](signal, totals, recipe["sparsity"])
        base_sparsity = project(unprojected, totals, recipe["sparsity"])
        moved = [s + c for s, c in zip(unprojected, change, strict=True)]
        corrected = project(moved, totals, recipe["sparsity"])
        steps[f"{base}.base"] = torch.tensor(base_sparsity, dtype=torch.float64)
        steps[f"{base}.corrected"] = torch.tensor(corrected, dtype=torch.float64)
        whole = counts(read(f"{base}.corrected").tolist(), sizes, recipe["sparsity"])
        steps[f"{base}.counts"] = torch.tensor(whole)

    steps["dense.perplexity"] = perplexity(model, after[-1], ids)
    first = read(f"{recipe['bases'][0]}.counts").tolist()
    zeros, _, group = recipe["pattern"].partition(":")
    for name in ("wanda", "sparsegpt", *(["pattern"] if zeros else [])):
        pattern = (int(zeros), int(group)) if name == "pattern" else None
        start = steps["embed"]
        pruned = pruned_blocks(model, name, first, pattern, recipe["damping"], start, given)
        for i, block in enumerate(pruned):
            steps |= named(name, i, block, i in recipe["shown"])
        steps[f"{name}.perplexity"] = perplexity(model, block.after, ids)
    return {name: x.cpu().clone().contiguous() for name, x in steps.items()}


def measured(model: Model, before: list[Tensor]) -> tuple[dict[str, Tensor], list[list[int]]]:
    """Signals of the dense model by base, and how many weights every linear has."""
    outliers, typical, tails, sizes = [], [], [], []
    for i in range(model.layers):
        stored = model.stored(i)
        scores = block_scores(model, i, stored, before[i])
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
        dtype = getattr(torch, options.dtype)
        steps = candidate(options.case, dtype, options.device, options.stepwise)
    save_file(steps, options.output)
    device = torch.cuda.get_device_name(options.device) if options.device != "cpu" else "the CPU"
    name = options.case.name
    print(f"{name}: {len(steps)} steps in {options.dtype} on {device}, torch {torch.__version__}")


if __name__ == "__main__":
    main()

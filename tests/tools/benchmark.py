"""refimpl beside torch on the figures of docs/performance.md.

    python tests/tools/benchmark.py NAME --models real          # measures on this machine, NAME
    python tests/tools/benchmark.py --page                      # writes the page's table

The sides of a row take turns, each in a process of its own; a figure is the median of three runs.
`--models` names the folder that docs/how-to/real-models.md fills. The other sides are programs in
torch (group `fixtures`), with float32 weights in memory. What is measured is in benchmark.json.
"""

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from pages import fill

import refimpl
from refimpl.loading.samples import Tokens, id_windows, random_tokens
from refimpl.running.threads import Workers
from refimpl.scoring.base_signals import signals_of

RESULTS = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
SMOL, QWEN = "SmolLM2-135M-Instruct", "Qwen2.5-Coder-0.5B-Instruct"
PACKAGES = ("numpy", "torch", "transformers")
RUNS = 3
ETA = 0.01
# What is measured, of which model, samples and tokens; the sides are functions of this module.
ROWS: list[tuple[str, str, int, int, tuple[str, ...]]] = [
    ("scoring, whole process", SMOL, 2, 128, ("score", "hooked_score")),
    ("forward to the logits", SMOL, 2, 512, ("logits", "torch_logits")),
    ("forward to the logits", QWEN, 1, 256, ("logits", "torch_logits")),
    ("evaluation of windows", SMOL, 2, 512, ("nats", "torch_nats")),
    ("evaluation of windows", QWEN, 1, 256, ("nats", "torch_nats")),
    ("OWL's statistic", SMOL, 4, 512, ("owl", "torch_owl")),
]
AGAINST = {
    "hooked_score": "one hooked full forward per block, in torch",
    "torch_logits": "transformers",
    "torch_nats": "transformers",
    "torch_owl": "OWL's own loop, in torch",
}


def key_of(row: tuple[str, str, int, int, tuple[str, ...]]) -> str:
    """What a row measures, and of which input."""
    what, model, samples, tokens, _ = row
    return f"{what}|{model.removesuffix('-Instruct')}, {samples} x {tokens} tokens"


def command(*words: object) -> float:
    """Seconds of a command, the start of the interpreter included."""
    start = time.perf_counter()
    parts = [sys.executable, "-m", "refimpl", *map(str, words)]
    subprocess.run(parts, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def seconds(run: Callable[[], Any]) -> float:
    """Seconds of a run, after one that does not count."""
    run()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def score(model: str, tokens: Tokens) -> float:
    """`refimpl score` with Gaussian noise."""
    ids = f"--tokens random --samples {len(tokens.ids)} --seq-len {len(tokens.ids[0])}"
    return command("score", model, "--perturbation", "gaussian", *ids.split())


def logits(model: str, tokens: Tokens) -> float:
    """`refimpl.forward`, a sequence on each core."""
    ready = refimpl.read_model(model)

    def run() -> None:
        with Workers(None) as workers:
            workers.map(lambda row: refimpl.forward(ready, [row]).logits[0], tokens.ids)

    return seconds(run)


def nats(model: str, tokens: Tokens) -> float:
    """`refimpl.evaluate`."""
    ready = refimpl.read_model(model)
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/ids.npy", tokens.ids)
        windows = id_windows(f"{folder}/ids.npy")
        return seconds(lambda: refimpl.evaluate(ready, windows))


def owl(model: str, tokens: Tokens) -> float:
    """OWL's statistic of every block."""
    ready = refimpl.read_model(model)
    start = time.perf_counter()
    signals_of(ready, refimpl.Request(base="owl", correct=None), tokens)
    return time.perf_counter() - start


def loaded(model: str) -> Any:
    """A model of transformers in float32 that keeps no cache; attention is fused, its default."""
    from transformers import AutoModelForCausalLM

    llm = AutoModelForCausalLM.from_pretrained(
        model, dtype="float32", attn_implementation="sdpa"
    )
    llm.config.use_cache = False
    return llm.eval()


def tensor(tokens: Tokens) -> Any:
    """Ids of torch."""
    import torch

    return torch.from_numpy(np.asarray(tokens.ids)).long()


def hooked_score(model: str, tokens: Tokens) -> float:
    """Scoring as one would write it first: a full forward per block, its output perturbed."""
    import torch

    llm, start = loaded(model), time.perf_counter()
    blocks, ratios = llm.model.layers, []

    def outputs(row: Any) -> Any:
        states: list[Any] = []
        hooks = [
            x.register_forward_hook(lambda _, __, h: states.append(h)) for x in blocks
        ]
        llm(row[None])
        for hook in hooks:
            hook.remove()
        return torch.cat(states)

    def perturbed(state: Any) -> Any:
        noise = torch.randn(state.shape)
        scale = state.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
        return state + ETA * scale * noise

    with torch.no_grad():
        for row in tensor(tokens):
            clean = outputs(row)
            for i, block in enumerate(blocks):
                hook = block.register_forward_hook(lambda _, __, h: perturbed(h))
                drift = (outputs(row) - clean).norm(dim=-1) / clean.norm(dim=-1)
                hook.remove()
                ratios.append((drift[-1] / drift[i]).mean())
    return time.perf_counter() - start


def torch_logits(model: str, tokens: Tokens) -> float:
    """Logits of transformers."""
    import torch

    llm, ids = loaded(model), tensor(tokens)
    with torch.no_grad():
        return seconds(lambda: llm(ids).logits.numpy())


def torch_nats(model: str, tokens: Tokens) -> float:
    """Nats of every window, one after another."""
    import torch

    llm, rows, entropy = (
        loaded(model),
        tensor(tokens),
        torch.nn.functional.cross_entropy,
    )
    with torch.no_grad():
        return seconds(
            lambda: [entropy(llm(x[None, :-1]).logits[0], x[1:]).item() for x in rows]
        )


def torch_owl(model: str, tokens: Tokens) -> float:
    """OWL's statistic by its loop: hooks that sum squares, then all scores of a block together."""
    import torch

    llm, start = loaded(model), time.perf_counter()
    with torch.no_grad():
        for sums in _calibrated(llm, tensor(tokens)):
            each = [(m.weight.abs() * x.sqrt()).flatten() for m, x in sums.items()]
            scores = torch.cat(each)
            _ = 100 * float((scores > 5 * scores.mean()).sum()) / scores.numel()
    return time.perf_counter() - start


def _calibrated(llm: Any, ids: Any) -> Iterator[dict[Any, Any]]:
    """The mean squares of what each block's linears read, block by block."""
    import torch

    class Caught(Exception):
        """Nothing behind the first block is to run."""

    states, extra = [], {}

    def catch(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        kwargs = dict(kwargs)
        states.append(args[0] if args else kwargs.pop("hidden_states"))
        extra.update(kwargs)
        raise Caught

    def summing(total: Any) -> Callable[..., None]:
        def hook(
            _: Any, args: Any, __: Any
        ) -> None:  # returns nothing, which keeps the output
            total.add_(args[0].flatten(0, -2).norm(dim=0) ** 2 / len(ids))

        return hook

    hook = llm.model.layers[0].register_forward_pre_hook(catch, with_kwargs=True)
    for row in ids:
        with contextlib.suppress(Caught):
            llm(row[None])
    hook.remove()
    for block in llm.model.layers:
        linears = [m for m in block.modules() if isinstance(m, torch.nn.Linear)]
        sums = {m: torch.zeros(m.in_features) for m in linears}
        hooks = [m.register_forward_hook(summing(sums[m])) for m in linears]
        for j, state in enumerate(states):
            states[j] = block(state, **extra)
        for hook in hooks:
            hook.remove()
        yield sums


def run_side(side: str, model: str, samples: int, tokens: int) -> dict[str, float]:
    """Seconds of a side, and the largest memory of its processes in MB."""
    words = [sys.executable, __file__, "--side", side, model, str(samples), str(tokens)]
    quiet = {**os.environ, "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        words, stdout=subprocess.PIPE, text=True, env=quiet, check=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"  {side} {model}: {found}", file=sys.stderr, flush=True)
    return found


def this_side(side: str, model: str, samples: str, tokens: str) -> None:
    """Run a side in this process, and print what it took."""
    import resource

    vocabulary = refimpl.read_model(model).config.vocab_size
    took = globals()[side](model, random_tokens(vocabulary, int(samples), int(tokens)))
    who = (resource.RUSAGE_CHILDREN if side == "score" else resource.RUSAGE_SELF,)
    peak = max(resource.getrusage(x).ru_maxrss for x in who) * 1024 / 1e6
    print(json.dumps({"seconds": took, "MB": peak}))


def measured(models: Path) -> dict[str, Any]:
    """What this machine is, and every row."""
    rows = {}
    for what, model, samples, tokens, sides in ROWS:
        found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
        for turn in range(RUNS):
            for side in sides if turn % 2 == 0 else sides[::-1]:
                found[side].append(run_side(side, str(models / model), samples, tokens))
        rows[key_of((what, model, samples, tokens, sides))] = {
            unit: {side: [x[unit] for x in runs] for side, runs in found.items()}
            for unit in ("seconds", "MB")
        }
    packages = {name: version(name) for name in PACKAGES}
    today = time.strftime("%Y-%m-%d")
    return {
        "measured": today,
        "system": platform.platform(),
        "packages": packages,
        "rows": rows,
    }


def number(value: float) -> str:
    """Three digits, or all of a number above a thousand."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def table(results: dict[str, Any]) -> str:
    """A line for each row: how many times as much the other side takes, and what both take."""
    ratio_heads = (f"{name}, ratio" for name in results)
    heads = ["what", "input", "against", *ratio_heads, "refimpl", "other"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for key in map(key_of, ROWS):
        for unit, what in (("seconds", "time"), ("MB", "memory")):
            ratios, sides = [], {}
            for machine in results.values():
                row = machine["rows"].get(key, {}).get(unit, {})
                sides = sides or row
                pairs = zip(*row.values(), strict=True) if len(row) == 2 else ()
                each = [theirs / ours for ours, theirs in pairs]
                spread = f" ({min(each):.2f} to {max(each):.2f})" if each[1:] else ""
                ratios.append(f"{median(each):.2f}{spread}" if each else "")
            if not sides:
                continue
            name, size = key.split("|")
            other = next((AGAINST[side] for side in sides if side in AGAINST), "")
            taken = [
                f"{number(median(x))} {'s' if unit == 'seconds' else unit}"
                for x in sides.values()
            ]
            cells = [
                f"{name}, {what}",
                size,
                other,
                *ratios,
                *taken,
                *[""] * (2 - len(taken)),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n\n" + "\n".join(lines) + "\n\n"


def main() -> None:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("machine", nargs="?", help="its name in the table")
    parser.add_argument("--models", type=Path)
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--side", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        return this_side(*given.side)
    results = json.loads(RESULTS.read_text())
    if given.models:
        results[given.machine] = measured(given.models)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    if given.page:
        fill(PAGE, {"figures": table(results)})
    return None


if __name__ == "__main__":
    main()

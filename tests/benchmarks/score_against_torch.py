"""Time scoring against a plain torch loop of hooked full forwards, alternating.

    python tests/benchmarks/score_against_torch.py MODEL_DIR [--rival body] [--attention sdpa]

The rival perturbs the output of one block at a time by a forward hook, runs the whole model and
measures the drift after every later block: what one would write first, on transformers, with
attention as plain matrix products (eager) or torch's fused kernel (sdpa). `full` calls the causal
language model, `body` leaves its head away. Both sides
get the same ids, float32 and all cores; each repetition is a process of its own, loading not
counted.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import numpy as np
from machine import clock


def ids_for(vocab_size: int, samples: int, seq_len: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab_size, (samples, seq_len))


def with_refimpl(path: str, samples: int, seq_len: int) -> dict:
    import refimpl
    from refimpl.tokens import random_tokens

    model = refimpl.read_model(path)
    tokens = random_tokens(model.config.vocab_size, samples, seq_len)
    start = time.perf_counter()
    scores = refimpl.score(model, tokens)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "r": scores.sweep[0].coefficient.tolist()}


def with_torch(path: str, samples: int, seq_len: int, rival: str, attention: str) -> dict:
    import torch
    import transformers

    from refimpl import read_model
    from refimpl.tokens import random_tokens

    ids = random_tokens(read_model(path).config.vocab_size, samples, seq_len).ids
    whole = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation=attention
    )
    model, blocks = whole if rival == "full" else whole.model, list(whole.model.layers)
    states: list = [None] * len(blocks)

    def watch(i: int):
        def hook(module, args, output):
            states[i] = output[0] if isinstance(output, tuple) else output

        return hook

    def push(module, args, output):
        h = output[0] if isinstance(output, tuple) else output
        e = torch.randn(h.shape)
        e = 0.01 * h.norm(dim=-1, keepdim=True) / e.norm(dim=-1, keepdim=True) * e
        return (h + e, *output[1:]) if isinstance(output, tuple) else h + e

    ratios = torch.zeros(samples, len(blocks))
    start = clock()
    with torch.no_grad():
        for s, row in enumerate(ids):
            watchers = [b.register_forward_hook(watch(i)) for i, b in enumerate(blocks)]
            model(torch.tensor(row[None]), use_cache=False)
            clean = list(states)
            for w in watchers:
                w.remove()
            for i, block in enumerate(blocks):
                hooks = [block.register_forward_hook(push)]
                hooks += [blocks[k].register_forward_hook(watch(k)) for k in range(i, len(blocks))]
                model(torch.tensor(row[None]), use_cache=False)
                drift = [
                    (states[k] - clean[k]).norm(dim=-1) / clean[k].norm(dim=-1)
                    for k in range(i, len(blocks))
                ]
                ratios[s, i] = (drift[-1] / drift[0]).mean()
                for h in hooks:
                    h.remove()
    return {"seconds": clock() - start, "r": ratios.mean(0).tolist()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--rival", choices=("full", "body"), default="full")
    parser.add_argument("--attention", choices=("eager", "sdpa"), default="eager")
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", choices=("refimpl", "torch"))
    given = parser.parse_args()
    if given.side:
        what = (given.model, given.samples, given.seq_len)
        run = (
            with_refimpl(*what)
            if given.side == "refimpl"
            else with_torch(*what, given.rival, given.attention)
        )
        print(json.dumps(run))
        return
    times: dict[str, list[float]] = {"refimpl": [], "torch": []}
    for _ in range(given.repeats):
        r = {}
        for side in times:
            command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
            out = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            times[side].append(out["seconds"])
            r[side] = np.array(out["r"])
        print(
            f"refimpl {times['refimpl'][-1]:.1f} s, torch {times['torch'][-1]:.1f} s, ratio "
            f"{times['torch'][-1] / times['refimpl'][-1]:.2f}; coefficients differ by at most "
            f"{np.abs(r['refimpl'] / r['torch'] - 1).max():.1%} (other noise draws)",
            flush=True,
        )
    ratios = [t / n for n, t in zip(times["refimpl"], times["torch"], strict=True)]
    print(
        f"median refimpl {statistics.median(times['refimpl']):.1f} s, torch "
        f"{statistics.median(times['torch']):.1f} s, ratio {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}), {given.samples} x {given.seq_len} tokens, "
        f"rival {given.rival}, {given.attention} attention"
    )


if __name__ == "__main__":
    main()

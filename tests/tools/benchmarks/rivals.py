"""The other side of every comparison, written plainly in torch from the method.

Each function runs in a process of its own. Weights are in memory, in float32, before the clock
starts. Pruning is in pruning_rivals.py.
"""

import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ours import timed
from transformers import AutoModelForCausalLM

import refimpl
from refimpl.loading.samples import random_tokens

ETA = 0.01
Tensor = torch.Tensor


def score_hooked(model: str, samples: int, tokens: int) -> dict[str, Any]:
    """Scoring by one forward of transformers per block, its output perturbed by a hook."""
    llm = transformers_model(model)
    blocks = llm.model.layers
    ids = torch.from_numpy(random_tokens(llm.config.vocab_size, samples, tokens).ids)
    ratios = torch.zeros(samples, len(blocks))
    start = time.perf_counter()
    with torch.no_grad():
        for s, row in enumerate(ids):
            clean = outputs(llm, row, blocks)
            for i, block in enumerate(blocks):
                hook = block.register_forward_hook(lambda module, args, h: perturbed(h))
                pairs = zip(outputs(llm, row, blocks[i:]), clean[i:], strict=True)
                drift = [drifts(*pair) for pair in pairs]
                hook.remove()
                ratios[s, i] = (drift[-1] / drift[0]).mean()
    return {"seconds": time.perf_counter() - start, "r": ratios.mean(0).tolist()}


def outputs(runner: Any, row: Tensor, blocks: Any) -> list[Tensor]:
    """Run a model on one sequence; what some of its blocks put out."""
    states: list[Tensor] = []
    hooks = [b.register_forward_hook(lambda module, args, h: states.append(h)) for b in blocks]
    runner(row[None])
    for hook in hooks:
        hook.remove()
    return states


def perturbed(state: Tensor) -> Tensor:
    """A state with Gaussian noise of relative size eta on every token."""
    noise = torch.randn(state.shape)
    return state + noise * (
        ETA * state.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
    )


def drifts(states: Tensor, clean: Tensor) -> Tensor:
    """Relative drift of states from the clean one, per token."""
    return (states - clean).norm(dim=-1) / clean.norm(dim=-1)


def score_batched(model: str, samples: int, tokens: int, attention: str) -> dict[str, Any]:
    """Scoring with everything shared that can be: all states of a sequence go through each block.

    The clean state and the states perturbed so far are one batch; each block adds one to it.
    """
    facts, weights = read(model)
    ids = torch.from_numpy(random_tokens(facts.vocab_size, samples, tokens).ids)
    tables = rope(facts, tokens)
    ratios = torch.zeros(samples, facts.num_blocks)
    start = time.perf_counter()
    with torch.no_grad():
        for s, row in enumerate(ids):
            states, first = F.embedding(row[None], weights["embed"]), []
            for i in range(facts.num_blocks):
                states = block(states, weights[i], tables, facts, attention)
                states = torch.cat((states, perturbed(states[:1])))
                drift = drifts(states[1:], states[:1])
                first.append(drift[-1])
            ratios[s] = (drift / torch.stack(first)).mean(-1)
    return {"seconds": time.perf_counter() - start, "r": ratios.mean(0).tolist()}


def read(model: str) -> tuple[Any, dict[Any, Any]]:
    """A model's facts, and its weights in float32 as torch's: per block, and the embedding."""
    ready = refimpl.read_model(model)
    weights: dict[Any, Any] = {
        i: {k: torch.tensor(np.asarray(v)) for k, v in ready.block(i, np.float32).items()}
        for i in range(ready.config.num_blocks)
    }
    weights["embed"] = torch.tensor(np.asarray(ready.embedding()["embed.weight"], np.float32))
    return ready.config, weights


def rope(facts: Any, tokens: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position, each [T, h]."""
    angles = np.outer(np.arange(tokens), facts.blocks[0].rope.inv_freq())
    twice = np.concatenate((angles, angles), axis=-1)
    return torch.tensor(np.cos(twice)).float(), torch.tensor(np.sin(twice)).float()


def block(
    x: Tensor, w: dict[str, Tensor], tables: tuple[Tensor, Tensor], facts: Any, attention: str
) -> Tensor:
    """One block of Llama's or Qwen2's design, [B, T, D] to [B, T, D]."""

    def project(name: str, y: Tensor) -> Tensor:
        return F.linear(y, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def heads(name: str, y: Tensor) -> Tensor:
        return project(name, y).unflatten(-1, (-1, facts.head_dim)).transpose(1, 2)

    def turned(y: Tensor) -> Tensor:
        left, right = y.chunk(2, dim=-1)
        return y * tables[0] + torch.cat((-right, left), dim=-1) * tables[1]

    y = F.rms_norm(x, x.shape[-1:], w["attn_norm.weight"], facts.norm_eps)
    q, k, v = turned(heads("q_proj", y)), turned(heads("k_proj", y)), heads("v_proj", y)
    if attention == "fused":
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    else:
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
        scores = q @ k.transpose(-1, -2) * facts.head_dim**-0.5
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v
    x = x + project("o_proj", mixed.transpose(1, 2).flatten(2))
    y = F.rms_norm(x, x.shape[-1:], w["mlp_norm.weight"], facts.norm_eps)
    return x + project("down_proj", F.silu(project("gate_proj", y)) * project("up_proj", y))


def spectra(model: str, blocks: int, dtype: str) -> dict[str, Any]:
    """AlphaPruning's alphas as the original finds them: singular values, then a loop over tails."""
    _, weights = read(model)
    kept = [[w for n, w in weights[i].items() if w.ndim == 2] for i in range(blocks)]
    start = time.perf_counter()
    alphas = [[tail_exponent(w.to(getattr(torch, dtype))) for w in block] for block in kept]
    return {"seconds": time.perf_counter() - start, "alpha": alphas}


def tail_exponent(weight: Tensor) -> float:
    """Exponent of the tail that fits best, of those that start near the spectrum's peak."""
    values = torch.linalg.svdvals(weight).square().sort().values
    logs, n_all = values.log(), len(values)
    counts = torch.histc(values.log10(), 100)
    edges = torch.linspace(float(values.log10().min()), float(values.log10().max()), 101)
    peak = 10 ** float(edges[int(counts.argmax())])
    low, high = np.log10(0.95 * peak), 1.5 * peak
    alphas, distances = torch.zeros(n_all - 1), torch.ones(n_all - 1)
    alphas, distances = alphas.to(values.dtype), distances.to(values.dtype)
    for i in range(n_all - 1):
        if values[i] < low:
            continue
        if values[i] > high:
            break
        n = n_all - i
        alphas[i] = 1 + n / (logs[i:].sum() - n * logs[i])
        if alphas[i] > 1:
            fit = 1 - (values[i:] / values[i]) ** (1 - alphas[i])
            distances[i] = (fit - torch.arange(n) / n).abs().max()
    return float(alphas[distances.argmin()])


def forward(model: str, samples: int, tokens: int, repetitions: int) -> dict[str, Any]:
    """Tokens per second of transformers to the logits."""
    llm = transformers_model(model)
    ids = torch.from_numpy(random_tokens(llm.config.vocab_size, samples, tokens).ids)
    with torch.no_grad():
        return timed(lambda: llm(ids).logits.numpy(), ids.numel(), repetitions)


def evaluation(model: str, ids: str, repetitions: int) -> dict[str, Any]:
    """Tokens per second of transformers to the nats of every window, one after another."""
    llm = transformers_model(model)
    rows = torch.from_numpy(np.load(ids)).long()

    def run() -> np.ndarray:
        nats = [F.cross_entropy(llm(row[None, :-1]).logits[0], row[1:]).item() for row in rows]
        return np.array(nats)[None]

    with torch.no_grad():
        return timed(run, rows[:, 1:].numel(), repetitions)


def transformers_model(model: str) -> Any:
    """A model of transformers in float32 that keeps no cache; attention is fused, its default."""
    llm = AutoModelForCausalLM.from_pretrained(model, dtype="float32", attn_implementation="sdpa")
    llm.config.use_cache = False
    return llm.eval()


def graph(model: str, out: str, samples: int, tokens: int, repetitions: int) -> dict[str, Any]:
    """Tokens per second of onnxruntime on the graph that refimpl exports, to the logits."""
    from refimpl.onnx.export import export
    from refimpl.onnx.session import open_session

    ready = refimpl.read_model(model)
    made = export(ready, out, dtype=np.float32, force=True)
    session = open_session(made.graph, "cpu")
    ids = random_tokens(ready.config.vocab_size, samples, tokens).ids
    return timed(lambda: session.run({"token_ids": ids})["logits"], ids.size, repetitions)

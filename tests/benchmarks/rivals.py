"""The other side of every comparison, written plainly in torch from the method.

Each function runs in a process of its own. Weights are in memory, in float32, before the clock
starts.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from machine import by_processor, clock
from ours import linear as random_linear
from ours import timed
from score_against_torch import ids_for, with_torch

ETA = 0.01
WIDTH = 128  # columns that SparseGPT decides on together
DAMPING = 0.01
Tensor = torch.Tensor


def score_hooked(model: str, samples: int, tokens: int) -> dict[str, Any]:
    """Scoring by one full forward of transformers per block, its output pushed by a hook."""
    return with_torch(model, samples, tokens, "full", "eager")


def score_batched(model: str, samples: int, tokens: int, attention: str) -> dict[str, Any]:
    """Scoring with everything shared that can be: all states of a sequence go through each block.

    The clean state and the states perturbed so far are one batch; each block adds one to it.
    """
    facts, weights = read(model)
    ids = ids_for(facts.vocab_size, samples, tokens)
    tables = rope(facts, tokens)
    blocks = facts.num_blocks
    ratios = torch.zeros(samples, blocks)
    start = clock()
    with torch.no_grad():
        for s, row in enumerate(ids):
            states = F.embedding(torch.tensor(row[None]), weights["embed"])
            first = []
            for i in range(blocks):
                states = block(states, weights[i], tables, facts, attention)
                noise = torch.randn(states[:1].shape)
                norms = states[:1].norm(dim=-1, keepdim=True)
                noise *= ETA * norms / noise.norm(dim=-1, keepdim=True)
                states = torch.cat((states, states[:1] + noise))
                drift = drifts(states)
                first.append(drift[-1])
            ratios[s] = (drift / torch.stack(first)).mean(-1)
        seconds = clock() - start
    return {"seconds": seconds, "r": ratios.mean(0).tolist()}


def drifts(states: Tensor) -> Tensor:
    """Relative drift of every state but the first from the first, per token."""
    return (states[1:] - states[:1]).norm(dim=-1) / states[:1].norm(dim=-1)


def read(model: str) -> tuple[Any, dict[Any, Any]]:
    """A model's facts, and its weights in float32 as torch's: per block, and the embedding."""
    import refimpl

    ready = refimpl.read_model(model)
    weights: dict[Any, Any] = {
        i: {k: torch.tensor(np.asarray(v)) for k, v in ready.block(i, np.float32).items()}
        for i in range(ready.config.num_blocks)
    }
    weights["embed"] = torch.tensor(ready.embedding()["embed.weight"].astype(np.float32))
    return ready.config, weights


def rope(facts: Any, tokens: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position, each [T, h]."""
    angles = np.outer(np.arange(tokens), facts.blocks[0].rope.inv_freq)
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
    start = clock()
    alphas = [[tail_exponent(w.to(getattr(torch, dtype))) for w in block] for block in kept]
    return {"seconds": clock() - start, "alpha": alphas}


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


def owl(model: str, ids: str) -> dict[str, Any]:
    """OWL's statistic by its loop: hooks that sum squares, then all scores of a block together."""
    from transformers import AutoModelForCausalLM
    from wanda_against_torch import first_inputs

    llm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    llm.config.use_cache = False
    start = clock()
    rows = torch.from_numpy(np.load(ids)).long()
    percent = []
    with torch.no_grad():
        states, extra = first_inputs(llm, llm.model.layers[0], rows)
        after = torch.zeros_like(states)
        for layer in llm.model.layers:
            linears = [m for m in layer.modules() if isinstance(m, torch.nn.Linear)]
            sums = [torch.zeros(m.in_features) for m in linears]
            hooks = [
                m.register_forward_hook(summing(row, len(states)))
                for m, row in zip(linears, sums, strict=True)
            ]
            for j in range(len(states)):
                found = layer(states[j : j + 1], **extra)
                after[j] = (found[0] if isinstance(found, tuple) else found)[0]
            for hook in hooks:
                hook.remove()
            parts = [
                (m.weight.abs() * row.sqrt()).flatten()
                for m, row in zip(linears, sums, strict=True)
            ]
            scores = torch.cat(parts)
            percent.append(100 * float((scores > 5 * scores.mean()).sum()) / scores.numel())
            states, after = after, states
    return {"seconds": clock() - start, "percent": percent}


def summing(row: Tensor, samples: int) -> Callable[..., None]:
    """A hook that adds the mean over samples of the squares of a linear's inputs."""

    def hook(module: Any, args: Any, output: Any) -> None:
        x = args[0].reshape(-1, args[0].shape[-1])
        row.add_(x.norm(p=2, dim=0) ** 2 / samples)

    return hook


def wanda(model: str, ids: str, out: str, sparsity: float) -> dict[str, Any]:
    """Wanda's loop in float32."""
    import shutil

    import wanda_against_torch

    shutil.rmtree(out, ignore_errors=True)
    found = wanda_against_torch.with_torch(model, ids, out, sparsity, "float32")
    return {"seconds": found["inside"]}


def sparsegpt(rows: int, columns: int, sparsity: float, out: str) -> dict[str, Any]:
    """SparseGPT of one linear in float32."""
    weight, hessian = (torch.from_numpy(x).float() for x in random_linear(rows, columns))
    start = clock()
    new, keep = sparsegpt_loop(weight, hessian, sparsity)
    seconds = clock() - start
    np.savez(out, keep=keep.numpy(), weight=new.numpy())
    return {"seconds": seconds}


def sparsegpt_errors(rows: int, columns: int, outs: list[str]) -> dict[str, Any]:
    """How far each result is from the original's algorithm in float64, at the result's own keep."""
    weight, hessian = (torch.from_numpy(x).double() for x in random_linear(rows, columns))
    errors = []
    for out in outs:
        with np.load(out) as found:
            keep, new = torch.from_numpy(found["keep"]), torch.from_numpy(found["weight"]).double()
        exact, _ = sparsegpt_loop(weight, hessian, 0.0, keep)
        errors.append(float((new - exact).norm() / exact.norm()))
    return {"errors": errors}


def sparsegpt_loop(
    weight: Tensor, hessian: Tensor, sparsity: float, keep: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The original's steps: invert the Hessian, factor the inverse, go column by column.

    Args:
        weight: [R, C].
        hessian: [C, C], of the same dtype.
        sparsity: Share of each 128 columns that goes.
        keep: The decision, where it is given.

    Returns:
        The new weight, and what was kept.
    """
    w, h = weight.clone(), hessian.clone()
    dead = h.diagonal() == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    h.diagonal().add_(DAMPING * h.diagonal().mean())
    factor = torch.linalg.cholesky(h)
    factor = torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True)
    kept = torch.ones_like(w, dtype=torch.bool)
    for start in range(0, w.shape[1], WIDTH):
        end = min(start + WIDTH, w.shape[1])
        now, inner = w[:, start:end].clone(), factor[start:end, start:end]
        errors = torch.zeros_like(now)
        if keep is None:
            score = now**2 / inner.diagonal() ** 2
            limit = score.flatten().sort().values[int(score.numel() * sparsity)]
            kept[:, start:end] = score > limit
        else:
            kept[:, start:end] = keep[:, start:end]
        for i in range(end - start):
            column = now[:, i].clone()
            new = column * kept[:, start + i]
            error = (column - new) / inner[i, i]
            now[:, i:] -= error[:, None] @ inner[i, i:][None]
            now[:, i] = new
            errors[:, i] = error
        w[:, start:end] = now
        w[:, end:] -= errors @ factor[start:end, end:]
    return w, kept


def forward(model: str, samples: int, tokens: int, repetitions: int) -> dict[str, Any]:
    """Tokens per second of transformers, eager, to the logits."""
    llm, facts = transformers_model(model)
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, facts, (samples, tokens)))
    with torch.no_grad():
        run = lambda: llm(ids, use_cache=False).logits.numpy()  # noqa: E731
        return timed(run, ids.numel(), repetitions)


def evaluation(model: str, ids: str, repetitions: int) -> dict[str, Any]:
    """Tokens per second of transformers, eager, to the nats of every window, one after another."""
    llm, _ = transformers_model(model)
    rows = torch.from_numpy(np.load(ids)).long()

    def run() -> np.ndarray:
        nats = [
            F.cross_entropy(llm(row[None, :-1], use_cache=False).logits[0], row[1:]).item()
            for row in rows
        ]
        return np.array(nats)[None]

    with torch.no_grad():
        return timed(run, rows[:, 1:].numel(), repetitions)


def transformers_model(model: str) -> tuple[Any, int]:
    """A model in float32 with eager attention, and its vocabulary."""
    from transformers import AutoModelForCausalLM

    llm = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation="eager"
    )
    return llm.eval(), llm.config.vocab_size


def graph(model: str, out: str, samples: int, tokens: int, repetitions: int) -> dict[str, Any]:
    """Tokens per second of onnxruntime on the graph that refimpl exports, to the logits."""
    import refimpl
    from refimpl.onnx.export import export
    from refimpl.onnx.session import open_session

    ready = refimpl.read_model(model)
    made = export(ready, out, dtype=np.float32, force=True)
    session = open_session(made.graph, "cpu", threads=1 if by_processor() else None)
    ids = np.random.default_rng(0).integers(0, ready.config.vocab_size, (samples, tokens))
    run = lambda: session.run({"token_ids": ids})["logits"]  # noqa: E731
    return timed(run, ids.size, repetitions)


def extended_sparsegpt(rows: int, columns: int, sparsity: float) -> dict[str, Any]:
    """Errors of ours and of the original's steps in float64 against extended precision."""
    from refimpl.pruners.sparsegpt import sparsegpt as ours

    weight, hessian = random_linear(rows, columns)
    done = ours(weight, hessian, round(sparsity * weight.size))
    keep = torch.from_numpy(done.keep)
    theirs, _ = sparsegpt_loop(
        torch.from_numpy(weight).double(), torch.from_numpy(hessian), 0.0, keep
    )
    exact = in_extended(weight, hessian, done.keep)
    size = np.linalg.norm(exact.astype(np.float64))
    return {
        name: float(np.sqrt(((found - exact) ** 2).sum()) / size)
        for name, found in (("ours", done.weight), ("original", theirs.numpy()))
    }


def in_extended(weight: np.ndarray, hessian: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """SparseGPT's new weights for a decision, in longdouble, from the definition."""
    h = hessian.astype(np.longdouble)
    h += np.longdouble(DAMPING) * h.diagonal().mean() * np.eye(len(h))
    lower = cholesky(h[::-1, ::-1])  # H = V V^T, V upper: factor from the last column backwards
    upper = lower[::-1, ::-1]
    new = weight.T.astype(np.longdouble)
    inverse = np.eye(len(h), dtype=np.longdouble)
    for i in reversed(range(len(h))):  # V U = 1
        inverse[i] = (inverse[i] - upper[i, i + 1 :] @ inverse[i + 1 :]) / upper[i, i]
    for i in range(len(h)):
        error = np.where(keep.T[i], 0, new[i]) / inverse[i, i]
        new[i + 1 :] -= np.multiply.outer(inverse[i, i + 1 :], error)
        new[i] = np.where(keep.T[i], new[i], 0)
    return new.T


def cholesky(h: np.ndarray) -> np.ndarray:
    """Lower factor, column by column, in the dtype given."""
    lower = np.zeros_like(h)
    for j in range(len(h)):
        column = h[j:, j] - lower[j:, :j] @ lower[j, :j]
        lower[j:, j] = column / np.sqrt(column[0])
    return lower

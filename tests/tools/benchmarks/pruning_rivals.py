"""The originals of OWL, Wanda and SparseGPT, their loops written plainly in torch.

Each function runs in a process of its own, and says what its clock counts.
"""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from ours import linear as random_linear
from rivals import Tensor, transformers_model
from transformers import AutoConfig

WIDTH = 128  # columns that SparseGPT decides on together
DAMPING = 0.01


def owl(model: str, ids: str) -> dict[str, Any]:
    """OWL's statistic by its loop: hooks that sum squares, then all scores of a block together."""
    llm = transformers_model(model)
    start, percent = time.perf_counter(), []
    for sums in calibrated(llm, ids):
        scores = torch.cat([wanda_score(m, row).flatten() for m, row in sums.items()])
        percent.append(100 * float((scores > 5 * scores.mean()).sum()) / scores.numel())
    return {"seconds": time.perf_counter() - start, "percent": percent}


def wanda(model: str, ids: str, out: str, sparsity: float) -> dict[str, Any]:
    """Wanda's loop in float32; the clock counts reading and writing, too."""
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    stored = AutoConfig.from_pretrained(model).dtype
    llm = transformers_model(model)
    for sums in calibrated(llm, ids, twice=True):
        for linear, row in sums.items():
            score, weight = wanda_score(linear, row), linear.weight.data
            order = torch.sort(score, dim=-1, stable=True).indices
            gone = torch.zeros_like(score, dtype=torch.bool)
            gone.scatter_(1, order[:, : int(weight.shape[1] * sparsity)], True)
            weight[gone] = 0
    llm.to(stored).save_pretrained(out)
    return {"seconds": time.perf_counter() - start, "threads": torch.get_num_threads()}


def wanda_score(linear: Any, row: Tensor) -> Tensor:
    """Scores [out, in] of a linear, from its inputs' mean squares."""
    return linear.weight.data.abs() * row.sqrt()


def calibrated(llm: Any, ids: str, twice: bool = False) -> Iterator[dict[Any, Tensor]]:
    """Take samples through all blocks as the originals do; yield the sums of each block's linears.

    `twice`: what leaves a block is computed again once its sums have been used.
    """
    blocks = llm.model.layers
    with torch.no_grad():
        states, extra = first_inputs(llm, blocks[0], torch.from_numpy(np.load(ids)).long())

        after = torch.zeros_like(states)

        def run(block: Any) -> None:
            for j in range(len(states)):
                after[j] = block(states[j : j + 1], **extra)[0]

        for block in blocks:
            linears = [m for m in block.modules() if isinstance(m, torch.nn.Linear)]
            sums = {m: torch.zeros(m.in_features) for m in linears}
            hooks = [m.register_forward_hook(summing(sums[m], len(states))) for m in linears]
            run(block)
            for hook in hooks:
                hook.remove()
            yield sums
            if twice:
                run(block)
            states, after = after, states


def first_inputs(llm: Any, block: Any, ids: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Run the model until its first block: all samples' states there, and what else it is given."""

    class Caught(Exception):
        """Nothing behind the first block is to run."""

    states, extra = [], {}

    def catch(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        kwargs = dict(kwargs)
        states.append(args[0] if args else kwargs.pop("hidden_states"))
        extra.update(kwargs)
        raise Caught

    hook = block.register_forward_pre_hook(catch, with_kwargs=True)
    for row in ids:
        with contextlib.suppress(Caught):
            llm(row[None])
    hook.remove()
    return torch.cat(states), extra


def summing(row: Tensor, samples: int) -> Callable[..., None]:
    """A hook that adds the mean over samples of the squares of a linear's inputs, in float32."""

    def hook(module: Any, args: Any, output: Any) -> None:
        x = args[0].reshape(-1, args[0].shape[-1]).float()
        row.add_(x.norm(p=2, dim=0) ** 2 / samples)

    return hook


def sparsegpt(rows: int, columns: int, sparsity: float, out: str) -> dict[str, Any]:
    """SparseGPT of one linear in float32."""
    weight, hessian = (torch.from_numpy(x).float() for x in random_linear(rows, columns))
    start = time.perf_counter()
    new, keep = sparsegpt_loop(weight, hessian, sparsity)
    seconds = time.perf_counter() - start
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

    Returns the new weight [R, C], and what was kept: `keep`, or that share of each 128 columns.
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

"""What a validation covers: trace points, batches, what it leaves out, and what it refuses."""

from collections.abc import Iterator
from math import inf
from pathlib import Path

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.model.config import Config
from refimpl.model.ops import Array
from refimpl.onnx.recording.model_graph import block_points
from refimpl.tokens import Tokens

SHORT = 5  # tokens of the first batch


def trace_points(config: Config) -> tuple[str, ...]:
    """Names of all trace points of a model, in the order of execution."""
    each = block_points(config)
    blocks = (f"blocks.{i}.{point}" for i in range(config.num_blocks) for point in each)
    return "embed", *blocks, "final_norm", "logits"


def validation_batches(ids: npt.NDArray[np.int64]) -> list[Array]:
    """Batches [1, at most 5], [n, S] and [n, 1] of samples [n, S], each shape once."""
    batches = (ids[:1, :SHORT], ids, ids[:, :1])
    return list({batch.shape: batch for batch in batches}.values())


def notes_on(
    config: Config,
    points: tuple[str, ...] | None,
    experiment: bool,
    against: str,
    tokens: Tokens,
) -> Iterator[str]:
    """Sentences on what was not compared; no points mean no forward pass, None means all."""
    torch = against == "torch"
    if points == ("logits",):
        yield "the graph has logits only: write it with --outputs trace to see where it goes wrong"
    elif points:
        name, total = "transformers" if torch else "the graph", len(trace_points(config))
        yield f"{name} has {len(points)} of {total} trace points"
    if points == ():
        yield "the graph is the experiment's: no trace point was compared"
    elif not experiment:
        reason = "transformers has no experiment" if torch else "another graph has the experiment"
        yield f"{reason}: it was not compared"
    longest = tokens.ids.shape[1]
    if windows := [kind.window for kind in config.blocks if (kind.window or 0) >= longest]:
        window = max(w for w in windows if w is not None)
        yield f"no sample is longer than the window of {window:,}: use --seq-len {window + 8}"


def check_request(
    graph: str | Path | None, against: str, device: str, tolerance: float | None
) -> None:
    """Refuse options of a validation that exclude each other."""
    if against == "torch" and graph is not None:
        raise RefimplError(
            "--graph with --against torch",
            "a runtime for the graph: torch runs transformers, not graphs",
            "use --against onnxruntime, or omit --graph",
        )
    if against == "onnx-reference" and device == "cuda":
        raise RefimplError(
            "--device cuda with --against onnx-reference",
            "auto or cpu: onnx's evaluator runs on the CPU",
            "use --against onnxruntime, or omit --device",
        )
    if tolerance is not None and not 0 < tolerance < inf:
        raise RefimplError(
            f"--tolerance {tolerance:g}", "a number above 0", "use for example --tolerance 1e-5"
        )

"""What a validation covers: trace points, batches, and what is left out or refused."""

from collections.abc import Iterator
from math import inf
from pathlib import Path

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.model.config import Config
from refimpl.model.forward import TRACE_POINTS
from refimpl.model.ops import Array
from refimpl.tokens import Tokens

SHORT = 5  # tokens of the shortest batch but one


def trace_points(config: Config) -> tuple[str, ...]:
    """Names of all trace points of a model, in the order of execution.

    Args:
        config: Its facts.

    Returns:
        `embed`, `blocks.0.resid_pre`, ..., `logits`.
    """
    rotary = config.blocks[0].rope is not None
    each = [p for p in TRACE_POINTS if rotary or not p.endswith("_rope")]
    blocks = (f"blocks.{i}.{p}" for i in range(config.num_blocks) for p in each)
    return "embed", *blocks, "final_norm", "logits"


def batches(ids: npt.NDArray[np.int64]) -> list[Array]:
    """Cut batches of several shapes out of samples.

    Args:
        ids: Samples, [n, S].

    Returns:
        [1, at most 5], [n, S] and [n, 1]; each shape once.

    Example:
        >>> [batch.shape for batch in batches(np.zeros((3, 13), np.int64))]
        [(1, 5), (3, 13), (3, 1)]
    """
    cut = (ids[:1, :SHORT], ids, ids[:, :1])
    return list({batch.shape: batch for batch in cut}.values())


def notes_on(
    config: Config,
    points: tuple[str, ...] | None,
    experiment: bool,
    against: str,
    tokens: Tokens,
) -> Iterator[str]:
    """What was not compared.

    Args:
        config: The model's facts.
        points: Trace points that were promised; None for all, empty without a forward pass.
        experiment: Whether the experiment was compared.
        against: "onnxruntime", "onnx-reference" or "torch".
        tokens: What it was compared on.

    Yields:
        Sentences.
    """
    known, length = trace_points(config), tokens.ids.shape[1]
    if points == ("logits",):
        yield "the graph hands out logits only: one with --outputs trace says where it goes wrong"
    elif points:
        whose = "transformers hands out" if against == "torch" else "the graph hands out"
        yield f"{whose} {len(points)} of {len(known)} trace points"
    if points == ():
        yield "the graph is the experiment's: no trace point was compared"
    elif not experiment:
        whose = "transformers has no" if against == "torch" else "another graph holds the"
        yield f"{whose} experiment: it was not compared"
    if beyond := {kind.window for kind in config.blocks if (kind.window or 0) >= length}:
        window = max(w for w in beyond if w is not None)
        yield f"no sample is longer than the window of {window:,}: use --seq-len {window + 8}"


def check_request(
    graph: str | Path | None, against: str, device: str, tolerance: float | None
) -> None:
    """Refuse what does not go together.

    Args:
        graph: A graph's file, or None.
        against: "onnxruntime", "onnx-reference" or "torch".
        device: "auto", "cuda" or "cpu".
        tolerance: Largest relative error of the worst token, or None.

    Raises:
        RefimplError: It does not.
    """
    if against == "torch" and graph is not None:
        raise RefimplError(
            "--graph with --against torch",
            "a runtime for the graph; torch runs transformers",
            "use --against onnxruntime, or leave --graph away",
        )
    if against == "onnx-reference" and device == "cuda":
        raise RefimplError(
            "--device cuda with --against onnx-reference",
            "auto or cpu: onnx's evaluator runs on the CPU",
            "use --against onnxruntime, or leave --device away",
        )
    if tolerance is not None and not 0 < tolerance < inf:
        raise RefimplError(
            f"--tolerance {tolerance:g}", "a number above 0", "use for example --tolerance 1e-5"
        )

"""Validation: does another computation of a model agree with NumPy, and where does it first not?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from refimpl.comparison.agreement import Agreement, agreements, first_over, gate_of
from refimpl.errors import RefimplError
from refimpl.model.config import Config
from refimpl.model.forward import forward
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.onnx.candidate import (
    Against,
    Backend,
    Candidate,
    experiment_points,
    experiment_tokens,
    open_candidates,
)
from refimpl.onnx.recording.model_graph import trace_points
from refimpl.onnx.session import Device
from refimpl.onnx.zero_weights import Zeros
from refimpl.running.provenance import TokenFacts, token_facts
from refimpl.tokens import Tokens
from refimpl.tokens.model_tokens import model_tokens

VALIDATION_SAMPLES, VALIDATION_SEQ_LEN = 3, 13  # defaults
SHORT = 5  # tokens of the first batch
VALIDATION_DTYPES = ("float32", "float64")


@dataclass(frozen=True)
class Comparison:
    """One run on token ids of one shape [B, S], compared with NumPy.

    Args:
        tolerance: Largest error of the worst token.
        points: One per trace point, in the order of execution; of the experiment: drift, alignment
            and absorption coefficient.
    """

    kind: Literal["forward", "experiment"]
    dtype: str
    shape: tuple[int, ...]
    tolerance: float
    points: tuple[Agreement, ...]

    @property
    def first(self) -> Agreement | None:
        """The first trace point over the tolerance, or None."""
        return first_over(self.points, self.tolerance)


@dataclass(frozen=True)
class Validation:
    """Whether another computation agrees with NumPy.

    Args:
        graph: The graph's file; None if it was recorded for this run, or there is no graph.
        ran: What ran it, such as "onnxruntime 1.22.0, cpu".
        comparisons: One per dtype and shape, and per dtype one of the experiment.
        zeros: The zeros of a graph's file; None without a file, or if it names no linear.
        notes: What was not compared, in sentences.
    """

    model: str
    family: str
    num_blocks: int
    graph: str | None
    against: Against
    ran: str
    tokens: TokenFacts
    comparisons: tuple[Comparison, ...]
    zeros: Zeros | None
    notes: tuple[str, ...]

    @property
    def first(self) -> Comparison | None:
        """The first comparison that fails, or None."""
        return next((x for x in self.comparisons if x.first is not None), None)

    @property
    def agrees(self) -> bool:
        """Whether every number is within its tolerance, and the zeros are those of the file."""
        return self.first is None and (self.zeros is None or self.zeros.agree)


def validation_tokens(
    model: Model,
    text: Path | None = None,
    ids: Path | None = None,
    samples: int | None = None,
    seq_len: int | None = None,
) -> Tokens:
    """Tokens to compare on: of a text, a file of ids, or random; by default 3 samples of 13."""
    if ids is None:
        samples = VALIDATION_SAMPLES if samples is None else samples
        longest = model.config.max_position_embeddings
        seq_len = min(VALIDATION_SEQ_LEN, longest) if seq_len is None else seq_len
    return model_tokens(model, text, ids, samples, seq_len)


def validate(
    model: Model,
    tokens: Tokens | None = None,
    graph: str | Path | None = None,
    against: Against = "onnxruntime",
    *,
    device: Device = "auto",
    dtypes: Sequence[str] | None = None,
    tolerance: float | None = None,
    threads: int | None = None,
    time_limit: float | None = None,
) -> Validation:
    """Compare another computation of a model with NumPy's, trace point by trace point.

    Options are those of `refimpl validate`. Three batches are cut from the tokens, which one graph
    has to serve: the start of the first sample, all, and the first token of each. The experiment is
    compared on the start of the first sample.
    """
    check_request(graph, against, device, tolerance)
    tokens = validation_tokens(model) if tokens is None else tokens
    comparisons, runtimes = list[Comparison](), dict[str, None]()
    backend = Backend(against, device, threads, time_limit)
    trace = trace_points(model.config)
    foreign = None if graph is None else backend.open_file(Path(graph), trace)
    for dtype in dtypes or (VALIDATION_DTYPES if foreign is None else (foreign.graph.dtype,)):
        limit = gate_of(dtype, model.config.hidden_size) if tolerance is None else tolerance
        candidates = open_candidates(model, foreign, dtype, backend)
        for candidate in candidates:
            runtimes[candidate.runtime] = None
            comparisons += _compared(model, candidate, tokens.ids, dtype, limit)
    promised = next((x.points for x in candidates if x.plan is None), ())
    experiment = any(x.plan is not None for x in candidates)
    notes = list(notes_on(model.config, promised, experiment, against, tokens))
    zeros = None if foreign is None else foreign.zeros(model)
    if zeros is not None and not zeros.named:
        zeros = None
        notes.append("no linear of the graph has our name: its zeros were not counted")
    return Validation(
        model.name,
        model.config.family,
        model.config.num_blocks,
        None if graph is None else str(graph),
        against,
        "; ".join(runtimes),
        token_facts(tokens),
        tuple(comparisons),
        zeros,
        tuple(notes),
    )


def _compared(
    model: Model, candidate: Candidate, ids: Array, dtype: str, limit: float
) -> list[Comparison]:
    """Run a candidate and NumPy on batches of the samples [n, S], and compare them."""
    if candidate.plan is not None:
        ids = experiment_tokens(ids)
        points = agreements(*experiment_points(model, candidate, candidate.plan, ids, dtype))
        return [Comparison("experiment", dtype, ids.shape, limit, points)]
    comparisons = []
    for batch in validation_batches(ids):
        expected = forward(model, batch, trace=True, dtype=dtype).trace
        if candidate.points is not None:
            expected = {name: expected[name] for name in candidate.points}
        points = agreements(candidate.run(batch), expected)
        comparisons.append(Comparison("forward", dtype, batch.shape, limit, points))
    return comparisons


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

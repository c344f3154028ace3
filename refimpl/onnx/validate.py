"""Validation: another computation of a model as a candidate, which the oracle judges."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.loading.samples import VALIDATED, TokenFacts, Tokens
from refimpl.loading.text import model_tokens
from refimpl.model.config import Config
from refimpl.model.model import Model
from refimpl.onnx.recording.graph import distinct
from refimpl.onnx.recording.model_graph import (
    TOKENS,
    Recording,
    record_model,
    trace_points,
)
from refimpl.onnx.session import Candidate, open_foreign, open_session
from refimpl.oracle.case import Case, computed_case
from refimpl.oracle.check import Report, Verdict, check
from refimpl.oracle.recipe import Recipe


@dataclass(frozen=True)
class Validation:
    """Whether another computation agrees with the float64 truth: a report per dtype and batch."""

    model: str
    family: str
    num_blocks: int
    graph: str | None
    ran: str
    tokens: TokenFacts
    reports: tuple[Report, ...]
    notes: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst of the reports' verdicts."""
        order: tuple[Verdict, ...] = ("fail", "not judged", "pass")
        return min((report.verdict for report in self.reports), key=order.index)


def validate(
    model: Model,
    tokens: Tokens | None = None,
    graph: str | Path | None = None,
    *,
    dtype: str | None = None,
    threads: int | None = None,
    time_limit: float | None = None,
) -> Validation:
    """Check another computation of a model as a candidate, step by step.

    Options are those of `refimpl validate`.
    """
    tokens = tokens or model_tokens(model, default=VALIDATED)
    if graph is not None:
        opened = [open_foreign(Path(graph), model, threads, time_limit)]
        if dtype not in (None, opened[0].dtype):
            raise RefimplError(
                f"`dtype={dtype}` with a graph that computes in {opened[0].dtype}",
                f"`dtype={opened[0].dtype}`",
                "omit `dtype`",
            )
    else:
        points, opened = trace_points(model.config), list[Candidate]()
        for kind in [dtype] if dtype else ["float32", "float64"]:
            recording = Recording(model, kind)
            record_model(recording, "trace")
            names = {tensor.name for tensor in recording.graph.initializers}
            arrays = {
                x.name: x.read() for x in distinct(recording.carried) if x.name in names
            }
            proto = recording.graph.model().SerializeToString()
            session = open_session(proto, threads=threads, weights=arrays)
            opened.append(Candidate(session.run, session.runtime, kind, points))

    @cache
    def case_of(rows: int, length: int, points: tuple[str, ...]) -> Case:
        """The truth, once for all dtypes."""
        recipe = Recipe(only=points)
        return computed_case(
            model, replace(tokens, ids=tokens.ids[:rows, :length]), recipe
        )

    reports = [
        check(
            case, candidate.run(case.inputs[TOKENS]), candidate.points, candidate.dtype
        )
        for candidate in opened
        for rows, length in _shapes(tokens.ids, candidate.length)
        for case in [case_of(rows, length, candidate.points)]
    ]
    return Validation(
        model.name,
        model.config.family,
        model.config.num_blocks,
        None if graph is None else str(graph),
        "; ".join(dict.fromkeys(candidate.runtime for candidate in opened)),
        tokens.facts,
        tuple(reports),
        tuple(
            notes_on(
                model.config,
                opened,
                max(x.case.inputs[TOKENS].shape[1] for x in reports),
            )
        ),
    )


def _shapes(ids: npt.NDArray[np.int64], length: int | None) -> list[tuple[int, int]]:
    """[1, at most 5], [n, S] and [n, 1], or those of one length."""
    samples, longest = ids.shape
    every = dict.fromkeys([(1, min(longest, 5)), (samples, longest), (samples, 1)])
    fitting = [shape for shape in every if length in (None, shape[1])]
    return fitting or [(samples, min(longest, length or longest))]


def notes_on(
    config: Config, candidates: Sequence[Candidate], longest: int
) -> Iterator[str]:
    """Sentences on what was not compared."""
    total = len(trace_points(config))
    for points in (x.points for x in candidates if len(x.points) < total):
        yield (
            f"the graph has {len(points)} of {total} trace points: write it with --outputs trace "
            "to see where it goes wrong"
        )
    if windows := [
        kind.window for kind in config.blocks if (kind.window or 0) >= longest
    ]:
        window = max(w for w in windows if w is not None)
        yield f"no sample is longer than the window of {window:,}: use {window + 8} tokens"

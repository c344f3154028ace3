"""Validation: another computation of a model as a candidate, which the oracle judges."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from refimpl.arguments import Device
from refimpl.errors import RefimplError
from refimpl.method.perturbation import Noise
from refimpl.model.config import Config
from refimpl.model.model import Model
from refimpl.onnx.candidate import Candidate, recorded_candidate
from refimpl.onnx.foreign_graph import open_foreign
from refimpl.onnx.recording.model_graph import PERTURBATION_OPTIONS, TOKENS, Recording, trace_points
from refimpl.oracle.case import Case, computed_case
from refimpl.oracle.check import Report, Verdict, check
from refimpl.oracle.recipe import Recipe
from refimpl.running.provenance import TokenFacts, token_facts
from refimpl.tokens import Tokens
from refimpl.tokens.model_tokens import model_tokens
from refimpl.tokens.samples import VALIDATED

SHORT = 5  # tokens of the first batch
LONGEST = 64  # tokens of the experiment: all states are in memory at once


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
        order: tuple[Verdict, ...] = ("divergent", "inconclusive", "resolved", "pass")
        return min((report.verdict for report in self.reports), key=order.index)


def validate(
    model: Model,
    tokens: Tokens | None = None,
    graph: str | Path | None = None,
    *,
    device: Device = "auto",
    dtype: str | None = None,
    threads: int | None = None,
    time_limit: float | None = None,
) -> Validation:
    """Check another computation of a model as a candidate, step by step.

    Options are those of `refimpl validate`. The experiment has noise as long as the state (eta 1):
    a drift is a difference of two states, and a small one leaves few digits to compare.
    """
    if tokens is None:
        tokens = model_tokens(model, default=VALIDATED)
    if graph is not None:
        opened = [open_foreign(Path(graph), model, device, threads, time_limit)]
        if dtype not in (None, opened[0].dtype):
            raise RefimplError(
                f"--dtype {dtype} with a graph that computes in {opened[0].dtype}",
                f"--dtype {opened[0].dtype}",
                "omit --dtype",
            )
    else:
        webgpu = device == "webgpu"  # what it leaves to the CPU is constant for a known length
        opened = [
            recorded_candidate(Recording(model, each, length=length), plan, device, threads)
            for each in ([dtype] if dtype else ["float32", "float64"][: 1 if webgpu else 2])
            for plan in (None, Noise())
            for length in dict.fromkeys(x if webgpu else None for _, x in _shapes(tokens.ids, plan))
        ]

    @cache
    def case_of(rows: int, length: int, steps: tuple[str, ...], plan: Noise | None) -> Case:
        """The truth, once for all dtypes."""
        options = {} if plan is None else {n: getattr(plan, n) for n in PERTURBATION_OPTIONS}
        recipe = Recipe(only=steps, eta=1.0, **options)
        return computed_case(model, replace(tokens, ids=tokens.ids[:rows, :length]), recipe)

    reports = [
        check(case, candidate.run(case), candidate.steps, candidate.dtype)
        for candidate in opened
        for rows, length in _shapes(tokens.ids, candidate.plan, candidate.length)
        for case in [case_of(rows, length, candidate.steps, candidate.plan)]
    ]
    return Validation(
        model.name,
        model.config.family,
        model.config.num_blocks,
        None if graph is None else str(graph),
        "; ".join(dict.fromkeys(candidate.runtime for candidate in opened)),
        token_facts(tokens),
        tuple(reports),
        tuple(notes_on(model.config, opened, max(x.case.inputs[TOKENS].shape[1] for x in reports))),
    )


def _shapes(
    ids: npt.NDArray[np.int64], plan: Noise | None, length: int | None = None
) -> list[tuple[int, int]]:
    """[1, at most 5], [n, S] and [n, 1], or those of one length; with a plan [1, at most 64]."""
    samples, longest = ids.shape
    if plan is not None:
        return [(1, min(longest, length or LONGEST))]
    every = dict.fromkeys([(1, min(longest, SHORT)), (samples, longest), (samples, 1)])
    fitting = [shape for shape in every if length in (None, shape[1])]
    return fitting or [(samples, min(longest, length or longest))]


def notes_on(config: Config, candidates: Sequence[Candidate], longest: int) -> Iterator[str]:
    """Sentences on what was not compared."""
    total = len(trace_points(config))
    for points in (x.steps for x in candidates if x.plan is None and len(x.steps) < total):
        yield (
            f"the graph has {len(points)} of {total} trace points: write it with --outputs trace "
            "to see where it goes wrong"
        )
    if windows := [kind.window for kind in config.blocks if (kind.window or 0) >= longest]:
        window = max(w for w in windows if w is not None)
        yield f"no sample is longer than the window of {window:,}: use --seq-len {window + 8}"

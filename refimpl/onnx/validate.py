"""Validation: another computation of a model as a candidate, which the oracle judges."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.method.perturbation import Noise
from refimpl.model.config import Config
from refimpl.model.model import Model
from refimpl.onnx.candidate import Candidate, recorded_candidates
from refimpl.onnx.foreign_graph import open_foreign
from refimpl.onnx.recording.model_graph import PERTURBATION_OPTIONS, trace_points
from refimpl.onnx.session import Device
from refimpl.oracle.case import Case, computed_case
from refimpl.oracle.check import Report, Verdict, check
from refimpl.oracle.recipe import Recipe
from refimpl.running.provenance import TokenFacts, token_facts
from refimpl.tokens import Tokens
from refimpl.tokens.model_tokens import model_tokens
from refimpl.tokens.samples import VALIDATED

SHORT = 5  # tokens of the first batch
LONGEST = 64  # tokens of the experiment: all states are in memory at once
VALIDATION_DTYPES = ("float32", "float64")


@dataclass(frozen=True)
class Validation:
    """Whether another computation agrees with the float64 truth.

    Args:
        graph: The graph's file; None if it was recorded for this run.
        ran: What ran it, such as "onnxruntime 1.22.0, cpu".
        reports: The oracle's: one per dtype and shape of the forward pass, and one per dtype of
            the experiment.
        notes: What was not compared, in sentences.
    """

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


def validation_tokens(
    model: Model,
    text: Path | None = None,
    ids: Path | None = None,
    samples: int | None = None,
    seq_len: int | None = None,
) -> Tokens:
    """Tokens to compare on: of a text, a file of ids, or random; by default 3 samples of 13."""
    return model_tokens(model, text, ids, samples, seq_len, default=VALIDATED)


def validate(
    model: Model,
    tokens: Tokens | None = None,
    graph: str | Path | None = None,
    *,
    device: Device = "auto",
    dtypes: Sequence[str] | None = None,
    threads: int | None = None,
    time_limit: float | None = None,
) -> Validation:
    """Check another computation of a model as a candidate, step by step.

    Options are those of `refimpl validate`. Three batches are cut from the tokens, which one graph
    has to serve: the start of the first sample, all, and the first token of each. The experiment is
    checked on the start of the first sample, with noise as long as the state (eta 1): a drift is a
    difference of two states, and the smaller it is, the fewer of its digits remain to compare.
    """
    if device == "webgpu" and "float64" in (dtypes or ()):
        raise RefimplError(
            "--device webgpu with --dtype float64",
            "--dtype float32: WebGPU has no float64",
            "use --dtype float32",
        )
    tokens = validation_tokens(model) if tokens is None else tokens
    if graph is not None:
        opened = [open_foreign(Path(graph), model, device, threads, time_limit)]
        if dtypes and opened[0].dtype not in dtypes:
            raise RefimplError(
                f"--dtype {dtypes[0]} with a graph that computes in {opened[0].dtype}",
                f"--dtype {opened[0].dtype}",
                "omit --dtype",
            )
    else:
        opened = [
            candidate
            for dtype in dtypes or VALIDATION_DTYPES[: 1 if device == "webgpu" else 2]
            for candidate in recorded_candidates(model, dtype, device, threads)
        ]

    @cache
    def case_of(batch: int, steps: tuple[str, ...], plan: Noise | None) -> Case:
        """The truth, once for all dtypes."""
        options = {} if plan is None else {n: getattr(plan, n) for n in PERTURBATION_OPTIONS}
        recipe = Recipe(only=steps, eta=1.0, **options)
        return computed_case(model, replace(tokens, ids=_batches(tokens.ids, plan)[batch]), recipe)

    reports = [
        check(case, candidate.run(case), candidate.steps, candidate.dtype)
        for candidate in opened
        for i in range(len(_batches(tokens.ids, candidate.plan)))
        for case in [case_of(i, candidate.steps, candidate.plan)]
    ]
    return Validation(
        model.name,
        model.config.family,
        model.config.num_blocks,
        None if graph is None else str(graph),
        "; ".join(dict.fromkeys(candidate.runtime for candidate in opened)),
        token_facts(tokens),
        tuple(reports),
        tuple(notes_on(model.config, opened, tokens)),
    )


def _batches(ids: npt.NDArray[np.int64], plan: Noise | None) -> list[npt.NDArray[np.int64]]:
    """Batches [1, at most 5], [n, S] and [n, 1] of samples [n, S]; [1, at most 64] with a plan."""
    if plan is not None:
        return [ids[:1, :LONGEST]]
    batches = (ids[:1, :SHORT], ids, ids[:, :1])
    return list({batch.shape: batch for batch in batches}.values())


def notes_on(config: Config, candidates: Sequence[Candidate], tokens: Tokens) -> Iterator[str]:
    """Sentences on what was not compared."""
    points = next((x.steps for x in candidates if x.plan is None), ())
    total = len(trace_points(config))
    if points == ("logits",):
        yield "the graph has logits only: write it with --outputs trace to see where it goes wrong"
    elif not points:
        yield "the graph is the experiment's: no trace point was compared"
    elif len(points) < total:
        yield f"the graph has {len(points)} of {total} trace points"
    if points and all(x.plan is None for x in candidates):
        yield "another graph has the experiment: it was not compared"
    longest = tokens.ids.shape[1]
    if windows := [kind.window for kind in config.blocks if (kind.window or 0) >= longest]:
        window = max(w for w in windows if w is not None)
        yield f"no sample is longer than the window of {window:,}: use --seq-len {window + 8}"

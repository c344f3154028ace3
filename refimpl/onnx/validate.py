"""Validation: does another computation of a model agree with NumPy, and where does it first not?

Values are compared, of every trace point that is handed out, in execution order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from refimpl.comparison.agreement import Agreement, agreements, first_over, tolerance_of
from refimpl.model.forward import forward
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.onnx.candidate import (
    Against,
    Candidate,
    file_candidate,
    file_session,
    peer_candidate,
    recorded_candidate,
    what_runs,
)
from refimpl.onnx.graph_file import GraphFile, read_graph
from refimpl.onnx.scope import batches, check_request, notes_on, trace_points
from refimpl.onnx.session import Device
from refimpl.onnx.trial import Trial, recorded_trial, trial_points, trial_tokens
from refimpl.onnx.zero_weights import Zeros, count_zeros
from refimpl.running.provenance import TokenFacts, token_facts
from refimpl.tokens import Tokens
from refimpl.tokens.model_tokens import model_tokens

SAMPLES, SEQ_LEN = 3, 13  # of tokens that nobody asks for otherwise
DTYPES = ("float32", "float64")
Kind = Literal["forward", "experiment"]


@dataclass(frozen=True)
class Comparison:
    """One run on tokens of one shape.

    Args:
        kind: What was run: the forward pass, or the experiment.
        dtype: Dtype of the computation.
        shape: Of the token ids, [B, S].
        tolerance: Largest error of the worst token.
        points: One per trace point, in the order of execution; of the experiment: drift, alignment
            and absorption coefficient.
    """

    kind: Kind
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
        model: Its name.
        family: Its family.
        num_blocks: Number of its blocks.
        graph: The graph's file; None where it was recorded here, or is not one.
        against: "onnxruntime", "onnx-reference" or "torch".
        ran: What ran it and where, such as "onnxruntime 1.22.0, cpu".
        tokens: Where the tokens came from.
        comparisons: One per dtype and shape, and per dtype one of the experiment.
        zeros: The zeros of a graph's file; None where there is none, or it names no linear.
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
        return next((one for one in self.comparisons if one.first is not None), None)

    @property
    def agrees(self) -> bool:
        """Whether everything is within its tolerance, and zeros are where the file has them."""
        return self.first is None and (self.zeros is None or self.zeros.agree)


def validation_tokens(
    model: Model,
    text: Path | None = None,
    ids: Path | None = None,
    samples: int | None = None,
    seq_len: int | None = None,
) -> Tokens:
    """Tokens to compare on: few, unless asked for otherwise.

    Args:
        model: From `read_model`.
        text: A text file, or None.
        ids: A file of token ids, or None.
        samples: Number of samples; 3 if None (all rows of a file of ids).
        seq_len: Tokens per sample; 13 or what the model allows if None (the rows of ids).

    Returns:
        The tokens; drawn at random where neither text nor ids are given.

    Raises:
        RefimplError: As `tokens.model_tokens.model_tokens`.
    """
    if ids is None:
        samples = SAMPLES if samples is None else samples
        longest = model.config.max_position_embeddings
        seq_len = min(SEQ_LEN, longest) if seq_len is None else seq_len
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
) -> Validation:
    """Compare another computation of a model with NumPy's, trace point by trace point.

    Three batches are cut from the tokens: the start of the first sample, all, and the first token
    of each, so that one graph has to serve several shapes. The perturbation experiment is compared
    on the start of the first sample; of a graph's file, only if it is the experiment's.

    Args:
        model: From `read_model`.
        tokens: From `validation_tokens`; drawn at random if None.
        graph: A graph's file; if None every trace point is recorded here.
        against: What runs it: "onnxruntime", "onnx-reference", or "torch" for transformers.
        device: "auto" takes a GPU where one works, and says so; "cuda" or "cpu".
        dtypes: "float32", "float64"; both if None, and for a file what it computes in.
        tolerance: Largest relative error of the worst token; by default `tolerance_of`.
        threads: Of onnxruntime on the CPU; one per core if None.

    Returns:
        What was found; `agrees` says it in a word.

    Raises:
        RefimplError: A graph or a device that cannot be used, libraries that are missing, or a
            tolerance that is no number above 0.

    Source:
        ours; the runtimes are peers. Of transformers' trace points those are compared that it hands
        out itself: the stream after each block but the last, the final norm, and the logits.

    Example:
        >>> from refimpl import read_model
        >>> found = validate(read_model("fixtures/llama"), against="onnx-reference")
        >>> found.agrees, len(found.comparisons), len(found.comparisons[0].points)
        (True, 8, 51)
    """
    check_request(graph, against, device, tolerance)
    tokens = validation_tokens(model) if tokens is None else tokens
    file = None if graph is None else read_graph(Path(graph), trace_points(model.config))
    compared, ran, notes = list[Comparison](), dict[str, None](), list[str]()
    for dtype in dtypes or (DTYPES if file is None else (file.dtype,)):
        candidate, trial = _opened(model, file, against, dtype, device, threads)
        limit = tolerance_of(dtype, model.config.hidden_size) if tolerance is None else tolerance
        if candidate is not None:
            ran[candidate.what] = None
            for ids in batches(tokens.ids):
                points = _compared(model, candidate, ids, dtype)
                compared.append(Comparison("forward", dtype, ids.shape, limit, points))
        if trial is not None:
            ran[what_runs(trial.session)] = None
            ids = trial_tokens(tokens.ids)
            points = agreements(*trial_points(model, trial, ids, dtype))
            compared.append(Comparison("experiment", dtype, ids.shape, limit, points))
        promised = () if candidate is None else candidate.points
        notes = list(notes_on(model.config, promised, trial is not None, against, tokens))
    zeros = None if file is None else count_zeros(model, file.proto, file.path.parent)
    if zeros is not None and not zeros.named:
        zeros = None
        notes.append("no linear of the graph has our name: its zeros were not counted")
    return Validation(
        model.name,
        model.config.family,
        model.config.num_blocks,
        None if graph is None else str(graph),
        against,
        "; ".join(ran),
        token_facts(tokens),
        tuple(compared),
        zeros,
        tuple(notes),
    )


def _compared(model: Model, candidate: Candidate, ids: Array, dtype: str) -> tuple[Agreement, ...]:
    """Run both on one batch, and compare what the other one promises."""
    expected = forward(model, ids, trace=True, dtype=dtype).trace
    if candidate.points is not None:
        expected = {name: expected[name] for name in candidate.points}
    return agreements(candidate.run(ids), expected)


def _opened(
    model: Model,
    file: GraphFile | None,
    against: Against,
    dtype: str,
    device: Device,
    threads: int | None,
) -> tuple[Candidate | None, Trial | None]:
    """Open what is held against NumPy: the forward pass, the experiment, or both."""
    if against == "torch":
        return peer_candidate(model, dtype, device), None
    if file is None:
        where = (model, dtype, against, device, threads)
        return recorded_candidate(*where), recorded_trial(*where)
    session = file_session(file, against, device, threads)
    if file.experiment is not None:
        return None, Trial(session, file.experiment, file.ids)
    return file_candidate(file, session), None

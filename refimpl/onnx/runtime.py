"""The experiment run by onnxruntime, from the same noise as NumPy's."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.method.perturbation import Perturbation, noise
from refimpl.model.config import Config
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.statistics import add_sums
from refimpl.onnx.recording.experiment_graph import (
    AT,
    ETA,
    NOISE,
    READ,
    experiment_graph,
    refuse_pruning,
)
from refimpl.onnx.recording.external_data import distinct, pieces
from refimpl.onnx.recording.model_graph import TOKENS
from refimpl.onnx.recording.weight_entries import copied
from refimpl.onnx.session import Device, Session, check_device, open_session
from refimpl.running.provenance import Runtime
from refimpl.running.settings import Resources
from refimpl.scoring.grouping import groups
from refimpl.scoring.measurements import (
    Address,
    Experiment,
    Measurements,
    PruneBlock,
    addresses,
)

OUTPUTS = ("drift", "alignment", "ratio", "left_out", "sinks", "mean_square")


def on_onnxruntime(plan: Perturbation, device: Device = "auto") -> Experiment:
    """The experiment as `score` runs it, by onnxruntime.

    Args:
        plan: The perturbation that will be given, looked at before anything long is begun.
        device: "cpu"; "cuda"; or "auto": a GPU where one works, else the CPU.

    Returns:
        A function to be called as `scoring.experiment.experiment` is.

    Raises:
        RefimplError: onnxruntime is missing; the pruning perturbation; "cuda" where it does not
            work.

    Source:
        ours.

    Example:
        >>> from refimpl import Perturbation, read_model, score
        >>> from refimpl.tokens import random_tokens
        >>> model, plan = read_model("fixtures/llama"), Perturbation()
        >>> tokens = random_tokens(model.config.vocab_size, samples=1, seq_len=8)
        >>> found = score(model, tokens, plan, runtime=on_onnxruntime(plan, "cpu"))
        >>> found.run.runtime, found.run.device
        ('onnxruntime', 'cpu')
    """
    refuse_pruning(plan)
    check_device(device)
    return partial(_experiment, device)


def state_bytes(config: Config, length: int, dtype: npt.DTypeLike) -> int:
    """Memory that one state takes at its largest: residuals, the MLP, attention's scores, noise.

    Args:
        config: The model's facts.
        length: Tokens, S.
        dtype: Of the computation.

    Returns:
        Bytes, about.

    Source:
        ours: the runtime has all states of a run at the same step, and every step in whole.
    """
    (hidden, width), heads = config.linear_shapes["up_proj"], config.num_attention_heads
    step = max(3 * hidden, 2 * heads * length) + 4 * width
    return length * (step * np.dtype(dtype).itemsize + 3 * width * np.dtype(np.float64).itemsize)


def _experiment(
    device: Device,
    model: Model,
    ids: Array,
    plan: Perturbation,
    resources: Resources,
    prune_block: PruneBlock | None,
    *,
    divergence: bool,
) -> Measurements:
    """`scoring.experiment.experiment`, without what only the pruning perturbation needs."""
    config, (count, length) = model.config, ids.shape
    dtype, memory = resources.dtype, resources.memory
    each = state_bytes(config, length, dtype)
    if memory < 2 * each:
        raise RefimplError(
            f"memory of {memory} bytes does not hold one experiment",
            f"at least {2 * each} bytes: 2 states of {length} tokens in all steps of a block",
            f"use --memory {2 * each} or more, or a shorter --seq-len",
        )
    states = addresses(count, config.num_blocks, plan)
    # The clean state of the one sequence of a run counts two there, and one here.
    parts = [
        sorted(part, key=lambda a: a.block)
        for sequence in range(count)
        for part in groups([a for a in states if a.sequence == sequence], memory // each + 1)
    ]
    session = _opened(model, plan, dtype, device, resources.workers.threads)
    total = sum(config.num_blocks + sum(config.num_blocks - a.block for a in p) for p in parts)
    resources.total = resources.done + total
    runtime = Runtime("onnxruntime", session.device, session.versions)
    found = Measurements.empty(plan, count, config.num_blocks, runtime=runtime)
    counted = set[int]()
    for part in parts:
        sequence = part[0].sequence
        squares = [] if sequence in counted else list(_squares(config.num_blocks))
        outputs = [*OUTPUTS, *(name for _, _, name in squares)]
        result = session.run(_inputs(ids, part, plan, config.hidden_size), outputs)
        if not np.isfinite(result["mean_square"]).all():
            name = np.dtype(dtype).name
            raise RefimplError(
                f"a number beyond the range of {name} (sequence {sequence}, {session.device})",
                f"weights and states within the range of {name}",
                "use --dtype float64, or a smaller --eta; else the weights are damaged",
            )
        for i, a in enumerate(part):
            found.drift[a.index] = result["drift"][i]
            found.alignment[a.index] = result["alignment"][i]
            found.ratios[a.index] = result["ratio"][i]
            found.left_out[a.eta, a.block] += result["left_out"][i]
        if sequence not in counted:
            pushed = sorted({a.block for a in states if a.sequence == sequence})
            found.sinks[pushed] += result["sinks"][pushed]
        for block, point, name in squares:
            add_sums(found.squares[block], {point: result[name]})
        counted.add(sequence)
        resources.tick(config.num_blocks + sum(config.num_blocks - a.block for a in part))
    return found


def _opened(
    model: Model, plan: Perturbation, dtype: npt.DTypeLike, device: Device, threads: int
) -> Session:
    """A session with the experiment's graph; the weights are read once, and not written."""
    found = pieces(model, dtype)
    graph = experiment_graph(model, plan, dtype, copied(found, "memory"), squares=True)
    wanted, weights = {tensor.name for tensor in graph.initializers}, {}
    for piece in distinct(found):
        if piece.name in wanted:
            weights[piece.name] = piece.read()[0].reshape(piece.shape)
            piece.weight.stored.file.release()
    return open_session(graph.model().SerializeToString(), device, threads=threads, weights=weights)


def _inputs(ids: Array, part: list[Address], plan: Perturbation, width: int) -> dict[str, Array]:
    """What the graph is given for some states of one sequence."""
    sequence, shape = part[0].sequence, (ids.shape[1], width)
    drawn = {  # one draw for all etas
        (block, draw): noise(plan.seed, sequence, block, draw, shape)
        for block, draw in {(a.block, a.draw) for a in part}
    }
    return {
        TOKENS: ids[sequence : sequence + 1].astype(np.int64),
        AT: np.array([a.block for a in part], np.int64),
        ETA: np.array([plan.eta[a.eta] for a in part]),
        NOISE: np.stack([drawn[a.block, a.draw] for a in part]),
    }


def _squares(blocks: int) -> Iterator[tuple[int, str, str]]:
    """Blocks, trace points, and the names of their sums of squares."""
    for i in range(blocks):
        for point in READ:
            yield i, point, f"blocks.{i}.{point}.squares"

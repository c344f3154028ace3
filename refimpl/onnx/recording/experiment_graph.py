"""The perturbation experiment as a graph: one sequence's states, which each block adds its own to.

The blocks are recorded from the forward, perturbation and measurement from `refimpl.method`.
"""

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.method.absorption import left_out, nan_mean, surviving_drift
from refimpl.method.perturbation import Noise, Perturbation, deviation, kept_tokens, perturbed
from refimpl.model.ops import Array
from refimpl.onnx.recording.graph import Graph
from refimpl.onnx.recording.model_graph import SEQUENCE, TOKENS, Recording

NOISE, ETA, AT = "noise", "eta", "perturbed_block"  # inputs besides the token ids, one per state
MEASURED = ("drift", "alignment", "coefficient")  # outputs, among others
STATES = "states"
END = np.iinfo(np.int64).max


def experiment_graph(recording: Recording, plan: Noise) -> Graph:
    """Record the experiment of a model, measured in float64 (docs/how-to/experiment-graph.md)."""
    graph, config = recording.graph, recording.model.config
    width, blocks = config.hidden_size, config.num_blocks
    at: Any = graph.input(AT, np.int64, (STATES,))
    eta: Any = graph.input(ETA, np.float64, (STATES,))
    noise: Any = graph.input(NOISE, np.float64, (STATES, SEQUENCE, width))
    add: Any = graph.add
    output: Any = graph.output

    # One sequence only: others in the batch would be taken for states.
    recording.ids.kind.tensor_type.shape.dim[0].dim_value = 1
    x = add("Identity", recording.embed(), axes=("states.0", SEQUENCE, width))
    ids: Any = recording.ids
    kept: Any = np.ones_like(ids, np.bool_)
    first, drifts, alignments, sinks, sizes = [], [], [], [], []
    for i in range(blocks):
        x = recording.block(i, x, ("resid_post",))["resid_post"]
        starts_here, born = np.equal(at, i), f"born.{i}"
        clean, earlier = _first(x), add("Shape", x, end=1)
        inputs = {
            "h": add("Squeeze", clean, [0]),
            "noise": add("Compress", noise, starts_here, axis=0, axes=(born, SEQUENCE, width)),
            "eta": add("Compress", eta, starts_here, axis=0, axes=(born,)),
        }
        body = partial(_perturb, plan)
        new: Any = graph.call("perturb", body, inputs, f"blocks.{i}.perturb")
        rows = (f"states.{i + 1}", SEQUENCE)
        each = add("Concat", add("Shape", new["states"], end=1), [1], axis=0)
        kept_by = add("Expand", new["kept"], each, axes=(born, SEQUENCE))
        x = add("Concat", x, new["states"], axis=0, axes=(*rows, width))
        kept = add("Concat", kept, kept_by, axis=0, axes=rows)
        inputs = {"states": x, "clean": clean, "kept": kept}
        body = partial(_measure, plan)
        measured = graph.call("measure", body, inputs, f"blocks.{i}.measure")
        first.append(_tail(measured["drift"], earlier, born))
        drifts.append(measured["mean_drift"])
        alignments.append(measured["mean_alignment"])
        sinks.append(np.sum(~new["kept"], axis=0, keepdims=True))
        sizes.append(np.expand_dims(np.sum(measured["mean_square"], axis=(0, 1)), 0))

    for name, columns in (("drift", drifts), ("alignment", alignments)):
        rows = add("Shape", columns[-1])
        matrix = np.concatenate([_column(column, rows) for column in columns], axis=1)
        output(name, _tail(matrix, [1], STATES))
    start = add("Concat", *first, axis=0, axes=(STATES, *first[0].axes[1:]))
    share = surviving_drift(_tail(measured["drift"], [1], STATES), start)
    ratio = output("ratio", nan_mean(share, axis=-1))
    in_block = np.equal(at, np.arange(blocks)[:, None])
    output("coefficient", nan_mean(np.where(in_block, ratio, np.nan), axis=-1))
    output("left_out", left_out(share, _tail(kept, [1], STATES), plan.norm))
    output("sinks", np.concatenate(sinks, axis=0))
    output("mean_square", np.concatenate(sizes, axis=0))
    return graph


def experiment_inputs(
    ids: Array, blocks: npt.ArrayLike, etas: npt.ArrayLike, noise: Array
) -> dict[str, Array]:
    """The graph's inputs: token ids [1, S]; block, eta and noise [S, D] of every state."""
    return {
        TOKENS: ids,
        AT: np.asarray(blocks, np.int64),
        ETA: np.asarray(etas, np.float64),
        NOISE: noise,
    }


def only_noise(plan: Perturbation) -> Noise:
    """The noise of a graph; refuses probes, for which every block would be in it twice."""
    if not isinstance(plan, Noise):
        raise RefimplError(
            "the pruning perturbation in a graph",
            "Gaussian noise: pruned blocks would double the weights of the graph",
            "use --runtime numpy, or --perturbation gaussian",
        )
    return plan


def _perturb(plan: Noise, graph: Graph, arrays: dict[str, Any]) -> dict[str, Any]:
    """The states of one block, made of the clean one."""
    h, noise, eta = arrays["h"], arrays["noise"], arrays["eta"]
    kept = kept_tokens(h, plan.sink)
    column = np.expand_dims(np.expand_dims(eta, -1), -1)
    choices = plan.noise_scale, plan.noise_shape, plan.noise_norm
    return {"states": perturbed(h, noise, column, kept, *choices), "kept": kept}


def _measure(plan: Noise, graph: Graph, arrays: dict[str, Any]) -> dict[str, Any]:
    """All states compared with the clean one."""
    states = arrays["states"]
    result = deviation(states, arrays["clean"], arrays["kept"], plan.norm)
    return {
        "drift": result.drift,
        "mean_drift": nan_mean(result.drift, axis=-1),
        "mean_alignment": nan_mean(result.alignment, axis=-1),
        "mean_square": np.mean(states * states, axis=-1).astype(np.float64),
    }


def _first(x: Any) -> Any:
    """The clean state, which is the first."""
    return x.graph.add("Slice", x, [0], [1], [0], axes=(1, *x.axes[1:]))


def _tail(x: Any, start: Any, name: str) -> Any:
    """The rows from `start` on, along an axis with a name."""
    return x.graph.add("Slice", x, start, [END], [0], axes=(name, *x.axes[1:]))


def _column(x: Any, rows: Any) -> Any:
    """Numbers of the first states as a column for all states, NaN for the others."""
    add = x.graph.add
    missing = add("Sub", rows, add("Shape", x))
    pads = add("Concat", [0], missing, axis=0)
    whole = add("Pad", x, pads, np.float64(np.nan), axes=("all",))
    return add("Unsqueeze", whole, [1])

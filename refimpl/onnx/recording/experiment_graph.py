"""The perturbation experiment as a graph: the clean and all perturbed states, through all blocks.

Everything is recorded: the blocks from the forward, the push and its measurement from
`refimpl.method`. The graph is given one sequence, and any number of states to make of it, each by
its block, its relative magnitude and its noise; a block adds its states to those on their way.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from refimpl.errors import RefimplError
from refimpl.method.absorption import left_out, nan_mean, surviving_drift
from refimpl.method.perturbation import Perturbation, deviation, kept_tokens, perturbed
from refimpl.model.kernels import PLAIN, Kernels
from refimpl.model.model import Model
from refimpl.model.statistics import INPUT_OF, sum_of_squares
from refimpl.onnx.recording.graph import OPSET, Body, Graph
from refimpl.onnx.recording.model_graph import SEQUENCE, Recording, described
from refimpl.onnx.recording.weight_entries import Enter

NOISE, ETA, AT = "noise", "eta", "perturbed_block"  # inputs besides the token ids, one per state
STATES = "states"
READ = tuple(dict.fromkeys(INPUT_OF.values()))  # trace points that linears read
END = np.iinfo(np.int64).max
PUSH = "Shape and scale noise, and add it to a state where its tokens take part."
MEASURE = "Relative drift and alignment of all states, the clean one among them, and their size."


def experiment_graph(
    model: Model,
    plan: Perturbation,
    dtype: npt.DTypeLike,
    enter: Enter,
    opset: int = OPSET,
    kernels: Kernels = PLAIN,
    squares: bool = False,
) -> Graph:
    """Record the experiment of a model.

    Inputs: `token_ids` [1, S]; per state, in ascending order of blocks, `perturbed_block` [states],
    `eta` [states] and the noise before it is shaped and scaled, `noise` [states, S, D], float64.

    Outputs, all float64 or int64: `drift` and `alignment` [states, L], means over tokens after
    every block, NaN before the perturbed one; `ratio` [states], the mean of R_L / R_l;
    `coefficient` [L], the mean of `ratio` over the states of a block; `left_out` [states] and
    `sinks` [L], tokens without a ratio and tokens excluded; `mean_square` [L], the sum over all
    states and tokens after a block of what a norm divides by, which is not finite where the range
    of the computation's dtype was left.

    Args:
        model: From `read_model`.
        plan: How states are pushed and measured; eta, draws and seed belong to the inputs.
        dtype: Dtype of the computation, float32 or float64; pushes are made, and measured, in
            float64.
        enter: How a weight comes into the graph.
        opset: Version of ONNX's operators.
        kernels: How steps are recorded that may be in more than one way.
        squares: Whether sums of squares of what the linears read are outputs, too:
            `blocks.3.attn_norm.squares` and so on.

    Returns:
        The graph.

    Raises:
        RefimplError: The pruning perturbation.

    Source:
        arXiv:2606.15161; choices in docs/explanation/method.md, section 2.

    Example:
        >>> from refimpl import read_model
        >>> from refimpl.onnx.recording.weight_entries import embedded
        >>> model = read_model("fixtures/llama")
        >>> enter = embedded(model, "float32")
        >>> graph = experiment_graph(model, Perturbation(), "float32", enter)
        >>> [value.name for value in graph.inputs]
        ['token_ids', 'perturbed_block', 'eta', 'noise']
        >>> [node.op_type for node in graph.nodes if node.domain][:3]
        ['block', 'push', 'measure']
    """
    refuse_pruning(plan)
    recording = Recording(model, dtype, enter, opset, kernels)
    graph, config = recording.graph, model.config
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
        found = recording.block(i, x, (*(READ if squares else ()), "resid_post"))
        x, here, born = found["resid_post"], np.equal(at, i), f"born.{i}"
        clean, moved = _first(x), add("Shape", x, end=1)
        inputs = {
            "h": add("Squeeze", clean, [0]),
            "noise": add("Compress", noise, here, axis=0, axes=(born, SEQUENCE, width)),
            "eta": add("Compress", eta, here, axis=0, axes=(born,)),
        }
        new: Any = graph.call("push", _push(plan), inputs, f"blocks.{i}.push", PUSH)
        rows = (f"states.{i + 1}", SEQUENCE)
        each = add("Concat", add("Shape", new["states"], end=1), [1], axis=0)
        kept_by = add("Expand", new["kept"], each, axes=(born, SEQUENCE))
        x = add("Concat", x, new["states"], axis=0, axes=(*rows, width))
        kept = add("Concat", kept, kept_by, axis=0, axes=rows)
        inputs = {"states": x, "clean": clean, "kept": kept}
        now = graph.call("measure", _measure(plan), inputs, f"blocks.{i}.measure", MEASURE)
        first.append(_tail(now["drift"], moved, born))
        drifts.append(now["mean_drift"])
        alignments.append(now["mean_alignment"])
        sinks.append(np.sum(~new["kept"], axis=0, keepdims=True))
        sizes.append(np.expand_dims(np.sum(now["mean_square"], axis=(0, 1)), 0))
        for point in READ if squares else ():
            output(f"blocks.{i}.{point}.squares", sum_of_squares(_first(found[point])))

    for name, columns in (("drift", drifts), ("alignment", alignments)):
        rows = add("Shape", columns[-1])
        matrix = np.concatenate([_column(column, rows) for column in columns], axis=1)
        output(name, _tail(matrix, [1], STATES))
    start = add("Concat", *first, axis=0, axes=(STATES, *first[0].axes[1:]))
    share = surviving_drift(_tail(now["drift"], [1], STATES), start)
    ratio = output("ratio", nan_mean(share, axis=-1))
    mine = np.equal(at, np.arange(blocks)[:, None])
    output("coefficient", nan_mean(np.where(mine, ratio, np.nan), axis=-1))
    output("left_out", left_out(share, _tail(kept, [1], STATES), plan.norm))
    output("sinks", np.concatenate(sinks, axis=0))
    output("mean_square", np.concatenate(sizes, axis=0))
    return graph


def experiment_described(
    graph: Graph, model: Model, plan: Perturbation, dtype: npt.DTypeLike
) -> onnx.ModelProto:
    """Finish a graph of the experiment: with what it is in words, and how it pushes by key.

    Args:
        graph: From `experiment_graph`.
        model: Of which model.
        plan: How states are pushed and measured.
        dtype: Dtype of the computation.

    Returns:
        The graph, not checked.

    Source:
        ours.
    """
    proto = described(graph, model, dtype, "experiment")
    for name in ("noise_scale", "noise_shape", "norm", "sink"):
        proto.metadata_props.add(key=name, value=getattr(plan, name))
    return proto


def refuse_pruning(plan: Perturbation) -> None:
    """Refuse the pruning perturbation, for which every block would be in the graph twice.

    Args:
        plan: How states are pushed.

    Raises:
        RefimplError: By pruning.
    """
    if plan.kind == "pruning":
        raise RefimplError(
            "the pruning perturbation in a graph",
            "Gaussian noise: pruned blocks would double the weights of the graph",
            "use --runtime numpy, or --perturbation gaussian",
        )


def _push(plan: Perturbation) -> Body:
    """The states of one block, made of the clean one."""

    def body(graph: Graph, given: dict[str, Any]) -> dict[str, Any]:
        h, noise, eta = given["h"], given["noise"], given["eta"]
        kept = kept_tokens(h, plan.sink)
        column = np.expand_dims(np.expand_dims(eta, -1), -1)
        states = perturbed(h, noise, column, kept, plan.noise_scale, plan.noise_shape)
        return {"states": states, "kept": kept}

    return body


def _measure(plan: Perturbation) -> Body:
    """All states against the clean one."""

    def body(graph: Graph, given: dict[str, Any]) -> dict[str, Any]:
        states = given["states"]
        found = deviation(states, given["clean"], given["kept"], plan.norm)
        drift: Any = found.drift
        return {
            "drift": drift,
            "mean_drift": nan_mean(drift, axis=-1),
            "mean_alignment": nan_mean(found.alignment, axis=-1),
            "mean_square": np.mean(states * states, axis=-1).astype(np.float64),
        }

    return body


def _first(x: Any) -> Any:
    """The clean state among all."""
    return x.graph.add("Slice", x, [0], [1], [0], axes=(1, *x.axes[1:]))


def _tail(x: Any, start: Any, name: str) -> Any:
    """The rows from `start` on, an axis of its own."""
    return x.graph.add("Slice", x, start, [END], [0], axes=(name, *x.axes[1:]))


def _column(x: Any, rows: Any) -> Any:
    """Numbers of the first states as a column for all of them, NaN below."""
    add = x.graph.add
    missing = add("Sub", rows, add("Shape", x))
    pads = add("Concat", [0], missing, axis=0)
    whole = add("Pad", x, pads, np.float64(np.nan), axes=("all",))
    return add("Unsqueeze", whole, [1])

"""A model as a graph: its own forward, recorded, with one function for the block.

Token ids [batch, sequence] go in, logits or every trace point come out. Positions, the causal mask,
windows and rotary tables are computed in the graph, so that one graph serves every batch size and
every length up to the model's limit. The block is recorded once, as a function of the graph's own,
and called once per block with the weights of that block.
"""

from collections.abc import Mapping
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import onnx

from refimpl.model.forward import TRACE_POINTS, Observer, Place, block, embed, head, places
from refimpl.model.kernels import PLAIN, Kernels
from refimpl.model.model import Model
from refimpl.onnx.recording.array import Recorded
from refimpl.onnx.recording.graph import OPSET, Graph
from refimpl.onnx.recording.weight_entries import Enter
from refimpl.pruning.inspection import inspect
from refimpl.version import __version__

Outputs = Literal["logits", "trace"]
TOKENS, BATCH, SEQUENCE = "token_ids", "batch", "sequence"
BLOCK = "block"  # the function's name
DOC = "One decoder block: attention and MLP, each added to the residual stream."


class Recording:
    """A model's graph in the making: its parts, to be called in their order.

    Args:
        model: From `read_model`.
        dtype: Dtype of the computation, float32 or float64.
        enter: How a weight comes into the graph.
        opset: Version of ONNX's operators.
        kernels: How the costly steps are recorded.
    """

    def __init__(
        self,
        model: Model,
        dtype: npt.DTypeLike,
        enter: Enter,
        opset: int = OPSET,
        kernels: Kernels = PLAIN,
    ) -> None:
        self.model, self.dtype, self.enter, self.kernels = model, np.dtype(dtype), enter, kernels
        self.graph = Graph(opset)
        self.ids = self.graph.input(TOKENS, np.int64, (BATCH, SEQUENCE))
        self.positions = self._positions()
        self.places = self._places()
        self._entered: dict[str, Recorded] = {}

    def weights(self, prefix: str, names: tuple[str, ...] | None = None) -> dict[str, Any]:
        """Weights by our names without a prefix; each enters the graph when it is first asked for.

        Args:
            prefix: What their names start with.
            names: Which of them, all by default.

        Returns:
            Those that the model has.
        """
        found = [name for name in self.model.weights if name.startswith(prefix)]
        if names is not None:
            found = [prefix + name for name in names if prefix + name in self.model.weights]
        for name in found:
            if name not in self._entered:
                self._entered[name] = self.enter(self.graph, name)
        return {name.removeprefix(prefix): self._entered[name] for name in found}

    def embed(self) -> Recorded:
        """The residual stream before the first block, [batch, sequence, D]."""
        weights = self.weights("", ("embed.weight", "pos_embed.weight"))
        ids, positions = cast(Any, self.ids), cast(Any, self.positions)
        x = embed(ids, positions, weights, self.model.config, self.dtype)
        return self.graph.labelled(cast(Any, x), "embed")

    def block(
        self,
        index: int,
        x: Recorded,
        points: tuple[str, ...] = ("resid_post",),
        name: str | None = None,
    ) -> dict[str, Recorded]:
        """Call a block.

        Args:
            index: The block, from 0.
            x: Residual stream before it, [any batch, sequence, D].
            points: Which of its trace points are wanted.
            name: Of the call, `blocks.{index}` by default; outputs are named `{name}.{point}`.

        Returns:
            Those points by their names without a prefix.
        """
        config, prefix = self.model.config, f"blocks.{index}."
        place, weights = self.places[index], self.weights(prefix)

        def body(graph: Graph, given: dict[str, Any]) -> Mapping[str, Any]:
            found: dict[str, Any] = {}

            def observe(step: str, value: Any) -> Any:
                if step not in points:
                    return graph.labelled(value, step)
                found[step] = graph.named(value, step)
                return found[step]

            rope = (given["cos"], given["sin"]) if "cos" in given else None
            here = Place(given["bias"], rope, self.kernels, observe)
            block(given["x"], given, here, config)
            return found

        inputs = {"x": x, **place, **weights}
        return self.graph.call(BLOCK, body, inputs, name or prefix.rstrip("."), DOC)

    def head(self, x: Recorded, observe: Observer | None = None) -> Recorded:
        """Logits [batch, sequence, V] of the residual stream after the last block."""
        names = ("final_norm.weight", "final_norm.bias", "lm_head.weight")
        weights, state = self.weights("", names), cast(Any, x)

        def label(name: str, value: Any) -> Any:
            return self.graph.labelled(value, name)

        return cast(Any, head(state, weights, self.model.config, observe or label))

    def _positions(self) -> Recorded:
        """Token positions, [sequence]."""
        graph = self.graph
        length = graph.add("Squeeze", graph.add("Shape", self.ids, start=1, end=2))
        zero, one = (graph.constant(np.int64(n)) for n in (0, 1))
        positions = graph.add("Range", zero, length, one, axes=(SEQUENCE,))
        return graph.named(positions, "positions")

    def _places(self) -> list[dict[str, Recorded]]:
        """The inputs of each block that say where its tokens stand: `bias`, `cos` and `sin`."""
        config = self.model.config
        positions: Any = self.positions
        found = places(positions, config, self.dtype)
        named: dict[Any, dict[str, Recorded]] = {}
        for number, (kind, place) in enumerate(found.items()):
            arrays: dict[str, Any] = {"bias": place.bias}
            if place.rope is not None:
                arrays |= dict(zip(("cos", "sin"), place.rope, strict=True))
            named[kind] = {
                name: self.graph.named(array, f"places.{number}.{name}")
                for name, array in arrays.items()
            }
        return [named[kind] for kind in config.blocks]


def recorded(
    model: Model,
    dtype: npt.DTypeLike,
    enter: Enter,
    outputs: Outputs = "logits",
    opset: int = OPSET,
    kernels: Kernels = PLAIN,
) -> Graph:
    """Record a model: `token_ids` [batch, sequence] to `logits`, or to every trace point.

    Args:
        model: From `read_model`.
        dtype: Dtype of the computation, float32 or float64.
        enter: How a weight comes into the graph.
        outputs: "logits", or "trace" for every trace point under our names.
        opset: Version of ONNX's operators.
        kernels: How steps are recorded that may be in more than one way.

    Returns:
        The graph.

    Source:
        ours: the forward of `refimpl.model.forward`, run on recording arrays.
    """
    recording = Recording(model, dtype, enter, opset, kernels)
    graph, trace = recording.graph, outputs == "trace"
    rotary = recording.places[0].keys() >= {"cos", "sin"}
    points = tuple(p for p in TRACE_POINTS if rotary or not p.endswith("_rope"))
    x = recording.embed()
    if trace:
        x = graph.output("embed", x)
    for i in range(model.config.num_blocks):
        found = recording.block(i, x, points if trace else points[-1:])
        x = found[points[-1]]
        if trace:
            graph.handed_out(found.values())

    def point(name: str, value: Any) -> Any:
        return graph.output(name, value) if trace else graph.labelled(value, name)

    logits = recording.head(x, point)
    if not trace:
        graph.output("logits", logits)
    return graph


def described(graph: Graph, model: Model, dtype: npt.DTypeLike, outputs: str) -> onnx.ModelProto:
    """Finish a graph: with what it is in words, and facts of the model by key.

    `prunable_zeros` of `prunable_weights` are zero in the model's file; `sparsity` is their ratio.

    Args:
        graph: A recorded graph.
        model: Of which model.
        dtype: Dtype of the computation.
        outputs: What comes out, in a word.

    Returns:
        The graph, not checked.

    Source:
        ours.
    """
    config, dtype = model.config, np.dtype(dtype)
    linears = inspect(model).linears
    zeros, weights = (sum(getattr(x, key) for x in linears) for key in ("zeros", "weights"))
    proto = graph.model(
        model.name,
        producer_name="refimpl",
        producer_version=__version__,
        doc_string=(
            f"{model.name} ({config.family}, {config.num_blocks} blocks, {zeros / weights:.2%} of "
            f"its prunable weights zero) in {dtype}: {TOKENS} [{BATCH}, {SEQUENCE}], at most "
            f"{config.max_position_embeddings} tokens of {config.vocab_size}, to {outputs}. "
            f"Recorded from the forward pass of refimpl {__version__}."
        ),
    )
    facts = {
        "model": model.name,
        "family": config.family,
        "refimpl": __version__,
        "dtype": dtype.name,
        "outputs": outputs,
        "prunable_weights": str(weights),
        "prunable_zeros": str(zeros),
        "sparsity": repr(zeros / weights),
    }
    onnx.helper.set_model_props(proto, facts)
    return proto


def model_graph(
    model: Model,
    dtype: npt.DTypeLike,
    enter: Enter,
    outputs: Outputs = "logits",
    opset: int = OPSET,
    kernels: Kernels = PLAIN,
) -> onnx.ModelProto:
    """Record a model, and describe it: `recorded` and `described` in one.

    Args:
        model: From `read_model`.
        dtype: Dtype of the computation, float32 or float64.
        enter: How a weight comes into the graph.
        outputs: "logits", or "trace" for every trace point under our names.
        opset: Version of ONNX's operators.
        kernels: How steps are recorded that may be in more than one way.

    Returns:
        The graph, not checked.

    Source:
        ours.

    Example:
        >>> from refimpl import read_model
        >>> from refimpl.onnx.recording.weight_entries import embedded
        >>> model = read_model("fixtures/llama")
        >>> proto = model_graph(model, "float32", embedded(model, "float32"))
        >>> [node.name for node in proto.graph.node if node.op_type == "block"]
        ['blocks.0', 'blocks.1', 'blocks.2', 'blocks.3']
    """
    return described(recorded(model, dtype, enter, outputs, opset, kernels), model, dtype, outputs)

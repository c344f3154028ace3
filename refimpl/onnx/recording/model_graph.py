"""A model as a graph for every batch size and length: its own forward, recorded."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import onnx

from refimpl.errors import RefimplError
from refimpl.method.perturbation import Noise
from refimpl.model.config import Config
from refimpl.model.experts import Observer
from refimpl.model.forward import Place, block, block_points, embed, head, places
from refimpl.model.kernels import PLAIN
from refimpl.model.model import EMBEDDING, Model
from refimpl.onnx.recording.array import Recorded
from refimpl.onnx.recording.graph import DEFAULT_OPSET, Graph
from refimpl.onnx.recording.graph_weights import graph_weights
from refimpl.pruning.inspection import inspect
from refimpl.version import __version__

GraphOutputs = Literal["logits", "trace"]
TOKENS, BATCH, SEQUENCE = "token_ids", "batch", "sequence"
PERTURBATION_OPTIONS = ("noise_scale", "noise_shape", "noise_norm", "norm", "sink")  # of a graph


def trace_points(config: Config) -> tuple[str, ...]:
    """Names of all trace points of a model, in the order of execution."""
    kinds = enumerate(config.blocks)
    blocks = (f"blocks.{i}.{point}" for i, kind in kinds for point in block_points(kind))
    return "embed", *blocks, "final_norm", "logits"


class Recording:
    """A model's graph while it is recorded: its parts, to be called in their order."""

    def __init__(
        self, model: Model, dtype: npt.DTypeLike, location: str, opset: int = DEFAULT_OPSET
    ) -> None:
        _refuse_mixers(model.config)
        self.model, self.dtype, self.location = model, np.dtype(dtype), location
        self.carried = graph_weights(model, dtype)
        self.graph = Graph(opset)
        self.ids = self.graph.input(TOKENS, np.int64, (BATCH, SEQUENCE))
        self.positions = self._positions()
        self.places = self._places()
        self._entered: dict[str, Recorded] = {}

    def weights(self, prefix: str, names: tuple[str, ...] | None = None) -> dict[str, Any]:
        """Weights by our names without a prefix; each array enters the graph at its first use."""
        wanted = [name for name in self.model.weights if name.startswith(prefix)]
        if names is not None:
            wanted = [prefix + name for name in names if prefix + name in self.model.weights]
        for array in (self.carried[name] for name in wanted):
            if array.name not in self._entered:
                tensor = array.tensor(self.location)
                self._entered[array.name] = self.graph.initializer(tensor)
        return {x.removeprefix(prefix): self._entered[self.carried[x].name] for x in wanted}

    def embed(self) -> Recorded:
        """The residual stream before the first block, [batch, sequence, D]."""
        weights = self.weights("", EMBEDDING)
        ids, positions = cast(Any, self.ids), cast(Any, self.positions)
        x = embed(ids, positions, weights, self.model.config, self.dtype)
        return self.graph.labelled(cast(Any, x), "embed")

    def block(self, index: int, x: Recorded, points: tuple[str, ...]) -> dict[str, Recorded]:
        """Call a block on x [any batch, sequence, D]: some of its trace points, without prefix."""
        config, prefix = self.model.config, f"blocks.{index}."

        def body(graph: Graph, arrays: dict[str, Any]) -> Mapping[str, Any]:
            outputs: dict[str, Any] = {}

            def observe(step: str, value: Any) -> Any:
                if step not in points:
                    return graph.labelled(value, step)
                outputs[step] = graph.named(value, step)
                return outputs[step]

            place = replace(_with(self.places[index], arrays), observe=observe)
            block(arrays["x"], arrays, place, config)
            return outputs

        inputs = {"x": x, **_arrays(self.places[index]), **self.weights(prefix)}
        kind = config.blocks[index]
        return self.graph.call("block", body, inputs, prefix.rstrip("."), kind)

    def head(self, x: Recorded, observe: Observer) -> Recorded:
        """Logits [batch, sequence, V] of the residual stream after the last block."""
        names = ("final_norm.weight", "final_norm.bias", "lm_head.weight", "lm_head.bias")
        return cast(Any, head(cast(Any, x), self.weights("", names), self.model.config, observe))

    def _positions(self) -> Recorded:
        """Token positions, [sequence]."""
        graph = self.graph
        length = graph.add("Squeeze", graph.add("Shape", self.ids, start=1, end=2))
        zero, one = (graph.constant(np.int64(n)) for n in (0, 1))
        positions = graph.add("Range", zero, length, one, axes=(SEQUENCE,))
        return graph.named(positions, "positions")

    def _places(self) -> list[Place]:
        """The place of each block, with its arrays named after its kind."""
        config, positions, by_kind = self.model.config, cast(Any, self.positions), {}
        for number, (kind, place) in enumerate(
            places(positions, config, self.dtype, PLAIN).items()
        ):
            named = {
                name: self.graph.named(array, f"places.{number}.{name}")
                for name, array in _arrays(place).items()
            }
            by_kind[kind] = _with(place, named)
        return [by_kind[kind] for kind in config.blocks]


def _refuse_mixers(config: Config) -> None:
    """Refuse a model with a mixer that ONNX cannot express."""
    for kind in config.blocks:
        if kind.mixer is not None and kind.mixer.not_recorded:
            name = kind.mixer.name.replace("_", " ")
            raise RefimplError(
                f"blocks with a {name} cannot be part of a graph: {kind.mixer.not_recorded}",
                "a model of a family with yes under ONNX in docs/reference/families.md",
                "use the commands that need no graph: score, prune, eval",
            )


def _arrays(place: Place) -> dict[str, Any]:
    """The arrays of a place that depend on positions, by name."""
    cos, sin = place.rope or (None, None)
    arrays = {"bias": place.bias, "cos": cos, "sin": sin, "ramps": place.ramps}
    if place.mixer and "conv_in" in place.mixer.points:  # others' are in these arrays
        arrays["positions"] = place.positions
    arrays["query_scale"] = cast(Any, place.query_scale)  # a number, or an array
    return {name: array for name, array in arrays.items() if isinstance(array, Recorded)}


def _with(place: Place, arrays: Mapping[str, Any]) -> Place:
    """A place with other arrays of the same names."""
    rope = (arrays["cos"], arrays["sin"]) if place.rope else None
    scale = arrays.get("query_scale", place.query_scale)
    return replace(
        place,
        positions=arrays.get("positions", place.positions),
        bias=arrays.get("bias", place.bias),
        rope=rope,
        ramps=arrays.get("ramps"),
        query_scale=scale,
    )


def model_graph(recording: Recording, outputs: GraphOutputs = "logits") -> Graph:
    """Record a model: `token_ids` [batch, sequence] to `logits`, or to every trace point."""
    graph, trace = recording.graph, outputs == "trace"
    x = recording.embed()
    if trace:
        x = graph.output("embed", x)
    for i, kind in enumerate(recording.model.config.blocks):
        points = block_points(kind)
        arrays = recording.block(i, x, points if trace else points[-1:])
        x = arrays[points[-1]]
        if trace:
            graph.outputs_as_named(arrays.values())

    def observe(name: str, value: Any) -> Any:
        return graph.output(name, value) if trace else graph.labelled(value, name)

    logits = recording.head(x, observe)
    if not trace:
        graph.output("logits", logits)
    return graph


def described(recording: Recording, outputs: str, plan: Noise | None) -> onnx.ModelProto:
    """Finish a graph with metadata about the model (zeros are those of its file), and a plan."""
    model = recording.model
    linears = inspect(model).linears
    zeros, weights = (sum(getattr(x, key) for x in linears) for key in ("zeros", "weights"))
    proto = recording.graph.model(model.name, producer_name="refimpl", producer_version=__version__)
    facts = {
        "model": model.name,
        "family": model.config.family,
        "refimpl": __version__,
        "dtype": recording.dtype.name,
        "outputs": outputs,
        "prunable_weights": str(weights),
        "prunable_zeros": str(zeros),
        "sparsity": repr(zeros / weights),
    }
    if plan is not None:
        facts |= {name: getattr(plan, name) for name in PERTURBATION_OPTIONS}
    onnx.helper.set_model_props(proto, facts)
    return proto

"""A model as a graph: the forward, recorded."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import onnx

from refimpl.arguments import GraphDtype, GraphOutputs, require
from refimpl.errors import RefimplError
from refimpl.model.config import BLOCK_EMBED, Config
from refimpl.model.forward import block, embed, head, places
from refimpl.model.mixers.parts import Place
from refimpl.model.mixers.softmax_attention import SharedAttention
from refimpl.model.model import EMBEDDING, HEAD, Model
from refimpl.model.position_tables import alibi_bias
from refimpl.model.state import State
from refimpl.onnx.recording.array import Recorded
from refimpl.onnx.recording.graph import DEFAULT_OPSET, Graph, graph_weights
from refimpl.pruning.record import inspect
from refimpl.version import __version__

DTYPES = get_args(GraphDtype)
TOKENS, _BATCH, SEQUENCE = "token_ids", "batch", "sequence"


def trace_points(config: Config) -> tuple[str, ...]:
    """Names of all trace points of a model, in the order of execution."""
    kinds = enumerate(config.blocks)
    blocks = (f"blocks.{i}.{point}" for i, kind in kinds for point in kind.points)
    return "embed", *blocks, "final_norm", "logits"


class Recording:
    """A model's graph while it is recorded: its parts, to be called in their order."""

    def __init__(
        self,
        model: Model,
        dtype: npt.DTypeLike,
        location: str = "memory",
        opset: int = DEFAULT_OPSET,
    ) -> None:
        for mixer in (kind.mixer for kind in model.config.blocks):
            if mixer.not_recorded:
                name = mixer.name.replace("_", " ")
                raise RefimplError(
                    f"blocks with a {name} cannot be part of a graph: {mixer.not_recorded}",
                    "a model of a family with yes under ONNX in docs/reference/families.md",
                    "use the commands that need no graph: score, prune, eval",
                )
        require(np.dtype(dtype).name, GraphDtype, "dtype")
        self.model, self.dtype, self.location = model, np.dtype(dtype), location
        self.carried = graph_weights(model, dtype)
        self.graph = Graph(opset)
        self.ids: Any = self.graph.input(TOKENS, np.int64, (_BATCH, SEQUENCE))
        add = self.graph.add
        length = add("Squeeze", add("Shape", self.ids, start=1, end=2))
        positions = add("Range", np.int64(0), length, np.int64(1), axes=(SEQUENCE,))
        self.positions: Any = self.graph.named(positions, "positions")
        self.places = self._places()
        self._entered: dict[str, Recorded] = {}

    def weights(self, prefix: str, roles: tuple[str, ...] = ()) -> dict[str, Any]:
        """Weights by our names without a prefix; each array enters the graph at its first use."""
        wanted = [name for name in self.model.weights if name.startswith(prefix)]
        wanted = self.model.names_of(roles) if roles else wanted
        for array in (self.carried[name] for name in wanted):
            if array.name not in self._entered:
                tensor = array.tensor(self.location)
                self._entered[array.name] = self.graph.initializer(tensor)
        return {
            x.removeprefix(prefix): self._entered[self.carried[x].name] for x in wanted
        }

    def block(
        self, index: int, state: State, points: tuple[str, ...]
    ) -> tuple[State, dict[str, Any]]:
        """Call a block on a state: the state after it, and some trace points, without prefix."""
        config, prefix = self.model.config, f"blocks.{index}."
        kind = config.blocks[index]
        source = kind.mixer.source if isinstance(kind.mixer, SharedAttention) else None
        shares = ("k", "v") if kind.mixer.shared_kv_size else ()
        points = tuple(dict.fromkeys((*points, *shares)))

        def body(graph: Graph, arrays: dict[str, Any]) -> Mapping[str, Any]:
            outputs: dict[str, Any] = {}

            def observe(step: str, value: Any) -> Any:
                if (
                    step == BLOCK_EMBED[0]
                ):  # not a norm's result: the block reads it again
                    value = graph.add("Identity", value)
                if step not in points:
                    return graph.labelled(value, step)
                outputs[step] = graph.named(value, step)
                return outputs[step]

            place = replace(_with(self.places[index], arrays), observe=observe)
            shared = (
                {}
                if source is None
                else {source: (arrays["shared_k"], arrays["shared_v"])}
            )
            before = State(arrays["x"], arrays.get("token_ids", self.ids), shared)
            block(before, arrays, place, config)
            return outputs

        inputs: dict[str, Any] = {"x": state.stream, **_arrays(self.places[index])}
        if source is not None:
            inputs |= dict(
                zip(("shared_k", "shared_v"), state.shared_kv[source], strict=True)
            )
        inputs |= self.weights(prefix)
        if size := kind.embed_size:
            tables: Any = self.weights("", ("embed", "block_embed"))
            own = tables["block_embed.weight"][..., index * size : (index + 1) * size]
            inputs |= tables | {"block_embed.weight": own, "token_ids": self.ids}
        outputs: dict[str, Any] = self.graph.call(
            "block", body, inputs, prefix.rstrip("."), kind
        )
        shared = {index: (outputs["k"], outputs["v"])} if shares else {}
        return State(
            outputs["resid_post"], self.ids, {**state.shared_kv, **shared}
        ), outputs

    def _places(self) -> list[Place]:
        """The place of each block, with its arrays named after its kind."""
        config, by_kind = self.model.config, {}
        every = places(self.positions, config, self.dtype)
        for number, (kind, place) in enumerate(every.items()):
            if place.ramps is not None:  # once, and not in each block
                alibi = alibi_bias(place.ramps, place.ramps, self.dtype)
                place = replace(place, bias=place.bias + alibi, ramps=None)
            arrays = _arrays(place).items()
            named = {
                x: self.graph.named(array, f"places.{number}.{x}")
                for x, array in arrays
            }
            by_kind[kind] = _with(place, named)
        return [by_kind[kind] for kind in config.blocks]


def _arrays(place: Place) -> dict[str, Any]:
    """The arrays of a place that the graph has, by name."""
    cos, sin = place.rope or (None, None)
    arrays: dict[str, Any] = {"cos": cos, "sin": sin, "query_scale": place.query_scale}
    if place.mixer.attends:
        arrays["bias"] = place.bias
    if "conv_in" in place.mixer.points and isinstance(place.positions, Recorded):
        arrays["positions"] = place.positions
    return {name: x for name, x in arrays.items() if isinstance(x, Recorded)}


def _with(place: Place, arrays: Mapping[str, Any]) -> Place:
    """A place with other arrays of the same names."""
    others = {name: arrays[name] for name in _arrays(place)}
    rope = (others.pop("cos"), others.pop("sin")) if place.rope else None
    return replace(place, rope=rope, **others)


def record_model(recording: Recording, outputs: GraphOutputs) -> None:
    """Record a model: `token_ids` [batch, sequence] to `logits` or a trace."""
    graph, trace, config = recording.graph, outputs == "trace", recording.model.config

    def observe(name: str, value: Any) -> Any:
        return graph.output(name, value) if trace else graph.labelled(value, name)

    ids, weights = recording.ids, recording.weights("", EMBEDDING)
    state = embed(ids, recording.positions, weights, config, recording.dtype)
    state = state.with_stream(observe("embed", state.stream))
    for i, kind in enumerate(config.blocks):
        state, arrays = recording.block(
            i, state, kind.points if trace else kind.points[-1:]
        )
        if trace:
            for array in arrays.values():
                graph.output(array.name, array)
    logits: Any = head(state, recording.weights("", HEAD), config, observe)
    if not trace:
        graph.output("logits", logits)


def finished_model(recording: Recording, outputs: GraphOutputs) -> onnx.ModelProto:
    """Finish a graph with metadata about the model; zeros are those of its file."""
    model = recording.model
    linears = inspect(model).linears
    zeros, weights = (
        sum(getattr(x, key) for x in linears) for key in ("zeros", "weights")
    )
    proto = recording.graph.model(
        model.name, producer_name="refimpl", producer_version=__version__
    )
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
    onnx.helper.set_model_props(proto, facts)
    return proto

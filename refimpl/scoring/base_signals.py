"""What bases rank by, measured: each signal from the statistic that its base needs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from refimpl.allocation.request import Request, base_of
from refimpl.allocation.scores import Signal, Signals
from refimpl.arguments import number_array, read_only
from refimpl.bases.base import Base, BlockInputs, Needs, Value, bases
from refimpl.errors import RefimplError
from refimpl.loading.samples import Tokens
from refimpl.model.config import Config
from refimpl.model.model import BlockWeights, Model
from refimpl.model.ops import Array
from refimpl.model.state import checked_ids
from refimpl.model.stream import SUMS, Stream, input_of, saw_no_token, state_bytes
from refimpl.pruning.block import input_sums
from refimpl.running.settings import Resources, Settings, require_memory
from refimpl.scoring.experiment import dense_squares
from refimpl.scoring.measurements import Moments, wanda_moments

Numbers = Mapping[str, Any]
"""What a signal has for one block, by name: a number, or one for each of its linears."""
Asked = Mapping[str, tuple[Callable[..., Numbers], Mapping[str, Value]]]
"""By name of the base, the function that measures its signal, and its options."""


@dataclass(frozen=True)
class MeasuredBases:
    """The bases whose signals are measured, with all their options."""

    bases: Mapping[str, tuple[Base, Mapping[str, Value]]]

    @classmethod
    def of(
        cls, request: Request, others: Iterable[str | Base] | None = None
    ) -> "MeasuredBases":
        """The base of a request, and others; by default those of squares, which are at hand."""
        if others is None:
            others = [base for base in bases().values() if base.needs == "squares"]
        records = [base_of(other) for other in others]
        asked = request.record
        chosen: dict[str, tuple[Base, Mapping[str, Value]]] = {
            base.name: (base, base.checked({}))
            for base in records
            if base.needs is not None
        }
        chosen |= {asked.name: (asked, request.options)}
        return cls(
            {name: pair for name, pair in chosen.items() if pair[0].needs is not None}
        )

    def needing(self, needs: str) -> Asked:
        """Those that are made of one statistic."""
        return {
            name: (base.signal, options)
            for name, (base, options) in self.bases.items()
            if base.needs == needs and base.signal is not None
        }

    def signals(
        self, rows: Sequence[Mapping[str, Numbers]], config: Config
    ) -> dict[str, Signal]:
        """Signals from the numbers of every block."""
        signals = dict[str, Signal]()
        for name in rows[0]:
            base, options = self.bases[name]
            values = dict[str, Array]()
            first, *others = (
                [(x, np.ndim(y)) for x, y in row[name].items()] for row in rows
            )
            if any(other != first for other in others):
                raise RefimplError(
                    f"base {name}: its signal differs between blocks in its names or shapes",
                    "in every block the same names, each with a number, or one for each linear",
                    f"correct the signal of {name}",
                )
            for key in rows[0][name]:
                column = [row[name][key] for row in rows]
                values[key] = (
                    np.array(column, np.float64)
                    if np.ndim(column[0]) == 0
                    else np.full(config.linear_sizes.shape, np.nan)
                )
                for into, numbers in zip(values[key], column, strict=True):
                    if np.ndim(numbers):
                        into[: len(numbers)] = numbers
            signals[name] = Signal(base.of_signal(options), values)
        return signals

    def cost(self, config: Config, sequences: int) -> int:
        """Cost of `before_squares`: block passes of one sequence, and as much for each signal."""
        each = 1 + 2 * sequences if self.needing("products") else 0
        return config.num_blocks * (each + bool(self.needing("weights")))


def signals_of(
    model: Model,
    request: Request,
    tokens: Tokens | None,
    settings: Settings | None = None,
) -> Signals:
    """Measure what a base is made of, without an experiment; None for tokens that it needs not."""
    settings, config, base = settings or Settings(), model.config, request.record
    if base.needs in SUMS and tokens is None:
        raise RefimplError(
            f"base {base.name} without tokens", "calibration tokens", "pass tokens"
        )
    ids = (
        np.zeros((0, 1), np.int64)
        if tokens is None
        else checked_ids(tokens.ids, config)
    )
    run = {
        "command": "signals",
        "tokens": tokens and tokens.sha256,
        "base": [base.name, dict(request.options)],
    }
    chosen = MeasuredBases.of(request, ())
    with settings.open(model, run) as resources:
        if base.needs != "squares":
            resources.total = chosen.cost(config, len(ids))
            return before_squares(model, chosen, ids, resources)
        resources.total = len(ids) * config.num_blocks
        moments = wanda_moments(dense_squares(model, ids, resources), len(ids), config)
        return block_signals(model, chosen, "squares", resources, moments=moments)


def before_squares(
    model: Model, chosen: MeasuredBases, ids: Array, resources: Resources
) -> dict[str, Signal]:
    """The signals that are made of the weights alone, or of outer products; from ids [N, S]."""
    if chosen.needing("products"):
        need = 2 * len(ids) * state_bytes(model.config, ids.shape[1], resources.dtype)
        size = f"{len(ids)} x {ids.shape[1]} tokens, before and after a block"
        thing = "the states of all sequences"
        require_memory(resources.memory, need, thing, size, "fewer `samples`")
    measured = block_signals(model, chosen, "weights", resources)
    return measured | block_signals(model, chosen, "products", resources, ids)


def block_signals(
    model: Model,
    chosen: MeasuredBases,
    needs: Needs,
    resources: Resources,
    ids: Sequence[Array] | Array = (),
    moments: Moments = (),
) -> dict[str, Signal]:
    """The signals of one need: numbers that an earlier run kept, and those that are measured now.

    For outer products, the ids [N, S] pass the blocks, and those of one block are in memory; for
    squares, the moments are Wanda's statistic, per block and linear [in], and nothing is kept.
    """
    asked, config, dtype = chosen.needing(needs), model.config, resources.dtype
    if not asked:
        return {}
    key, workers, one = (
        f"signals of {needs}",
        resources.workers,
        partial(resources.tick, 1),
    )
    rows = {
        int(x.split()[-1]): row
        for x, row in resources.earlier.items()
        if x.startswith(key)
    }
    stream = None
    if len(ids) and len(rows) < config.num_blocks:
        stream = Stream(model, dict(enumerate(ids)), dtype)
    for i, shapes in enumerate(config.linears):
        if i in rows and stream is None:
            continue
        sums: Mapping[str, Array] = moments[i] if moments else {}
        weights = model.block(i, dtype, workers.map) if stream or moments else None
        if stream and weights:
            after, read_sums = input_sums(
                stream, weights, "products", workers, tick=one
            )
            stream.advance(after)
            total: Mapping[str, Any] = read_sums
            sums = {x: total[input_of(x)].outer for x in shapes if input_of(x) in total}
        if i in rows:
            continue
        idle = frozenset(x for x in shapes if stream and saw_no_token(x, sums.get(x)))
        read = partial(_weight, model, i, weights)
        views = MappingProxyType({x: read_only(y) for x, y in sums.items()})
        facts = MappingProxyType(shapes), read, views, max(len(ids), 1), idle, dtype
        # Signals of squares compute on one thread each, and others on all threads.
        block = (
            BlockInputs(i, *facts) if moments else BlockInputs(i, *facts, workers.run)
        )
        tasks = [partial(_signal, name, *how, block) for name, how in asked.items()]
        numbers = workers.run(tasks) if moments else [task() for task in tasks]
        rows[i] = dict(zip(asked, numbers, strict=True))
        if not moments:
            resources.keep({f"{key} {i}": rows[i]})
            resources.tick(1 + len(ids))
    return chosen.signals([rows[i] for i in range(config.num_blocks)], config)


def _signal(
    name: str,
    signal: Callable[..., Numbers],
    options: Mapping[str, Value],
    block: BlockInputs,
) -> Numbers:
    """The numbers of a base for a block, checked; the first one, which allocates, is finite."""
    numbers, shapes = (
        signal(block, MappingProxyType(options)),
        ((), (len(block.shapes),)),
    )
    what = f"the signal of base {name}"
    if not isinstance(numbers, Mapping) or {*map(type, numbers)} != {str}:
        raise RefimplError(
            f"{what}: {numbers!r:.60}",
            "a mapping from names to numbers of the block, or of each of its linears",
            f"correct {what}",
        )
    return {
        key: number_array(what, x, shapes, "iuf", finite=i == 0).astype(float).tolist()
        for i, (key, x) in enumerate(numbers.items())
    }


def _weight(model: Model, block: int, weights: BlockWeights | None, name: str) -> Array:
    """The weight of a linear, which nobody can change; in float64 if it alone is read."""
    if weights is None:
        return model.weights[f"blocks.{block}.{name}.weight"].read(np.float64)
    return read_only(weights[f"{name}.weight"])

"""What bases rank by, measured: each signal from the statistic that its base needs."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.allocation.request import Request, base_of
from refimpl.allocation.scores import Signal, Signals
from refimpl.bases.base import Base, BlockInputs, Needs, Value, bases
from refimpl.bases.results import checked_signal, read_only
from refimpl.errors import RefimplError
from refimpl.loading.samples import Tokens
from refimpl.model.config import Config
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.state import checked_ids
from refimpl.model.statistics import SUMS, input_of, saw_no_token
from refimpl.model.stream import Stream, state_bytes
from refimpl.pruning.block import sums_of_all
from refimpl.running.settings import Resources, Settings, require_memory
from refimpl.running.threads import Workers
from refimpl.running.work_units import Tick, results
from refimpl.scoring.experiment import dense_squares
from refimpl.scoring.measurements import Moments, wanda_moments

Numbers = Mapping[str, Any]
"""What a signal has for one block, by name: a number, or one for each of its linears."""
Rows = dict[int, Mapping[str, Numbers]]
"""By number of the block, the numbers of each base."""
Asked = Mapping[str, tuple[Callable[..., Numbers], Mapping[str, Value]]]
"""By name of the base, the function that measures its signal, and its options."""


@dataclass(frozen=True)
class Chosen:
    """The bases whose signals are measured, with all their options."""

    bases: Mapping[str, tuple[Base, Mapping[str, Value]]]

    @classmethod
    def of(cls, request: Request, others: Iterable[str | Base] | None = None) -> "Chosen":
        """The base of a request, and others; by default those of squares, which are at hand."""
        if others is None:
            others = [base for base in bases().values() if base.needs == "squares"]
        records = [base_of(other) for other in others]
        asked = request.record
        chosen: dict[str, tuple[Base, Mapping[str, Value]]] = {
            base.name: (base, base.checked({})) for base in records if base.needs is not None
        }
        chosen |= {asked.name: (asked, request.options)}
        return cls({name: pair for name, pair in chosen.items() if pair[0].needs is not None})

    def needing(self, needs: str) -> Asked:
        """Those that are made of one statistic."""
        return {
            name: (base.signal, options)
            for name, (base, options) in self.bases.items()
            if base.needs == needs and base.signal is not None
        }

    def signals(self, rows: Sequence[Mapping[str, Numbers]], config: Config) -> dict[str, Signal]:
        """Signals from the numbers of every block."""
        return {name: self._signal(name, [row[name] for row in rows], config) for name in rows[0]}

    def _signal(self, name: str, rows: Sequence[Numbers], config: Config) -> Signal:
        base, options = self.bases[name]
        values = dict[str, Array]()
        for key in rows[0]:
            column = [row[key] for row in rows]
            if np.ndim(column[0]) == 0:
                values[key] = np.array(column, np.float64)
                continue
            values[key] = np.full(config.linear_sizes.shape, np.nan)
            for into, numbers in zip(values[key], column, strict=True):
                into[: len(numbers)] = numbers
        return Signal(base.of_signal(options), values)

    def cost(self, config: Config, sequences: int) -> int:
        """Cost of `before_squares`: block passes of one sequence, and as much for each signal."""
        each = 1 + 2 * sequences if self.needing("products") else 0
        return config.num_blocks * (each + bool(self.needing("weights")))


def signals(
    model: Model,
    request: Request,
    tokens: Tokens | None,
    settings: Settings | None = None,
) -> Signals:
    """Measure what a base is made of, without an experiment; None for tokens that it needs not."""
    settings, config, base = settings or Settings(), model.config, request.record
    if base.needs in SUMS and tokens is None:
        raise RefimplError(f"base {base.name} without tokens", "calibration tokens", "pass tokens")
    ids = np.zeros((0, 1), np.int64)
    if tokens is not None:
        ids = checked_ids(tokens.ids, config)
    run = {
        "command": "signals",
        "tokens": tokens and tokens.sha256,
        "base": [base.name, dict(request.options)],
    }
    chosen = Chosen.of(request, ())
    with settings.open(model, run) as resources:
        squares = base.needs == "squares"
        resources.total = squares * len(ids) * config.num_blocks
        resources.total += chosen.cost(config, len(ids))
        if squares:
            moments = wanda_moments(dense_squares(model, ids, resources), len(ids), config)
        else:
            return before_squares(model, chosen, ids, resources)
        return of_moments(model, chosen, moments, resources)


def before_squares(
    model: Model, chosen: Chosen, ids: Array, resources: Resources
) -> dict[str, Signal]:
    """The signals that are made of the weights alone, or of outer products; from ids [N, S]."""
    length = ids.shape[1]
    need = 2 * len(ids) * state_bytes(model.config, length, resources.dtype) * resources.at_once
    if chosen.needing("products"):
        size = f"{len(ids)} x {length} tokens, before and after a block"
        thing = "the states of all sequences"
        require_memory(resources.memory, need, thing, size, "fewer `samples`")
    measured = of_weights(model, chosen, resources)
    return measured | _measured(model, chosen, "products", resources, ids)


def of_weights(model: Model, chosen: Chosen, resources: Resources) -> dict[str, Signal]:
    """The signals that are made of the weights alone."""
    return _measured(model, chosen, "weights", resources)


def of_moments(
    model: Model, chosen: Chosen, moments: Moments, resources: Resources
) -> dict[str, Signal]:
    """The signals that are made of Wanda's statistic, per block and linear [in]."""
    return _measured(model, chosen, "squares", resources, moments=moments)


def _measured(
    model: Model,
    chosen: Chosen,
    needs: Needs,
    resources: Resources,
    ids: Sequence[Array] | Array = (),
    moments: Moments = (),
) -> dict[str, Signal]:
    """The signals of one need: kept numbers of an earlier run, and those that are measured now.

    Those of moments take no time worth keeping them for.
    """
    asked, config = chosen.needing(needs), model.config
    if not asked:
        return {}
    key, earlier = f"signals of {needs}", {} if moments else resources.earlier
    rows = {int(x.split()[-1]): row for x, row in earlier.items() if x.startswith(key)}
    left = [i for i in range(config.num_blocks) if i not in rows]
    # A worker that needs passes takes the sequences through the blocks before its own, too.
    pieces = np.array_split(left, resources.at_once) if len(ids) else [np.array([i]) for i in left]
    sequences, dtype = dict(enumerate(ids)), resources.dtype
    units = [
        BlockSignals(tuple(x.tolist()), asked, sequences, moments[x[0]] if moments else {}, dtype)
        for x in pieces
        if x.size
    ]
    measured = results(units, model, resources)
    if resources.executor is None:  # here, each block is known before the next one
        workers, tick = resources.workers, resources.tick
        measured = (row for unit in units for row in unit.measured(model, workers, tick))
    for more in measured:
        rows |= more
        if not moments:
            resources.keep({f"{key} {i}": row for i, row in more.items()})
    return chosen.signals([rows[i] for i in range(config.num_blocks)], config)


@dataclass(frozen=True)
class BlockSignals:
    """The signals of some blocks: a work unit. Without ids and moments, of the weights alone.

    For outer products, the token ids of all sequences, [S] by their number, pass all blocks up to
    the last one; for squares, there is one block, with Wanda's statistic per linear, [in].
    """

    blocks: tuple[int, ...]
    asked: Asked
    ids: Mapping[int, Array]
    moments: Mapping[str, Array]
    dtype: npt.DTypeLike = np.float32

    def cost(self, config: Config) -> float:
        """Block passes of sequences, and as much for each signal that is not of moments."""
        passes, signals = len(self.ids), len(self.ids) + (not self.moments)
        return passes * (self.blocks[-1] + 1) + signals * len(self.blocks)

    def run(self, model: Model, workers: Workers, tick: Tick) -> Rows:
        """The numbers of every block."""
        return {i: row for one in self.measured(model, workers, tick) for i, row in one.items()}

    def measured(self, model: Model, workers: Workers, tick: Tick) -> Iterator[Rows]:
        """Each block's numbers, as soon as they are known; outer products of one in memory."""
        stream, one = Stream(model, self.ids, self.dtype) if self.ids else None, partial(tick, 1)
        for i in range(self.blocks[-1] + 1) if stream else self.blocks:
            read: Callable[[str], Array] = partial(_stored, model, i)
            sums, shapes, idle = self.moments, model.config.linears[i], frozenset[str]()
            if stream or self.moments:
                weights = model.block(i, self.dtype, workers.map)
                read = partial(_weight, weights)
            if stream and i not in self.blocks:
                passes = [partial(stream.through, h, weights) for h in stream.states.values()]
                stream.advance(dict(zip(self.ids, workers.run(passes, one), strict=True)))
                continue
            if stream:
                after, total = sums_of_all(stream, weights, SUMS["products"], workers, one)
                stream.advance(after)
                sums = {x: total[input_of(x)] for x in shapes if input_of(x) in total}
                idle = frozenset(x for x in shapes if saw_no_token(x, sums.get(x)))
            views = MappingProxyType({x: read_only(y) for x, y in sums.items()})
            facts = MappingProxyType(shapes), read, views, max(len(self.ids), 1), idle, self.dtype
            # Signals of squares compute on one thread each, and others on all threads.
            block = BlockInputs(i, *facts) if self.moments else BlockInputs(i, *facts, workers.run)
            tasks = [
                partial(_signal, name, signal, block, options)
                for name, (signal, options) in self.asked.items()
            ]
            numbers = workers.run(tasks) if self.moments else [task() for task in tasks]
            yield {i: dict(zip(self.asked, numbers, strict=True))}
            tick(len(self.ids) + (not self.moments))


def _signal(
    name: str,
    signal: Callable[..., Numbers],
    block: BlockInputs,
    options: Mapping[str, Value],
) -> Numbers:
    """The numbers of a base for a block, checked."""
    return checked_signal(name, signal(block, MappingProxyType(options)), len(block.shapes))


def _stored(model: Model, block: int, name: str) -> Array:
    """The weight of a linear as it is stored, in float64."""
    return model.weights[f"blocks.{block}.{name}.weight"].read(np.float64)


def _weight(weights: Mapping[str, Array], name: str) -> Array:
    """The weight of a linear, which nobody can change."""
    return read_only(weights[f"{name}.weight"])

"""Token sequences laid side by side, so that matrices are large enough to be fast."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.model.config import Config
from refimpl.model.token_ids import checked_ids
from refimpl.scoring.state_group import head_cost
from refimpl.tokens.samples import Ids

BATCH = 512  # tokens, padding included; a longer sequence is a batch of its own
CORES = 4  # which a few sequences are divided for, on every machine


@dataclass(frozen=True)
class Batch:
    """Sequences computed side by side; those with the same input share a row.

    Args:
        ids: Inputs, padded with 0 at the end, which no token before it sees, [B, S].
        members: Which sequences these are.
        counts: Scored tokens of each member.
        places: Where, in B S, the scored tokens are predicted, member by member, [n].
        targets: The scored tokens, [n].
        tokens: Number of inputs, padding left out.
    """

    ids: Ids
    members: tuple[int, ...]
    counts: tuple[int, ...]
    places: Ids
    targets: Ids
    tokens: int

    def cost(self, config: Config) -> float:
        """Work on this batch: tokens times blocks, and the head in the same unit."""
        return self.ids.size * config.num_blocks + len(self.targets) * head_cost(config)


def batches(
    sequences: Sequence[npt.ArrayLike], starts: Sequence[int], config: Config
) -> list[Batch]:
    """Lay sequences [tokens] side by side, those of similar length together, the longest first.

    A batch has at most `BATCH` tokens, and a `CORES`-th of all, so that few occupy cores, too.
    The last token of a sequence is predicted, never an input; `starts` are the first scored tokens.
    Sequences of different lengths share no batch if rotary positions depend on the length.
    The batches depend on nothing else, so neither does the rounding of what is computed from them.
    """
    pairs = zip(sequences, starts, strict=True)
    checked = [_checked(n, ids, start, config) for n, (ids, start) in enumerate(pairs)]
    same: dict[bytes, list[int]] = {}  # sequences by their input
    for n, ids in enumerate(checked):
        same.setdefault(ids[:-1].tobytes(), []).append(n)
    rows = sorted(same.values(), key=lambda row: -len(checked[row[0]]))
    size = min(BATCH, sum(len(checked[row[0]]) - 1 for row in rows) // CORES)
    laid: list[Batch] = []
    by_length = any(kind.rope is not None and kind.rope.by_length for kind in config.blocks)
    while rows:
        width = len(checked[rows[0][0]]) - 1
        height = max(1, size // width)
        if by_length:
            height = min(height, sum(len(checked[row[0]]) == width + 1 for row in rows))
        laid.append(_batch(rows[:height], width, checked, starts))
        rows = rows[height:]
    return laid


def _batch(
    rows: Sequence[Sequence[int]], width: int, checked: Sequence[Ids], starts: Sequence[int]
) -> Batch:
    """A batch of rows, each the sequences that share an input."""
    inputs = [checked[row[0]][:-1] for row in rows]
    members = [(i, n) for i, row in enumerate(rows) for n in row]
    places = [i * width + np.arange(starts[n] - 1, len(checked[n]) - 1) for i, n in members]
    return Batch(
        np.stack([np.pad(ids, (0, width - len(ids))) for ids in inputs]),
        tuple(n for _, n in members),
        tuple(len(place) for place in places),
        np.concatenate(places),
        np.concatenate([checked[n][starts[n] :] for _, n in members]),
        sum(len(ids) for ids in inputs),
    )


def _checked(n: int, sequence: npt.ArrayLike, start: int, config: Config) -> Ids:
    """The ids of one sequence, or an error that says why they cannot be scored."""
    ids = np.asarray(sequence)
    if ids.ndim != 1 or not 1 <= start < len(ids):
        raise RefimplError(
            f"sequence {n} has shape {list(ids.shape)} and is scored from token {start}",
            "one row of at least 2 tokens, scored from token 1 or later",
            "give each sequence a token before the first scored one",
        )
    inputs, last = checked_ids(ids[:-1], config), checked_ids(ids[-1:], config)
    return np.concatenate([inputs[0], last[0]])


def groups(batches: Sequence[Batch], tokens: int) -> Iterator[list[Batch]]:
    """Cut batches into runs of at most so many tokens, padding included; at least one batch."""
    group: list[Batch] = []
    for batch in batches:
        if group and sum(b.ids.size for b in group) + batch.ids.size > tokens:
            yield group
            group = []
        group.append(batch)
    if group:
        yield group

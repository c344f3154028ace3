"""Which weights of a pruned model stayed: masks for fine-tuning, from its files and its record."""

from typing import Literal

import numpy as np

from refimpl.arguments import Bools
from refimpl.errors import RefimplError
from refimpl.model.model import Model
from refimpl.model.ops import is_zero
from refimpl.model.weight import Weight, paste
from refimpl.pruning.record import read_record


def masks(
    dense: Model, pruned: Model, names: Literal["refimpl", "transformers"] = "refimpl"
) -> dict[str, Bools]:
    """Return which weights of every linear stayed in a pruned model.

    A weight was pruned if it is zero now and was not before. If it was zero before, the counts of
    `pruning.json` say whether it counts as pruned; without that record, it stayed.

    Args:
        dense: The model before.
        pruned: The model after, by refimpl or by another program.
        names: `refimpl` for `blocks.0.q_proj.weight`, [out, in]; `transformers` for the names and
            shapes of the file's tensors, of which other parts stay.

    Returns:
        Masks by name, bool, True = stays.

    Raises:
        RefimplError: Models of other sizes; a linear that had zeros of which some were pruned, and
            others not; a damaged record.

    Example:
        >>> from refimpl import read_model
        >>> model = read_model("fixtures/llama")
        >>> masks(model, model)["blocks.0.q_proj.weight"].all()
        np.True_
    """
    if dense.config.linears != pruned.config.linears:
        raise RefimplError(
            f"{dense.name} and {pruned.name}, whose linears differ",
            "a model and what a pruning made of it",
            "pass the model that was pruned first",
        )
    record, found = read_record(pruned), dict[str, Bools]()
    for i, linears in enumerate(dense.config.linears):
        for j, name in enumerate(linears):
            key = f"blocks.{i}.{name}.weight"
            count = None if record is None else record["blocks"][i]["linears"][j]["pruned"]
            weight = pruned.weights[key]
            keep = _stayed(dense.weights[key], weight, count, f"{pruned.name}: {key}")
            if names == "refimpl":
                found[key] = keep
            else:
                stored = found.setdefault(weight.stored.name, np.ones(weight.stored.shape, bool))
                paste(stored, keep, weight.layout)
    return found


def _stayed(dense: Weight, pruned: Weight, count: int | None, what: str) -> Bools:
    """The weights of a linear that stayed, of which so many were pruned."""
    old, new = dense.as_stored, pruned.as_stored
    zero: Bools = is_zero(new)
    lost = zero & ~is_zero(old)
    if count == np.count_nonzero(zero):
        return ~zero
    kept_as_they_were = np.array_equal(new, np.where(lost, 0, old))
    if count is None or (kept_as_they_were and count == np.count_nonzero(lost)):
        return ~lost
    raise RefimplError(
        f"{what}: {np.count_nonzero(zero)} weights are zero, of which {count} were pruned, and the "
        "files do not say which",
        "a linear that had no zeros before, or of whose zeros all were pruned, or none",
        "use the zeros of the pruned model as the mask",
    )

"""The table of zeros: what is pruned in a model's file."""

from refimpl.pruning.inspection import Inspection, LinearZeros, common_pattern
from refimpl.show.header import LABEL, MIB, counted
from refimpl.show.table import aligned


def inspection_table(found: Inspection) -> str:
    """What a model's file holds: sizes, and a row per block with the sparsity of every linear.

    Args:
        found: From `refimpl.pruning.inspection.inspect`.

    Returns:
        Text, lines ended by newlines.
    """
    names, everything = list(found.blocks[0]), found.linears
    blocks = [list(block.values()) for block in found.blocks]
    rows = [*blocks, everything]
    columns = {
        "block": [*map(str, range(len(blocks))), "all"],
        "weights": [f"{sum(x.weights for x in row):,}" for row in rows],
        "sparsity": [_sparsity(row) for row in rows],
        **{name: _each(name, found) for name in names},
        "n:m": [common_pattern(row) or "-" for row in rows],
        "dtype": [" ".join(dict.fromkeys(x.dtype for x in row)) for row in rows],
    }
    total, zeros = sum(x.weights for x in everything), sum(x.zeros for x in everything)
    last = f"zeros {zeros:,} of {total:,} ({zeros / total:.4%})"
    return "\n".join([*_header(found), "", *aligned(columns), "", last]) + "\n"


def _header(found: Inspection) -> list[str]:
    """Facts of the whole model, each label once."""
    facts = [found.model, f"family {found.family}", counted(len(found.blocks), "block")]
    size = f"{found.parameter_bytes / MIB:,.1f} MiB"
    files = [f"{name}, {size / MIB:,.1f} MiB" for name, size in found.files.items()]
    lines = {
        "model": [", ".join(facts)],
        "parameters": [f"{found.parameters:,} in all, {size}"],
        "files" if len(files) > 1 else "file": files,
    }
    if (asked := found.requested) is not None:
        what = asked.pattern or f"sparsity {asked.sparsity:g}"
        lines["requested"] = [f"{what} by {asked.method}, as pruning.json says"]
    return [
        f"{label if i == 0 else '':<{LABEL}}{fact}"
        for label, known in lines.items()
        for i, fact in enumerate(known)
    ]


def _each(name: str, found: Inspection) -> list[str]:
    """Sparsity of one linear in every block, and in all of them."""
    linears = [block[name] for block in found.blocks]
    return [_sparsity(some) for some in (*([linear] for linear in linears), linears)]


def _sparsity(linears: list[LinearZeros]) -> str:
    """Zeros of some linears as a fraction of their weights."""
    return f"{sum(x.zeros for x in linears) / sum(x.weights for x in linears):.4f}"

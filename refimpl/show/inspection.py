"""The table of zeros: what is pruned in a model's file."""

from refimpl.pruning.inspection import Inspection, LinearZeros, common_pattern
from refimpl.running.memory import MIB
from refimpl.show.header import LABEL, model_facts
from refimpl.show.table import aligned


def inspection_table(inspection: Inspection) -> str:
    """What a model's file holds: sizes, and a row per block with the sparsity of every linear."""
    everything = inspection.linears
    rows = [*(list(block.values()) for block in inspection.blocks), everything]
    columns = {
        "block": [*map(str, range(len(inspection.blocks))), "all"],
        "weights": [f"{sum(x.weights for x in row):,}" for row in rows],
        "sparsity": [_sparsity(row) for row in rows],
        **{name: _each(name, inspection) for name in inspection.blocks[0]},
        "n:m": [common_pattern(row) or "-" for row in rows],
        "dtype": [" ".join(dict.fromkeys(x.dtype for x in row)) for row in rows],
    }
    total, zeros = sum(x.weights for x in everything), sum(x.zeros for x in everything)
    last = f"zeros {zeros:,} of {total:,} ({zeros / total:.4%})"
    return "\n".join([*_header(inspection), "", *aligned(columns), "", last]) + "\n"


def _header(inspection: Inspection) -> list[str]:
    """Facts of the whole model, each label once."""
    num_blocks = len(inspection.blocks)
    size = f"{inspection.parameter_bytes / MIB:,.1f} MiB"
    files = [f"{name}, {size / MIB:,.1f} MiB" for name, size in inspection.files.items()]
    lines = {
        "model": [", ".join(model_facts(inspection.model, inspection.family, num_blocks))],
        "parameters": [f"{inspection.parameters:,} in all, {size}"],
        "files" if len(files) > 1 else "file": files,
    }
    if (asked := inspection.requested) is not None:
        what = asked.pattern or f"sparsity {asked.sparsity:g}"
        lines["requested"] = [f"{what} by {asked.method}, as pruning.json says"]
    return [
        f"{label if i == 0 else '':<{LABEL}}{fact}"
        for label, facts in lines.items()
        for i, fact in enumerate(facts)
    ]


def _each(name: str, inspection: Inspection) -> list[str]:
    """Sparsity of one linear in every block, and in all of them."""
    linears = [block[name] for block in inspection.blocks]
    return [_sparsity(row) for row in (*([linear] for linear in linears), linears)]


def _sparsity(linears: list[LinearZeros]) -> str:
    """Zeros of some linears as a fraction of their weights."""
    return f"{sum(x.zeros for x in linears) / sum(x.weights for x in linears):.4f}"

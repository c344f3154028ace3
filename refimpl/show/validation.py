"""The table of a validation: the error of each trace point, and the first disagreement."""

from collections.abc import Iterator, Sequence
from math import isfinite
from typing import Any

from refimpl.comparison.agreement import Agreement
from refimpl.onnx.validate import Comparison, Validation
from refimpl.onnx.zero_weights import Zeros
from refimpl.show.header import counted, fitting, joined, model_facts, wrapped
from refimpl.show.table import fitted

VALIDATION_FORMAT = 1  # of `validate --json`
NAMED_LINEARS = 3  # of those that differ
AT = "block, tokens"  # heading of the place of an error


def validation_table(validation: Validation) -> str:
    """The worst error of each trace point in every dtype, those of the experiment, the verdict."""
    rows = fitted(_columns(validation))
    said = [*_verdict(validation), *validation.notes]
    parts = [part for line in said for part in fitting(line)]
    return joined([*_header(validation), "", *rows, "", *parts])


def validation_document(validation: Validation) -> dict[str, Any]:
    """A validation as one JSON document; an error that is no number is null."""
    tokens, zeros, first = validation.tokens, validation.zeros, validation.first
    return {
        "format": VALIDATION_FORMAT,
        **{name: getattr(validation, name) for name in ("model", "family", "graph", "against")},
        "ran": validation.ran,
        "agrees": validation.agrees,
        "first": None
        if first is None or first.first is None
        else {
            **_run_document(first),
            **_point_document(first.first),
            "usual_causes": list(first.first.causes),
        },
        "tokens": {"kind": tokens.kind, "source": tokens.source, "sha256": tokens.sha256},
        "comparisons": [
            {
                **_run_document(run),
                "tolerance": run.tolerance,
                "agrees": run.first is None,
                "points": [_point_document(point) for point in run.points],
            }
            for run in validation.comparisons
        ],
        "zeros": None if zeros is None else _zeros_document(zeros),
        "notes": list(validation.notes),
    }


def _header(validation: Validation) -> list[str]:
    """What was compared with what, and on what."""
    graph, tokens = validation.graph, validation.tokens
    shapes = dict.fromkeys(str(list(one.shape)) for one in validation.comparisons)
    recorded = "recorded here, with every trace point" if graph is None else graph
    facts = {
        "model": model_facts(validation.model, validation.family, validation.num_blocks),
        **({} if validation.against == "torch" else {"graph": [recorded]}),
        "against": [validation.ran],
        "tokens": [*tokens.source.split(", "), f"sha256 {tokens.sha256[:12]}"],
        "compared": ["relative error of the worst token", f"on tokens {' '.join(shapes)}"],
    }
    return wrapped(facts)


def _columns(validation: Validation) -> dict[str, list[str]]:
    """A row per kind of trace point: the worst block and shape of each, in every dtype."""
    comparisons = validation.comparisons
    kinds = dict.fromkeys(_kind(point.point) for one in comparisons for point in one.points)
    columns = {"point": [*kinds, "tolerance"]}
    for dtype in dict.fromkeys(one.dtype for one in comparisons):
        runs = [one for one in comparisons if one.dtype == dtype]
        worst = [_worst(runs, kind) for kind in kinds]
        places = [_place(point, run) for point, run in worst]
        width = max(map(len, [AT, *places]))
        errors = [*(_error(point) for point, _ in worst), f"{runs[0].tolerance:.0e}"]
        columns[f"{dtype:>7}  {AT:>{width}}"] = [
            f"{error:>7}  {place:>{width}}"
            for error, place in zip(errors, [*places, ""], strict=True)
        ]
    return columns


def _worst(runs: Sequence[Comparison], kind: str) -> tuple[Agreement, Comparison]:
    """The worst of all trace points of a kind, and its run; a fault is worse than any error."""
    points = [(point, run) for run in runs for point in run.points if _kind(point.point) == kind]
    return max(points, key=lambda pair: (bool(pair[0].fault), pair[0].error))


def _verdict(validation: Validation) -> list[str]:
    """Whether it agrees; if not, where to look first, and the usual causes."""
    first, zeros = validation.first, validation.zeros
    if first is None or first.first is None:
        lines = [f"agrees: {', '.join(_agreed(validation.comparisons))}"]
    else:
        lines = _disagreement(first, first.first)
    if zeros is not None:
        counts = (
            f"zeros in the graph: {zeros.graph:,} of {zeros.weights:,} prunable weights"
            f" ({zeros.graph / zeros.weights:.4%}), in the file {zeros.file:,}"
        )
        if (asked := zeros.requested) is not None:  # in the record beside the model
            target = asked.pattern or f"{asked.sparsity:.4%}"
            counts += f", asked for {target} by {asked.method}"
        lines.append(counts)
        if zeros.differ:
            named = _named(zeros.differ)
            lines.append(f"does not agree: zeros of {named} are not where the file has them")
        if zeros.unnamed:
            lines.append(f"does not agree: no array named {_named(zeros.unnamed)}")
    return lines


def _named(linears: Sequence[str]) -> str:
    """The first linears of several, and how many more there are."""
    left = len(linears) - NAMED_LINEARS
    return ", ".join(linears[:NAMED_LINEARS]) + (f" and {left:,} more" if left > 0 else "")


def _agreed(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """What agrees."""
    if runs := [one for one in comparisons if one.kind == "forward"]:
        points = counted(len(runs[0].points), "trace point")
        yield f"{points} in each of {counted(len(runs), 'run')}"
    if experiments := [one for one in comparisons if one.kind == "experiment"]:
        yield f"the experiment in {' and '.join(one.dtype for one in experiments)}"


def _disagreement(failed: Comparison, point: Agreement) -> list[str]:
    """The first trace point over the tolerance, the one before it, and the usual causes."""
    index = failed.points.index(point)
    size = f"{point.error:.1e}, allowed {failed.tolerance:.0e}" if isfinite(point.error) else ""
    token = f"at token {list(point.token)}" if point.token else ""
    facts = ", ".join(text for text in (point.fault, size, token) if text)
    run = f"{failed.dtype}, tokens {list(failed.shape)}"
    lines = [f"does not agree, first at {point.point} ({run}): {facts}"]
    if index:
        before = failed.points[index - 1]
        lines.append(f"just before it, {before.point} agrees ({before.error:.1e})")
    if point.causes:
        lines += ["usual causes:", *(f"  {text}" for text in point.causes)]
    return lines


def _kind(point: str) -> str:
    """Name of a trace point without its block."""
    return point.rsplit(".", 1)[-1]


def _place(point: Agreement, run: Comparison) -> str:
    """The block and the tokens where a trace point is off; nothing if it is exact."""
    if not point.error and not point.fault:
        return ""
    block = f"{point.point.split('.')[1]} " if "." in point.point else ""
    return f"{block}{list(run.shape)}"


def _error(point: Agreement) -> str:
    """An error as text, or the fault in a word."""
    if not point.fault:
        return f"{point.error:.1e}"
    words = ("missing", "shape", "dtype", "NaN", "Inf")
    return next((word for word in words if word in point.fault.split()), "all 0")


def _point_document(point: Agreement) -> dict[str, Any]:
    """One comparison of an array."""
    return {
        "point": point.point,
        "error": point.error if isfinite(point.error) else None,
        "token": list(point.token),
        "fault": point.fault or None,
    }


def _run_document(run: Comparison) -> dict[str, Any]:
    return {"kind": run.kind, "dtype": run.dtype, "shape": list(run.shape)}


def _zeros_document(zeros: Zeros) -> dict[str, Any]:
    """The zeros of a graph and of a file."""
    asked = zeros.requested
    return {
        **{name: getattr(zeros, name) for name in ("weights", "graph", "file")},
        "requested": None if asked is None else asked.pattern or asked.sparsity,
        "differ": list(zeros.differ),
        "unnamed": list(zeros.unnamed),
    }

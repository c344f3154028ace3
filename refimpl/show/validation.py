"""The table of a validation: how far each trace point is off, and where it first goes wrong."""

from collections.abc import Iterator, Sequence
from math import isfinite
from typing import Any

from refimpl.comparison.agreement import Agreement
from refimpl.onnx.validate import Comparison, Validation
from refimpl.onnx.zero_weights import Zeros
from refimpl.show.header import counted, wrapped
from refimpl.show.table import aligned

FORMAT = 1  # of `validate --json`
LINEARS = 3  # named, of those that differ


def validation_table(found: Validation) -> str:
    """How far the worst token of each trace point is off, in every dtype, and the verdict.

    The experiment's drift, alignment and coefficient are rows below the trace points.

    Args:
        found: From `refimpl.onnx.validate.validate`.

    Returns:
        Text, lines ended by newlines.
    """
    table = [line.rstrip() for line in aligned(_columns(found))]
    return "\n".join([*_header(found), "", *table, "", *_verdict(found), *found.notes]) + "\n"


def validation_document(found: Validation) -> dict[str, Any]:
    """A validation as one JSON document.

    Args:
        found: From `refimpl.onnx.validate.validate`.

    Returns:
        Numbers, strings, lists and objects; an error that has no number is null.
    """
    facts, zeros, failed = found.tokens, found.zeros, found.first
    return {
        "format": FORMAT,
        "model": found.model,
        "family": found.family,
        "graph": found.graph,
        "against": found.against,
        "ran": found.ran,
        "agrees": found.agrees,
        "first": None if failed is None else _first_document(failed),
        "tokens": {key: getattr(facts, key) for key in ("kind", "source", "sha256")},
        "comparisons": [
            {
                "kind": one.kind,
                "dtype": one.dtype,
                "shape": list(one.shape),
                "tolerance": one.tolerance,
                "agrees": one.first is None,
                "points": [_point(point) for point in one.points],
            }
            for one in found.comparisons
        ],
        "zeros": None if zeros is None else _zeros_document(zeros),
        "notes": list(found.notes),
    }


def _header(found: Validation) -> list[str]:
    """What was compared with what, and on what."""
    graph = "recorded here, with every trace point" if found.graph is None else found.graph
    shapes = dict.fromkeys(str(list(one.shape)) for one in found.comparisons)
    facts = {
        "model": [found.model, f"family {found.family}", counted(found.num_blocks, "block")],
        **({} if found.against == "torch" else {"graph": [graph]}),
        "against": [found.ran],
        "tokens": [*found.tokens.source.split(", "), f"sha256 {found.tokens.sha256[:12]}"],
        "compared": ["relative error of the worst token", f"on tokens {' '.join(shapes)}"],
    }
    return [line for label, known in facts.items() for line in wrapped(label, known)]


def _columns(found: Validation) -> dict[str, list[str]]:
    """A row per kind of trace point: the worst block and shape of each, in every dtype."""
    dtypes = dict.fromkeys(one.dtype for one in found.comparisons)
    points = dict.fromkeys(_kind(point.point) for one in found.comparisons for point in one.points)
    columns = {"point": [*points, "tolerance"]}
    for dtype in dtypes:
        runs = [one for one in found.comparisons if one.dtype == dtype]
        worst = [_worst(runs, kind) for kind in points]
        places = [_place(point, one) for point, one in worst]
        width = max(map(len, ["at", *places]))
        cells = zip([_error(point) for point, _ in worst], places, strict=True)
        rows = [f"{error:>7}  {place:>{width}}" for error, place in cells]
        columns[f"{dtype:>7}  {'at':>{width}}"] = [
            *rows,
            f"{runs[0].tolerance:>7.0e}  {'':{width}}",
        ]
    return columns


def _worst(runs: Sequence[Comparison], kind: str) -> tuple[Agreement, Comparison]:
    """The worst of all trace points of a kind, and where; any fault is worse than any error."""
    every = [(p, one) for one in runs for p in one.points if _kind(p.point) == kind]
    return max(every, key=lambda at: (bool(at[0].fault), at[0].error))


def _verdict(found: Validation) -> list[str]:
    """Whether it agrees; and if not, where to look first, and what it usually is."""
    lines, zeros = [], found.zeros
    if (failed := found.first) is None:
        lines.append(f"agrees: {', '.join(_agreed(found.comparisons))}")
    else:
        lines += _where(failed)
    if zeros is not None:
        lines.append(
            f"zeros in the graph: {zeros.graph:,} of {zeros.weights:,} prunable weights"
            f" ({zeros.graph / zeros.weights:.4%}), in the file {zeros.file:,}" + _asked(zeros)
        )
        for names, what in ((zeros.differ, "elsewhere than in the file"), (zeros.unnamed, "")):
            if names:
                more = f" and {len(names) - LINEARS:,} more" if len(names) > LINEARS else ""
                linears = f"{', '.join(names[:LINEARS])}{more}"
                lines.append(
                    f"does not agree: zeros of {linears} {what}"
                    if what
                    else f"does not agree: no array named {linears}"
                )
    return lines


def _agreed(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """What agrees."""
    runs = [one for one in comparisons if one.kind == "forward"]
    if runs:
        points = counted(len(runs[0].points), "trace point")
        yield f"{points} in each of {counted(len(runs), 'run')}"
    if trials := [one for one in comparisons if one.kind == "experiment"]:
        yield f"the experiment in {' and '.join(one.dtype for one in trials)}"


def _where(failed: Comparison) -> list[str]:
    """The first trace point over the tolerance, the one before it, and the usual causes."""
    at = next(i for i, p in enumerate(failed.points) if not p.within(failed.tolerance))
    point = failed.points[at]
    size = f"{point.error:.1e}, allowed {failed.tolerance:.0e}" if isfinite(point.error) else ""
    place = f"at token {list(point.token)}" if point.token else ""
    said = ", ".join(text for text in (point.fault, size, place) if text)
    lines = [
        f"does not agree, first at {point.point} ({failed.dtype}, tokens {list(failed.shape)}): "
        f"{said}"
    ]
    if at:
        before = failed.points[at - 1]
        lines.append(f"just before it, {before.point} agrees ({before.error:.1e})")
    if point.causes:
        lines += ["usual causes:", *(f"  {text}" for text in point.causes)]
    return lines


def _asked(zeros: Zeros) -> str:
    """What was asked for, as the record beside the model says."""
    if zeros.requested is None:
        return ""
    asked = zeros.requested
    return f", asked for {asked.pattern or f'{asked.sparsity:.4%}'} by {asked.method}"


def _kind(point: str) -> str:
    """Name of a trace point without its block."""
    return point.rsplit(".", 1)[-1]


def _place(point: Agreement, one: Comparison) -> str:
    """The block and the tokens where a trace point is off; nothing where it is not."""
    if not point.error and not point.fault:
        return ""
    block = f"block {point.point.split('.')[1]} " if "." in point.point else ""
    return f"{block}{list(one.shape)}"


def _error(point: Agreement) -> str:
    """An error as text, or the fault in a word."""
    if not point.fault:
        return f"{point.error:.1e}"
    words = ("missing", "shape", "dtype", "NaN", "Inf")
    return next((word for word in words if word in point.fault.split()), "all 0")


def _point(point: Agreement) -> dict[str, Any]:
    """One comparison of an array."""
    return {
        "point": point.point,
        "error": point.error if isfinite(point.error) else None,
        "token": list(point.token),
        "fault": point.fault or None,
    }


def _first_document(failed: Comparison) -> dict[str, Any]:
    """Where it first goes wrong."""
    point = next(p for p in failed.points if not p.within(failed.tolerance))
    return {
        "kind": failed.kind,
        "dtype": failed.dtype,
        "shape": list(failed.shape),
        **_point(point),
        "usual_causes": list(point.causes),
    }


def _zeros_document(zeros: Zeros) -> dict[str, Any]:
    """The zeros of a graph and of a file."""
    asked = zeros.requested
    return {
        "weights": zeros.weights,
        "graph": zeros.graph,
        "file": zeros.file,
        "requested": None if asked is None else asked.pattern or asked.sparsity,
        "differ": list(zeros.differ),
        "unnamed": list(zeros.unnamed),
    }

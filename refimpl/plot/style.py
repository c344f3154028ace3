"""How figures look: one colour and marker per allocation; and how they are drawn and saved."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from itertools import cycle
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

import numpy as np

from refimpl.errors import RefimplError, need, printable
from refimpl.model.ops import Array
from refimpl.running.outputs import whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT = "#24292f", "#b8c0c8"  # of texts and of grids; a page replaces them
COLOURS = {
    **dict.fromkeys(("axes.edgecolor", "grid.color"), FAINT),
    **dict.fromkeys(
        ("axes.labelcolor", "text.color", "xtick.color", "ytick.color"), INK
    ),
}
_WIDTH, _HEIGHT = 4.5, 3.8  # inches of one figure
FILE_METADATA: dict[
    str, dict[str, None]
] = {  # by ending; without the time, and without a version
    ".svg": dict.fromkeys(("Date", "Creator", "Format", "Type")),
    ".png": {"Software": None},
    ".pdf": dict.fromkeys(("CreationDate", "Creator", "Producer")),
}


class Look(NamedTuple):
    """The colour and the marker of a series; both differ, so that a grey print is readable."""

    colour: str
    marker: str


# Colours with 3:1 against white and against a dark page; an allocation looks the same everywhere.
LOOKS = {
    "uniform": Look("#7b8591", "o"),
    "owl": Look("#b5770d", "s"),
    "alphapruning": Look("#9263d3", "^"),
    "dlp": Look("#17908a", "v"),
    "lsa": Look("#d1559d", "D"),
    "atp": Look("#4a9138", "P"),
    "absorption": Look("#dc4a35", "X"),
    "divergence": Look("#2f80e4", "*"),
}
MARKERS = "<>pHhd8"


def dashes(pruners: Iterable[str]) -> dict[str, Any]:
    """The line of each pruner, by its name; "admm", "wanda + refit", … share the other lines."""
    known = {"": "-", "wanda": "-", "sparsegpt": "--", "magnitude": ":", "random": "-."}
    others = cycle([(0, (1.5, 1)), (0, (0.6, 0.6)), (0, (4, 0.7)), (0, (1, 4))])
    return {x: known.get(x.rpartition(", ")[2]) or next(others) for x in pruners}


def looks(names: Iterable[str]) -> dict[str, Look]:
    """The look of each allocation, by its name: "owl", "owl + divergence measured", "lsa:beta=1".

    A correction of the uniform base has the correction's look; of another base, the colour of the
    base and the marker of the correction. Other names share the other looks.
    """
    found: dict[str, Look] = {}
    for name in names:
        known = re.sub(
            r":[^+]*|^uniform \+", "", name.lower()
        )  # without the options of a base
        words = [x for x in re.findall(r"[a-z]+", known) if x in LOOKS]
        first = crc32(name.encode()) % len(MARKERS)
        markers, colours = (
            MARKERS[first:] + MARKERS[:first],
            ["#8c6d5a", "#6d7f52", "#5f7896"],
        )
        if words:
            markers, colours = (
                LOOKS[words[-1]].marker + markers,
                [LOOKS[words[0]].colour],
            )
        choices = [Look(colour, marker) for colour in colours for marker in markers]
        found[name] = next((x for x in choices if x not in found.values()), choices[0])
    return found


def plain_text(text: object) -> str:
    """A foreign text as matplotlib shows it: without control characters, and never as a formula."""
    return printable(text).replace("$", r"\$")


def styled() -> Any:
    """A context in which matplotlib has the style of these figures, and nothing else changes."""
    need("plot", "matplotlib")
    import matplotlib

    return matplotlib.rc_context(
        COLOURS, files("refimpl.plot").joinpath("refimpl.mplstyle")
    )


def drawn(panels: Sequence[Callable[..., Any]]) -> "Figure":
    """A figure of all panels, two in a row, which no window shows."""
    with styled():
        from matplotlib.figure import Figure

        columns, rows = min(len(panels), 2), -(-len(panels) // 2)
        figure = Figure(figsize=(_WIDTH * columns, _HEIGHT * rows))
        parts = figure.subfigures(
            rows, columns, squeeze=False
        ).ravel()  # each with its layout
        for part, draw in zip(parts, panels, strict=False):
            draw(ax=part.subplots())
        tall = [
            x.get_legend().get_window_extent().height
            for x in figure.axes
            if x.get_legend()
        ]
        figure.set_figheight(
            rows * max(_HEIGHT, _HEIGHT - 0.9 + max(tall, default=0) / figure.dpi)
        )
    return figure


@contextmanager
def figure_axes(
    ax: "Axes | None", heading: str, facts: Sequence[str] = ()
) -> Iterator["Axes"]:
    """The axes of a figure, or new ones, in the style; when drawn, with a legend and a title."""
    with styled():
        from matplotlib.figure import Figure

        ax = ax or Figure(figsize=(_WIDTH, _HEIGHT)).subplots()
        yield ax
        handles, names = ax.get_legend_handles_labels()
        if handles:  # below the axes, in as many columns as the names allow
            columns = max(1, min(4, len(names), 49 // max(map(len, names))))
            place = {
                "loc": "upper left",
                "bbox_to_anchor": (-0.13, 0),
                "borderaxespad": 4.2,
            }
            ax.legend(handles, names, ncols=columns, fontsize=8, **place)
        title(ax, heading, facts)


def title(ax: "Axes", heading: str, facts: Sequence[str] = ()) -> None:
    """The heading of a figure, and below it, smaller, what it was measured on."""
    glue, words = "\N{NO-BREAK SPACE}", "\n".join(map(plain_text, wrap(heading, 46)))
    glued = ", ".join(fact.replace(" ", glue) for fact in facts)  # each is on one line
    lines = [x.replace(glue, " ") for x in wrap(glued, 68, break_on_hyphens=False)]
    with styled():
        ax.set_title(words, loc="left", weight="bold", size=10, pad=8 + 11 * len(lines))
        text = ax.annotate(
            "\n".join(map(plain_text, lines)),
            (0, 1),
            (0, 6),
            size=7.5,
            annotation_clip=False,
            xycoords="axes fraction",
            textcoords="offset points",
            linespacing=1.25,
        )
        text.set_in_layout(False)  # it may be wider than the axes


def points(
    ax: "Axes",
    name: str,
    y: Array,
    error: Array | None,
    look: Look,
    line: Any,
    x: Any = None,
) -> None:
    """Points with their standard errors; unknown values are gaps, unknown errors have no bar."""
    bars = (
        None if error is None or not np.isfinite(error).any() else np.nan_to_num(error)
    )
    ax.errorbar(
        np.arange(len(y)) if x is None else x,
        y,
        bars,
        color=look.colour,
        marker=look.marker,
        markersize=8 if look.marker == "*" else 5,
        linestyle=line or "none",
        elinewidth=1,
        capsize=2,
        label=plain_text(name) or None,
    )


def per_block(
    ax: "Axes", series: Mapping[str, tuple[Array, Array | None]], block: str, value: str
) -> None:
    """Values with their errors over the blocks; several series in their order, by lightness."""
    from matplotlib import colormaps

    several = colormaps["viridis"](np.linspace(0.2, 0.75, len(series)))
    shades: Any = (
        several if len(series) > 1 else [INK]
    )  # other colours are those of allocations
    looks_of = zip(shades, cycle("osD^vPX"), strict=False)
    for (shade, marker), (name, (y, error)) in zip(
        looks_of, series.items(), strict=False
    ):
        points(ax, name, y, error, Look(shade, marker), "-" if len(series) > 1 else "")
        block_axis(ax, len(y), block)
    value_axis(ax, value, [y for y, _ in series.values()])


def block_axis(ax: "Axes", count: int, label: str, vertical: bool = False) -> None:
    """An axis with a place for every block, and whole numbers as ticks."""
    from matplotlib.ticker import MaxNLocator

    axis = ax.yaxis if vertical else ax.xaxis
    axis.set_major_locator(MaxNLocator(10, integer=True, steps=[1, 2, 5, 10]))
    if count <= 12:  # a tick for each
        axis.set_ticks(range(count))
    axis.set_label_text(label)
    if not vertical:
        ax.set_xlim(-0.6, count - 0.4)


def value_axis(
    ax: "Axes", label: str, values: Iterable[Array | Sequence[float]]
) -> None:
    """The axis of the values, logarithmic if the largest is more than six times the smallest."""
    known = np.concatenate([np.ravel(x) for x in values])
    known = known[np.isfinite(known)]
    ax.set_ylabel(label)
    if known.size and known.min() > 0 and known.max() > 6 * known.min():
        ax.set_yscale("log", nonpositive="mask")
        ax.set_ylabel(f"{label}, log scale")
        round_ticks(ax.yaxis, known)


def round_ticks(axis: Any, known: Array) -> None:
    """Ticks of a logarithmic axis at round values, written in full."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    wide = known.size > 0 and known.max() > 1000 * known.min()
    axis.set_major_locator(
        LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0), numticks=9)
    )
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def save(ax: Any, path: str | Path) -> None:
    """Save a figure as SVG, PNG or PDF, whole or not at all; the same figure gives equal bytes.

    Args:
        ax: Axes that a function of this package returned, or their figure.
        path: The file; its ending is the format.

    Raises:
        RefimplError: The ending is none of the three.

    Example:
        >>> from refimpl import plot
        >>> plot.save(plot.divergence({"60 %": [0.2, 0.1, 0.3]}), "harm.svg")
    """
    path = Path(path)
    if path.suffix not in FILE_METADATA:
        expected = f"{', '.join(FILE_METADATA)}; refimpl plot also writes .html"
        raise RefimplError(
            f"{path}: no format of figures", expected, "change the ending"
        )
    with styled(), whole(path) as beside:
        more = {"format": path.suffix[1:], "metadata": FILE_METADATA[path.suffix]}
        ax.figure.figure.savefig(beside, dpi=200, **more)

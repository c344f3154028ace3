"""The tables of docs/performance.md, from the results of run.py.

python tests/tools/benchmarks/performance_page.py [--results FILE] [--other FILE]

The text around the tables is written by hand. A region is named by its row.
"""

import argparse
import json
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

import regions
from figure import Figure, from_json, goal_of, markdown, spread
from scoring_profile import roofline

HERE = Path(__file__).parent
PAGE = HERE.parents[2] / "docs" / "performance.md"
WIDTH = 120  # of a line of prose


def tables(results: dict[str, Any], other: dict[str, Any] | None = None) -> dict[str, str]:
    """Every region of the page; `other` holds the results of another machine."""
    figures, profiles = [from_json(entry) for entry in results["figures"]], results["profiles"]
    made = {
        "repetitions": repetitions(results),
        "machine": machine_facts(results),
        "goals": summary(results, other),
    } | {row: table([f for f in figures if f.row == row]) for row in {f.row for f in figures}}
    if other:
        made["other machine"] = machine_facts(other)
    if profiles:
        made["profile"] = f"{profile_table(profiles)}\n\n{profile_words(profiles)}"
        made["bounds"] = roofline_table(profiles)
    return {name: f"\n\n{text}\n\n" for name, text in made.items()}


def headings() -> dict[str, str]:
    """The heading above each region of the page."""
    page = PAGE.read_text("utf-8")
    return {
        at[2]: page[: at.start()].rpartition("\n## ")[2].partition("\n")[0]
        for at in regions.REGION.finditer(page)
    }


def repetitions(results: dict[str, Any]) -> str:
    """How often a figure was measured."""
    count = results["repetitions"]
    if count == 1:
        return "Each figure was measured once, except for the start of the program."
    counts = Counter(len(entry["values"]) for entry in results["figures"])
    each = sorted(counts.items(), reverse=True)
    (most, figures), *others = each
    times = f"{figures} have {most} repetitions"
    times += "".join(f", {figures} have {n}" for n, figures in others)
    return wrapped(
        "A figure is the median of its repetitions. In parentheses are the lowest and the highest. "
        f"Of {counts.total()} figures, {times}."
    )


def machine_facts(results: dict[str, Any]) -> str:
    """Where the results come from, how busy it was, and what was left out."""
    m, rows = results["machine"], results["rows"].values()
    versions = ", ".join(f"{k} {v}" for k, v in m["packages"].items() if v)
    loads = [x[0] for row in rows for x in (row["load_before"], row["load_after"])]
    busy = wrapped(
        f"{m['cpu']} ({m['vector']}), {m['cores']} cores, {m['memory'] / 2**30:.0f} GiB, "
        f"{m['system']}, no GPU. Python {m['python']}, {versions}. NumPy's BLAS: "
        f"{'; '.join(m['blas'])}. The load average over one minute, before and after each row, "
        f"was {min(loads):.1f} to {max(loads):.1f}."
    )
    return "\n\n".join([busy, *[wrapped(left_out(results))] * bool(left_out(results))])


def left_out(results: dict[str, Any]) -> str:
    """Rows that were measured on some of their shapes only."""
    some = {headings()[name]: row["only"] for name, row in results["rows"].items() if row["only"]}
    shapes = ", ".join(dict.fromkeys(name for names in some.values() for name in names))
    words = f"To save time, these sections use {shapes} only: {'; '.join(some)}."
    return words if some else ""


def summary(results: dict[str, Any], other: dict[str, Any] | None) -> str:
    """One line per figure that has a goal, with a column for each machine."""
    columns = {
        one["machine"]["cpu"]: {
            (f.row, f.what, f.shape, f.against): f for f in map(from_json, one["figures"])
        }
        for one in (results, other)
        if one
    }
    judged = {key: f for key, f in next(iter(columns.values())).items() if f.goal is not None}
    reached = " and ".join(
        f"{sum(bool(column[key].met) for key in judged.keys() & column.keys())} on {name}"
        for name, column in columns.items()
    )
    head = wrapped(
        f"Of {len(judged)} figures with a goal, {reached} reach it. In comparisons with torch, "
        "transformers and the originals, a ratio above 1 means that refimpl is faster or needs "
        "less memory."
    )
    rows = [
        (
            *(f.what, f.shape, f.against, goal_of(f)),
            *(judgement(column[key]) if key in column else "" for column in columns.values()),
        )
        for key, f in judged.items()
    ]
    return f"{head}\n\n{markdown(('what', 'shape', 'against', 'goal', *columns), rows)}"


def judgement(figure: Figure) -> str:
    """What was measured, and whether that reaches the goal."""
    return f"{spread(figure.values, figure.value_unit)}: {figure.verdict}"


def table(figures: Sequence[Figure]) -> str:
    """All figures of a row."""
    rows = [
        (
            f.what, f.shape, f.against, spread(f.ours, f.unit), spread(f.theirs, f.unit),
            spread(f.values, f.value_unit), goal_of(f), f.verdict,
        )
        for f in figures
    ]  # fmt: skip
    notes = dict.fromkeys(f"{f.shape}: {f.note}" for f in figures if f.note)
    words = "" if not notes else "\n\n" + "\n".join(f"- {note}" for note in notes)
    heads = ("what", "shape", "against", "ours", "theirs", "measured", "goal", "")
    return markdown(heads, rows) + words


def profile_words(profiles: Sequence[dict[str, Any]]) -> str:
    """How long each profile took."""
    ends = ". ".join(
        f"{p['shape']}: {p['seconds']:.1f} s of processor time; on {p['threads']} threads, "
        f"workers wait {p['waiting']:.0%} of the time"
        for p in profiles
    )
    return wrapped(f"{ends}.")


def profile_table(profiles: Sequence[dict[str, Any]]) -> str:
    """The share of every step."""
    columns = [p["steps"] | {"waiting, all threads": p["waiting"]} for p in profiles]
    rows = [(step, *(f"{shares[step]:.1%}" for shares in columns)) for step in columns[0]]
    return markdown(("step", *(p["shape"] for p in profiles)), rows)


def roofline_table(profiles: Sequence[dict[str, Any]]) -> str:
    """Seconds by part, and how many times the first, which is the bound."""
    columns = [roofline(profile) for profile in profiles]
    bounds = [next(iter(seconds.values())) for seconds in columns]
    rows = [
        (
            part,
            *(f"{c[part]:.3g} s ({c[part] / b:.2f})" for c, b in zip(columns, bounds, strict=True)),
        )
        for part in columns[0]
    ]
    return markdown(("part", *(p["shape"] for p in profiles)), rows)


def wrapped(text: str) -> str:
    """Prose in lines of the page's width; empty lines separate paragraphs."""
    return "\n\n".join(
        textwrap.fill(
            " ".join(words.split()), WIDTH, break_long_words=False, break_on_hyphens=False
        )
        for words in text.strip().split("\n\n")
    )


def main() -> None:
    """Write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    parser.add_argument("--other", type=Path, default=HERE / "results-xeon.json")
    given = parser.parse_args()
    results, other = (
        json.loads(path.read_text()) if path.exists() else None
        for path in (given.results, given.other)
    )
    regions.fill(PAGE, tables(results, other))


if __name__ == "__main__":
    main()

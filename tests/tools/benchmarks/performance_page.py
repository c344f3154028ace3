"""The tables of docs/performance.md, from the results of run.py.

python tests/tools/benchmarks/performance_page.py [--results FILE] [--other FILE]

The text around the tables is written by hand. A region is named by its row.
"""

import argparse
import json
import sys
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

import regions
from figure import Figure, from_json, goal_of, markdown, spread
from scoring_profile import roofline

HERE = Path(__file__).parent
PAGE = HERE.parents[2] / "docs" / "performance.md"
WIDTH = 120  # of a line of prose


def tables(results: dict[str, Any], other: dict[str, Any]) -> dict[str, str]:
    """Every region of the page; `other` holds the results of another machine."""
    every = [from_json(entry) for entry in results["figures"]]
    second = {key(f): f for f in map(from_json, other["figures"])}
    groups: dict[str, list[Figure]] = {"behind": [], "ahead": [], "limits": []}
    for f in every:
        medians = [g.median for g in (f, second.get(key(f))) if g]
        groups[("behind" if min(medians) < 1 else "ahead") if of_peer(f) else "limits"].append(f)
    made = {
        "repetitions": repetitions(results),
        "machines": "\n".join(map(machine_facts, (results, other))) + "\n\n" + software(results),
        "goals": goals(every, second),
        "bounds": roofline_table(results["profiles"]),
    } | {name: table(figures, second, name != "limits") for name, figures in groups.items()}
    assert software(results) == software(other)
    return {name: f"\n\n{text}\n\n" for name, text in made.items()}


def key(figure: Figure) -> tuple[str, ...]:
    """What identifies a figure on any machine."""
    return figure.row, figure.what, figure.shape, figure.against


def of_peer(figure: Figure) -> bool:
    """Whether a figure is how many times refimpl is better than another program."""
    sides = figure.theirs and not figure.value_unit and figure.sense == "at least"
    return bool(sides) and figure.row != "rate"


def repetitions(results: dict[str, Any]) -> str:
    """How often a figure was measured."""
    counts = Counter(len(entry["values"]) for entry in results["figures"])
    (most, figures), *others = sorted(counts.items(), reverse=True)
    times = f"{figures} have {most} repetitions"
    times += "".join(f", {figures} have {n}" for n, figures in others)
    return wrapped(
        "A figure is the median of its repetitions. In parentheses are the lowest and the highest. "
        f"Of {counts.total()} figures on the first machine, {times}."
    )


def machine_facts(results: dict[str, Any]) -> str:
    """A machine, how busy it was, and what was left out."""
    m, rows = results["machine"], results["rows"]
    loads = [x[0] for row in rows.values() for x in (row["load_before"], row["load_after"])]
    some = {name: row["only"] for name, row in rows.items() if row["only"]}
    shapes = " and ".join(dict.fromkeys(name for names in some.values() for name in names))
    of_few = {f["what"] for f in results["figures"] if f["row"] in some}
    left_out = f" To save time, only {shapes} have figures of: {'; '.join(sorted(of_few))}."
    return wrapped(
        f"- {m['cpu']} ({m['vector']}), {m['cores']} cores, {m['memory'] / 2**30:.0f} GiB, "
        f"{m['system']}, no GPU. "
        f"The load average over one minute, before and after each measurement, was {min(loads):.1f}"
        f" to {max(loads):.1f}.{left_out * bool(some)}",
        "  ",
    )


def software(results: dict[str, Any]) -> str:
    """What the programs ran on."""
    m = results["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in m["packages"].items() if v)
    return wrapped(
        f"On both: Python {m['python']}, {versions}. NumPy's BLAS: {'; '.join(m['blas'])}."
    )


def goals(figures: Sequence[Figure], second: Mapping[tuple[str, ...], Figure]) -> str:
    """How many figures reach their goal on each machine."""
    judged = [f for f in figures if f.goal is not None]
    others = [second[key(f)] for f in judged if key(f) in second]
    first, other = (sum(bool(f.met) for f in column) for column in (judged, others))
    return wrapped(
        f"Of {len(judged)} figures with a goal on the first machine, {first} reach it; of "
        f'{len(others)} on the second, {other}. The tables say "missed" where a figure does not.'
    )


def judgement(figure: Figure | None) -> str:
    """What was measured, and whether that misses the goal."""
    if figure is None:
        return ""
    missed = ", missed" if figure.met is False else ""
    return spread(figure.values, figure.value_unit) + missed


def table(figures: Sequence[Figure], second: Mapping[tuple[str, ...], Figure], sides: bool) -> str:
    """Figures on both machines, and what both sides took on the first."""
    rows = [
        (
            f.what, f.shape, f.against, goal_of(f), judgement(f), judgement(second.get(key(f))),
            *(spread((median(x),), f.unit) for x in (f.ours, f.theirs) if sides),
        )
        for f in figures
    ]  # fmt: skip
    heads = ("what", "shape", "against", "goal", "AMD EPYC", "Intel Xeon", "refimpl", "peer")
    return markdown(heads[: None if sides else 6], rows)


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


def wrapped(text: str, indent: str = "") -> str:
    """Prose in lines of the page's width."""
    words, whole = " ".join(text.split()), {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.fill(words, WIDTH, subsequent_indent=indent, **whole)


def main() -> None:
    """Write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    parser.add_argument("--other", type=Path, default=HERE / "results-xeon.json")
    given = parser.parse_args()
    results, other = (json.loads(path.read_text()) for path in (given.results, given.other))
    regions.fill(PAGE, tables(results, other))


if __name__ == "__main__":
    main()

"""The tables of docs/performance.md and its picture, from the results of run.py and seven_b.py.

python tests/tools/benchmarks/performance_page.py [--results FILE] [--other FILE] [--seven FILE]

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
PICTURE = PAGE.with_name("performance-profile.svg")
WIDTH = 120  # of a line of prose
COLORS = ("#1f5fa8", "#b2491f")  # told apart by texture, too


def tables(
    results: dict[str, Any], seven: dict[str, Any] | None, other: dict[str, Any] | None = None
) -> dict[str, str]:
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
    if seven:
        made["seven"] = seven_words(seven)
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
    """Where the results come from, and how busy it was: a paragraph per machine."""
    used = {row["machine"] for row in results["rows"].values()}
    facts = [machine_words(results, cpu) for cpu in results["machines"] if cpu in used]
    return "\n\n".join([*facts, *[wrapped(left_out(results))] * bool(left_out(results))])


def machine_words(results: dict[str, Any], cpu: str) -> str:
    """The facts of a machine, and which sections were measured on it, if not all were."""
    m, every = results["machines"][cpu], results["rows"]
    rows = {name: row for name, row in every.items() if row["machine"] == cpu}
    versions = ", ".join(f"{k} {v}" for k, v in m["packages"].items() if v)
    loads = [x[0] for row in rows.values() for x in (row["load_before"], row["load_after"])]
    busy = (
        f"{m['cpu']} ({m['vector']}), {m['cores']} cores, {m['memory'] / 2**30:.0f} GiB, "
        f"{m['system']}, no GPU. Python {m['python']}, {versions}. NumPy's BLAS: "
        f"{'; '.join(m['blas'])}. The load average over one minute, before and after each row, "
        f"was {min(loads):.1f} to {max(loads):.1f}."
    )
    if len(rows) < len(every):
        busy += f" Measured here: {'; '.join(headings()[name] for name in rows)}."
    return wrapped(busy)


def left_out(results: dict[str, Any]) -> str:
    """Rows that were measured on some of their shapes only."""
    some = {headings()[name]: row["only"] for name, row in results["rows"].items() if row["only"]}
    shapes = ", ".join(dict.fromkeys(name for names in some.values() for name in names))
    words = f"To save time, these sections use {shapes} only: {'; '.join(some)}."
    return words if some else ""


def summary(results: dict[str, Any], other: dict[str, Any] | None) -> str:
    """One line per figure that has a goal, with a column for each machine."""
    columns = {
        " and ".join(one["machines"]): {
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


def shares_of(profile: dict[str, Any]) -> dict[str, float]:
    """All shares of a profile by name."""
    return profile["steps"] | {"waiting, all threads": profile["waiting"]}


def profile_table(profiles: Sequence[dict[str, Any]]) -> str:
    """The picture's numbers."""
    columns = [shares_of(profile) for profile in profiles]
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


def picture(profiles: Sequence[dict[str, Any]]) -> str:
    """Bars of the shares, two models beside each other, as plain SVG."""
    left, width, step, top = 330, 400, 34, 56
    columns = {profile["shape"]: shares_of(profile) for profile in profiles}
    height = top + step * len(shares_of(profiles[0])) + 12
    words = "; ".join(
        f"{shape}: " + ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
        for shape, shares in columns.items()
    )

    def text(x: object, y: int, words: str, more: str = "") -> str:
        return f'<text x="{x}" y="{y}"{more} fill="black">{words}</text>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 90} {height}" '
        'font-family="sans-serif" font-size="12" role="img" aria-labelledby="title desc">',
        '<title id="title">Where the time of scoring goes</title>',
        f'<desc id="desc">{words}.</desc>',
        '<defs><pattern id="stripes" width="6" height="6" patternUnits="userSpaceOnUse" '
        f'patternTransform="rotate(45)"><rect width="6" height="6" fill="{COLORS[1]}"/>'
        '<rect width="2" height="6" fill="#e8b9a5"/></pattern></defs>',
        f'<rect width="{left + width + 90}" height="{height}" fill="white"/>',
        text(left, 18, "share of the processor time of one thread"),
    ]
    fills = (COLORS[0], "url(#stripes)")
    for i, (shape, fill) in enumerate(zip(columns, fills, strict=False)):
        at = left + 230 * i
        key = f'<rect x="{at}" y="28" width="11" height="11" fill="{fill}"/>'
        parts.append(key + text(at + 16, 38, shape))
    for k, name in enumerate(shares_of(profiles[0])):
        y = top + step * k
        parts.append(text(left - 8, y + 19, name, ' text-anchor="end"'))
        for i, (shares, fill) in enumerate(zip(columns.values(), fills, strict=False)):
            long, at = width * shares[name], y + 2 + 14 * i
            bar = f'<rect x="{left}" y="{at}" width="{long:.1f}" height="12" fill="{fill}"/>'
            parts.append(bar + text(f"{left + long + 5:.1f}", at + 10, f"{shares[name]:.1%}"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def seven_words(seven: dict[str, Any]) -> str:
    """The 7B run."""
    rows = [
        (
            f"`{seven[name]['command']}`", f"{seven[name]['whole']:,.0f} s",
            f"{seven[name]['peak'] / 1e9:.2f} GB", f"at most {seven['limit'] / 1e9:.0f} GB",
            "pass" if seven[name]["peak"] <= seven["limit"] else "falls short",
        )
        for name in ("score", "prune")
    ]  # fmt: skip
    text = wrapped(
        f"`tests/tools/benchmarks/seven_b.py` creates a random bfloat16 model of Llama-7B's shape "
        f"({seven['bytes'] / 1e9:.1f} GB in {seven['files']} shards), scores it on "
        f"1 x {seven['tokens']} tokens, prunes it by Wanda to {seven['sparsity']} "
        f"({seven['pruned']:,} of {seven['weights']:,} weights), and deletes it. Memory is the "
        "peak resident memory, including mapped pages. The machine: "
        f"{seven['machine']['cpu']}, {seven['machine']['cores']} cores."
    )
    heads = ("command", "time, including start", "peak", "goal", "")
    return f"{text}\n\n{markdown(heads, rows)}"


def wrapped(text: str) -> str:
    """Prose in lines of the page's width; empty lines separate paragraphs."""
    return "\n\n".join(
        textwrap.fill(
            " ".join(words.split()), WIDTH, break_long_words=False, break_on_hyphens=False
        )
        for words in text.strip().split("\n\n")
    )


def main() -> None:
    """Write the tables and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    parser.add_argument("--other", type=Path, default=HERE / "results-xeon.json")
    parser.add_argument("--seven", type=Path, default=HERE / "seven_b.json")
    given = parser.parse_args()
    results, seven, other = (
        json.loads(path.read_text()) if path.exists() else None
        for path in (given.results, given.seven, given.other)
    )
    regions.fill(PAGE, tables(results, seven, other))
    if results["profiles"]:
        PICTURE.write_text(picture(results["profiles"]))


if __name__ == "__main__":
    main()

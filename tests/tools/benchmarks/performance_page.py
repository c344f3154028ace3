"""docs/performance.md and its picture, from the results of run.py and seven_b.py.

python tests/tools/benchmarks/performance_page.py [--results FILE] [--other FILE] [--seven FILE]
    [--out FOLDER]
"""

import argparse
import json
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from figure import Figure, from_json, goal_of, markdown, spread
from scoring_profile import roofline
from sections import (
    BY_PROCESSOR,
    LINES,
    OLDER,
    OTHER_MACHINE,
    OVERLOADED,
    ROOFLINE,
    SECTIONS,
    SEVEN_B,
    Attempt,
)

HERE = Path(__file__).parent
TOOLS = "tests/tools/benchmarks"
DOCS = HERE.parents[2] / "docs"
PICTURE = "performance-profile.svg"
PROFILE = "Where the time of scoring goes"
WIDTH = 120  # of a line of prose
COLORS = ("#1f5fa8", "#b2491f")  # told apart by texture, too


def page(
    results: dict[str, Any], seven: dict[str, Any] | None, other: dict[str, Any] | None = None
) -> str:
    """The whole page; `other` holds the results of another machine, for the table of goals."""
    figures = [from_json(entry) for entry in results["figures"]]
    processor = any(row["by_processor"] for row in results["rows"].values())
    how = " --processor" * processor
    parts = [
        "# Performance",
        wrapped(
            "This page compares the time and memory of refimpl with other programs. "
            "`tests/tools/benchmarks/run.py` measures every figure; the two sides of a row take "
            f"turns, each in a separate process. {repetitions(results)} The other side is a plain "
            "torch program that follows the method or the original's algorithm. Its weights are in "
            "memory before the clock starts; refimpl's time includes reading, casting and "
            "checking the weights. This page is generated from the results. If a row misses its "
            "goal, its section describes what we tried; we measured these attempts once, and no "
            "command repeats them."
        ),
        *[wrapped(OLDER)] * (results["format"] < 2),
        "```bash\n"
        f"python {TOOLS}/run.py --models FOLDER -o {TOOLS}/results.json{how}\n"
        f"python {TOOLS}/seven_b.py -o {TOOLS}/seven_b.json\n"
        f"python {TOOLS}/performance_page.py\n"
        "```",
        "## The machine",
        machine_facts(results),
        *([wrapped(OTHER_MACHINE), machine_facts(other)] if other else []),
        "## All goals",
        summary(results, other),
    ]
    for row, section in SECTIONS.items():
        if of_row := [figure for figure in figures if figure.row == row]:
            parts += [f"## {section.heading}", wrapped(section.introduction), table(of_row)]
            parts += [wrapped(section.limit)] * bool(section.limit)
            parts += [attempts_table(section.tried)] * bool(section.tried)
    if results["profiles"]:
        parts += [f"## {PROFILE}", profile_words(results["profiles"])]
        parts += [f"![Shares of the time of scoring, step by step]({PICTURE})"]
        parts += [profile_table(results["profiles"])]
        if "rate" in results["profiles"][0]:
            parts += ["## What bounds scoring", wrapped(ROOFLINE)]
            parts += [roofline_table(results["profiles"])]
    if "lines" in results:
        parts += ["## What the speed costs the reader", wrapped(LINES)]
        parts += [lines_table(results["lines"])]
    if seven:
        parts += ["## A model of seven billion weights", seven_words(seven)]
        parts += [wrapped(SEVEN_B)]
    return "\n\n".join(parts) + "\n"


def repetitions(results: dict[str, Any]) -> str:
    """How often a figure was measured."""
    count = results["repetitions"]
    if count == 1:
        return "Each was measured once, except for the start of the program."
    counts = Counter(len(entry["values"]) for entry in results["figures"])
    each = sorted(counts.items(), reverse=True)
    (most, figures), *others = each
    times = f"{figures} have {most} repetitions"
    times += "".join(f", {figures} have {n}" for n, figures in others)
    return (
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
        busy += f" Measured here: {'; '.join(map(heading, rows))}."
    if max(loads) > 2 * m["cores"]:
        busy += f" {OVERLOADED}"
    if any(row["by_processor"] for row in rows.values()):
        busy += f" {BY_PROCESSOR}"
    return wrapped(busy)


def heading(row: str) -> str:
    """The section of a row."""
    return PROFILE if row == "profile" else SECTIONS[row].heading


def left_out(results: dict[str, Any]) -> str:
    """Rows that were measured on some of their shapes only."""
    some = {heading(name): row["only"] for name, row in results["rows"].items() if row["only"]}
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


def attempts_table(attempts: Sequence[Attempt]) -> str:
    """What was tried, and what it gave."""
    rows = [(tried.what, tried.gave, "yes" if tried.kept else "no") for tried in attempts]
    return markdown(("tried", "what it gave", "kept"), rows)


def profile_words(profiles: Sequence[dict[str, Any]]) -> str:
    """How the profile was made."""
    ends = ". ".join(
        f"{p['shape']}: {p['seconds']:.1f} s of processor time; on {p['threads']} threads, "
        f"workers wait {p['waiting']:.0%} of the time"
        for p in profiles
    )
    return wrapped(
        "A timer around every step adds up its processor time, without that of the steps inside "
        "it, in a run on one worker thread. The shares therefore add up to 100 %, and other "
        "programs do not matter. Waiting comes from a second run on all threads: the share of the "
        f"wall-clock time in which a worker has nothing to do. {ends}."
    )


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


def lines_table(lines: Sequence[dict[str, Any]]) -> str:
    """Lines of code, and all lines, of the files that hold the forward."""
    kinds = [(kind, when) for kind in ("code", "all") for when in ("before", "now")]
    cells = [[one["file"], *(one[when][kind] for kind, when in kinds)] for one in lines]
    heads = ("file", "code before", "code now", "all lines before", "all lines now")
    return markdown(heads, cells)


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
        f'<title id="title">{PROFILE}</title>',
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
    """Write the page and its picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    parser.add_argument("--other", type=Path, default=HERE / "results-xeon.json")
    parser.add_argument("--seven", type=Path, default=HERE / "seven_b.json")
    parser.add_argument("--out", type=Path, default=DOCS)
    given = parser.parse_args()
    results = json.loads(given.results.read_text())
    seven, other = (
        json.loads(path.read_text()) if path.exists() else None
        for path in (given.seven, given.other)
    )
    (given.out / "performance.md").write_text(page(results, seven, other))
    if results["profiles"]:
        (given.out / PICTURE).write_text(picture(results["profiles"]))


if __name__ == "__main__":
    main()

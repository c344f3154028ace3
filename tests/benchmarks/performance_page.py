"""docs/performance.md and its picture, from the results of run.py and seven_b.py.

python tests/benchmarks/performance_page.py [--results FILE] [--seven FILE] [--out FOLDER]
"""

import argparse
import json
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from figure import Figure, from_json, goal_of, markdown, spread
from sections import BY_PROCESSOR, OVERLOADED, SECTIONS, SEVEN_B

HERE = Path(__file__).parent
DOCS = HERE.parent.parent / "docs"
PICTURE = "performance-profile.svg"
WIDTH = 120  # of a line of prose
COLORS = ("#1f5fa8", "#b2491f")  # told apart by texture, too


def page(results: dict[str, Any], seven: dict[str, Any] | None) -> str:
    """The whole page."""
    figures = [from_json(entry) for entry in results["figures"]]
    processor = any(row["by_processor"] for row in results["rows"].values())
    how = " --processor" * processor
    parts = [
        "# Performance",
        wrapped(
            "Every figure is measured side by side by `tests/benchmarks/run.py`: the sides of a "
            f"row take turns, each in a process of its own. {repetitions(results)} The rivals "
            "are written plainly in torch from the method, or restate the original's algorithm; "
            "their weights are in memory before the clock starts, ours are read, cast and checked "
            "inside it. This page is generated from the results. What was tried where a row falls "
            "short was measured once, by hand: no command here repeats it."
        ),
        "```bash\n"
        f"python tests/benchmarks/run.py --models FOLDER -o tests/benchmarks/results.json{how}\n"
        "python tests/benchmarks/seven_b.py -o tests/benchmarks/seven_b.json\n"
        "python tests/benchmarks/performance_page.py\n"
        "```",
        "## The machine",
        machine_facts(results),
        "## All goals",
        summary(figures),
    ]
    for row, section in SECTIONS.items():
        if of_row := [figure for figure in figures if figure.row == row]:
            parts += [f"## {section.heading}", wrapped(section.introduction), table(of_row)]
            parts += [wrapped(section.tried)] * bool(section.tried)
    if results["profiles"]:
        parts += ["## Where the time of scoring goes", profile_words(results["profiles"])]
        parts += [f"![Shares of the time of scoring, step by step]({PICTURE})"]
        parts += [profile_table(results["profiles"])]
    if seven:
        parts += ["## Seven billion weights", seven_words(seven), wrapped(SEVEN_B)]
    return "\n\n".join(parts) + "\n"


def repetitions(results: dict[str, Any]) -> str:
    """How often a figure was measured."""
    count = results["repetitions"]
    if count == 1:
        return "Each ran once, the start of the program more often."
    counts = Counter(len(entry["values"]) for entry in results["figures"])
    each = sorted(counts.items(), reverse=True)
    times = ", ".join(f"{figures} figures with {n}" for n, figures in each)
    return (
        "A figure is the median of its repetitions, with the lowest and the highest where there "
        f"are more than one: {times}."
    )


def machine_facts(results: dict[str, Any]) -> str:
    """Where the results come from, and how busy it was."""
    m = results["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in m["packages"].items() if v)
    rows = results["rows"].values()
    loads = [x[0] for row in rows for x in (row["load_before"], row["load_after"])]
    busy = (
        f"{m['cpu']} ({m['vector']}), {m['cores']} cores, {m['memory'] / 2**30:.0f} GiB, "
        f"{m['system']}, no GPU. Python {m['python']}, {versions}. NumPy's BLAS: "
        f"{'; '.join(m['blas'])}. The load (programs that want to run, mean of a minute) was "
        f"{min(loads):.1f} to {max(loads):.1f} at the ends of the rows."
    )
    if max(loads) > 2 * m["cores"]:
        busy += f" {OVERLOADED}"
    if any(row["by_processor"] for row in rows):
        busy += f" {BY_PROCESSOR}"
    return wrapped(f"{busy} {left_out(results)}")


def left_out(results: dict[str, Any]) -> str:
    """Rows that were measured on some of their shapes only."""
    rows = results["rows"]
    some = {x.heading: rows[k]["only"] for k, x in SECTIONS.items() if rows.get(k, {}).get("only")}
    shapes = ", ".join(dict.fromkeys(name for names in some.values() for name in names))
    words = f"Measured on {shapes} only, other shapes left out for time: {', '.join(some)}."
    return words if some else ""


def summary(figures: Sequence[Figure]) -> str:
    """One line per figure that has a goal."""
    judged = [figure for figure in figures if figure.goal is not None]
    met = sum(bool(figure.met) for figure in judged)
    head = f"{met} of {len(judged)} figures reach their goal."
    rows = [
        (f.what, f.shape, f.against, spread(f.values, f.value_unit), goal_of(f), f.verdict)
        for f in judged
    ]
    return f"{head}\n\n{markdown(('what', 'shape', 'against', 'measured', 'goal', ''), rows)}"


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
    """How the profile was made."""
    ends = "; ".join(
        f"{p['shape']}: {p['seconds']:.1f} s of one processor, and on {p['threads']} threads "
        f"workers wait {p['waiting']:.0%} of the time"
        for p in profiles
    )
    return wrapped(
        "A timer around every step, in a run on one worker thread; each adds up the processor time "
        "of its thread without that of the steps inside it, so that the shares add up to the whole "
        "and other programs do not count. Waiting is from a second run on all threads, by the "
        f"clock: the share in which a worker had nothing to do. {ends}."
    )


def shares_of(profile: dict[str, Any]) -> dict[str, float]:
    """All shares of a profile by name."""
    return profile["steps"] | {"waiting, all threads": profile["waiting"]}


def profile_table(profiles: Sequence[dict[str, Any]]) -> str:
    """The picture's numbers."""
    columns = [shares_of(profile) for profile in profiles]
    rows = [(step, *(f"{shares[step]:.1%}" for shares in columns)) for step in columns[0]]
    return markdown(("step", *(p["shape"] for p in profiles)), rows)


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
        f"A random bfloat16 model of Llama-7B's shape, {seven['bytes'] / 1e9:.1f} GB in "
        f"{seven['files']} shards, made and removed by `tests/benchmarks/seven_b.py`, scored on "
        f"1 x {seven['tokens']} tokens and pruned by Wanda to {seven['sparsity']}: "
        f"{seven['pruned']:,} of {seven['weights']:,} weights. Memory is the largest resident one, "
        f"mapped pages included. {seven['machine']['cpu']}, {seven['machine']['cores']} cores."
    )
    heads = ("command", "time, start included", "peak", "goal", "")
    return f"{text}\n\n{markdown(heads, rows)}"


def wrapped(text: str) -> str:
    """Prose in lines of the page's width."""
    words = " ".join(text.split())
    return textwrap.fill(words, WIDTH, break_long_words=False, break_on_hyphens=False)


def main() -> None:
    """Write the page and its picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    parser.add_argument("--seven", type=Path, default=HERE / "seven_b.json")
    parser.add_argument("--out", type=Path, default=DOCS)
    given = parser.parse_args()
    results = json.loads(given.results.read_text())
    seven = json.loads(given.seven.read_text()) if given.seven.exists() else None
    (given.out / "performance.md").write_text(page(results, seven))
    if results["profiles"]:
        (given.out / PICTURE).write_text(picture(results["profiles"]))


if __name__ == "__main__":
    main()

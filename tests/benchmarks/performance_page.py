"""docs/performance.md and its picture, from the results of run.py and seven_b.py.

python tests/benchmarks/performance_page.py [--results FILE] [--seven FILE] [--out FOLDER]
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from figure import Figure, from_json, goal_of, spread
from notes import TRIED

HERE = Path(__file__).parent
DOCS = HERE.parent.parent / "docs"
PICTURE = "performance-profile.svg"
WIDTH = 120  # of a line of prose
COLORS = ("#1f5fa8", "#b2491f")  # told apart by texture, too

HEADINGS = {
    "scoring-hooked": "Scoring against hooked forwards",
    "scoring-batched": "Scoring against the same sharing and batching",
    "rate": "Arithmetic rate",
    "memory": "Memory",
    "spectra": "AlphaPruning's spectra",
    "wanda": "OWL and Wanda",
    "sparsegpt": "SparseGPT",
    "forward": "Forward and evaluation",
    "startup": "Start",
    "growth": "Growth of the cost",
}


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
    for row, heading in HEADINGS.items():
        some = [figure for figure in figures if figure.row == row]
        if not some:
            continue
        parts += [f"## {heading}", wrapped(INTRODUCTIONS[row]), table(some)]
        tried = TRIED.get(row)
        if tried:
            parts.append(wrapped(tried))
    if results["profiles"]:
        parts += ["## Where the time of scoring goes", profile_words(results["profiles"])]
        parts += [f"![Shares of the time of scoring, step by step]({PICTURE})"]
        parts += [profile_table(results["profiles"])]
    if seven:
        parts += ["## Seven billion weights", seven_words(seven), wrapped(TRIED["seven-b"])]
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
    some = {
        HEADINGS[k]: r["only"] for k, r in results["rows"].items() if k in HEADINGS and r["only"]
    }
    if not some:
        return ""
    shapes = ", ".join(dict.fromkeys(name for names in some.values() for name in names))
    return f"Measured on {shapes} only, other shapes left out for time: {', '.join(some)}."


OVERLOADED = """
Others used it. By the clock that is unfair to the rivals: torch's threads wait for the slowest
of them after every operation."""
BY_PROCESSOR = """
So seconds are those of the processor, summed over threads, with torch, onnxruntime and BLAS
on one thread: `--processor`. Other programs do not count then, except by what they do to caches;
neither does waiting, nor how well either side uses several cores. Run it without `--processor` on
an idle machine for all cores, by the clock."""


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


INTRODUCTIONS = {
    "scoring-hooked": """
Time of torch / time of `refimpl.score`, one sequence. What one would write first: transformers,
eager, a forward hook that pushes one block's output, the whole model run for
every block.""",
    "scoring-batched": """
The rival keeps every state that was pushed so far in one batch, with the clean one, and takes it
through each block once; attention is matrix products and a softmax, or torch's fused kernel.""",
    "rate": """
Operations counted from the shapes, for one sequence of T tokens: a block with N weights in its
linears and H heads of h channels takes `2 T N + 2 h H T (T + 1)` operations (only keys that a token
sees); scoring takes L clean block passes and L (L - 1) / 2 pushed ones. Norms, rotation, softmax,
activations, noise, measuring and reading are not counted, but timed. The machine's rate is NumPy's
float32 product on all threads, before and after each scoring, in the same process. By the clock,
waiting counts, and so do other programs; per second of a processor, neither does.""",
    "memory": """
The largest resident memory of the command, mapped pages included (VmHWM), on a random bfloat16
model; the same at 4, 8 and 16 blocks.""",
    "spectra": """
The original: `svdvals` in float32, and a Python loop over the candidates for the
tail. Its alphas are compared in float64, too, because a choice between tails that fit equally well
may turn on float32's rounding.""",
    "wanda": """
OWL's statistic: a dense pass with hooks and the scores of a block together. Wanda: the pass with
hooks, a sort of every row, the pass through the pruned block, and the file written. Times without
start and imports; memory of the whole process.""",
    "sparsegpt": """
The original's steps (the inverse of the Hessian, its Cholesky factor, column by column) in torch,
float32; ours in float64.""",
    "forward": """
`refimpl.forward` to the logits of a batch, and `refimpl.evaluate` (perplexity) on the same number
of windows. onnxruntime runs the graph that refimpl exports; its ratio is stated, without a
goal.""",
    "startup": """
Seconds of the processor, the interpreter's own start included: what a single thread takes on an
idle machine; by the clock it is longer where others use the machine.""",
    "growth": """
Four sizes each, the others fixed at 8 blocks, 128 tokens, width 512. A straight line through the
logarithms gives the exponent; beside it the exponent of the operations counted by the formula above
at the same sizes: about 2 in blocks (`L (L + 1) / 2` passes), 1 in tokens and more as attention's
square grows, and 2 in width. A measured exponent below the formula's means that fixed costs still
show. The goal is on the difference.""",
}


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


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (heads, *rows)]
    lines.insert(1, "|" + "---|" * len(heads))
    return "\n".join(lines)


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


def profile_table(profiles: Sequence[dict[str, Any]]) -> str:
    """The picture's numbers."""
    rows = [(step, *(f"{p['steps'][step]:.1%}" for p in profiles)) for step in profiles[0]["steps"]]
    rows.append(("waiting, all threads", *(f"{p['waiting']:.1%}" for p in profiles)))
    return markdown(("step", *(p["shape"] for p in profiles)), rows)


def picture(profiles: Sequence[dict[str, Any]]) -> str:
    """Bars of the shares, two models beside each other, as plain SVG."""
    left, width, step, top = 330, 400, 34, 56
    steps = [*profiles[0]["steps"], "waiting, all threads"]
    height = top + step * len(steps) + 12

    def share(p: dict[str, Any], name: str) -> float:
        return float(p["waiting"] if name.startswith("waiting") else p["steps"][name])

    words = "; ".join(
        f"{p['shape']}: " + ", ".join(f"{name} {share(p, name):.1%}" for name in steps)
        for p in profiles
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 90} {height}" '
        'font-family="sans-serif" font-size="12" role="img" aria-labelledby="title desc">',
        '<title id="title">Where the time of scoring goes</title>',
        f'<desc id="desc">{words}.</desc>',
        '<defs><pattern id="stripes" width="6" height="6" patternUnits="userSpaceOnUse" '
        f'patternTransform="rotate(45)"><rect width="6" height="6" fill="{COLORS[1]}"/>'
        '<rect width="2" height="6" fill="#e8b9a5"/></pattern></defs>',
        f'<rect width="{left + width + 90}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="18" fill="black">share of the processor time of one thread</text>',
    ]
    fills = (COLORS[0], "url(#stripes)")
    for i, (p, fill) in enumerate(zip(profiles, fills, strict=False)):
        at = left + 230 * i
        parts.append(
            f'<rect x="{at}" y="28" width="11" height="11" fill="{fill}"/>'
            f'<text x="{at + 16}" y="38" fill="black">{p["shape"]}</text>'
        )
    for k, name in enumerate(steps):
        y = top + step * k
        parts.append(
            f'<text x="{left - 8}" y="{y + 19}" text-anchor="end" fill="black">{name}</text>'
        )
        for i, (p, fill) in enumerate(zip(profiles, fills, strict=False)):
            long, at = width * share(p, name), y + 2 + 14 * i
            parts.append(
                f'<rect x="{left}" y="{at}" width="{long:.1f}" height="12" fill="{fill}"/>'
                f'<text x="{left + long + 5:.1f}" y="{at + 10}" fill="black">'
                f"{share(p, name):.1%}</text>"
            )
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
    return "\n".join(_lines(text))


def _lines(text: str) -> Iterator[str]:
    line = ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > WIDTH:
            yield line
            line = word
        else:
            line = f"{line} {word}".strip()
    yield line


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

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
    "scoring-hooked": "Scoring compared with hooked forwards",
    "scoring-batched": "Scoring compared with the same sharing and batching",
    "rate": "Arithmetic rate",
    "memory": "Memory",
    "spectra": "AlphaPruning's spectra",
    "wanda": "OWL and Wanda",
    "sparsegpt": "SparseGPT",
    "forward": "Forward and evaluation",
    "startup": "Start of the program",
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
            "This page compares the time and memory of refimpl with other programs. "
            "`tests/benchmarks/run.py` measures every figure; the two sides of a row take turns, "
            f"each in a separate process. {repetitions(results)} The other side is a plain torch "
            "program that follows the method or the original's algorithm. Its weights are in "
            "memory before the clock starts; refimpl's time includes reading, casting and "
            "checking the weights. This page is generated from the results. If a row misses its "
            "goal, its section describes what we tried; we measured these attempts once, and no "
            "command repeats them."
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
        parts += ["## A model of seven billion weights", seven_words(seven)]
        parts += [wrapped(TRIED["seven-b"])]
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
    """Where the results come from, and how busy it was."""
    m = results["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in m["packages"].items() if v)
    rows = results["rows"].values()
    loads = [x[0] for row in rows for x in (row["load_before"], row["load_after"])]
    busy = (
        f"{m['cpu']} ({m['vector']}), {m['cores']} cores, {m['memory'] / 2**30:.0f} GiB, "
        f"{m['system']}, no GPU. Python {m['python']}, {versions}. NumPy's BLAS: "
        f"{'; '.join(m['blas'])}. The load average over one minute, before and after each row, "
        f"was {min(loads):.1f} to {max(loads):.1f}."
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
    return f"To save time, these sections use {shapes} only: {'; '.join(some)}."


OVERLOADED = """
Other programs used the machine. Wall-clock times then put torch at a disadvantage, because its
threads wait for the slowest one after every operation."""
BY_PROCESSOR = """
Therefore, the seconds are processor time, summed over threads, with torch, onnxruntime and BLAS
on one thread (`--processor`). Processor time excludes other programs, except for their effect on
caches. It also excludes waiting, and does not show how well a program uses several cores. To
measure wall-clock time on all cores, run the command without `--processor` on an idle machine."""


def summary(figures: Sequence[Figure]) -> str:
    """One line per figure that has a goal."""
    judged = [figure for figure in figures if figure.goal is not None]
    met = sum(bool(figure.met) for figure in judged)
    head = wrapped(
        f"{met} of {len(judged)} figures with a goal reach it. In comparisons with torch, "
        "transformers and the originals, a ratio above 1 means that refimpl is faster or needs "
        "less memory."
    )
    rows = [
        (f.what, f.shape, f.against, spread(f.values, f.value_unit), goal_of(f), f.verdict)
        for f in judged
    ]
    return f"{head}\n\n{markdown(('what', 'shape', 'against', 'measured', 'goal', ''), rows)}"


INTRODUCTIONS = {
    "scoring-hooked": """
The ratio is the time of torch divided by the time of `refimpl.score`, on one sequence. The torch
program is what one would write first: transformers with eager attention and a forward hook that
perturbs the output of one block, and one run of the whole model for every block.""",
    "scoring-batched": """
This torch program keeps the clean state and all perturbed states in one batch, and passes the
batch through each block once. Attention is computed as matrix products and a softmax, or by
torch's fused kernel.""",
    "rate": """
The rate counts the operations from the shapes, for one sequence of T tokens. A block with N
weights in its linears and H heads of h channels takes `2 T N + 2 h H T (T + 1)` operations (only
keys that a token sees). Scoring takes L passes of clean states and L (L - 1) / 2 passes of
perturbed ones. Norms, rotation, softmax, activations, noise, measurements and reading are not
counted as operations, but their time is included. The machine's rate is that of NumPy's float32
matrix product on all threads, before and after each scoring, in the same process. Wall-clock
time includes waiting and depends on other programs; processor time does neither.""",
    "memory": """
The figure is the peak resident memory of the command, including mapped pages (VmHWM), on a
random bfloat16 model. The second row repeats the measurement with 4, 8 and 16 blocks.""",
    "spectra": """
The original computes `svdvals` in float32 and searches for the tail with a Python loop. Its
alphas are also compared in float64, because in float32 rounding can decide between tails that
fit equally well.""",
    "wanda": """
OWL's statistic takes a dense pass with hooks, and the scores of all linears of a block. Wanda
takes a pass with hooks, a sort of every row, a pass through the pruned block, and writing the
file. Times exclude start and imports; memory is that of the whole process.""",
    "sparsegpt": """
The original's steps (the inverse of the Hessian, its Cholesky factor, column by column) run in
torch in float32; refimpl computes in float64.""",
    "forward": """
`refimpl.forward` computes the logits of a batch, and `refimpl.evaluate` the perplexity of the
same number of windows. onnxruntime runs the graph that refimpl exports; this comparison has no
goal.""",
    "startup": """
The figures are processor seconds, including the start of the interpreter. The notes give the
wall-clock time, which also depends on other programs.""",
    "growth": """
Each row has four sizes; the other sizes are fixed at 8 blocks, 128 tokens and width 512. The
exponent is the slope of a straight line through the logarithms of the times. Next to it is the
exponent of the operations, counted by the formula above at the same sizes: about 2 in blocks (`L
(L + 1) / 2` passes), 1 in tokens and more as the quadratic part of attention grows, and 2 in
width. A measured exponent below that of the operations means that fixed costs still matter. The
goal applies to the difference.""",
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
        f"`tests/benchmarks/seven_b.py` creates a random bfloat16 model of Llama-7B's shape "
        f"({seven['bytes'] / 1e9:.1f} GB in {seven['files']} shards), scores it on "
        f"1 x {seven['tokens']} tokens, prunes it by Wanda to {seven['sparsity']} "
        f"({seven['pruned']:,} of {seven['weights']:,} weights), and deletes it. Memory is the "
        "peak resident memory, including mapped pages. The machine: "
        f"{seven['machine']['cpu']}, {seven['machine']['cores']} cores."
    )
    heads = ("command", "time, including start", "peak", "goal", "")
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

"""The study's page: a table of `refimpl bench`, and sentences with the numbers of its rows.

PYTHONPATH=.:tests python tests/docs/test_study.py    writes the tables
"""

import csv
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from math import exp, isfinite
from pathlib import Path

import numpy as np
import pytest
from conftest import FIXTURES
from tools.pages import fill, regions

from refimpl import Probes, Request, read_model, score, text_tokens
from refimpl.bench.cells import Comparison, read_bench
from refimpl.bench.tables import Summary, change, percent, perplexity_of, summaries
from refimpl.model.ops import Array
from refimpl.show.models import NOISE_FLOOR
from refimpl.show.table import Table, number

ROOT = FIXTURES.parent
DOCS = ROOT / "docs"
STUDY = DOCS / "study"
MODELS = {
    "smollm2": "SmolLM2-135M",
    "gemma": "Gemma-3-270m",
    "qwen": "Qwen2.5-Coder-0.5B",
}
FEW = ("sparsegpt-4x256-smollm2", "sparsegpt-4x256-qwen")
ADMM = ("admm-smollm2", "admm-gemma", "admm-qwen")
LATER = (*ADMM, "admm-refit-smollm2", "large-qwen")
SMOLLM2 = ("sparsegpt-smollm2", "admm-smollm2", "admm-refit-smollm2")
SHOWN = (*SMOLLM2, "sparsegpt-gemma", *ADMM[1:])
OTHERS = ("sparsegpt-smollm2", "sparsegpt-gemma", *FEW, "magnitude")
WITH_FLOOR = (*MODELS, *OTHERS, "sparsegpt-qwen", "float64")
TEXTS = ("speech", "novel")
PUBLISHED = ("owl", "alphapruning", "dlp", "lsa", "atp")


Setting = dict[str, list[Summary]]
"""Summaries per text, by allocation; of LSA, those with the beta of its code, which ran later."""


def document(name: str) -> Comparison:
    return read_bench(STUDY / name / "bench.jsonl")


def settings(name: str, against: str = "") -> list[Setting]:
    """The summaries of each setting."""
    found: dict[tuple[str, str, float], Setting] = {}
    for x in summaries(document(name), against):
        place = found.setdefault((x.model, x.pruner, x.sparsity), {})
        place.setdefault(x.allocation, []).append(x)
    return [
        {x.partition(":")[0]: texts for x, texts in y.items()} for y in found.values()
    ]


def first_of(place: Setting) -> Summary:
    return place["uniform"][0]


def headline(names: Iterable[str]) -> str:
    """A row per setting and text of these folders: perplexities, and the changes of divergence."""
    rows = []
    for name, i, place in [(n, i, x) for n in names for i, x in enumerate(settings(n))]:
        published = [texts for base, texts in place.items() if base in PUBLISHED]
        best = min(published, key=lambda texts: sum(x.nats for x in texts))[
            0
        ].allocation
        against = settings(name, best)[i]["divergence"]
        for j, text in enumerate(TEXTS):
            x = first_of(place)
            row = {
                "model": x.model.removesuffix("-Instruct"),
                "sparsity": f"{100 * x.sparsity:.0f} %",
            }
            row |= {"text": text} | {
                base: number(y[j].perplexity) for base, y in place.items()
            }
            row["against uniform"] = change(place["divergence"][j])
            row["against the best published"] = (
                f"{change(against[j])} ({best.partition(':')[0]})"
            )
            rows.append(row)
    order = (
        "model",
        "sparsity",
        "text",
        "uniform",
        "divergence",
    )  # in sight on a small screen
    heads = (
        *order,
        "against uniform",
        "against the best published",
        *PUBLISHED,
        "absorption",
    )
    return Table({head: [row[head] for row in rows] for head in heads}, 3).markdown()


def pruners(names: Iterable[str]) -> str:
    """A row per setting of these folders: perplexities of both texts, and their changes."""
    rows = []
    for name, i, place in [(n, i, x) for n in names for i, x in enumerate(settings(n))]:
        x, atp = first_of(place), place["atp"][0].allocation
        row = {"model": x.model.removesuffix("-Instruct"), "pruner": x.pruner}
        row["sparsity"] = f"{100 * x.sparsity:.0f} %"
        for base in ("uniform", "atp", "divergence"):
            row[base] = " / ".join(number(text.perplexity) for text in place[base])
        for base, found in (("uniform", place), ("ATP", settings(name, atp)[i])):
            row[f"against {base}"] = " / ".join(map(change, found["divergence"]))
        rows.append(row)
    return Table({head: [row[head] for row in rows] for head in rows[0]}, 3).markdown()


def seconds() -> str:
    """What each pruner and allocation costs, and gives."""
    with (STUDY / "seconds.csv").open(encoding="utf-8", newline="") as file:
        rows = [*csv.DictReader(line for line in file if not line.startswith("#"))]
    return Table({head: [row[head] for row in rows] for head in rows[0]}, 2).markdown()


def measured_floors(name: str) -> list[Summary]:
    """Of each setting with reruns, and each text: a summary that has the floor."""
    return [
        x for place in settings(name) for x in place["uniform"] if isfinite(x.floor)
    ]


def floors() -> str:
    """Of each folder with reruns: the least and the largest floor over sparsities and texts."""
    rows = []
    for name in WITH_FLOOR:
        found, shared = measured_floors(name), document(name).settings
        every, at = (
            [100 * x.floor for x in found],
            dict.fromkeys(x.sparsity for x in found),
        )
        rows.append(
            {
                "model": found[0].model.removesuffix("-Instruct"),
                "pruner": found[0].pruner,
                "tokens": f"{shared.samples} x {shared.seq_len}",
                "dtype": shared.dtype,
                "sparsity": ", ".join(f"{100 * x:.0f}" for x in at) + " %",
                "floor": f"{min(every):.2g} to {max(every):.2g} %",
            }
        )
    return Table({head: [row[head] for row in rows] for head in rows[0]}, 6).markdown()


def tables() -> dict[str, dict[str, str]]:
    """By page and region."""
    return {
        "study.md": {
            "headline": headline(MODELS),
            "pruners": pruners(SHOWN),
            "seconds": seconds(),
        },
        "explanation/numerics.md": {"floors": floors()},
    }


@pytest.mark.parametrize("page", ["study.md", "explanation/numerics.md"])
def test_the_tables_are_those_of_the_rows(page: str) -> None:
    written = regions((DOCS / page).read_text("utf-8"))
    for name, table in tables()[page].items():
        assert written[name].split() == table.split(), name


def words_of(page: Path) -> str:
    return " ".join(page.read_text("utf-8").split())


def span(name: str, allocation: str) -> str:
    """Least and largest change against uniform, over the settings and texts of a model."""
    every = [
        percent(*x.change)[0] for place in settings(name) for x in place[allocation]
    ]
    return f"{min(every):+.0f} to {max(every):+.0f} %"


def lowest(names: Iterable[str]) -> str:
    """In how many settings divergence has the lowest mean over the texts."""
    every = [place for name in names for place in settings(name)]
    means = [
        {base: sum(x.nats for x in texts) for base, texts in x.items()} for x in every
    ]
    count = sum(min(x, key=x.__getitem__) == "divergence" for x in means)
    return f"{count} of {len(every)} settings"


def test_sentences_have_the_numbers_of_the_rows() -> None:
    study, practice = (
        words_of(DOCS / "study.md"),
        words_of(DOCS / "tutorial" / "8-the-verdict.md"),
    )
    for page in ("docs/study.md", "docs/tutorial/8-the-verdict.md", "README.md"):
        assert lowest(MODELS) in words_of(ROOT / page)
    every = lowest(OTHERS).split()[0]
    assert lowest(OTHERS) == f"{every} of {every} settings"
    assert f"all {every} settings that ran" in study
    assert f"both texts in {lowest(ADMM)}" in study
    for place in settings("large-qwen"):
        by_base = (place[base] for base in ("uniform", "divergence"))
        said = (" / ".join(f"{x.perplexity:.1f}" for x in texts) for texts in by_base)
        lowered = " and ".join(
            f"{-percent(*x.change)[0]:.0f}" for x in place["divergence"]
        )
        at = f"at {100 * first_of(place).sparsity:.0f} %"
        assert f"from {' to '.join(said)} {at} (by {lowered} %" in study
    broken = [
        exp(texts[0].nats - texts[0].dense)
        for name in MODELS
        for place in settings(name)
        if first_of(place).sparsity == 0.7
        for texts in (place["uniform"], place["divergence"])
    ]
    assert (
        f"{min(broken):.0f} to {max(broken):.0f} times the dense perplexity on `speech`"
        in study
    )
    lower = [
        -percent(*x.change)[0] for y in settings("magnitude") for x in y["divergence"]
    ]
    assert f"of SmolLM2 by {min(lower):.0f} to {max(lower):.0f} %" in study
    for name, model in MODELS.items():
        assert f"{span(name, 'divergence')} on {model}" in study
        assert f"{span(name, 'absorption')} on {model}" in study
        assert f"{span(name, 'absorption')} on {model}" in practice
    for which in ("uniform", "divergence"):
        first = (number(x[which][0].perplexity) for x in settings("smollm2"))
        assert "{}, {} and {}".format(*first) in practice
    floor = max(x.floor for name in WITH_FLOOR for x in measured_floors(name))
    assert NOISE_FLOOR.startswith(said := f"up to {100 * floor:.0f} %")
    assert said in (numerics := words_of(DOCS / "explanation" / "numerics.md"))
    for name in ("smollm2", "float64"):
        at = [100 * x.floor for x in measured_floors(name) if x.sparsity == 0.6]
        assert "{:.2g} / {:.2g} %".format(*at) in numerics
    calibrate = words_of(DOCS / "how-to" / "calibrate.md")
    for name in ("sparsegpt-4x256-smollm2", "sparsegpt-smollm2"):
        found = settings(name)[0]["uniform"]
        assert " / ".join(f"{x.perplexity:.1f}" for x in found) in calibrate


def test_one_program_made_all_rows_and_their_commands_say_how_many() -> None:
    every = {
        x.parent.name: document(x.parent.name).rows for x in STUDY.glob("*/bench.jsonl")
    }
    assert {len({str(row.versions) for row in rows}) for rows in every.values()} == {1}
    first = [rows[0].versions for name, rows in every.items() if name not in LATER]
    assert len({str(x) for x in first}) == 1
    commands = (STUDY / "commands.sh").read_text("utf-8")
    said = re.findall(r"^(?:bench|later) ([\w-]+) .*# (\d+) cells$", commands, re.M)
    assert {name: int(count) for name, count in said} == {
        x: len(y) for x, y in every.items()
    }


@pytest.mark.parametrize(
    ("first_run", "again"),
    [("smollm2", "prescott"), ("sparsegpt-smollm2", "prescott-sparsegpt")],
)
def test_another_kernel_changes_the_rows_as_the_page_says(
    first_run: str, again: str
) -> None:
    rows = {row.key: row for row in document(first_run).rows}
    changes = []
    for row in document(again).rows:
        first = rows[row.key]
        assert (row.pruned, row.block_sparsity) == (first.pruned, first.block_sparsity)
        pairs = zip(row.texts, first.texts, strict=True)
        percents = [
            100 * perplexity_of(a).minus(perplexity_of(b)).mean_nats for a, b in pairs
        ]
        changes.append(" / ".join(f"{x:+.2f}" for x in percents))
    assert changes[0] in ("+0.00 / -0.00", "+0.00 / +0.00")
    assert ", ".join(changes[1:]) in words_of(DOCS / "study.md")


@pytest.mark.thorough
def test_the_curves_are_of_what_score_measures() -> None:
    text, folder = FIXTURES / "text.txt", FIXTURES / "llama"
    command = sys.executable, STUDY / "curves.py", text, folder
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    *_, row = shown.splitlines()
    model, at, alone = read_model(folder), (0.4, 0.5, 0.6, 0.7), list[Array]()
    tokens = text_tokens(text, model.tokenizer_json, 7, 64)
    first = replace(tokens, ids=tokens.ids[:1].copy())
    for s in at:
        found = score(model, first, Probes(), Request(sparsity=s, strength=0.05)).sweep[
            0
        ]
        assert found.divergence is not None
        alone.append(np.log(found.divergence))
    off = np.polyval(np.polyfit(at[:3], np.array(alone[:3]), 1), 0.7) - alone[3]
    middle, size = (100 * np.expm1(np.median(x)) for x in (off, np.abs(off)))
    assert f"{middle:+.0f} / {size:.0f} %" in row


if __name__ == "__main__":
    for page, texts_of in tables().items():
        fill(
            DOCS / page, {name: f"\n\n{table}\n\n" for name, table in texts_of.items()}
        )

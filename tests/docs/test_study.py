"""The study's pages: tables of `refimpl bench`, and sentences whose numbers are those of its rows.

PYTHONPATH=tests python tests/docs/test_study.py    writes the tables into the pages
"""

import json
import re
from collections.abc import Iterator
from math import exp
from pathlib import Path

import pytest
from conftest import FIXTURES
from tools.regions import fill, regions

from refimpl.bench.cells import BenchDocument
from refimpl.bench.tables import (
    PlaceSummary,
    TextSummary,
    change,
    flat_table,
    notes,
    perplexity_of,
    places,
)
from refimpl.loading.files.documents import converted
from refimpl.show.blocks import IN_STUDY
from refimpl.show.evaluation import FLOOR
from refimpl.show.table import Table, number

ROOT = FIXTURES.parent
DOCS = ROOT / "docs"
STUDY = DOCS / "study"
MODELS = {"smollm2": "SmolLM2-135M", "gemma": "Gemma-3-270m", "qwen": "Qwen2.5-Coder-0.5B"}
PUBLISHED = ("owl", "alphapruning", "dlp", "lsa", "atp:beta=0.0055")


def document(name: str, against: str = "uniform") -> BenchDocument:
    content = json.loads((STUDY / name / "bench.json").read_text("utf-8"))
    return converted({**content, "against": against}, BenchDocument)


def settings(name: str) -> Iterator[tuple[PlaceSummary, str, PlaceSummary]]:
    """Each setting, its best published allocation, and the setting with changes against that."""
    for i, place in enumerate(places(document(name))):
        found = [x for x in place.allocations if x.name in PUBLISHED]
        best = min(found, key=lambda x: sum(text.nats for text in x.texts)).name
        yield place, best, [*places(document(name, best))][i]


def texts(place: PlaceSummary, name: str) -> tuple[TextSummary, ...]:
    return next((tuple(x.texts) for x in place.allocations if x.name == name), ())


def heading(place: PlaceSummary) -> str:
    model = place.model.removesuffix("-Instruct")
    return f"{model}, {place.pruner}, {100 * place.sparsity:.0f} %"


def headline() -> str:
    names_of = ("uniform", *PUBLISHED, "absorption", "divergence")
    rows = []
    for place, best, against in (x for name in MODELS for x in settings(name)):
        values = [" / ".join(number(x.perplexity) for x in texts(place, name)) for name in names_of]
        changes = [" / ".join(map(change, texts(x, "divergence"))) for x in (place, against)]
        rows.append([heading(place), *values, *changes, best.partition(":")[0]])
    heads = ["model, pruner, sparsity", *(name.partition(":")[0] for name in names_of)]
    heads += ["divergence against uniform", "against the best published", "which"]
    return Table({head: [row[i] for row in rows] for i, head in enumerate(heads)}, 1).markdown()


def multiples() -> str:
    """Of each model and text: the dense perplexity, and multiples of it at every sparsity."""
    rows, names = [], ("uniform", "divergence")
    for name in MODELS:
        found, shared = [*places(document(name))], document(name).settings.measured_on
        model, at = found[0].model.removesuffix("-Instruct"), [x.sparsity for x in found]
        for i, text in enumerate(shared):
            first = texts(found[0], "uniform")[i]
            line = [f"{model}, {text.name}", number(exp(first.dense))]
            for which in names:
                cells = (number(texts(x, which)[i].multiple, ".3g") for x in found)
                line.append(" / ".join(cells))
            rows.append(line)
    sparsity = " / ".join(f"{100 * x:.0f}" for x in at)
    heads = ["model, text", "dense", *(f"{name}, {sparsity} %" for name in names)]
    return Table({head: [row[i] for row in rows] for i, head in enumerate(heads)}, 1).markdown()


def tables() -> dict[str, dict[str, str]]:
    """By page and region."""
    full = {name: flat_table(document(name)).markdown() for name in MODELS}
    full["notes"] = "\n".join(f"- {note}" for note in notes(document("smollm2")))
    return {
        "study.md": {"multiples": multiples(), "headline": headline()},
        "study/tables.md": full,
    }


@pytest.mark.parametrize("page", ["study.md", "study/tables.md"])
def test_the_tables_are_those_of_the_rows(page: str) -> None:
    written = regions((DOCS / page).read_text("utf-8"))
    for name, table in tables()[page].items():
        assert written[name].split() == table.split(), name


def words_of(page: Path) -> str:
    return " ".join(page.read_text("utf-8").split())


def span(name: str, allocation: str) -> str:
    """Least and largest change against uniform, over the settings and texts of a model."""
    every = [text.percent.value for x in places(document(name)) for text in texts(x, allocation)]
    return f"{min(every):+.0f} to {max(every):+.0f} %"


def lowest() -> str:
    """In how many settings divergence has the lowest mean over the texts."""
    every = [x for name in MODELS for x in places(document(name))]
    means = [{x.name: sum(y.nats for y in x.texts) for x in place.allocations} for place in every]
    return (
        f"{sum(min(x, key=x.__getitem__) == 'divergence' for x in means)} of {len(every)} settings"
    )


def test_sentences_have_the_numbers_of_the_rows() -> None:
    study, practice = words_of(DOCS / "study.md"), words_of(DOCS / "tutorial" / "6-prune.md")
    for page in ("docs/study.md", "docs/tutorial/7-divergence.md", "README.md"):
        assert lowest() in words_of(ROOT / page)
    for name, model in MODELS.items():
        assert f"{span(name, 'divergence')} on {model}" in study
        assert f"{span(name, 'absorption')} on {model}" in study
        assert f"{span(name, 'absorption')} on {model}" in IN_STUDY["absorption"]
        assert f"all {len(document(name).rows)} cells are on file: nothing to run" in study
    for which in ("uniform", "divergence"):
        first = (number(texts(x, which)[0].perplexity) for x in places(document("smollm2")))
        assert "{}, {} and {}".format(*first) in practice
    floor = max(x for name in MODELS for place in places(document(name)) for x in place.floor)
    assert FLOOR.startswith(said := f"up to {100 * floor:.0f} %")
    assert said in words_of(DOCS / "explanation" / "numerics.md")


def test_one_program_made_all_rows_and_another_kernel_changes_them_as_the_pages_say() -> None:
    rows = {row.key: row for name in MODELS for row in document(name).rows}
    again = document("prescott").rows
    assert len({str(row.versions) for row in (*rows.values(), *again)}) == 1
    changes = []
    for row in again:
        first = rows[row.key]
        assert (row.pruned, row.block_sparsity) == (first.pruned, first.block_sparsity)
        pairs = zip(row.texts, first.texts, strict=True)
        percents = [100 * perplexity_of(a).minus(perplexity_of(b)).mean_nats for a, b in pairs]
        changes.append(" / ".join(f"{x:+.2f}" for x in percents))
    assert changes[0] in ("+0.00 / -0.00", "+0.00 / +0.00")
    assert ", ".join(changes[1:]) in words_of(DOCS / "study.md")


def test_pages_say_how_many_rows_earlier_scripts_made() -> None:
    for page, name, count in (("measured", "measured", 299), ("fixed-size", "cells", 142)):
        assert len((STUDY / f"{name}.jsonl").read_text("utf-8").splitlines()) == count
        assert f"{count} cells" in words_of(STUDY / f"{page}.md")
    assert not [*STUDY.glob("*.py")]


def test_every_script_that_is_named_is_in_the_commit_that_is_named() -> None:
    named = [re.findall(r"git show (\w+):(\S+?)`", x.read_text("utf-8")) for x in pages()]
    assert {commit for found in named for commit, _ in found} == {"0055ab1"}


def pages() -> list[Path]:
    return [DOCS / "study.md", *STUDY.glob("*.md")]


if __name__ == "__main__":
    for page, texts_of in tables().items():
        fill(DOCS / page, {name: f"\n\n{table}\n\n" for name, table in texts_of.items()})

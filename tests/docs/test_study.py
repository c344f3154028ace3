"""The study's pages: their numbers are those of the rows on file, and one table is bench's."""

import json
import re
from math import exp
from pathlib import Path
from typing import Any

from conftest import FIXTURES
from regions import regions

from refimpl.bench.cells import BenchDocument
from refimpl.bench.tables import markdown, places
from refimpl.loading.files.documents import converted

DOCS = FIXTURES.parent / "docs"
STUDY, PAGE = DOCS / "study", (DOCS / "study.md").read_text("utf-8")
ALLOCATIONS = ("uniform", "owl", "alphapruning", "dlp", "lsa", "divergence")


def rows_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (STUDY / name).read_text("utf-8").splitlines()]


def nats(row: dict[str, Any], text: str) -> float:
    return float(sum(row[text]) / sum(row[f"{text}_tokens"]))


def allocation(row: dict[str, Any]) -> str:
    """The name of a row's allocation, as the page's columns have it."""
    return str(row["base"] if row["correction"] == "none" else row["correction"])


def test_the_first_table_and_the_count_are_those_of_the_rows() -> None:
    places: dict[tuple[str, str, float], dict[tuple[str, int], dict[str, Any]]] = {}
    for row in rows_of("measured.jsonl"):
        if not row.get("probed") and (row["base"] == "uniform" or row["correction"] == "none"):
            where = row["model"].split("-Instruct")[0].lower(), row["method"], row["sparsity"]
            places.setdefault(where, {})[allocation(row), row["seed"]] = row
    lines = re.findall(r"^\| ([\w.-]+), (\w+), (\d+)% \| (.*) \|$", PAGE, re.MULTILINE)
    assert len(lines) == len(places) == 21
    better = every = 0
    for model, pruner, sparsity, cells in lines:
        rows = places[model.lower(), pruner.lower(), int(sparsity) / 100]
        for name, cell in zip(ALLOCATIONS, cells.split(" | "), strict=False):
            texts = [f"{exp(nats(rows[name, 0], text)):.1f}" for text in ("speech", "novel")]
            assert cell == " / ".join(texts), (model, pruner, sparsity, name)
        for (name, seed), row in rows.items():
            if name in ALLOCATIONS[:-1] and (best := rows.get(("divergence", seed))):
                pairs = [(nats(best, text), nats(row, text)) for text in ("speech", "novel")]
                better, every = better + sum(a < b for a, b in pairs), every + 2
    assert f"lower perplexity in {better} of {every} comparisons" in PAGE.replace("\n", " ")


def test_the_page_says_how_many_rows_each_script_made() -> None:
    for name, count in (("measured.jsonl", 299), ("cells.jsonl", 142)):
        assert len(rows_of(name)) == count
        assert f"[`{name}`](study/{name}), {count} cells" in PAGE
    assert not [*STUDY.glob("*.py")]


def test_the_table_and_the_floor_of_bench_are_those_of_its_rows() -> None:
    folder = STUDY / "bench"
    document = converted(json.loads((folder / "bench.json").read_text("utf-8")), BenchDocument)
    assert regions(PAGE)["bench"].strip() == markdown(document).strip()
    assert f"all {len(document.rows)} cells are on file: nothing to run" in PAGE
    assert len({row.versions["code"] for row in document.rows if row.versions}) == 1
    for place in places(document):
        floor = " / ".join(f"{100 * x:.1f}" for x in place.floor)
        for page in (PAGE, (DOCS / "explanation" / "numerics.md").read_text("utf-8")):
            assert f"{floor} % at {100 * place.sparsity:.0f} %" in page


def test_another_kernel_changes_what_the_page_says() -> None:
    found = {}
    for name in ("bench", "prescott"):
        rows = json.loads((STUDY / "bench" / f"{name}.json").read_text("utf-8"))["rows"]
        for row in rows:
            place = row.get("sparsity"), row.get("allocation"), row.get("jitter")
            sums = [sum(x["nats"]) / sum(x["tokens"]) for x in row["texts"]]
            found.setdefault(place, []).append((sums, row.get("pruned"), row.get("block_sparsity")))
    twice = {place: rows for place, rows in found.items() if len(rows) == 2}
    assert {name for _, name, _ in twice} == {None, "uniform", "owl"}
    for (_, name, _), (first, again) in twice.items():
        assert first[1:] == again[1:]
        changes = [100 * (exp(b - a) - 1) for a, b in zip(first[0], again[0], strict=True)]
        said = " / ".join(f"{x:.1f}" for x in changes)
        assert max(map(abs, changes)) < 0.01 if name is None else f"by {said} %" in PAGE


def test_every_script_that_is_named_is_in_the_commit_that_is_named() -> None:
    named = [re.findall(r"git show (\w+):(\S+?)`", x.read_text("utf-8")) for x in pages()]
    assert {commit for found in named for commit, _ in found} == {"0055ab1"}


def pages() -> list[Path]:
    return [DOCS / "study.md", *STUDY.glob("*.md")]

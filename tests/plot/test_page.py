"""The page of a report: its numbers, and nothing foreign in it."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import FIXTURES
from html_page import Page
from program import ran, refused
from report_files import EVERYTHING, edited

from refimpl.plot.report_page import report

EVIL = "\"'></title></svg><script>alert(1)</script><img src=x onerror=alert(2)>&amp;$x$|"


@pytest.fixture(scope="module")
def page(files: dict[str, Path]) -> str:
    return report([files[name] for name in EVERYTHING])


def test_a_page_holds_everything_it_needs_and_nothing_runs(page: str) -> None:
    whole = Page(page)
    idents = Counter(e.attributes["id"] for e in whole.root.every() if "id" in e.attributes)
    assert [ident for ident, often in idents.items() if often > 1] == []
    names = ("src", "href", "srcset", "action", "data", "poster", "xlink:href")
    loads = {
        value.partition(",")[0]
        for e in whole.root.every()
        for name, value in e.attributes.items()
        if name in names and not value.startswith("#")
    }
    assert loads == {"data:", "data:image/png;base64"}
    assert not re.search(r"<script|@import|<style type", page)
    (policy,) = [m for m in whole.all("meta") if "http-equiv" in m.attributes]
    assert policy.attributes["content"].startswith("default-src 'none'")
    for figure in whole.all("figure"):
        (picture,) = figure.all("svg")
        assert picture.attributes["aria-label"]
    assert "var(--ink)" in page


def test_tables_hold_the_numbers(files: dict[str, Path]) -> None:
    document = json.loads(files["sweep.json"].read_text())
    head, body = Page(report([files["sweep.json"]])).root.rows()
    assert [row[0] for row in body] == ["0", "1", "2", "3"]
    column = [row[head.index("weights to prune")] for row in body]
    assert column == [f"{n:,}" for n in document["allocations"][0]["num_pruned"]]


def test_what_comes_from_files_is_text(files: dict[str, Path], tmp_path: Path) -> None:
    def evil(document: dict[str, Any]) -> None:
        (document.get("scores") or document).update(model=EVIL, family=EVIL)
        (document.get("text") or document["scores"]["tokens"])["source"] = EVIL

    folder = tmp_path / "<b>&"
    folder.mkdir()
    names = ("sweep.json", "eval-whole.json", "eval-dense.json")
    paths = [edited(files[name], folder / f"<i>{i}.json", evil) for i, name in enumerate(names)]
    page = Page(report(paths))
    assert not [e for tag in ("script", "img", "b", "i") for e in page.all(tag)]
    assert not [name for e in page.root.every() for name in e.attributes if name.startswith("on")]
    assert page.all("h1")[0].text() == f"{EVIL}: results"
    assert EVIL in page.all("table")[-1].text()
    lone = edited(
        files["one.json"], tmp_path / "n.json", lambda d: d["scores"].update(model="a\udcffb")
    )
    assert "a\\udcffb" in report([lone])


def test_the_command_says_where_the_page_is(files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    out.write_text("old")
    paths = [files[name] for name in EVERYTHING]
    refused("plot", *paths, "-o", out)
    assert out.read_text() == "old"
    printed = ran("plot", *paths, "-o", out, "--force")
    assert printed == f"written: {out} ({out.stat().st_size:,} bytes)\n"
    assert out.read_text("utf-8") == report(paths)  # the same files give the same page
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


# Each changed copy stands beside sweep.json.
CHANGED: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "an absurd number": (
        "eval-whole.json", lambda d: d["text"].update(perplexity=1e300), "the number 1e+300",
    ),
    "torn scores": ("sweep.json", lambda d: d["allocations"].pop(),
        "x.json: not a whole scores.json (scores.sweep and allocations are not at eta"),
    "another format": ("eval-whole.json", lambda d: d.update(format=2), "format"),
}  # fmt: skip
TEXTS = {
    "{": "x.json: not a whole file of refimpl",
    '{"format": 1, "model": "llama"}': "no scores, evaluation or comparison",
}


@pytest.mark.parametrize("case", [*CHANGED, *TEXTS])
def test_changed_files_are_refused(case: str, files: dict[str, Path], tmp_path: Path) -> None:
    path, out = tmp_path / "x.json", tmp_path / "report.html"
    if case in TEXTS:
        problem = TEXTS[case]
        path.write_text(case)
    else:
        name, change, problem = CHANGED[case]
        edited(files[name], path, change)
    assert problem in refused("plot", files["sweep.json"], path, "-o", out)
    assert "no scores, eval" in refused("plot", files["dense/pruning.json"], "-o", out)
    assert "nothing to draw" in refused("plot", files["eval-whole.json"], "-o", tmp_path / "x.svg")
    assert not out.exists()


def test_a_comparison_without_pruned_models_is_refused(tmp_path: Path) -> None:
    study = FIXTURES.parent / "docs" / "study" / "smollm2" / "bench.jsonl"
    head, *rows = study.read_bytes().splitlines(keepends=True)
    dense = [row for row in rows if json.loads(row).get("pruner") is None]
    (tmp_path / "bench.jsonl").write_bytes(b"".join([head, *dense]))
    assert "no pruned model" in refused("plot", tmp_path / "bench.jsonl", "-o", "x.html")

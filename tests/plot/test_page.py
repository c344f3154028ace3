"""The page of a report, and the table of several runs: their numbers, and nothing foreign in it."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from math import exp, expm1, sqrt
from pathlib import Path
from typing import Any

import pytest
from conftest import FIXTURES
from html_page import Page
from program import ran, refused
from report_files import EVERYTHING, edited

from refimpl.plot.page import report

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
    column = [row[head.index("to prune")] for row in body]
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
    refused("report", *paths, "-o", out)
    assert out.read_text() == "old"
    printed = ran("report", *paths, "-o", out, "--force")
    assert printed == f"written: {out} ({out.stat().st_size:,} bytes)\n"
    assert out.read_text("utf-8") == report(paths)  # the same files give the same page
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


# Each changed copy stands beside sweep.json.
CHANGED: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "an absurd number": (
        "eval-whole.json", lambda d: d["text"].update(perplexity=1e300), "the number 1e+300",
    ),
    "torn scores": ("sweep.json", lambda d: d["allocations"].pop(),
        "x.json: not a whole file of refimpl (scores.sweep and allocations are not at eta"),
    "torn pruning": (
        "dense/pruning.json", lambda d: d["blocks"][1]["linears"][0].pop("zeros"),
        "x.json: not a whole file of refimpl (blocks[1].linears[0] has no zeros)",
    ),
    "another format": ("eval-whole.json", lambda d: d.update(format=2), "format"),
}  # fmt: skip
TEXTS = {
    "{": "x.json: not a whole file of refimpl",
    '{"format": 1, "model": "llama"}': "no command writes these fields",
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
    assert problem in refused("report", files["sweep.json"], path, "-o", out)
    assert "nothing to draw" in refused("report", files["dense/pruning.json"], "-o", out)
    assert not out.exists()


def test_a_measured_pruning_is_two_evaluations(tmp_path: Path) -> None:
    words = ("prune", FIXTURES / "llama", "--nm", "2:4", "--pruner", "magnitude", "--measure")
    for name in ("a", "b"):
        ran(*words, "-o", tmp_path / name)
    measured = json.loads((tmp_path / "a" / "pruning.json").read_text())["measured"]
    rows = rows_of(tmp_path / "a")
    before, after = measured["before"]["perplexity"], measured["after"]["perplexity"]
    assert [row["perplexity"] for row in rows] == [before, after]
    ran("report", tmp_path / "a", "-o", tmp_path / "page.html")
    assert "Perplexity against sparsity" in (tmp_path / "page.html").read_text()


@pytest.fixture(scope="module")
def alike(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned model and its dense one, each evaluated with windows of two lengths."""
    folder = tmp_path_factory.mktemp("alike")
    size = ("--tokens", "random", "--samples", 2, "--seq-len", 16)
    words = ("--sparsity", "60%", "--allocation", "uniform", *size)
    ran("prune", FIXTURES / "llama", "-o", folder / "int60", *words)
    for name, model in (("int60", folder / "int60"), ("llama", FIXTURES / "llama")):
        for window in (32, 16):
            cut = ("--text", FIXTURES / "text.txt", "--window", window)
            ran("eval", model, *cut, "-o", folder / f"{name}-{window}.json")
    return folder


def rows_of(*words: object) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(ran("compare", *words, "--json"))["runs"]
    return rows


def test_changes_are_paired_by_windows(alike: Path) -> None:
    files = [alike / f"{name}-{w}.json" for name in ("int60", "llama") for w in (32, 16)]
    documents = [json.loads(path.read_text())["text"] for path in files]
    pruned, dense = (x["windows"] for x in documents[::2])
    pairs = [(x["nats"] - y["nats"], x["tokens"]) for x, y in zip(pruned, dense, strict=True)]
    mean = sum(nats for nats, _ in pairs) / sum(tokens for _, tokens in pairs)
    rows = rows_of(*files)
    assert [row["perplexity"] for row in rows] == [x["perplexity"] for x in documents]
    assert [row["window"] for row in rows] == [32, 16, 32, 16]
    assert ["change" in row for row in rows] == [True, True, False, False]
    assert rows[0]["change"] == pytest.approx(100 * expm1(mean))
    squares = sum((nats - mean * tokens) ** 2 for nats, tokens in pairs)
    ratio = sqrt(len(pairs) / (len(pairs) - 1) * squares) / sum(tokens for _, tokens in pairs)
    assert rows[0]["change_stderr"] == pytest.approx(100 * exp(mean) * ratio)
    other = rows_of(*files, "--against", "int60")
    assert [row.get("against") for row in other[2:]] == ["int60, wanda 60 %, uniform"] * 2
    assert re.search(r"int60.* [+-][\d.]+ ± [\d.]+ %", ran("compare", *files))
    assert "no run of this name" in refused("compare", *files, "--against", "int")
    assert "change" not in rows_of(files[0])[0]


def test_a_model_that_was_changed_after_its_pruning_says_so(alike: Path, tmp_path: Path) -> None:
    tuned = tmp_path / "int60"
    shutil.copytree(alike / "int60", tuned)
    weights = tuned / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x3c")  # one weight of another size
    ran("eval", tuned, "--text", FIXTURES / "text.txt", "--window", 32, "-o", tmp_path / "t.json")
    (row,) = rows_of(tmp_path / "t.json")
    assert row["run"] == "int60, wanda 60 %, uniform, weights changed since"

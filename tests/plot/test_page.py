"""The page of a report: its numbers, and nothing foreign in it."""

import json
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from conftest import FIXTURES
from program import ran, refused
from report_files import EVERYTHING, edited

from refimpl.plot.report_page import report

EVIL = (
    "\"'></title></svg><script>alert(1)</script><img src=x onerror=alert(2)>&amp;$x$|"
)


class Page(HTMLParser):
    """A page: its elements, each with its tag, attributes and texts; every one must be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements, self.open = (
            list[tuple[str, dict[str, str], list[str]]](),
            list[Any](),
        )
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}, []))
        assert len(self.elements[-1][1]) == len(attrs), attrs
        if tag not in ("meta", "link", "input", "br", "hr", "img"):
            self.open.append(self.elements[-1])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, _, texts in self.open:
            texts.append(data)

    def all(self, tag: str) -> list[tuple[dict[str, str], str]]:
        """Attributes and text of all elements of a tag."""
        return [
            (given, "".join(texts))
            for kind, given, texts in self.elements
            if kind == tag
        ]


@pytest.fixture(scope="module")
def page(files: dict[str, Path]) -> str:
    return report([files[name] for name in EVERYTHING])


def test_a_page_holds_everything_it_needs_and_nothing_runs(page: str) -> None:
    whole = Page(page)
    given = [x for _, attributes, _ in whole.elements for x in attributes.items()]
    idents = Counter(value for name, value in given if name == "id")
    assert [ident for ident, often in idents.items() if often > 1] == []
    names = ("src", "href", "srcset", "action", "data", "poster", "xlink:href")
    loads = {x.partition(",")[0] for name, x in given if name in names and x[:1] != "#"}
    assert loads == {"data:", "data:image/png;base64"}
    assert not re.search(r"<script|@import|<style type", page)
    (policy,) = [x for x, _ in whole.all("meta") if "http-equiv" in x]
    assert policy["content"].startswith("default-src 'none'")
    assert len(whole.all("svg")) == len(whole.all("figure"))
    assert all(picture["aria-label"] for picture, _ in whole.all("svg"))
    assert "var(--ink)" in page


def test_tables_hold_the_numbers(files: dict[str, Path]) -> None:
    document = json.loads(files["sweep.json"].read_text())
    page = Page(report([files["sweep.json"]]))
    rows = list[list[str]]()
    for tag, _, texts in page.elements:
        rows += [[]] * (tag == "tr")
        if tag in ("th", "td"):
            rows[-1] = [*rows[-1], "".join(texts)]
    head, *body = rows[:5]
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
    paths = [
        edited(files[name], folder / f"<i>{i}.json", evil)
        for i, name in enumerate(names)
    ]
    page = Page(report(paths))
    assert not {"script", "img", "b", "i"} & {tag for tag, _, _ in page.elements}
    assert not [x for _, given, _ in page.elements for x in given if x.startswith("on")]
    assert page.all("h1")[0][1] == f"{EVIL}: results"
    assert EVIL in page.all("table")[-1][1]
    lone = edited(
        files["one.json"],
        tmp_path / "n.json",
        lambda d: d["scores"].update(model="a\udcffb"),
    )
    assert "a\\udcffb" in report([lone])


def test_the_command_says_where_the_page_is(
    page: str, files: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "report.html"
    out.write_text("old")
    paths = [files[name] for name in EVERYTHING]
    refused("plot", *paths, "-o", out)
    assert out.read_text() == "old"
    printed = ran("plot", *paths, "-o", out, "--force")
    assert printed == f"written: {out} ({out.stat().st_size:,} bytes)\n"
    assert out.read_text("utf-8") == page  # the same files give the same page
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


# Each changed copy stands beside sweep.json.
CHANGED: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "an absurd number": (
        "eval-whole.json",
        lambda d: d["text"].update(perplexity=1e300),
        "the number 1e+300",
    ),
    "torn scores": (
        "sweep.json",
        lambda d: d["allocations"].pop(),
        "x.json: not a whole scores.json (scores.sweep and allocations are not at eta",
    ),
    "another format": ("eval-whole.json", lambda d: d.update(format=2), "format"),
}
TEXTS = {
    "{": "x.json: not a whole file of refimpl",
    '{"format": 1, "model": "llama"}': "no scores, evaluation or comparison",
}


@pytest.mark.parametrize("case", [*CHANGED, *TEXTS])
def test_changed_files_are_refused(
    case: str, files: dict[str, Path], tmp_path: Path
) -> None:
    path, out = tmp_path / "x.json", tmp_path / "report.html"
    if case in TEXTS:
        problem = TEXTS[case]
        path.write_text(case)
    else:
        name, change, problem = CHANGED[case]
        edited(files[name], path, change)
    assert problem in refused("plot", files["sweep.json"], path, "-o", out)
    assert "no scores, eval" in refused("plot", files["dense/pruning.json"], "-o", out)
    old = tmp_path / "old"  # of a version whose bench wrote another file
    old.mkdir()
    (old / "bench.json").write_text("{}")
    assert "no bench.jsonl and no scores.json" in refused("plot", old, "-o", out)
    assert "nothing to draw" in refused(
        "plot", files["eval-whole.json"], "-o", tmp_path / "x.svg"
    )
    assert not out.exists()


def test_a_comparison_without_pruned_models_is_refused(tmp_path: Path) -> None:
    study = FIXTURES.parent / "docs" / "study" / "smollm2" / "bench.jsonl"
    head, *rows = study.read_bytes().splitlines(keepends=True)
    dense = [row for row in rows if json.loads(row).get("pruner") is None]
    (tmp_path / "bench.jsonl").write_bytes(b"".join([head, *dense]))
    assert "no pruned model" in refused(
        "plot", tmp_path / "bench.jsonl", "-o", "x.html"
    )

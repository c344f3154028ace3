"""The files of a report: their texts are escaped, and what is no file of ours is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from html_page import Page
from program import ran, refused
from report_files import EVERYTHING, edited

from refimpl.report.page import report

EVIL = "\"'></title></svg><script>alert(1)</script><img src=x onerror=alert(2)>&amp;"


def test_what_comes_from_files_is_escaped(files: dict[str, Path], tmp_path: Path) -> None:
    def evil_scores(document: dict[str, Any]) -> None:
        scores = document["scores"]
        scores |= {"model": EVIL, "family": EVIL}
        scores["made_for"] |= {"base": EVIL, "options": {EVIL: EVIL}}
        scores["tokens"]["source"] = EVIL
        scores["run"]["versions"] = {EVIL: EVIL}
        scores["linears"] = [
            {EVIL if name == "q_proj" else name: x for name, x in block.items()}
            for block in scores["linears"]
        ]

    def evil_pruning(document: dict[str, Any]) -> None:
        document |= {"model": EVIL, "family": EVIL, "method": EVIL}
        evil_linears(document)

    def evil_linears(document: dict[str, Any]) -> None:
        for block in document["blocks"]:
            block["linears"][0]["name"] = EVIL

    def evil_evaluation(document: dict[str, Any]) -> None:
        document |= {"model": EVIL, "family": EVIL}
        document["text"]["source"] = document["choices"]["source"] = EVIL

    folder = tmp_path / "<b>&"
    folder.mkdir()
    paths = [
        edited(files["sweep.json"], folder / "<i>a.json", evil_scores),
        edited(files["sweep.json"], folder / "<i>b.json", evil_scores),
        edited(files["dense/pruning.json"], folder / "pruning.json", evil_pruning),
        edited(files["eval-whole.json"], folder / "<u>.json", evil_evaluation),
    ]
    page = Page(report(paths))
    assert page.all("script") == []
    assert not [e for tag in ("img", "b", "i", "u") for e in page.all(tag)]
    assert not [name for e in page.root.every() for name in e.attributes if name.startswith("on")]
    assert page.all("h1")[0].text() == EVIL
    assert EVIL in page.figure("p0").text()
    assert EVIL in page.all("article")[-1].text()


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


def test_a_name_that_is_no_utf_8(files: dict[str, Path], tmp_path: Path) -> None:
    name = "a\udcffb"
    path = edited(files["one.json"], tmp_path / "n.json", lambda d: d["scores"].update(model=name))
    out, figures = tmp_path / "r.html", tmp_path / "figures"
    ran("report", path, "-o", out, "--figures", figures)
    assert all("a\\udcffb" in path.read_text("utf-8") for path in figures.glob("*-drift-*.svg"))
    assert list(figures.glob("*-drift-*.svg"))
    assert Page(out.read_text("utf-8")).all("h1")[0].text() == "a\\udcffb"


# Each changed copy stands beside sweep.json.
CHANGED: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "an absurd number": (
        "eval-whole.json", lambda d: d["text"].update(perplexity=1e300), "the number 1e+300",
    ),
    "NaN": ("eval-whole.json", lambda d: d["choices"].update(acc=float("nan")), "the number NaN"),
    "torn scores": ("sweep.json", lambda d: d["allocations"].pop(),
        "x.json: not a whole file of refimpl (scores.sweep and allocations are not at eta"),
    "torn pruning": (
        "dense/pruning.json", lambda d: d["blocks"][1]["linears"][0].pop("zeros"),
        "x.json: not a whole file of refimpl (blocks[1].linears[0] has no zeros)",
    ),
    "an unknown sparsity": (
        "one.json", lambda d: d["allocations"][0]["base_sparsity"].__setitem__(0, None), "or null",
    ),
    "another format": ("eval-whole.json", lambda d: d.update(format=2), "format 2, expected 1"),
}  # fmt: skip
TEXTS = {
    "{": "x.json: not a whole file of refimpl",
    "[1]": "x.json: not a whole file of refimpl (not an object)",
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
    assert not out.exists()


def test_what_cannot_be_read_or_written(files: dict[str, Path], tmp_path: Path) -> None:
    path, out = files["one.json"], tmp_path / "r.html"
    assert "none: cannot be read" in refused("report", path.parent / "none", "-o", out)
    assert "exists" in refused("report", path, "-o", out, "--figures", tmp_path)
    assert not out.exists()

"""The report: pictures and tables hold the numbers of the files, and nothing leaves the page."""

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from documents import coefficients
from html_page import Page
from refusals import refusal_of
from report_files import EVERYTHING, deeper, edited, one_block

from refimpl.pruning.record import COUNTS
from refimpl.report import figure as fig
from refimpl.report import page as page_module
from refimpl.report.figure import AxisScale, Line, Mark, ReportFigure
from refimpl.report.inputs import read_inputs
from refimpl.report.page import report, sections, write_figures
from refimpl.report.pictures import allocation_style
from refimpl.report.runs import run_rows, runs_table
from refimpl.show.table import Table, measured, number

KINDS = {
    "one": ("one.json",),
    "a sweep": ("sweep.json",),
    "no correction": ("none.json",),
    "pruning perturbation": ("perturbed.json",),
    "seven blocks": ("gemma3.json",),
    "a pruning": ("sweep.json", "dense/pruning.json"),
    "an evaluation": ("one.json", "eval-whole.json"),
    "two scores": ("one.json", "gemma3.json"),
    "the same twice": ("one.json", "one.json"),
    "everything": EVERYTHING,
}


def page_of(files: Mapping[str, Path], *names: str) -> str:
    return report([files[name] for name in names])


@pytest.fixture(params=KINDS)
def text(request: pytest.FixtureRequest, files: dict[str, Path]) -> str:
    return page_of(files, *KINDS[request.param])


def test_a_page_is_well_formed_and_holds_everything_it_needs(text: str) -> None:
    page = Page(text)
    idents = Counter(e.attributes["id"] for e in page.root.every() if "id" in e.attributes)
    assert [ident for ident, often in idents.items() if often > 1] == []
    anchors = [a.attributes["href"] for a in page.all("a")]
    assert anchors
    assert {anchor.removeprefix("#") for anchor in anchors} <= set(idents)
    assert not re.search(r"\b(nan|inf)\b", text)


def test_nothing_is_loaded_from_elsewhere_and_nothing_runs(text: str) -> None:
    page = Page(text)
    loads = [
        (e.tag, name, value)
        for e in page.root.every()
        for name, value in e.attributes.items()
        if name in ("src", "href", "srcset", "action", "data", "poster", "style", "xlink:href")
        and not value.startswith("#")
    ]
    assert loads == [("link", "href", "data:,")]
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<script", text)
    (policy,) = [m for m in page.all("meta") if "http-equiv" in m.attributes]
    assert policy.attributes["content"].startswith("default-src 'none'")


def test_every_picture_has_words_and_a_table(text: str) -> None:
    page = Page(text)
    figures = page.all("figure")
    assert len(figures) == len(page.all("svg")) >= 3
    for figure in figures:
        (picture,) = figure.all("svg")
        title, description = (picture.all(tag)[0] for tag in ("title", "desc"))
        assert picture.attributes["role"] == "img"
        named = picture.attributes["aria-labelledby"].split()
        assert named == [title.attributes["id"], description.attributes["id"]]
        assert title.text().strip()
        assert len(description.text()) > 20
        head, body = figure.rows()
        assert body
        assert {len(row) for row in body} == {len(head)}


def test_marks_say_their_numbers(files: dict[str, Path]) -> None:
    found = json.loads(files["sweep.json"].read_text())["scores"]["sweep"][0]
    figure = Page(page_of(files, "sweep.json")).figure("s0-0-r")
    said = {title.text() for mark in figure.all("path") for title in mark.all("title")}
    r = enumerate(found["coefficient"])
    assert said == {f"perturbed block {i}, absorption coefficient r {x:.4g}" for i, x in r}
    drift = Page(page_of(files, "sweep.json")).figure("s0-0-drift")
    assert [x.text() for x in drift.all("polyline")] == ["0", "1", "2", "3"]


def test_pictures_stay_in_their_frame(text: str) -> None:
    for picture in Page(text).all("svg"):
        *_, width, height = map(float, picture.attributes["viewbox"].split())
        for label in picture.all("text"):
            x, y = (float(label.attributes[name]) for name in "xy")
            assert 0 <= x <= width, label.text()
            assert 0 <= y <= height, label.text()
        for line in picture.all("polyline"):
            points = np.array([p.split(",") for p in line.attributes["points"].split()], float)
            assert ((points >= 0) & (points <= [width, height])).all()


def test_tables_hold_the_numbers_of_the_scores(files: dict[str, Path]) -> None:
    document = json.loads(files["sweep.json"].read_text())
    page = Page(page_of(files, "sweep.json"))
    results, allocations = document["scores"]["sweep"], document["allocations"]
    for j, (found, allocated) in enumerate(zip(results, allocations, strict=True)):
        head, body = page.figure(f"s0-{j}-drift").rows()
        assert head == ["perturbed", "after 0", "after 1", "after 2", "after 3"]
        assert body == [
            [str(i), *[""] * i, *(f"{x:.4g}" for x in row[i:])]
            for i, row in enumerate(found["drift"])
        ]
        head, body = page.figure(f"s0-{j}-r").rows()
        assert head[:4] == ["block", "r", "stderr", "log r"]
        for i, row in enumerate(body):
            r = found["coefficient"][i]
            values = (r, found["stderr"][i], np.log(r))
            word = "amplifies" if r > 1 else "absorbs" if r < 1 else "neither"
            assert row[:5] == [str(i), *(f"{value:.4f}" for value in values), word]
        assert body[-1][4] == "neither"  # nothing comes after the last block
        head, body = page.figure(f"s0-{j}-allocation").rows()
        assert head == ["block", "base", "corrected", "change", "to prune", "weights"]
        for i, row in enumerate(body):
            sparsities = [f"{allocated[f'{key}_sparsity'][i]:.4f}" for key in ("base", "corrected")]
            counts = [f"{allocated['num_pruned'][i]:,}", "7,296"]
            assert row[1:3] + row[4:] == sparsities + counts
    head, body = page.figure("s0-eta").rows()
    assert head == ["block", "eta 0.01", "eta 0.1", "eta 1"]
    r = [[f"{x:.4f}" for x in one["coefficient"]] for one in results]
    assert [row[1:] for row in body] == [list(column) for column in zip(*r, strict=True)]


def test_tables_hold_the_counts_of_a_pruning(files: dict[str, Path]) -> None:
    document = json.loads(files["dense/pruning.json"].read_text())
    head, body = Page(page_of(files, "sweep.json", "dense/pruning.json")).figure("p0").rows()
    assert head == [
        *("linear", "allocated", "weights", "requested", "pruned", "kept zeros", "zeros"),
        *("requested share", "zeros share"),
    ]
    expected = {
        f"{block['index']}.{linear['name']}": [
            f"{linear['sparsity']:.4f}",
            *(f"{linear[key]:,}" for key in COUNTS),
            *(f"{linear[key] / linear['weights']:.4f}" for key in ("requested", "zeros")),
        ]
        for block in document["blocks"]
        for linear in block["linears"]
    }
    assert {row[0]: row[1:] for row in body} == expected


def test_evaluations_stand_side_by_side(files: dict[str, Path]) -> None:
    page = Page(page_of(files, *EVERYTHING))
    whole = json.loads(files["eval-whole.json"].read_text())
    text, choices = whole["text"], whole["choices"]
    assert [x.attributes["id"] for x in page.all("figure")][-2:] == ["perplexity-0", "acc-0"]
    for ident, dense in (("perplexity-0", text["perplexity"]), ("acc-0", choices["acc"])):
        figure = page.figure(ident)
        assert [row[:2] for row in figure.rows()[1]] == [
            ["wanda, owl + absorption 0.05", f"{pruned_share(files):.4g}"]
        ]
        assert f"{dense:.4g}" in {t.text() for t in figure.all("text")}
    (section,) = [s for s in page.all("section") if s.attributes["id"] == "runs"]
    runs = run_rows(read_inputs([files[name] for name in EVERYTHING]))
    assert [row[0] for row in section.rows()[1]] == [*runs_table(runs).columns["run"]]


def pruned_share(files: Mapping[str, Path]) -> float:
    record = json.loads(files["dense/pruning.json"].read_text())
    share: float = record["total_pruned"] / record["total_weights"]
    return share


def test_evaluations_make_a_page_and_a_folder_is_its_record(files: dict[str, Path]) -> None:
    page = Page(page_of(files, "eval-whole.json", "eval-dense.json"))
    assert {figure.attributes["id"] for figure in page.all("figure")} == {"perplexity-0", "acc-0"}
    folder = files["dense/pruning.json"].parent
    assert report([folder]) == report([folder / "pruning.json"])
    assert "owl + absorption 0.05" in report([folder])


def test_every_picture_is_written_with_its_heading_styles_and_numbers(
    files: dict[str, Path], tmp_path: Path
) -> None:
    inputs = read_inputs([files[name] for name in EVERYTHING])
    parts = list(sections(inputs))
    count = write_figures(tmp_path / "figures", parts)
    pictures = sorted((tmp_path / "figures").glob("*.svg"))
    figures = {f.file_name: f for part in parts for f in part.figures}
    assert {path.stem for path in pictures} == figures.keys()
    assert count == 2 * len(figures)
    for path in pictures:
        root, figure = ElementTree.fromstring(path.read_text("utf-8")), figures[path.stem]
        texts = "".join(root.itertext())
        assert "var(" not in texts
        heading = " ".join(t.text or "" for t in root if t.attrib.get("class") == "title")
        assert heading == figure.title
        assert "numpy" in texts
        with path.with_suffix(".csv").open(newline="") as numbers:
            head, *rows = csv.reader(numbers)
        assert head == list(figure.table.columns)
        assert rows == [
            [c if "±" in c or not c[:1].isdigit() else c.replace(",", "") for c in row]
            for row in figure.table.rows
        ]
    refusal_of(write_figures, tmp_path / "figures", parts, says="exists")


def test_only_the_renderer_writes_svg() -> None:
    modules = Path(page_module.__file__).parent.glob("*.py")
    drawing = re.compile(r"<(path|polyline|text|rect|g|svg)\b")
    assert [x.name for x in modules if drawing.search(x.read_text("utf-8"))] == ["figure.py"]


def test_parameters_and_provenance_of_every_file(files: dict[str, Path]) -> None:
    page = Page(page_of(files, *EVERYTHING))
    cards = page.all("article")
    assert len(cards) == len(EVERYTHING)
    facts = [{x.all("dt")[0].text(): x.all("dd")[0].text() for x in c.all("div")} for c in cards]
    document = json.loads(files["sweep.json"].read_text())["scores"]
    assert facts[0].items() >= {
        "seed": "0", "tokens sha256": document["tokens"]["sha256"],
        "run seconds": f"{document['run']['seconds']}",
    }.items()  # fmt: skip
    assert json.loads(facts[0]["run versions"]) == document["run"]["versions"]
    assert json.loads(facts[0]["linears"])["k_proj"] == [16, 32]
    for known in facts:
        assert {"model", "family", "run dtype", "run versions", "run seconds"} <= set(known)
        assert len(known["sha256 of the file"]) == 64


def test_what_the_lead_says(files: dict[str, Path]) -> None:
    page = Page(page_of(files, "sweep.json"))
    lead = next(p.text() for p in page.all("p") if p.attributes.get("class") == "lead")
    r = coefficients(files["sweep.json"])
    assert "Of 3 blocks, later blocks amplify the perturbations of 1 and absorb those of" in lead
    assert "Uncertain at 95% with 2 samples: 2." in lead  # Student's t of one degree is 12.7
    assert f"Largest r: {max(r[:-1]):.3f} ±" in lead


Edited = Callable[[str, Callable[[dict[str, Any]], object]], Page]


@pytest.fixture
def page_edited(files: dict[str, Path], tmp_path: Path) -> Edited:
    return lambda name, change: Page(report([edited(files[name], tmp_path / "x.json", change)]))


def test_unknown_numbers_are_dashes_and_no_marks(page_edited: Edited) -> None:
    def unknown(document: dict[str, Any]) -> None:
        (found,) = document["scores"]["sweep"]
        found["coefficient"][1] = found["stderr"][1] = None
        found["drift"][0][2] = found["alignment"][0][2] = None
        found["drift"][2][2] = 0.0

    page = page_edited("one.json", unknown)
    _, body = page.figure("s0-0-r").rows()
    assert [row[2] for row in body] == ["-"] * 4  # one sequence: no standard error
    assert body[1][1:4] == ["-", "-", "-"]
    assert "two sequences or more" in page.figure("s0-0-r").text()
    assert len(page.figure("s0-0-r").all("path title")) == 0
    _, body = page.figure("s0-0-drift").rows()
    assert body[0][3] == "-"
    lines = page.figure("s0-0-drift").all("polyline")
    assert [line.text() for line in lines] == ["0", "0", "1", "2", "3"]  # a gap in the first


def test_an_unknown_perplexity_has_no_mark(page_edited: Edited) -> None:
    unknown = dict.fromkeys(("perplexity", "perplexity_stderr"))
    figure = page_edited("eval-dense.json", lambda d: d["text"].update(unknown)).figure
    assert figure("perplexity-0").rows()[1][0][2:] == ["-", "-"]
    assert [x for path in figure("perplexity-0").all("path") for x in path.all("title")] == []


def test_everything_unknown_or_zero_is_still_a_page(page_edited: Edited) -> None:
    def nothing(document: dict[str, Any]) -> None:
        (found,) = document["scores"]["sweep"]
        found["drift"] = [[None] * i + [0.0] * (4 - i) for i in range(4)]
        found["alignment"] = [[None] * 4] * 4
        found["coefficient"] = found["stderr"] = [None] * 4

    assert "Unknown: 3." in page_edited("one.json", nothing).figure("s0-0-r").text()


@pytest.mark.parametrize("value", [1e99, 1e-99, 1e-300])
def test_absurd_numbers_are_still_a_page(value: float, page_edited: Edited) -> None:
    def absurd(document: dict[str, Any]) -> None:
        (found,) = document["scores"]["sweep"]
        found["coefficient"][0] = found["drift"][0][1] = value

    _, body = page_edited("one.json", absurd).figure("s0-0-drift").rows()
    assert body[0][2] == f"{value:.4g}"


def test_a_model_of_one_block(page_edited: Edited) -> None:
    head, body = page_edited("none.json", one_block).figure("s0-0-drift").rows()
    assert (head, len(body)) == (["perturbed", "after 0"], 1)


def test_many_blocks_have_fewer_names(page_edited: Edited) -> None:
    def block(i: int) -> dict[str, Any]:
        return {"drift": [0.01] * (40 - i), "alignment": [0.5] * (40 - i)}

    figure = page_edited("one.json", lambda d: deeper(d, 40, block)).figure("s0-0-drift")
    names = [t for t in figure.all("text") if "end" in t.attributes["class"].split()]
    assert 0 < len(names) <= fig.NAMES


@pytest.mark.parametrize(
    ("low", "high", "log"),
    [
        *((0.6, 0.64, False), (0, 29, False)),
        *((0.005, 0.03, True), (1e-7, 1e3, True), (0.99, 1.01, True)),
    ],
)
def test_ticks_are_round_few_and_inside(low: float, high: float, log: bool) -> None:
    ticks = AxisScale("", low, high, log).ticks()
    assert 2 <= len(ticks) <= 8
    assert ticks == sorted(set(ticks))
    assert all(low <= tick <= high and len(f"{tick:g}") <= 6 for tick in ticks)


def test_a_scale_is_linear_or_logarithmic() -> None:
    assert AxisScale("", 0, 10).position(2.5, 100, 0) == 75
    assert AxisScale("", 0.01, 1, True).position(0.1, 0, 100) == pytest.approx(50)
    for ends in ((0, 1), (1, 0)):  # what is outside stays in the frame
        assert AxisScale("", *ends).position(2, 0, 100) == 100 * ends[1]
    assert np.isnan([AxisScale("", 1, 2, True).position(x, 0, 1) for x in (-1, 0, np.nan)]).all()


def test_numbers_as_text() -> None:
    assert [fig.units(x) for x in (3.04, -0.01, 12.5)] == ["3", "0", "12.5"]
    assert [number(x) for x in (0.25, float("nan"))] == ["0.25", "-"]
    pairs = (
        *((61433.1, 42812.0), (0.53124, 0.0123), (7.25, np.nan), (3e9, 4e8), (1234.5, 61.2)),
        *((4.312347, 0.000043), (12345.6, 0.012), (0.0, 0.012)),
    )
    assert [measured(*pair) for pair in pairs] == [
        "61,000 ± 43,000", "0.531 ± 0.012", "7.25", "3e+09 ± 4e+08", "1,234 ± 61",
        "4.3123 ± 0.0001", "12,346 ± 1", "0.000 ± 0.012",
    ]  # fmt: skip


def test_labels_are_spread_in_their_order() -> None:
    wanted = [50.0, 51.0, 49.0, 90.0, 95.0]
    found = fig.spread(wanted, 10, 0, 100)
    assert list(np.argsort(found)) == list(np.argsort(wanted))
    assert (np.diff(np.sort(found)) >= 10 - 1e-9).all()
    assert 0 <= min(found) <= max(found) <= 100


def test_an_allocation_has_one_colour_and_mark_in_every_picture() -> None:
    def drawn(*names: str) -> dict[str, tuple[str, str]]:
        axis, marks = AxisScale("x", 0, 1), list[Mark]()
        for name in names:
            marks.append(Line(name, [(0.5, 0.5)], style=allocation_style(name)))
        figure = ReportFigure("id", "t", "", ("", ""), Table({}), axis, axis, marks)
        paths = re.findall(r'<path class="mark (f\d)" d="M[\d. ]+(m[^"]*)">', fig.picture(figure))
        return dict(zip(names, paths[::2], strict=True))  # each again in the legend

    few = drawn("owl", "uniform + divergence measured")
    many = drawn("uniform", "lsa", "divergence", "owl", "owl + absorption 0.05", "mine.csv")
    assert few["owl"] == many["owl"]
    assert few["uniform + divergence measured"] == many["divergence"]
    assert len({*many.values()}) == len(many)


def test_costs_and_their_growth_are_drawn_with_errors(files: dict[str, Path]) -> None:
    document = json.loads(files["perturbed.json"].read_text())
    page = Page(page_of(files, "perturbed.json"))
    heads, body = page.figure("s0-0-divergence").rows()
    (sweep,), (allocation,) = document["scores"]["sweep"], document["allocations"]
    assert heads[:3] == ["block", "divergence", "stderr"]
    for at, key in enumerate(("divergence", "divergence_stderr"), 1):
        assert [float(row[at]) for row in body] == pytest.approx(sweep[key], rel=1e-3)
    heads, body = page.figure("s0-0-growth").rows()
    assert heads[0] == "block"
    assert heads[-2:] == ["kappa", "residual"]
    rates = [float(row[-2]) for row in body]
    assert rates == pytest.approx(allocation["growth"]["rate"], rel=1e-3)
    allocation["growth"]["residual"][0] = "not a number"  # the page computes it from the probes
    edited_file = files["perturbed.json"].with_name("other.json")
    edited_file.write_text(json.dumps(document))
    again = Page(report([edited_file]))
    assert again.figure("s0-0-growth").rows() == (heads, body)
    errors = [float(row[-1]) for row in page.figure("s0-0-allocation").rows()[1]]
    assert errors == pytest.approx(allocation["errors"]["sparsity"], abs=5e-5)
    assert page_of(files, "one.json").count("What each block costs") == 0  # noise has no divergence

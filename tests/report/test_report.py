"""The report: pictures and tables hold the numbers of the files, and nothing leaves the page."""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES
from program import run

from refimpl.errors import RefimplError
from refimpl.report import page as page_module
from refimpl.report import scales, svg
from refimpl.report.page import LIMIT, report

LLAMA, TEXT = FIXTURES / "llama", FIXTURES / "text.txt"
QUESTIONS = [
    {"question": "A stone sinks in", "choices": ["water", "the air above"], "answer": 0},
    {"question": "Two and two are", "choices": ["three", "four", "five"], "answer": 1},
]
TOKENS = ("--text", TEXT, "--samples", 2, "--seq-len", 24)
VOID = {"meta", "link", "input", "br", "hr", "img"}


@dataclass
class Element:
    """An element of the page."""

    tag: str
    attributes: Mapping[str, str]
    inside: list["Element"] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def all(self, tag: str) -> list["Element"]:
        found = [self] if self.tag == tag else []
        return found + [one for child in self.inside for one in child.all(tag)]

    def text(self) -> str:
        return "".join(self.texts) + "".join(child.text() for child in self.inside)


class Page(HTMLParser):
    """A page as a tree; every element must be closed, where it was opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]
        self.feed(text)
        self.close()
        assert len(self.open) == 1, self.open[-1].tag

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"<{tag}> has {names}"
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].inside.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag, tag

    def handle_data(self, data: str) -> None:
        self.open[-1].texts.append(data)

    def all(self, tag: str) -> list[Element]:
        return self.root.all(tag)

    def figure(self, ident: str) -> Element:
        (found,) = [one for one in self.all("figure") if one.attributes["id"] == ident]
        return found


def rows(figure: Element, which: int = 0) -> tuple[list[str], list[list[str]]]:
    """Headings and texts of a table of a figure."""
    table = figure.all("table")[which]
    head, *body = [
        [cell.text() for cell in row.all("th") + row.all("td")] for row in table.all("tr")
    ]
    return head, body


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Real files of every kind, by what they are."""
    folder = tmp_path_factory.mktemp("report")
    questions = folder / "questions.jsonl"
    questions.write_text("\n".join(map(json.dumps, QUESTIONS)))
    made: dict[str, list[object]] = {
        "sweep.json": ["score", LLAMA, *TOKENS, "--eta", "0.01,0.1,1", "--base", "owl"],
        "one.json": ["score", LLAMA, "--samples", 1, "--seq-len", 12],
        "gemma3.json": ["score", FIXTURES / "gemma3", "--samples", 1, "--seq-len", 8],
        "push.json": [
            *("score", LLAMA, *TOKENS),
            *("--perturbation", "pruning", "--correct", "divergence", "--base", "owl"),
        ],
        "none.json": ["score", LLAMA, "--samples", 2, "--seq-len", 8, "--correct", "none"],
    }
    for name, words in made.items():
        done = run(*words, "-o", folder / name)
        assert done.code == 0, done.err
    prunings: dict[str, list[object]] = {
        "dense": ["--allocation", folder / "sweep.json", *TOKENS],
        "pattern": ["--nm", "2:4", "--method", "magnitude"],
    }
    for name, words in prunings.items():
        done = run("prune", LLAMA, "-o", folder / name, *words)
        assert done.code == 0, done.err
        made[f"{name}/pruning.json"] = []
    evaluations = {"whole": LLAMA, "dense": folder / "dense"}
    for name, model in evaluations.items():
        words = ["--text", TEXT, "--window", 32, "--windows", 4, "--choices", questions]
        done = run("eval", model, *words, "-o", folder / f"eval-{name}.json")
        assert done.code == 0, done.err
        made[f"eval-{name}.json"] = []
    done = run(
        "eval", LLAMA, "--text", TEXT, "--window", 32, "--windows", 1, "-o", folder / "w.json"
    )
    assert done.code == 0, done.err
    return {name: folder / name for name in [*made, "w.json"]}


EVERYTHING = (
    *("sweep.json", "dense/pruning.json", "eval-whole.json", "push.json"),
    *("pattern/pruning.json", "eval-dense.json", "w.json"),
)
KINDS = {
    "one": ("one.json",),
    "a sweep": ("sweep.json",),
    "no correction": ("none.json",),
    "pruning perturbation": ("push.json",),
    "seven blocks": ("gemma3.json",),
    "a pruning": ("sweep.json", "dense/pruning.json"),
    "an evaluation": ("one.json", "eval-whole.json"),
    "two scores": ("one.json", "gemma3.json"),
    "the same twice": ("one.json", "one.json"),
    "everything": EVERYTHING,
}


def page_of(files: Mapping[str, Path], *names: str) -> str:
    return report([files[name] for name in names])


def edited(path: Path, target: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a file with something changed in it."""
    document = json.loads(path.read_text())
    change(document)
    target.write_text(json.dumps(document))
    return target


def one_block(document: dict[str, Any]) -> None:
    """Make scores those of a model with a single block, the last one."""
    document["num_blocks"] = 1
    document["blocks"] = document["blocks"][-1:]
    document["blocks"][0]["index"] = 0


# ---- the page ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_well_formed_and_holds_everything_it_needs(
    kind: str, files: dict[str, Path]
) -> None:
    text = page_of(files, *KINDS[kind])
    page = Page(text)
    assert len(text.encode()) < LIMIT
    idents = Counter(e.attributes["id"] for e in every(page.root) if "id" in e.attributes)
    assert [ident for ident, often in idents.items() if often > 1] == []
    anchors = [a.attributes["href"] for a in page.all("a")]
    assert anchors
    assert {anchor.removeprefix("#") for anchor in anchors} <= set(idents)
    assert not re.search(
        r"\b(nan|inf)\b", re.sub(r"<script>.*</script>", "", text, flags=re.DOTALL)
    )


def every(element: Element) -> list[Element]:
    return [element, *(one for child in element.inside for one in every(child))]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_loaded_from_elsewhere(kind: str, files: dict[str, Path]) -> None:
    text = page_of(files, *KINDS[kind])
    page = Page(text)
    loads = [
        (e.tag, name, value)
        for e in every(page.root)
        for name, value in e.attributes.items()
        if name in ("src", "href", "srcset", "action", "data", "poster", "style", "xlink:href")
        and not value.startswith("#")
    ]
    assert loads == [("link", "href", "data:,")]
    assert not re.search(r"https?:|//[a-z]|@import|url\(|fetch|XMLHttp", text.replace(SVG_NAME, ""))
    (policy,) = [m for m in page.all("meta") if "http-equiv" in m.attributes]
    assert policy.attributes["content"].startswith("default-src 'none'")


SVG_NAME = "'http://www.w3.org/2000/svg'"  # a name, not an address


@pytest.mark.parametrize("kind", KINDS)
def test_every_picture_has_words_and_a_table(kind: str, files: dict[str, Path]) -> None:
    page = Page(page_of(files, *KINDS[kind]))
    figures = page.all("figure")
    assert len(figures) == len(page.all("svg")) > 4
    for figure in figures:
        (picture,) = figure.all("svg")
        title, description = (picture.all(tag)[0] for tag in ("title", "desc"))
        assert picture.attributes["role"] == "img"
        named = picture.attributes["aria-labelledby"].split()
        assert named == [title.attributes["id"], description.attributes["id"]]
        assert title.text().strip()
        assert len(description.text()) > 20
        head, body = rows(figure)
        assert body
        assert {len(row) for row in body} == {len(head)}
        for line in picture.all("polyline"):  # what tooltips are read from
            row, column = int(line.attributes["data-row"]), int(line.attributes["data-col"])
            points = len(line.attributes["points"].split())
            assert (column or row) + points <= (len(head) if column else len(body))
            if column:
                assert all(body[row][column : column + points])
        for group in picture.all("g"):
            assert int(group.attributes["data-count"]) == len(body) == len(head) - 1


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_stay_in_their_frame(kind: str, files: dict[str, Path]) -> None:
    for picture in Page(page_of(files, *KINDS[kind])).all("svg"):
        *_, width, height = map(float, picture.attributes["viewbox"].split())
        for text in picture.all("text"):
            x, y = (float(text.attributes[name]) for name in "xy")
            assert 0 <= x <= width, text.text()
            assert 0 <= y <= height, text.text()
        for line in picture.all("polyline"):
            points = np.array([p.split(",") for p in line.attributes["points"].split()], float)
            assert ((points >= 0) & (points <= [width, height])).all()


def test_the_same_files_give_the_same_page(files: dict[str, Path]) -> None:
    assert page_of(files, *EVERYTHING) == page_of(files, *EVERYTHING)


# ---- the numbers -------------------------------------------------------------------------------


def test_tables_hold_the_numbers_of_the_scores(files: dict[str, Path]) -> None:
    document = json.loads(files["sweep.json"].read_text())
    page = Page(page_of(files, "sweep.json"))
    for j, found in enumerate(document["sweep"]):
        alignments = [block["alignment"] for block in found["blocks"]]
        angles = [[float(np.degrees(np.arccos(a))) for a in row] for row in alignments]
        drifts = [block["drift"] for block in found["blocks"]]
        for name, which, values, form in (
            ("drift", 0, drifts, ".4g"),
            ("map", 0, drifts, ".4g"),
            ("turn", 0, angles, ".4g"),
            ("turn", 1, alignments, ".7f"),
        ):
            head, body = rows(page.figure(f"s0-{j}-{name}"), which)
            assert head == ["pushed", "after 0", "after 1", "after 2", "after 3"]
            assert body == [
                [str(i), *[""] * i, *(format(x, form) for x in row)] for i, row in enumerate(values)
            ]
        head, body = rows(page.figure(f"s0-{j}-r"))
        assert head[:4] == ["block", "r", "stderr", "log r"]
        assert [row[:4] for row in body] == [
            [str(i)]
            + [
                f"{block[key]:.4f}"
                for key in ("absorption_coefficient", "absorption_stderr", "log_absorption")
            ]
            for i, block in enumerate(found["blocks"])
        ]
        assert [row[4] for row in body] == [
            "amplifies" if r > 1 else "absorbs" if r < 1 else "neither"
            for r in (block["absorption_coefficient"] for block in found["blocks"])
        ]
        assert body[-1][4] == "neither"  # nothing comes after the last block
        head, body = rows(page.figure(f"s0-{j}-allocation"))
        assert head == ["block", "base", "corrected", "change", "to prune", "weights"]
        assert [row[1:3] + row[4:] for row in body] == [
            [
                *(f"{block[key]:.4f}" for key in ("base_sparsity", "corrected_sparsity")),
                *(f"{block[key]:,}" for key in ("num_pruned", "num_weights")),
            ]
            for block in found["blocks"]
        ]
    head, body = rows(page.figure("s0-eta"))
    assert head == ["block", "eta 0.01", "eta 0.1", "eta 1"]
    r = [[f"{b['absorption_coefficient']:.4f}" for b in one["blocks"]] for one in document["sweep"]]
    assert [row[1:] for row in body] == [list(column) for column in zip(*r, strict=True)]


def test_tables_hold_the_counts_of_a_pruning(files: dict[str, Path]) -> None:
    document = json.loads(files["dense/pruning.json"].read_text())
    head, body = rows(Page(page_of(files, "sweep.json", "dense/pruning.json")).figure("p0"))
    assert head[1:] == [
        *("linear", "block", "weights", "allocated", "asked", "pruned", "kept zeros", "zeros"),
        *("asked share", "zeros share"),
    ]
    expected = {
        (linear["name"], str(block["index"])): [
            f"{linear['weights']:,}",
            f"{linear['sparsity']:.4f}",
            *(f"{linear[key]:,}" for key in ("requested", "pruned", "kept_zeros", "zeros")),
            *(f"{linear[key] / linear['weights']:.4f}" for key in ("requested", "zeros")),
        ]
        for block in document["blocks"]
        for linear in block["linears"]
    }
    assert {(row[1], row[2]): row[3:] for row in body} == expected


def test_evaluations_stand_side_by_side(files: dict[str, Path]) -> None:
    page = Page(page_of(files, *EVERYTHING))
    whole = json.loads(files["eval-whole.json"].read_text())
    head, body = rows(page.figure("results-text0"))
    assert head == ["evaluation", "perplexity", "stderr"]
    assert [row[0] for row in body] == ["llama (eval-whole)", "dense"]
    text, choices = whole["text"], whole["choices"]
    assert body[0][1:] == [f"{text['perplexity']:#.5g}", f"{text['perplexity_stderr']:.4g}"]
    _, body = rows(page.figure("results-text1"))  # another window: not to be compared
    assert body == [["llama (w)", body[0][1], "-"]]
    _, body = rows(page.figure("results-questions0"))
    assert [row[0].split(", ")[1] for row in body] == ["acc", "acc_norm"] * 2
    assert body[0][1] == f"{choices['acc']:.4f}"
    (section,) = [s for s in page.all("section") if s.attributes["id"] == "results"]
    assert len(section.all("table")) == 4


def test_parameters_and_provenance_of_every_file(files: dict[str, Path]) -> None:
    page = Page(page_of(files, *EVERYTHING))
    cards = page.all("article")
    assert len(cards) == len(EVERYTHING)
    facts = [
        {row.all("dt")[0].text(): row.all("dd")[0].text() for row in card.all("div")}
        for card in cards
    ]
    document = json.loads(files["sweep.json"].read_text())
    assert facts[0]["seed"] == "0"
    assert facts[0]["tokens sha256"] == document["tokens"]["sha256"]
    assert facts[0]["run versions"].startswith("refimpl ")
    assert facts[0]["run seconds"] == f"{document['run']['seconds']:.4g} s"
    assert facts[0]["linears"].startswith("q_proj 32 x 32, k_proj 16 x 32")
    for known in facts:
        assert {"model", "family", "run dtype", "run versions", "run seconds"} <= set(known)
        assert len(known["sha256 of the file"]) == 64


def test_what_the_lead_says(files: dict[str, Path]) -> None:
    page = Page(page_of(files, "sweep.json"))
    lead = next(p.text() for p in page.all("p") if p.attributes.get("class") == "lead")
    r = [b["absorption_coefficient"] for b in json.loads(files["sweep.json"].read_text())["blocks"]]
    assert f"amplify what is done to {sum(x > 1 for x in r)} " in lead
    assert f"Largest r: {max(r[:-1]):.3g} ±" in lead


# ---- what is unknown ---------------------------------------------------------------------------


def unknown(document: dict[str, Any]) -> None:
    for key in ("absorption_coefficient", "log_absorption", "absorption_stderr"):
        document["blocks"][1][key] = None
    document["blocks"][0]["drift"][2] = None
    document["blocks"][0]["alignment"][2] = None
    document["blocks"][2]["drift"][0] = 0.0


def test_unknown_numbers_are_dashes_and_no_marks(files: dict[str, Path], tmp_path: Path) -> None:
    path = edited(files["one.json"], tmp_path / "unknown.json", unknown)
    page = Page(report([path]))
    _, body = rows(page.figure("s0-0-r"))
    assert [row[2] for row in body] == ["-"] * 4  # one sequence: no standard error
    assert body[1][1:4] == ["-", "-", "-"]
    assert "two sequences or more" in page.figure("s0-0-r").text()
    lines = page.figure("s0-0-r").all("polyline")
    assert [line.attributes["data-row"] for line in lines] == ["0", "2"]
    _, body = rows(page.figure("s0-0-drift"))
    assert body[0][3] == "-"
    first = [
        x for x in page.figure("s0-0-drift").all("polyline") if x.attributes["data-row"] == "0"
    ]
    assert [line.attributes["data-col"] for line in first] == ["1", "4"]


def test_everything_unknown_or_zero_is_still_a_page(files: dict[str, Path], tmp_path: Path) -> None:
    def nothing(document: dict[str, Any]) -> None:
        for block in document["blocks"]:
            block["drift"] = [0.0] * len(block["drift"])
            block["alignment"] = [None] * len(block["alignment"])
            block["absorption_coefficient"] = block["absorption_stderr"] = None

    page = Page(report([edited(files["one.json"], tmp_path / "n.json", nothing)]))
    assert "4 unknown" in page.figure("s0-0-r").text()


@pytest.mark.parametrize("value", [1e99, 1e-99, 1e-300])
def test_absurd_numbers_are_still_a_page(
    value: float, files: dict[str, Path], tmp_path: Path
) -> None:
    def absurd(document: dict[str, Any]) -> None:
        document["blocks"][0]["absorption_coefficient"] = value
        document["blocks"][0]["drift"][1] = value

    page = Page(report([edited(files["one.json"], tmp_path / "a.json", absurd)]))
    assert rows(page.figure("s0-0-drift"))[1][0][2] == f"{value:.4g}"


def test_a_name_that_is_no_utf_8(files: dict[str, Path], tmp_path: Path) -> None:
    path = edited(files["one.json"], tmp_path / "n.json", lambda d: d.update(model="a\udcffb"))
    out = tmp_path / "r.html"
    assert run("report", path, "-o", out).code == 0
    assert Page(out.read_text("utf-8")).all("h1")[0].text() == "a\\udcffb"


def test_a_model_of_one_block(files: dict[str, Path], tmp_path: Path) -> None:
    page = Page(report([edited(files["none.json"], tmp_path / "1.json", one_block)]))
    head, body = rows(page.figure("s0-0-map"))
    assert (head, len(body)) == (["pushed", "after 0"], 1)


def test_many_blocks_have_fewer_names_and_a_larger_picture(
    files: dict[str, Path], tmp_path: Path
) -> None:
    def deep(document: dict[str, Any]) -> None:
        document["num_blocks"] = count = 40
        document["blocks"] = [
            document["blocks"][0]
            | {"index": i, "drift": [0.01] * (count - i), "alignment": [0.5] * (count - i)}
            for i in range(count)
        ]

    path = edited(files["one.json"], tmp_path / "deep.json", deep)
    figure = Page(report([path])).figure("s0-0-drift")
    assert "large" in figure.attributes["class"].split()
    few, many = (
        [t.text() for t in figure.all("text") if css in t.attributes["class"].split()]
        for css in ("few", "many")
    )
    assert len(few) <= svg.FEW < len(many) <= svg.MANY


def test_a_sweep_too_large_for_a_page_shows_its_first_etas(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = page_of(files, "sweep.json")
    monkeypatch.setattr(page_module, "LIMIT", len(whole.encode()))
    text = page_of(files, "sweep.json")
    assert "Pictures of 1 other eta are left out" in text
    assert 'id="s0-1-map"' in text
    assert 'id="s0-2-map"' not in text
    monkeypatch.setattr(page_module, "LIMIT", 1000)
    with pytest.raises(RefimplError, match="the page would have"):
        page_of(files, "sweep.json")


# ---- what comes from files is text -------------------------------------------------------------

EVIL = "\"'></title></svg><script>alert(1)</script><img src=x onerror=alert(2)>&amp;"


def test_what_comes_from_files_is_escaped(files: dict[str, Path], tmp_path: Path) -> None:
    def evil_scores(document: dict[str, Any]) -> None:
        document |= {"model": EVIL, "family": EVIL, "base": EVIL}
        document["base_options"] = {EVIL: EVIL}
        document["tokens"]["source"] = EVIL
        document["run"]["versions"] = {EVIL: EVIL}
        document["linears"] = {
            (EVIL if name == "q_proj" else name): shape
            for name, shape in document["linears"].items()
        }
        for found in [document, *document["sweep"]]:
            for block in found["blocks"]:
                block["linears"][0]["name"] = EVIL

    def evil_pruning(document: dict[str, Any]) -> None:
        document |= {"model": EVIL, "family": EVIL, "method": EVIL}
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
    assert len(page.all("script")) == 1
    assert not [e for tag in ("img", "b", "i", "u") for e in page.all(tag)]
    assert not [name for e in every(page.root) for name in e.attributes if name.startswith("on")]
    assert page.all("h1")[0].text() == EVIL
    assert EVIL in page.figure("p0").text()
    assert EVIL in page.figure("results-text0").all("figcaption")[0].text()


# ---- the command -------------------------------------------------------------------------------


def test_the_command_says_where_the_page_is(files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    out.write_text("old")
    done = run("report", files["sweep.json"], files["dense/pruning.json"], "-o", out)
    assert (done.code, done.err) == (0, "")
    assert done.out == f"written: {out} ({out.stat().st_size:,} bytes)\n"
    assert out.read_text("utf-8") == page_of(files, "sweep.json", "dense/pruning.json")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def not_json(folder: Path, files: Mapping[str, Path]) -> list[object]:
    (folder / "x.json").write_text("{")
    return [files["sweep.json"], folder / "x.json"]


def a_list(folder: Path, files: Mapping[str, Path]) -> list[object]:
    (folder / "x.json").write_text("[1]")
    return [folder / "x.json"]


def other_json(folder: Path, files: Mapping[str, Path]) -> list[object]:
    (folder / "x.json").write_text('{"format": 1, "model": "llama"}')
    return [files["sweep.json"], folder / "x.json"]


def with_nan(folder: Path, files: Mapping[str, Path]) -> list[object]:
    text = files["eval-whole.json"].read_text()
    (folder / "x.json").write_text(re.sub(r'"acc": [\d.]+', '"acc": NaN', text))
    return [files["sweep.json"], folder / "x.json"]


def out_of_sight(folder: Path, files: Mapping[str, Path]) -> list[object]:
    def grow(document: dict[str, Any]) -> None:
        document["text"]["perplexity"] = 1e300

    return [files["sweep.json"], edited(files["eval-whole.json"], folder / "x.json", grow)]


def torn_scores(folder: Path, files: Mapping[str, Path]) -> list[object]:
    return [edited(files["sweep.json"], folder / "x.json", lambda d: d["blocks"].pop())]


def torn_pruning(folder: Path, files: Mapping[str, Path]) -> list[object]:
    def tear(document: dict[str, Any]) -> None:
        del document["blocks"][1]["linears"][0]["zeros"]

    path = edited(files["dense/pruning.json"], folder / "pruning.json", tear)
    return [files["sweep.json"], path]


def other_family(folder: Path, files: Mapping[str, Path]) -> list[object]:
    path = edited(files["dense/pruning.json"], folder / "p.json", lambda d: d.update(family="opt"))
    return [files["sweep.json"], path]


def other_sizes(folder: Path, files: Mapping[str, Path]) -> list[object]:
    def grow(document: dict[str, Any]) -> None:
        document["blocks"][2]["linears"][1]["weights"] += 1

    return [files["sweep.json"], edited(files["dense/pruning.json"], folder / "p.json", grow)]


def no_family(folder: Path, files: Mapping[str, Path]) -> list[object]:
    path = edited(files["dense/pruning.json"], folder / "p.json", lambda d: d.pop("family"))
    return [files["sweep.json"], path]


def no_number_of_blocks(folder: Path, files: Mapping[str, Path]) -> list[object]:
    path = edited(files["eval-whole.json"], folder / "e.json", lambda d: d.update(num_blocks="4"))
    return [files["sweep.json"], path]


def null_sparsity(folder: Path, files: Mapping[str, Path]) -> list[object]:
    def tear(document: dict[str, Any]) -> None:
        document["blocks"][0]["base_sparsity"] = None

    return [edited(files["one.json"], folder / "x.json", tear)]


def other_format(folder: Path, files: Mapping[str, Path]) -> list[object]:
    return [
        files["one.json"],
        edited(files["eval-whole.json"], folder / "x.json", lambda d: d.update(format=2)),
    ]


BAD: dict[str, tuple[Callable[[Path, Mapping[str, Path]], list[object]], str]] = {
    "not JSON": (not_json, "x.json: not a whole file of refimpl"),
    "a list": (a_list, "x.json: not a whole file of refimpl (not an object)"),
    "JSON of others": (other_json, "fields are those of none"),
    "a number that nothing can show": (out_of_sight, "the number 1e+300"),
    "NaN": (with_nan, "the number NaN"),
    "torn scores": (torn_scores, "x.json: not a whole scores.json"),
    "torn pruning": (torn_pruning, "pruning.json: not a whole file of refimpl (KeyError('zeros'))"),
    "another family": (other_family, "p.json: of another model (llama, family opt"),
    "other sizes": (other_sizes, "p.json: of another model"),
    "no family": (no_family, "p.json: not a whole file of refimpl (KeyError('family'))"),
    "no number of blocks": (no_number_of_blocks, "num_blocks '4'"),
    "an unknown sparsity": (null_sparsity, "or null"),
    "another format": (other_format, "format 2, expected 1"),
    "missing": (lambda folder, files: [folder / "none.json"], "none.json: cannot be read"),
    "a folder": (lambda folder, files: [folder], "cannot be read"),
    "no scores": (lambda folder, files: [files["eval-whole.json"]], "no scores among the files"),
    "another model's pruning": (
        lambda folder, files: [files["gemma3.json"], files["dense/pruning.json"]],
        "pruning.json: of another model (llama, family llama, 4 blocks)",
    ),
    "another model's evaluation": (
        lambda folder, files: [files["gemma3.json"], files["eval-whole.json"]],
        "eval-whole.json: of another model",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_an_error_and_no_page(
    case: str, files: dict[str, Path], tmp_path: Path
) -> None:
    make, problem = BAD[case]
    out = tmp_path / "report.html"
    done = run("report", *make(tmp_path, files), "-o", out)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert problem in done.err
    assert "expected: " in done.err
    assert "next: " in done.err
    assert not out.exists()


def test_the_page_never_replaces_an_input(files: dict[str, Path], tmp_path: Path) -> None:
    before = files["one.json"].read_bytes()
    done = run("report", files["one.json"], "-o", files["one.json"])
    assert done.code == 2
    assert "is also" in done.err
    assert files["one.json"].read_bytes() == before
    assert run("report", files["one.json"], "-o", tmp_path / "no" / "r.html").code == 2
    assert "-o" in run("report", files["one.json"]).err


# ---- the drawing -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "log"),
    [
        (0.6, 0.64, False),
        (0, 29, False),
        (0.005, 0.03, True),
        (1e-7, 1e3, True),
        (0.99, 1.01, True),
    ],
)
def test_ticks_are_round_few_and_inside(low: float, high: float, log: bool) -> None:
    ticks = scales.Scale(low, high, 0, 100, log).ticks()
    assert 2 <= len(ticks) <= 8
    assert ticks == sorted(set(ticks))
    assert all(low <= tick <= high for tick in ticks)
    assert all(len(f"{tick:g}") <= 6 for tick in ticks)


def test_a_scale_is_linear_or_logarithmic() -> None:
    assert scales.Scale(0, 10, 100, 0)(2.5) == 75
    assert scales.Scale(0.01, 1, 0, 100, True)(0.1) == pytest.approx(50)
    assert scales.Scale(0, 1, 0, 100)(2) == 100  # what is outside stays in the frame


def test_labels_are_spread_in_their_order() -> None:
    wanted = [50.0, 51.0, 49.0, 90.0, 95.0]
    found = svg.spread(wanted, 10, 0, 100)
    assert list(np.argsort(found)) == list(np.argsort(wanted))
    assert (np.diff(np.sort(found)) >= 10 - 1e-9).all()
    assert 0 <= min(found) <= max(found) <= 100

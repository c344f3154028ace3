"""`refimpl compare`: one table of several runs, on screen, as CSV and as JSON."""

import csv
import io
import json
from pathlib import Path

import pytest
from conftest import FIXTURES
from program import ran, refused
from report_files import EVERYTHING

from refimpl.report.runs import runs_csv

TEXT = "perplexity on text.txt"


def test_screen_csv_and_json_hold_the_same_runs(files: dict[str, Path]) -> None:
    paths = [files[name] for name in EVERYTHING]
    rows = json.loads(ran("compare", *paths, "--json"))["runs"]
    table = list(csv.DictReader(io.StringIO(ran("compare", *paths, "--csv"))))
    columns = dict.fromkeys(key for row in rows for key in row)
    assert [*table[0]] == [*columns]
    assert table == [{key: str(row.get(key, "")) for key in columns} for row in rows]
    words = ran("compare", *paths).replace(",", " ").split()
    assert [row["run"].split()[-1] in words for row in rows] == [True] * len(rows)


def test_the_table_fits_and_breaks_no_word(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = json.loads(files[EVERYTHING[-1]].read_text())
    evaluation["text"] |= {"source": "a-long-name-of-a-text.txt, all of it", "sha256": "0" * 64}
    other = tmp_path / "other.json"
    other.write_text(json.dumps(evaluation))
    paths = [files[EVERYTHING[0]], files[EVERYTHING[1]], files[EVERYTHING[-1]], other]
    pieces = set(ran("compare", *paths).replace("-", "- ").split())
    for width in (80, 60):
        monkeypatch.setenv("COLUMNS", str(width))
        table = ran("compare", *paths)
        assert max(map(len, table.splitlines())) <= width
        assert set(table.replace("-", "- ").split()) <= pieces  # a name ends at a hyphen


def test_a_measured_pruning_is_two_evaluations(tmp_path: Path) -> None:
    words = ("prune", FIXTURES / "llama", "--nm", "2:4", "--method", "magnitude", "--measure-on")
    for name in ("a", "b"):
        ran(*words, FIXTURES / "text.txt", "-o", tmp_path / name)
    measured = json.loads((tmp_path / "a" / "pruning.json").read_text())["measured"]
    rows = json.loads(ran("compare", tmp_path / "a", tmp_path / "b", "--json"))["runs"]
    (key,) = [key for key in rows[0] if key.startswith(TEXT) and not key.endswith("stderr")]
    after, before = measured["after"]["perplexity"], measured["before"]["perplexity"]
    assert [row[key] for row in rows] == [after, after, before]  # the dense model once
    ran("report", tmp_path / "a", "-o", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Perplexity against sparsity" in page
    assert "from 1 file." in page


def test_a_row_holds_what_its_files_hold(files: dict[str, Path]) -> None:
    names = ("sweep.json", "dense/pruning.json", "eval-dense.json", "eval-whole.json")
    scores, pruned, whole = json.loads(ran("compare", *map(files.get, names), "--json"))["runs"]
    r = [b["absorption_coefficient"] for b in json.loads(files["sweep.json"].read_text())["blocks"]]
    assert scores["largest r"] == max(r[:-1])
    assert (scores["r < 1"], scores["r > 1"]) == (sum(x < 1 for x in r), sum(x > 1 for x in r))
    record = json.loads(files["dense/pruning.json"].read_text())
    assert pruned["sparsity"] == record["total_pruned"] / record["total_weights"]
    assert (pruned["pruner"], pruned["allocation"]) == ("wanda", "owl + absorption 0.05")
    for row, name in ((pruned, "eval-dense.json"), (whole, "eval-whole.json")):
        text = json.loads(files[name].read_text())["text"]
        (key,) = [key for key in row if key.startswith(TEXT) and not key.endswith("stderr")]
        assert (row[key], row[f"{key} stderr"]) == (text["perplexity"], text["perplexity_stderr"])


def test_the_same_text_twice_takes_two_rows(files: dict[str, Path]) -> None:
    path = files["eval-dense.json"]
    assert len(json.loads(ran("compare", path, path, "--json"))["runs"]) == 2


def test_one_form_of_output(files: dict[str, Path]) -> None:
    assert "--csv with --json" in refused("compare", files["one.json"], "--csv", "--json")


def test_foreign_names_in_csv_are_printable() -> None:
    assert runs_csv([{"run": "\x1b[2J\nforged", "r\x1b": 0.5}]) == (
        "run,r\\x1b\n\\x1b[2J\\nforged,0.5\n"
    )

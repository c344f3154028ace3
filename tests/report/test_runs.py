"""`refimpl compare`: one table of several runs, on screen, as CSV and as JSON."""

import csv
import io
import json
from pathlib import Path

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
    screen = ran("compare", *paths).splitlines()
    assert len(screen) == 1 + len(rows)
    for line, row in zip(screen[1:], rows, strict=True):
        assert line.startswith(row["run"])


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

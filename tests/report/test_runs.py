"""`refimpl compare`: one table of several runs, on screen and as JSON."""

import json
import re
import shutil
from math import exp, expm1, sqrt
from pathlib import Path

import pytest
from conftest import FIXTURES
from documents import coefficients
from program import ran, refused
from report_files import EVERYTHING, edited

TEXT = "perplexity on text.txt"
SIZE = ("--samples", 2, "--seq-len", 16)


def test_screen_and_json_hold_the_same_runs(files: dict[str, Path]) -> None:
    paths = [files[name] for name in EVERYTHING]
    rows = json.loads(ran("compare", *paths, "--json"))["runs"]
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
    words = ("prune", FIXTURES / "llama", "--nm", "2:4", "--pruner", "magnitude", "--measure")
    for name in ("a", "b"):
        ran(*words, "-o", tmp_path / name)
    measured = json.loads((tmp_path / "a" / "pruning.json").read_text())["measured"]
    rows = json.loads(ran("compare", tmp_path / "a", tmp_path / "b", "--json"))["runs"]
    (key,) = [key for key in rows[0] if "roosevelt" in key and not key.endswith("stderr")]
    after, before = measured["after"]["perplexity"], measured["before"]["perplexity"]
    assert [row[key] for row in rows] == [after, after, before]  # the dense model once
    ran("report", tmp_path / "a", "-o", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Perplexity against sparsity" in page
    assert page.count("<article") == 1


def test_a_row_holds_what_its_files_hold(files: dict[str, Path]) -> None:
    names = ("sweep.json", "dense/pruning.json", "eval-dense.json", "eval-whole.json")
    scores, pruned, whole = json.loads(ran("compare", *map(files.get, names), "--json"))["runs"]
    r = coefficients(files["sweep.json"])
    assert scores["largest r"] == max(r[:-1])
    assert (scores["r < 1"], scores["r > 1"]) == (sum(x < 1 for x in r), sum(x > 1 for x in r))
    record = json.loads(files["dense/pruning.json"].read_text())
    assert pruned["sparsity"] == record["total_pruned"] / record["total_weights"]
    assert (pruned["pruner"], pruned["allocation"]) == ("wanda", "owl + absorption 0.05")
    for row, name in ((pruned, "eval-dense.json"), (whole, "eval-whole.json")):
        text = json.loads(files[name].read_text())["text"]
        (key,) = [key for key in row if key.startswith(TEXT) and not key.endswith("stderr")]
        assert (row[key], row[f"{key} stderr"]) == (text["perplexity"], text["perplexity_stderr"])


@pytest.fixture(scope="module")
def alike(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models pruned in ways that a record's facts do not tell apart; evaluations on two texts.

    Their calibration differs, so their weights do.
    """
    folder = tmp_path_factory.mktemp("alike")
    for name, seed in (("default60", 0), ("int60", 1)):
        words = ("--sparsity", "60%", "--allocation", "uniform", "--tokens", "random", *SIZE)
        ran("prune", FIXTURES / "llama", "-o", folder / name, *words, "--seed", seed)
    for name, model in (("int60", folder / "int60"), ("llama", FIXTURES / "llama")):
        for window in (32, 16):
            cut = ("--text", FIXTURES / "text.txt", "--window", window)
            ran("eval", model, *cut, "-o", folder / f"{name}-{window}.json")
    return folder


def runs_of(*paths: Path) -> dict[str, list[float]]:
    rows = json.loads(ran("compare", *paths, "--json"))["runs"]
    return {
        row["run"]: [x for key, x in row.items() if key.startswith(TEXT) and "stderr" not in key]
        for row in rows
    }


def perplexities(folder: Path, name: str) -> list[float]:
    documents = (json.loads((folder / f"{name}-{w}.json").read_text()) for w in (32, 16))
    return [document["text"]["perplexity"] for document in documents]


def test_changes_are_paired_by_windows(alike: Path) -> None:
    files = [alike / f"{name}-{w}.json" for name in ("int60", "llama") for w in (32, 16)]
    pruned, dense = (json.loads(path.read_text())["text"]["windows"] for path in files[::2])
    pairs = [(x["nats"] - y["nats"], x["tokens"]) for x, y in zip(pruned, dense, strict=True)]
    mean = sum(nats for nats, _ in pairs) / sum(tokens for _, tokens in pairs)
    rows = json.loads(ran("compare", *files, "--json"))["runs"]
    assert not [key for key in rows[1] if key.startswith("change")]  # the dense model
    found = {key: x for key, x in rows[0].items() if key.startswith("change against llama on text")}
    assert len(found) == 4
    (value,) = (x for key, x in found.items() if key.endswith("window 32)"))
    (error,) = (x for key, x in found.items() if key.endswith("window 32) stderr"))
    assert value == pytest.approx(100 * expm1(mean))
    squares = sum((nats - mean * tokens) ** 2 for nats, tokens in pairs)
    ratio = sqrt(len(pairs) / (len(pairs) - 1) * squares) / sum(tokens for _, tokens in pairs)
    assert error == pytest.approx(100 * exp(mean) * ratio)
    table = ran("compare", *files, "--against", "int60")
    assert "(change against int60, wanda 60 %, uniform, paired by windows;" in table
    assert re.search(r"llama .*\(-?\+?[\d.]+ ± [\d.]+ %\)", table)
    assert "0 runs of this name" in refused("compare", *files, "--against", "int")
    assert "change" not in ran("compare", files[0], files[1])  # of one model on two texts


def test_a_row_is_a_model_and_no_other_that_was_pruned_alike(alike: Path) -> None:
    files = [alike / f"{name}-{w}.json" for name in ("int60", "llama") for w in (32, 16)]
    assert runs_of(alike / "default60", alike / "int60", *files) == {
        "default60, wanda 60 %, uniform": [],
        "int60, wanda 60 %, uniform": perplexities(alike, "int60"),
        "llama": perplexities(alike, "llama"),  # one model on two texts: one row
    }


def test_a_model_is_known_by_its_weights_and_not_by_its_folder(alike: Path, tmp_path: Path) -> None:
    moved, tuned = tmp_path / "moved", tmp_path / "int60"
    for copy in (moved, tuned):
        shutil.copytree(alike / "int60", copy)
    weights = tuned / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x3c")  # one weight of another size
    ran("eval", tuned, "--text", FIXTURES / "text.txt", "--window", 32, "-o", tmp_path / "t.json")
    found = runs_of(moved, alike / "int60-32.json", tmp_path / "t.json")
    first, _ = perplexities(alike, "int60")
    assert found.pop("moved, wanda 60 %, uniform") == [first]
    ((name, values),) = found.items()
    assert name == "int60, wanda 60 %, uniform, weights changed since"
    assert values != [first]


def test_an_evaluation_without_a_digest_is_never_joined(alike: Path, tmp_path: Path) -> None:
    old = [
        edited(alike / name, tmp_path / name, lambda d: d.pop("model_sha256"))
        for name in ("int60-32.json", "int60-16.json")
    ]
    first, second = perplexities(alike, "int60")
    how = ", wanda 60 %, uniform"
    assert runs_of(alike / "int60", *old) == {
        f"int60{how} (int60/pruning.json)": [],
        f"int60{how} (int60-32.json)": [first],
        f"int60{how} (int60-16.json)": [second],
    }
    both = [
        edited(path, tmp_path / f"null-{path.name}", lambda d: d.update(model_sha256=None))
        for path in old
    ]
    assert len(runs_of(*both)) == 2


def test_the_digest_is_that_of_the_weights_as_they_are_in_place(alike: Path) -> None:
    record = json.loads((alike / "int60" / "pruning.json").read_text())
    pruned, dense = (json.loads((alike / f"{x}-32.json").read_text()) for x in ("int60", "llama"))
    assert pruned["model_sha256"] == record["files"]["sha256"] != dense["model_sha256"]
    assert pruned["pruning"]["sha256"] == record["files"]["sha256"]


def test_the_same_text_twice_takes_two_rows(files: dict[str, Path]) -> None:
    path = files["eval-dense.json"]
    assert len(json.loads(ran("compare", path, path, "--json"))["runs"]) == 2

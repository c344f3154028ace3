"""`refimpl bench`: a cell is what other commands give, a stopped run is continued, and tables."""

import json
import shutil
from math import exp, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES
from program import ran, refused, run
from tables import cases

from refimpl import read_model
from refimpl.bench import measured_cells
from refimpl.bench.cells import BenchDocument
from refimpl.bench.tables import bench_curves, flat_table, markdown, percent, places
from refimpl.loading.files.documents import converted
from refimpl.tokens.model_tokens import model_tokens

LLAMA, TEXT = FIXTURES / "llama", FIXTURES / "text.txt"
TOKENS = ("--samples", 2, "--seq-len", 16, "--text", TEXT)
WINDOWS = ("--window", 32, "--windows", 4)
SHORT = ("bench", LLAMA, *TOKENS, "--measure-on", TEXT, *WINDOWS)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / "bench.json").read_text("utf-8"))["rows"]
    return rows


BY_HAND = cases("bench", "by_hand")


@pytest.mark.parametrize(("name", "words", "pruner"), BY_HAND)
def test_a_cell_is_score_prune_and_eval_to_the_bit(
    name: str, words: str, pruner: str, tmp_path: Path
) -> None:
    grid = ("--bases", name, "--sparsity", "0.5, 60%", "--pruners", pruner, "--seeds", 2)
    done = run(*SHORT, *grid, "-o", tmp_path / "bench")
    assert (done.code, done.err) == (0, "")  # progress belongs to terminals
    dense, *pruned = rows_of(tmp_path / "bench")
    by_hand = json.loads(ran("eval", LLAMA, "--text", TEXT, *WINDOWS, "--json"))
    assert dense["texts"][0]["nats"] == [x["nats"] for x in by_hand["text"]["windows"]]
    assert (dense["model_sha256"], len(pruned)) == (by_hand["model_sha256"], 4)
    ids = model_tokens(read_model(LLAMA), TEXT, None, 4, 16).ids  # each seed has every other one
    for row in pruned:
        case = tmp_path / f"{row['sparsity']}-{row.get('seed', 0)}"
        np.save(f"{case}.npy", ids[row.get("seed", 0) :: 2])
        tokens = ("--tokens", f"{case}.npy", "--seed", row.get("seed", 0))
        sparsity = ("--sparsity", row["sparsity"])
        ran("score", LLAMA, *words.split(), *sparsity, *tokens, "-o", f"{case}.json")
        ran("allocate", f"{case}.json", "-o", f"{case}-allocation.json")
        target = ("--allocation", f"{case}-allocation.json", "--pruner", pruner)
        calibration = tokens if pruner != "magnitude" else ()
        ran("prune", LLAMA, "-o", case, *target, *calibration)
        by_hand = json.loads(ran("eval", case, "--text", TEXT, *WINDOWS, "--json"))
        assert row["texts"][0]["nats"] == [x["nats"] for x in by_hand["text"]["windows"]]
        assert row["texts"][0]["tokens"] == [x["tokens"] for x in by_hand["text"]["windows"]]
        assert row["pruned"] == json.loads((case / "pruning.json").read_text())["total_pruned"]


def measured(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what depends on the clock."""
    return {key: value for key, value in row.items() if key != "seconds"}


def test_a_stopped_run_is_continued_and_a_whole_one_has_nothing_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = ("--bases", "uniform,owl,divergence", "--sparsity", "0.5")
    ran(*SHORT, *grid, "-o", tmp_path / "whole")
    evaluate, calls = measured_cells.evaluate, list[str]()

    def stopped(model: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(model.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return evaluate(model, *arguments, **options)

    monkeypatch.setattr(measured_cells, "evaluate", stopped)
    out = tmp_path / "bench"
    interrupted = run(*SHORT, *grid, "-o", out)
    assert interrupted.code == 130
    assert "finished units are kept in" in interrupted.err
    assert not out.exists()
    assert len(calls) == 3
    ran(*SHORT, *grid, "-o", out)
    assert len(calls) == 3 + 2  # the third again, and the fourth
    assert [*map(measured, rows_of(out))] == [*map(measured, rows_of(tmp_path / "whole"))]
    assert not (tmp_path / ".bench.part").exists()

    assert "all 4 cells are on file: nothing to run" in ran(*SHORT, *grid, "-o", out)
    more = ran(*SHORT, "--bases", "uniform,lsa", "--sparsity", "0.5", "-o", out)
    assert "1 of 5 cells ran" in more
    assert len(calls) == 6
    names = [row.get("allocation") for row in rows_of(out)]
    assert names == [None, "uniform", "owl", "divergence", "lsa"]
    assert sorted(x.name for x in out.iterdir() if x.suffix != ".svg") == [
        "bench.json", "table.md",
    ]  # fmt: skip


def test_an_error_in_a_late_cell_keeps_the_finished_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, prune, calls = tmp_path / "bench", measured_cells.prune, list[Path]()

    def failing(model: Any, out: Path, *arguments: Any, **options: Any) -> Any:
        calls.append(out)
        if len(calls) == 2:
            raise measured_cells.RefimplError("a disk that is full", "room", "make room")
        return prune(model, out, *arguments, **options)

    monkeypatch.setattr(measured_cells, "prune", failing)
    words = (*SHORT, "--bases", "uniform,owl", "--sparsity", "0.5", "-o", out)
    assert "a disk that is full" in refused(*words)
    assert not out.exists()
    ran(*words)
    assert len(calls) == 3


@pytest.mark.parametrize("weights", ["the same", "other"])
def test_a_smaller_grid_keeps_what_a_stopped_larger_one_has_finished(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out, prune, calls = tmp_path / "m", tmp_path / "b", measured_cells.prune, list[Path]()
    shutil.copytree(LLAMA, model)
    words = ("bench", model, *SHORT[2:], "--sparsity", "0.5", "-o", out)

    def stopped(model: Any, out: Path, *arguments: Any, **options: Any) -> Any:
        calls.append(out)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return prune(model, out, *arguments, **options)

    monkeypatch.setattr(measured_cells, "prune", stopped)
    assert run(*words, "--bases", "uniform,owl,lsa").code == 130
    if weights == "other":
        ran("prune", model, "-o", tmp_path / "other", "--sparsity", 0.5, *TOKENS)
        shutil.copy(tmp_path / "other" / "model.safetensors", model)
    ran(*words, "--bases", "uniform")
    kept = ["owl"] if weights == "the same" else []
    assert [row.get("allocation") for row in rows_of(out)] == [None, "uniform", *kept]


WRONG: list[tuple[str, str]] = cases("bench", "wrong")


@pytest.mark.parametrize(("words", "said"), WRONG)
def test_bad_input_is_one_error_and_leaves_nothing(words: str, said: str, tmp_path: Path) -> None:
    assert said in refused(*SHORT, *words.split(), "-o", tmp_path / "bench")
    assert [*tmp_path.iterdir()] == []


def test_an_existing_output_is_never_damaged(tmp_path: Path) -> None:
    out, grid = tmp_path / "bench", ("--bases", "uniform", "--sparsity", "0.5")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "table.md").write_text("mine")
    for force in ((), ("--force",)):
        assert "holds no bench.json" in refused(*SHORT, *grid, *force, "-o", foreign)
    assert [(x.name, x.read_text()) for x in foreign.iterdir()] == [("table.md", "mine")]
    assert f"{tmp_path / 'missing'} is missing" in refused(
        *SHORT, *grid, "-o", tmp_path / "missing" / "x"
    )
    model = tmp_path / "llama"
    shutil.copytree(LLAMA, model)
    assert "is, or holds," in refused("bench", model, *grid, "--force", "-o", model)
    words = ("bench", model, *SHORT[2:], *grid)
    ran(*words, "-o", out)
    before = (out / "bench.json").read_bytes()
    assert "samples: 2 there, 3 here" in refused(*words, "--samples", 3, "-o", out)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    assert "other weights of llama" in refused(*words, "-o", out)
    assert (out / "bench.json").read_bytes() == before
    ran(*words, "--samples", 3, "--force", "-o", out)
    assert len(rows_of(out)) == 2
    assert (out / "bench.json").read_bytes() != before
    (out / "bench.json").write_bytes(before[:100])
    assert "not a comparison" in refused(*words, "-o", out)
    twice = tmp_path / "other" / "llama"
    shutil.copytree(LLAMA, twice)
    assert "two models are called llama" in refused(
        "bench", model, twice, *SHORT[2:], *grid, "-o", tmp_path / "two"
    )


def test_models_are_kept_on_request_and_a_rerun_moves_few_weights(tmp_path: Path) -> None:
    grid = ("--bases", "owl,divergence", "--sparsity", "0.5", "--jitter", 2)
    kept, out = tmp_path / "models", tmp_path / "bench"
    shown = ran(*SHORT, *grid, "--keep-models", kept, "-o", out)
    assert "noise floor (2 reruns)" in shown
    rows = [row for row in rows_of(out) if "pruner" in row]
    assert [row.get("jitter", 0) for row in rows] == [0, 0, 1, 2]
    assert len({row["pruned"] for row in rows}) == 1
    counts = {}
    for folder in kept.iterdir():
        record = json.loads((folder / "pruning.json").read_text())
        counts[folder.name] = np.array(
            [x["pruned"] for block in record["blocks"] for x in block["linears"]]
        )
    first = counts["llama-wanda-50-owl-seed-0"]
    assert len(counts) == 4
    for n in (1, 2):
        moved = np.abs(counts[f"llama-wanda-50-owl-seed-0-jitter-{n}"] - first)
        assert 0 < moved.sum() < 0.01 * first.sum()


def a_comparison(nats: dict[tuple[str, int, int], list[float]]) -> BenchDocument:
    """A comparison of which one text was measured in two windows, by allocation, seed, jitter."""
    base = {"model": "m", "model_sha256": None, "versions": {}}
    rows: list[dict[str, Any]] = [base | {"texts": [{"nats": [10.0, 10.0], "tokens": [10, 10]}]}]
    for (name, seed, jitter), values in nats.items():
        where = {"pruner": "wanda", "sparsity": 0.6, "allocation": name, "seed": seed}
        texts = [{"nats": values, "tokens": [10, 10]}]
        rows.append(base | where | {"jitter": jitter, "texts": texts, "passes": 12.0})
    text = {"name": "a_text", "sha256": None}
    shared = {"text": text, "samples": 1, "seq_len": None, "seeds": 2, "measured_on": [text]}
    shared |= {"window": None, "windows": None, "dtype": "float32"}
    document = {"format": 1, "settings": shared, "against": "uniform", "rows": rows}
    return converted(document, BenchDocument)


def test_means_changes_errors_and_the_floor_are_those_by_hand() -> None:
    nats = {
        ("uniform", 0, 0): [20.0, 24.0],
        ("owl", 0, 0): [19.0, 22.0],
        ("uniform", 1, 0): [21.0, 25.0],
        ("owl", 1, 0): [21.0, 21.0],
        ("lsa", 1, 0): [22.0, 24.0],
        ("dlp", 1, 0): [11.0, 15.1],
    }
    (place,) = places(a_comparison(nats))
    uniform, owl, lsa, dlp = place.allocations
    assert dlp.texts[0].is_finding  # -1 and -0.99 nats: 199 errors
    assert uniform.texts[0].perplexity == pytest.approx(exp((44 + 46) / 40))
    assert uniform.texts[0].multiple == pytest.approx(exp(2.25 - 1))
    assert np.isnan(uniform.texts[0].change[0])
    change = owl.texts[0].change  # -3 / 20 and -4 / 20 nats
    assert change == pytest.approx((-0.175, 0.025 * sqrt(2) / sqrt(2)))
    assert percent(*owl.texts[0].change)[0] == pytest.approx(100 * (exp(-0.175) - 1))
    assert not owl.texts[0].is_finding  # of two seeds, t is 12.7
    assert lsa.seeds == 1
    alone = lsa.texts[0].change  # windows differ by 0.1 and -0.1 nats per token
    assert alone == pytest.approx((0.0, 0.1))
    assert not lsa.texts[0].is_finding
    assert np.isnan(place.floor).all()

    nats |= {("uniform", 0, 1): [22.0, 26.0], ("uniform", 0, 2): [18.0, 22.0]}
    (place,) = places(a_comparison(nats))
    assert place.reruns == 2
    assert place.floor == pytest.approx([0.2])  # of 2.2, 2.4 and 2.0
    assert place.allocations[1].texts[0].change[1] == pytest.approx(0.2)  # 0.2 sqrt(2 / 2)
    assert not place.allocations[1].texts[0].is_finding
    alone = place.allocations[2].texts[0].change
    assert alone[1] == pytest.approx(sqrt(0.1**2 + 2 * 0.2**2))

    nats |= {("owl", 1, 1): [22.0, 22.0]}  # 2.2 and 2.1 nats: pooled with those above
    (place,) = places(a_comparison(nats))
    assert place.floor == pytest.approx([sqrt((2 * 0.2**2 + 0.05**2 * 2) / 3)])


def test_the_forms_of_the_table_hold_the_same_numbers() -> None:
    nats = {("uniform", 0, 0): [20.0, 24.0], ("owl & 50%", 0, 0): [19.0, 22.0]}
    document = a_comparison(nats)
    table = flat_table(document)
    head, (uniform, owl) = [*table.columns], table.rows
    assert head[:5] == ["model", "pruner", "sparsity", "allocation", "seeds"]
    assert head[5:] == ["block passes", "a_text", "× dense, a_text", "against uniform, a_text"]
    assert uniform[5:] == ("12", "9.025", "3.32", "")
    assert owl[5:] == ("12", "7.768", "2.86", "~ -13.9 ± 4.3 %")  # 2 windows: 12.7 errors
    lines = markdown(document).splitlines()
    assert lines[2] == f"| {' | '.join(uniform)} |"
    assert "| owl \\& 50% | 1 | 12 | 7.768 | 2.86 | ~ -13.9 ± 4.3 % |" in lines[3]
    assert len({line.count("|") for line in lines[:4]}) == 1
    assert lines[-1] == "- measured on a_text, which calibration has read, too"
    (curves,) = bench_curves(document).values()
    assert [f"{points[0, 1]:.6g}" for points in curves[0].values()] == ["3.32012", "2.85765"]
    assert all(points[0, 2] > 0 for points in curves[0].values())

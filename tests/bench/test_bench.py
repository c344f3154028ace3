"""`refimpl bench`: a cell is what other commands give, a stopped run is continued, and tables."""

import json
import re
import shutil
from math import exp, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES
from program import ran, refused, run
from tables import cases

from refimpl import RefimplError, Request, read_model
from refimpl.allocation.allocate import base_only
from refimpl.bench import measured_cells
from refimpl.bench.cells import BenchRow, BenchSettings, Comparison
from refimpl.bench.tables import bench_table, change, percent, summaries
from refimpl.loading.files.documents import converted
from refimpl.loading.text import model_tokens
from refimpl.scoring.base_signals import signals_of

LLAMA, TEXT = FIXTURES / "llama", FIXTURES / "text.txt"
TOKENS = ("--samples", 2, "--seq-len", 16, "--text", TEXT)
WINDOWS = ("--window", 32, "--windows", 4)
SHORT = ("bench", LLAMA, *TOKENS, "--measure-on", TEXT, *WINDOWS)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [
        json.loads(x)
        for x in (folder / "bench.jsonl").read_text("utf-8").splitlines()[1:]
    ]


def test_the_bar_moves_within_a_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    grid = ("--bases", "uniform", "--sparsity", 0.5)
    done = run(*SHORT, *grid, "-o", tmp_path / "bench", err_terminal=True)
    shares = [int(x) for x in re.findall(r"(\d+)%", done.err)]
    assert shares == sorted(shares)
    assert [len({x for x in shares if a < x < a + 50}) > 1 for a in (0, 50)] == [
        True,
        True,
    ]


@pytest.mark.parametrize(("name", "words", "pruner"), cases("bench", "by_hand"))
def test_a_cell_is_score_prune_and_eval_to_the_bit(
    name: str, words: str, pruner: str, tmp_path: Path
) -> None:
    grid = (
        "--bases",
        *name.split(),
        "--sparsity",
        "0.5, 60%",
        "--pruner",
        pruner,
        "--seeds",
        2,
    )
    done = run(*SHORT, *grid, "-o", tmp_path / "bench")
    assert (done.code, done.err) == (0, "")  # progress belongs to terminals
    dense, *pruned = rows_of(tmp_path / "bench")
    by_hand = json.loads(ran("eval", LLAMA, "--text", TEXT, *WINDOWS, "--json"))
    assert dense["texts"][0]["nats"] == [x["nats"] for x in by_hand["text"]["windows"]]
    assert (dense["model_sha256"], len(pruned)) == (by_hand["model_sha256"], 4)
    ids = model_tokens(
        read_model(LLAMA), TEXT, None, 4, 16
    ).ids  # each seed has every other one
    for row in pruned:
        case = tmp_path / f"{row['sparsity']}-{row.get('seed', 0)}"
        np.save(f"{case}.npy", ids[row.get("seed", 0) :: 2])
        tokens, seed = ("--tokens", f"{case}.npy"), ("--seed", row.get("seed", 0))
        sparsity = ("--sparsity", row["sparsity"])
        ran(
            "score",
            LLAMA,
            *words.split(),
            *sparsity,
            *tokens,
            *seed,
            "-o",
            f"{case}.json",
        )
        ran("allocate", f"{case}.json", "-o", f"{case}-allocation.json")
        method, *refit = pruner.split("+")
        target = ("--allocation", f"{case}-allocation.json", "--pruner", method)
        target += tuple(f"--{x}" for x in refit)
        calibration = tokens if pruner != "magnitude" else ()
        ran("prune", LLAMA, "-o", case, *target, *calibration)
        by_hand = json.loads(ran("eval", case, "--text", TEXT, *WINDOWS, "--json"))
        assert row["texts"][0]["nats"] == [
            x["nats"] for x in by_hand["text"]["windows"]
        ]
        assert row["texts"][0]["tokens"] == [
            x["tokens"] for x in by_hand["text"]["windows"]
        ]
        assert (
            row["pruned"]
            == json.loads((case / "pruning.json").read_text())["total_pruned"]
        )


@pytest.mark.parametrize(
    ("name", "probe"),
    [("wanda", "wanda"), ("admm", "wanda"), ("sparsegpt+refit", "sparsegpt")],
)
def test_a_cell_is_what_prune_gives_by_default(
    name: str, probe: str, tmp_path: Path
) -> None:
    out, pruned, (pruner, *refit) = (
        tmp_path / "bench",
        tmp_path / "pruned",
        name.split("+"),
    )
    words = ("--sparsity", "0.5", "--pruner")
    ran("bench", LLAMA, "--bases", "divergence", *words, name, *WINDOWS, "-o", out)
    ran("prune", LLAMA, *words, pruner, *[f"--{x}" for x in refit], "-o", pruned)
    record = json.loads((pruned / "pruning.json").read_text())
    _, row = rows_of(out)
    scores = json.loads((pruned / "scores.json").read_text())
    assert (scores["scores"]["plan"]["pruner"], record["method"]) == (probe, pruner)
    assert record.get("refit", False) == bool(refit)
    assert row["block_sparsity"] == scores["allocations"][0]["corrected_sparsity"]
    assert (row["pruned"], row["tokens_sha256"]) == (
        record["total_pruned"],
        record["calibration"]["sha256"],
    )


def test_a_stopped_run_is_continued_and_a_whole_one_has_nothing_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = ("--bases", "uniform,owl,divergence", "--sparsity", "0.5")
    ran(*SHORT, *grid, "-o", tmp_path / "whole")
    prune, calls, out = measured_cells.prune, list[Path](), tmp_path / "bench"

    def stopped(model: Any, out: Path, *arguments: Any, **options: Any) -> Any:
        calls.append(out)
        if len(calls) == 2:
            raise KeyboardInterrupt
        if len(calls) == 4:
            raise RefimplError("a disk that is full", "room", "make room")
        return prune(model, out, *arguments, **options)

    monkeypatch.setattr(measured_cells, "prune", stopped)
    interrupted = run(*SHORT, *grid, "-o", out)
    assert interrupted.code == 130
    assert f"finished cells are kept in {out}" in interrupted.err
    assert [row.get("allocation") for row in rows_of(out)] == [None, "uniform"]
    with (out / "bench.jsonl").open("a") as file:
        file.write('{"model": "llama", "mod')  # killed while it wrote
    assert "a disk that is full" in refused(*SHORT, *grid, "-o", out)
    ran(*SHORT, *grid, "-o", out)
    assert rows_of(out) == rows_of(tmp_path / "whole")
    assert len(calls) == 2 + 2 + 1
    assert "0 of 4 cells ran" in ran(*SHORT, *grid, "-o", out)
    assert "1 of 5 cells ran" in ran(
        *SHORT, "--bases", "lsa", "--sparsity", "0.5", "-o", out
    )
    assert len(rows_of(out)) == 5
    assert sorted(x.name for x in out.iterdir()) == ["bench.jsonl", "table.md"]
    assert [x.name for x in tmp_path.iterdir() if x.name.startswith(".")] == []
    lines = (out / "bench.jsonl").read_text().splitlines(keepends=True)
    (out / "bench.jsonl").write_text("".join([*lines, lines[-1]]))
    assert "a cell has two rows" in refused(*SHORT, *grid, "-o", out)


def test_names_must_tell_models_and_texts_apart(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    words, out = ("--bases", "uniform", "--sparsity", "0.5"), tmp_path / "two"
    other = shutil.copy(TEXT, tmp_path / "other")
    text = refused(*SHORT, "--measure-on", other, *words, "-o", out)
    assert "two inputs are called text (text)" in text
    twice = shutil.copytree(LLAMA, tmp_path / "other" / "llama")
    assert "two inputs are called llama" in refused(
        "bench", twice, *SHORT[1:], *words, "-o", out
    )
    assert not out.exists()


@pytest.mark.parametrize(("words", "said"), cases("bench", "wrong"))
def test_bad_input_is_one_error_and_leaves_nothing(
    words: str, said: str, tmp_path: Path
) -> None:
    assert said in refused(*SHORT, *words.split(), "-o", tmp_path / "bench")
    assert [*tmp_path.iterdir()] == []


def test_an_existing_output_is_never_damaged(tmp_path: Path) -> None:
    out, grid = tmp_path / "bench", ("--bases", "uniform", "--sparsity", "0.5")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "table.md").write_text("mine")
    assert "holds no bench.jsonl" in refused(*SHORT, *grid, "-o", foreign)
    assert [(x.name, x.read_text()) for x in foreign.iterdir()] == [
        ("table.md", "mine")
    ]
    missing = refused(*SHORT, *grid, "-o", tmp_path / "missing" / "x")
    assert f"{tmp_path / 'missing'} is missing" in missing
    model = tmp_path / "llama"
    shutil.copytree(LLAMA, model)
    assert "is, or holds," in refused("bench", model, *grid, "-o", model)
    words = ("bench", model, *SHORT[2:], *grid)
    ran(*words, "-o", out)
    before = (out / "bench.jsonl").read_bytes()
    assert "samples: 2 there, 3 here" in refused(*words, "--samples", 3, "-o", out)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    assert "other weights of llama" in refused(*words, "-o", out)
    assert (out / "bench.jsonl").read_bytes() == before
    (out / "table.md").unlink()
    (out / "table.md").mkdir()
    assert "table.md is not a file" in refused(*words, "--bases", "lsa", "-o", out)
    assert (out / "bench.jsonl").read_bytes() == before
    (out / "table.md").rmdir()
    (out / "bench.jsonl").write_bytes(b"{}" + before)
    assert "not a comparison" in refused(*words, "-o", out)


def test_a_rerun_moves_few_weights() -> None:
    model, seeds = read_model(LLAMA), (1, 2)
    request = Request(sparsity=0.5, correct=None)
    made = base_only(signals_of(model, request, None), request, model.config.linears)
    for seed in seeds:
        counts = measured_cells.jittered(made, model, seed).linear_pruned
        moved = np.abs(counts - made.linear_pruned)
        assert counts.sum() == made.total_pruned
        assert 0 < moved.sum() < 0.01 * made.total_pruned


def a_comparison(nats: dict[tuple[str, int, int], list[float]]) -> Comparison:
    """A comparison of which one text was measured in two windows, by allocation, seed, jitter."""
    base = {"model": "m", "model_sha256": None, "versions": {}}
    rows: list[dict[str, Any]] = [
        base | {"texts": [{"nats": [10.0, 10.0], "tokens": [10, 10]}]}
    ]
    for (name, seed, jitter), values in nats.items():
        where = {"pruner": "wanda", "sparsity": 0.6, "allocation": name, "seed": seed}
        texts = [{"nats": values, "tokens": [10, 10]}]
        rows.append(base | where | {"jitter": jitter, "texts": texts})
    text = {"name": "a_text", "sha256": None}
    shared = {
        "text": text,
        "samples": 1,
        "seq_len": None,
        "seeds": 2,
        "measured_on": [text],
    }
    shared |= {"window": None, "windows": None, "dtype": "float32"}
    found = tuple(converted(row, BenchRow) for row in rows)
    return Comparison(converted(shared, BenchSettings), found)


def test_means_changes_errors_and_the_floor_are_those_by_hand() -> None:
    nats = {
        ("uniform", 0, 0): [20.0, 24.0],
        ("owl", 0, 0): [19.0, 22.0],
        ("uniform", 1, 0): [21.0, 25.0],
        ("owl", 1, 0): [21.0, 21.0],
        ("lsa", 1, 0): [22.0, 24.0],
        ("dlp", 1, 0): [11.0, 15.1],
    }
    uniform, owl, lsa, dlp = summaries(a_comparison(nats))
    assert not change(dlp).startswith("~")  # -1 and -0.99 nats: 199 errors
    assert uniform.perplexity == pytest.approx(exp((44 + 46) / 40))
    assert uniform.nats - uniform.dense == pytest.approx(2.25 - 1)
    assert np.isnan(uniform.change[0])
    assert owl.change == pytest.approx((-0.175, 0.025))  # -3 / 20 and -4 / 20 nats
    assert percent(*owl.change)[0] == pytest.approx(100 * (exp(-0.175) - 1))
    assert change(owl).startswith("~ -16")  # of two seeds, t is 12.7
    assert lsa.change == pytest.approx(
        (0.0, 0.1)
    )  # windows differ by 0.1 and -0.1 nats per token
    assert change(lsa).startswith("~")
    assert np.isnan(uniform.floor)

    nats |= {("uniform", 0, 1): [22.0, 26.0], ("uniform", 0, 2): [18.0, 22.0]}
    _, owl, lsa, _ = summaries(a_comparison(nats))
    assert owl.floor == pytest.approx(0.2)  # of 2.2, 2.4 and 2.0
    assert owl.change[1] == pytest.approx(0.2)  # 0.2 sqrt(2 / 2)
    assert change(owl).startswith("~")
    assert lsa.change[1] == pytest.approx(sqrt(0.1**2 + 2 * 0.2**2))
    against_owl = [*summaries(a_comparison(nats), "owl")]
    assert against_owl[0].change[0] == pytest.approx(0.175)
    assert np.isnan(against_owl[1].change[0])


def test_the_table_holds_these_numbers() -> None:
    nats = {("uniform", 0, 0): [20.0, 24.0], ("owl & 50%", 0, 0): [19.0, 22.0]}
    table = bench_table(a_comparison(nats))
    assert [*table.columns] == [
        *("model", "pruner", "sparsity", "allocation"),
        *("perplexity, a_text", "× dense, a_text", "against uniform, a_text"),
    ]
    uniform, owl = table.rows
    assert uniform[4:] == ("9.025", "3.32", "")
    assert owl[4:] == ("7.768", "2.86", "~ -13.9 ± 4.3 %")  # 2 windows: 12.7 errors
    lines = table.markdown().splitlines()
    assert lines[2] == f"| {' | '.join(uniform)} |"
    assert "| owl \\& 50% | 7.768 | 2.86 | ~ -13.9 ± 4.3 % |" in lines[3]
    again = bench_table(a_comparison(nats | {("uniform", 0, 1): [20.2, 24.2]}))
    assert again.rows[0][-1] == "± 1.4 %"  # of 2.2 and 2.22 nats


def test_a_perplexity_beyond_float64_is_shown_as_such() -> None:
    nats = {("uniform", 0, 0): [8000.0, 8000.0], ("owl", 0, 0): [9000.0, 9000.0]}
    assert "inf" in bench_table(a_comparison(nats)).markdown()

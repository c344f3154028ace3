"""The study's script: its grid and its rule, and cells that are what the command line gives."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES
from program import run as program

sys.path.insert(0, str(FIXTURES.parent / "docs" / "study"))

import effects
import grid
import harm
import measure
import measured
import measured_table
import page
import run
import search

from refimpl import Model, Probes, Request, read_model, score
from refimpl.running.settings import Settings
from refimpl.scoring.experiment import dense_units, work_list
from refimpl.tokens import Tokens, random_tokens

STUDY = FIXTURES.parent / "docs" / "study"
SIZE = ("--samples", 2, "--seq-len", 16)


def test_the_grid_is_the_one_that_was_planned() -> None:
    first = list(grid.first_half())
    best = (grid.CORRECTIONS[0], grid.CORRECTIONS[-1])
    second = list(grid.second_half(best))
    assert (len(first), len(second), len({*first, *second})) == (62, 80, 142)
    assert len({str(cell) for cell in (*first, *second)}) == 142
    noises = {c.perturbed for c in grid.CORRECTIONS if c.perturbed != grid.PRUNING}
    assert len(noises) == 3 * 2 * 2 * 2
    controls = {cell.correction for cell in second if cell.correction.change}
    assert controls == set(grid.controls(best))
    assert len(controls) == 2 * (1 + 3)


def test_the_rule_takes_the_lowest_mean_and_each_correction_once() -> None:
    nats = dict.fromkeys(grid.first_half(), 5.0)
    double, triple = (replace(grid.CORRECTIONS[-1], size=n * grid.SIZE) for n in (2, 3))
    other, odd = grid.CORRECTIONS[4], grid.CORRECTIONS[7]
    for correction, uniform, owl in (
        (triple, 3.0, 3.2),  # best
        (double, 3.2, 3.1),  # second, but the same correction at another size
        (odd, 2.0, 5.0),  # best on one base alone
        (other, 3.3, 3.4),
    ):
        nats[grid.Cell(base="uniform", correction=correction)] = uniform
        nats[grid.Cell(base="owl", correction=correction)] = owl
    assert grid.best_two(nats) == (triple, other)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> measure.Bench:
    """A small model, texts and questions where the script looks for real ones."""
    shutil.copytree(FIXTURES / "llama", tmp_path / "real" / grid.SMOL)
    (tmp_path / "real" / "text").mkdir()
    (tmp_path / "scores").mkdir()
    text = (FIXTURES / "text.txt").read_text()
    for i, name in enumerate(("sotu-1901-1979", *run.TEXTS.values())):
        (tmp_path / "real" / "text" / f"{name}.txt").write_text(text[100 * i :])
    for i, name in enumerate(run.QUESTIONS):
        folder = tmp_path / "real" / "choices" / name
        folder.mkdir(parents=True)
        example = {"input": "to be ", "target_scores": {"or": i, "not to be": 1 - i}}
        (folder / "task.json").write_text(json.dumps({"examples": [example] * 100}))
    monkeypatch.setattr(run, "CALIBRATION", (2, 16))
    monkeypatch.setattr(run, "WINDOWS", 3)
    monkeypatch.setattr(run, "WINDOW", 32)
    monkeypatch.setattr(run, "QUESTIONS", dict.fromkeys(run.QUESTIONS, 3))
    monkeypatch.setattr(measure, "SAMPLES", 2)
    monkeypatch.setattr(measure, "SEQ_LEN", 16)
    return measure.Bench(tmp_path / "real", tmp_path / "scores")


ALL = grid.Papers(tuple(run.TEXTS), questions=True)
ABSORPTION = grid.Correction("absorption", grid.Perturbed("gaussian", 0.1, "exclude"))
PRUNE: list[tuple[grid.Cell, str]] = [  # how `refimpl score` measures a cell; "" if it needs not
    (grid.Cell(), ""),
    (grid.Cell(base="owl", method="sparsegpt"), ""),
    (grid.Cell(base="atp", sparsity=0.5), "--correct none --base atp --base-option beta=0.0055"),
    (grid.Cell(correction=ABSORPTION), "--correct absorption --eta 0.1 --variant sink=exclude"),
    (
        grid.Cell(base="owl", correction=grid.CORRECTIONS[-2]),
        "--base owl --correct divergence --perturbation pruning --strength 0.06",
    ),
]


@pytest.mark.parametrize(("cell", "words"), PRUNE)
def test_a_cell_is_prune_and_then_eval(
    cell: grid.Cell, words: str, bench: measure.Bench, tmp_path: Path
) -> None:
    source, out = bench.real / grid.SMOL, tmp_path / "out"
    model = read_model(source)
    row = run.run_cell(bench, model, run.Exam(bench, model, ALL), cell)
    text, sparsity = ("--text", bench.calibration, *SIZE), ("--sparsity", cell.sparsity)
    target: tuple[object, ...] = (*sparsity, "--allocation", cell.base)
    if words:
        scores, allocation = tmp_path / "scores.json", tmp_path / "allocation.json"
        scored = program("score", source, *sparsity, *words.split(), *text, "-o", scores)
        assert scored.code == 0, scored.err
        size = ("--correction-scale", "max", "--strength", cell.correction.size)
        program("allocate", scores, *size[: 2 if "strength" in words else 4], "-o", allocation)
        target = ("--allocation", allocation)
    done = program("prune", source, "-o", out, *target, "--pruner", cell.method, *text)
    assert done.code == 0, done.err
    assert json.loads((out / "pruning.json").read_text())["total_pruned"] == row["pruned"]
    lines = [
        json.dumps({"question": q, "choices": c, "answer": a})
        for q, c, a in run.questions(bench.real)
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    for text, name in run.TEXTS.items():
        words_of = ("--text", bench.real / "text" / f"{name}.txt", "--window", 32, "--windows", 3)
        also = ("--choices", tmp_path / "q.jsonl")
        found = json.loads(program("eval", out, *words_of, *also, "--json").out)
        mean = sum(row[text]) / sum(row[f"{text}_tokens"])
        assert found["text"]["nats_per_token"] == pytest.approx(mean, rel=1e-7)
        for rule in ("acc", "acc_norm"):
            assert found["choices"][rule] == np.mean([int(x) for x in row[rule]])


def test_the_script_resumes_and_the_page_shows_every_cell(
    bench: measure.Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells, names = (
        tmp_path / "cells.jsonl",
        ("0.6 uniform none", "0.6 uniform line", "0.6 owl none"),
    )
    monkeypatch.setattr(run, "second_half", lambda best: iter(()))
    monkeypatch.setattr(run, "best_two", lambda tuning: ())
    monkeypatch.setattr(run, "first_half", lambda: wanted)
    wanted = [cell for cell in grid.first_half() if any(name in str(cell) for name in names)]
    assert len(wanted) == 3
    run.run(bench, cells, [names[0]])
    whole = cells.read_bytes()
    cells.write_bytes(whole + b'{"cell": "torn')
    run.run(bench, cells)
    lines = cells.read_bytes().splitlines(keepends=True)
    assert lines[0] == whole
    assert [json.loads(line)["cell"] for line in lines] == [str(cell) for cell in wanted]
    before = cells.stat().st_mtime_ns, cells.read_bytes()
    run.run(bench, cells)
    assert cells.read_bytes() == before[1]
    text = page.tables(run.finished(cells))
    assert text.count("| none |") == 2
    assert text.count("| line at 0.03 |") == 1


def test_the_page_holds_what_the_cells_say(tmp_path: Path) -> None:
    """The committed page and picture are what the committed cells give."""
    shutil.copytree(STUDY, tmp_path / "study", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(STUDY.parent / "study.md", tmp_path)
    page.write(tmp_path)
    pages = ("study.md", "study/fixed-size.md", "study/measured.md")
    pictures = ("effects", "agreement", "measured")
    for name in (*pages, *(f"study/{picture}.svg" for picture in pictures)):
        assert (tmp_path / name).read_text() == (STUDY.parent / name).read_text(), name


def test_a_headline_compares_with_the_best_published_over_the_seeds_of_both() -> None:
    """By hand: differences of -0.1 and -0.3 nats are exp(-0.2) - 1 = -18.1 %, 0.1 of 0.819 off."""

    def row(base: str, seed: int, nats: float, correction: str = "none") -> dict[str, object]:
        place = {"model": grid.SMOL, "method": "wanda", "sparsity": 0.6, "seed": seed}
        texts = {text: [10 * nats, 30 * nats] for text in grid.REPORTED}
        tokens = {f"{text}_tokens": [10, 30] for text in grid.REPORTED}
        return place | {"base": base, "correction": correction} | texts | tokens

    rows = [row("uniform", 0, 1.0), row("owl", 0, 1.4), row("owl", 1, 1.6), row("dlp", 0, 1.3)]
    rows += [row("dlp", 1, 1.5), row("uniform", 0, 1.2, "divergence")]
    rows += [row("uniform", 1, 1.2, "divergence"), row("lsa", 2, 9.0)]  # no divergence of seed 2
    assert measured_table.best_published(rows) == "dlp"
    assert measured_table.best_published(rows[:1]) == ""
    assert measured_table.over_seeds(rows, "dlp") == "-18.1 ± 8.2 / -18.1 ± 8.2 %"
    assert measured_table.over_seeds(rows, "uniform") == "+22.1 ± 0.0 / +22.1 ± 0.0 %"
    assert measured_table.over_seeds(rows, "lsa") == ""
    line = measured_table.headline({str(i): x for i, x in enumerate(rows)})
    assert line.endswith("perplexity in 8 of 10 comparisons.")


def test_the_grid_of_measured_strength_has_each_cell_once() -> None:
    cells = [str(cell) for cell in measured.cells()]
    assert len(set(cells)) == len(cells) == 299
    on_file = run.finished(STUDY / "measured.jsonl")
    assert on_file.keys() <= set(cells)


def test_the_search_descends_within_its_budget(bench: measure.Bench) -> None:
    model, ids = read_model(bench.real / grid.SMOL), random_tokens(264, 2, 12).ids
    how, blocks = search.Search(generations=2, offspring=3, survivors=2), model.config.num_blocks
    with Settings(np.float64).open() as resources:
        fitness = search.Fitness(model, ids, 0.5, resources)
        alone = np.full((blocks, blocks), search.DENSE)
        np.fill_diagonal(alone, search.STEPS)  # each block alone, at the target
        found = fitness(alone, np.arange(2))
        fitness.passes = 0
        uniform = fitness(np.full((1, blocks), search.STEPS), np.arange(2))[0]
        assert fitness.passes == 2 * 2 * blocks
        generations = list(search.search(fitness, how))
        parents = np.array([parent for parent, _, _ in generations])
        kl_of_parents = fitness(parents, np.arange(2))
    request = Request(sparsity=0.5, correct="divergence", strength=0.1)
    scores = score(model, Tokens(ids, "drawn", "random"), Probes(), request, dtype=np.float64)
    np.testing.assert_allclose(found, scores.sweep[0].divergence, rtol=1e-9)
    kls = [uniform, *(kl for _, kl, _ in generations)]
    assert kls == sorted(kls, reverse=True)
    np.testing.assert_allclose(kl_of_parents, kls[1:], rtol=1e-12)
    assert all(parent.sum() == blocks * search.STEPS for parent, _, _ in generations)
    each = (how.offspring + 1) + 2 * (how.survivors + 2)
    assert generations[-1][2] == (2 * 2 + how.generations * each) * blocks


def test_a_search_is_pruned_and_measured_and_sorted_is_a_control(
    bench: measure.Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(bench: measure.Bench, model: Model, cell: measured.Measured) -> Tokens:
        return random_tokens(264, 2, 12)

    cell = measured.Measured(grid.SMOL, 0.5)
    for module in (measured, search):
        monkeypatch.setattr(module, "calibration", drawn)
    search.run(bench, tmp_path / "search.jsonl", cell, search.Search(1, 2, 1))
    row = json.loads((tmp_path / "search.jsonl").read_text())
    model = read_model(bench.real / grid.SMOL)
    assert row["pruned"] == model.config.block_sizes.sum() // 2
    assert len(row["history"]) == 1
    assert np.mean(row["block_sparsity"]) == pytest.approx(0.5)
    assert len(row["speech"]) == 3

    done = {str(replace(cell, correction="divergence")): {"block_sparsity": [0.6, 0.5, 0.3, 0.6]}}
    final, _, _ = measured.allocation(bench, model, replace(cell, correction="sorted"), done)
    np.testing.assert_allclose(final, [0.3, 0.5, 0.6, 0.6])
    beta = measured.request_of(replace(cell, base="lsa")).options["beta"]
    assert beta == 0.04


def test_the_prediction_is_the_sum_of_fitted_divergences() -> None:
    probed = {"level": [0.2, 0.1], "rate": [5.0, 7.0]}
    row = {"block_sparsity": [0.5, 0.7], "sparsity": 0.6}
    more = 0.2 * (np.exp(-0.5) - 1) + 0.1 * (np.exp(0.7) - 1)
    assert measured_table.predicted(row, probed) == pytest.approx(100 * (np.exp(more) - 1))
    assert measured_table.predicted(row | {"block_sparsity": [0.6, 0.6]}, probed) == 0


def test_changes_are_of_the_perplexity() -> None:
    none: dict[str, Any] = {"speech": [2.0, 4.0], "speech_tokens": [2, 2]}
    row = {"speech": [3.0, 5.0], "speech_tokens": [2, 2]}
    mean, error = effects.change(row, none, "speech")
    assert mean == pytest.approx(100 * (np.exp(0.5) - 1))
    assert error == pytest.approx(0)


def test_harm_is_what_one_block_more_costs(bench: measure.Bench, tmp_path: Path) -> None:
    path, model = tmp_path / "harm.jsonl", read_model(bench.real / grid.SMOL)
    harm.run(bench, path, grid.Cell())
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["block"] for row in rows] == [-1, 0, 1, 2, 3]
    cell = run.run_cell(bench, model, run.Exam(bench, model, ALL), grid.Cell())
    assert rows[0]["tuning"] == pytest.approx(cell["tuning"], rel=1e-6)  # other batches: rounding
    found = effects.harm_of_blocks(rows)
    two_more = effects.nats(rows[3], "tuning") - effects.nats(rows[0], "tuning")
    assert found[2] == pytest.approx(two_more / harm.MORE)
    one = {"block_sparsity": [0.6, 0.6, 0.7, 0.6]}
    none = {"block_sparsity": [0.6] * 4}
    assert effects.expected_change(one, none, found) == pytest.approx(100 * np.expm1(two_more))
    path.write_text("".join(f"{line}\n" for line in path.read_text().splitlines()[:3]))
    harm.run(bench, path, grid.Cell())
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows


@pytest.mark.parametrize(
    ("changes", "samples"),
    [({}, 2), ({"correction": "divergence, one sparsity"}, 2), ({"probed": 3}, 8)],
)
def test_block_passes_are_those_that_scoring_counts(changes: Any, samples: int) -> None:
    config = read_model(FIXTURES / "llama").config
    cell = measured.Measured(grid.SMOL, 0.7, **({"correction": "divergence"} | changes))
    request = measured.request_of(cell)
    plan = request.perturbation(None)
    if cell.probed:
        plan = replace(plan, probe_samples=cell.probed)
    ids = np.zeros((samples, 16), np.int64)
    with Settings().open() as resources:
        units: list[Any] = dense_units(config, dict(enumerate(ids)), resources, keep=False)
        units += work_list(config, ids, plan, resources)
    row = vars(cell) | {"cell": str(cell), "block_sparsity": [0.7] * config.num_blocks}
    assert measured_table.block_passes(row) == sum(unit.cost(config) for unit in units)

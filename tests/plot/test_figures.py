"""Figures: they hold the numbers of the scores, look the same everywhere, and harm nothing."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from itertools import combinations
from math import exp
from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from program import ran, refused
from refusals import refusal_of

from refimpl import allocate, evaluate, plot, read_model
from refimpl.allocation.request import Correction
from refimpl.allocation.scores import Scores
from refimpl.allocation.scores_json import read_scores
from refimpl.bases.base import bases
from refimpl.bench.cells import read_bench
from refimpl.bench.tables import summaries
from refimpl.loading.text import text_windows
from refimpl.model.ops import Array
from refimpl.plot.style import FILE_METADATA, LOOKS, dashes, looks, plain_text
from refimpl.plot.style import drawn as drawn_figure

FIXTURES = Path(__file__).parents[2] / "fixtures"
HOSTILE = [
    'x" onload="alert(1)',
    "<b>",
    "$x$",
    "a|b",
    "]]>",
    "--><script>alert(1)</script>",
]


@pytest.fixture(params=["sweep.json", "perturbed.json", "one.json"])
def scores(request: pytest.FixtureRequest, files: dict[str, Path]) -> Scores:
    return read_scores(files[request.param])


def drawn(ax: Any, which: int = 0) -> tuple[Array, Array | None]:
    """The values of a series, and half the length of its bars."""
    line, _, bars = ax.containers[which]
    ends = [path.vertices[:, 1] for path in bars[0].get_paths()] if bars else None
    halves = None if ends is None else np.array([(b - a) / 2 for a, b in ends])
    return np.asarray(line.get_ydata()), halves


def test_a_heat_map_holds_the_drift(scores: Scores) -> None:
    for i, one in enumerate(scores.sweep):
        ax = plot.drift(scores, which=i)
        np.testing.assert_array_equal(
            ax.images[0].get_array().filled(np.nan), one.drift
        )
    refusal_of(plot.drift, scores, which=7, says="which 7")
    refusal_of(plot.drift, scores.sweep[0].drift, says="expected: Scores")


def test_coefficients_and_their_errors(scores: Scores) -> None:
    ax = plot.coefficients(scores)
    for i, one in enumerate(scores.sweep):
        values, errors = drawn(ax, i)
        np.testing.assert_array_equal(values, one.coefficient)
        known = np.isfinite(one.stderr)
        if errors is not None:
            np.testing.assert_allclose(errors[known], one.stderr[known], atol=1e-12)
        assert (errors is None) == (not known.any())
    first = scores.sweep[0]
    values, errors = drawn(ax, len(scores.sweep))
    np.testing.assert_array_equal(values, first.passed_on)
    assert errors is None or np.allclose(errors, first.passed_on_stderr, atol=1e-12)


def test_the_divergence_and_the_allocation(files: dict[str, Path]) -> None:
    scores = read_scores(files["perturbed.json"])
    first = scores.sweep[0]
    values, errors = drawn(plot.divergence(scores))
    np.testing.assert_array_equal(values, first.divergence)
    np.testing.assert_allclose(errors, first.divergence_stderr)
    made = allocate(scores)
    for source in (scores, made):
        ax = plot.allocation(source)
        np.testing.assert_array_equal(drawn(ax, 0)[0], made.base_sparsity)
        np.testing.assert_array_equal(drawn(ax, 1)[0], made.corrected_sparsity)
        assert [x.get_text() for x in ax.get_legend().get_texts()] == [
            "owl",
            "owl + divergence",
        ]
    noise = read_scores(files["one.json"])
    assert "have no divergence" in str(refusal_of(plot.divergence, noise))


def test_evaluations_are_compared_on_one_text(files: dict[str, Path]) -> None:
    windows = text_windows(
        FIXTURES / "text.txt", FIXTURES / "llama" / "tokenizer.json", 32, 4
    )
    models = [
        read_model(FIXTURES / "llama"),
        read_model(files["dense/pruning.json"].parent),
    ]
    dense, pruned = (evaluate(model, windows) for model in models)
    assert pruned.perplexity is not None
    ax = plot.comparison([dense, pruned])
    values, errors = drawn(ax)
    assert values == [pruned.perplexity.value]
    assert errors == pytest.approx([pruned.perplexity.stderr])
    assert ax.get_title(loc="left") == "Perplexity on text.txt"
    assert "4 windows of 32 tokens" in " ".join(x.get_text() for x in ax.texts)
    others = evaluate(models[0], replace(windows, ids=windows.ids[:3], bytes=None))
    refusal_of(plot.comparison, [dense, others], says="evaluations on 2 texts")


def test_a_comparison_is_drawn_as_multiples_of_the_dense_perplexity() -> None:
    study = read_bench(FIXTURES.parent / "docs" / "study" / "smollm2" / "bench.jsonl")
    ax = plot.comparison(study)
    names = [x.get_label() for x in ax.containers]
    assert names[0] == "uniform"
    found = [
        x for x in summaries(study) if x.allocation == "uniform" and x.sparsity == 0.6
    ]
    values, errors = drawn(ax)
    assert values[1] == pytest.approx(exp(np.mean([x.growth[0] for x in found])))
    error = np.hypot(*(x.growth[1] for x in found)) / 2
    assert errors is not None
    assert errors[1] == pytest.approx(values[1] * error)
    assert "SmolLM2-135M-Instruct, wanda,\nmean over" in ax.texts[0].get_text()
    names = [
        "wanda",
        "sparsegpt",
        "admm",
        "admm+refit",
        "magnitude",
        "of my own",
        "random",
    ]
    assert len({*dashes(names).values()}) == len(names)


def test_a_long_legend_is_not_cut_off() -> None:
    values = {
        f"base number {i} + divergence": [(0.5, 20 + i), (0.7, 40 + i)]
        for i in range(16)
    }
    figure = drawn_figure([partial(plot.comparison, values)])
    figure.draw_without_rendering()
    (ax,), legend = figure.axes, figure.axes[0].get_legend().get_window_extent()
    assert 0 <= legend.x0 < legend.x1 <= figure.bbox.width
    assert 0 <= legend.y0 < legend.y1 < ax.bbox.y0
    assert ax.bbox.height > 0.8 * figure.dpi


def test_arrays_do_as_well() -> None:
    r = {"eta 0.1": [0.9, 1.1, 1.0], "eta 1": [0.8, 1.2, 1.0]}
    assert len(plot.coefficients(r).containers) == 2
    points = {"uniform": [(0.5, 20.0), (0.6, 90.0)], "dense": [(0.5, 18.0)]}
    ax = plot.comparison(points)
    np.testing.assert_array_equal(drawn(ax)[0], [20.0, 90.0])
    assert ax.get_yscale() == "linear"
    assert plot.comparison({"owl": [(0.5, 20.0), (0.7, 900.0)]}).get_yscale() == "log"


def test_the_caller_keeps_its_axes_and_its_settings(scores: Scores) -> None:
    from matplotlib.figure import Figure

    before = dict(matplotlib.rcParams)
    ax = Figure().subplots()
    assert plot.coefficients(scores, ax=ax) is ax
    assert plot.allocation({"uniform": [0.5, 0.5]}, ax) is ax
    assert dict(matplotlib.rcParams) == before


def test_an_allocation_has_one_look_which_no_other_has() -> None:
    assert {*bases(), *get_args(Correction)} <= LOOKS.keys()
    for one, other in combinations(LOOKS.values(), 2):
        assert one.colour != other.colour
        assert one.marker != other.marker
    both = "owl + divergence measured"
    names = [*LOOKS, both, "lsa:beta=0.1", "my.json", "his.json"]
    together = looks(names)
    assert len({*together.values()}) == len(names)
    assert together[both] == (LOOKS["owl"].colour, LOOKS["divergence"].marker)
    for name in names:
        if name != "lsa:beta=0.1":  # the second of its base in one figure
            assert looks([name])[name] == together[name]
    measured = "uniform + divergence measured"
    assert looks([measured])[measured] == LOOKS["divergence"]


@pytest.mark.parametrize("ending", FILE_METADATA)
def test_the_same_figure_is_the_same_file(
    ending: str, scores: Scores, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        plot.save(plot.coefficients(scores), tmp_path / f"{name}{ending}")
    content = (tmp_path / f"a{ending}").read_bytes()
    assert content == (tmp_path / f"b{ending}").read_bytes()
    assert not any(word in content for word in (b"<dc:date>", b"CreationDate"))
    refusal_of(
        plot.save,
        plot.coefficients(scores),
        tmp_path / "a.gif",
        says="no format of figures",
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_a_text_and_nothing_else(
    name: str, files: dict[str, Path], tmp_path: Path
) -> None:
    scores = read_scores(files["one.json"])
    tokens = replace(scores.tokens, source=name)
    hostile = replace(scores, model=name, tokens=tokens)
    for draw in (plot.drift, plot.coefficients, plot.allocation):
        plot.save(draw(hostile), tmp_path / "a.svg")
        root = ElementTree.parse(tmp_path / "a.svg").getroot()
        assert not {"script", "b"} & {x.tag.rpartition("}")[2] for x in root.iter()}
        assert not [
            key for x in root.iter() for key in x.attrib if key.startswith("on")
        ]
    ax = plot.comparison({name: [(0.5, 2.0)], "uniform": [(0.5, 3.0)]})
    assert ax.get_legend().get_texts()[0].get_text() == plain_text(name)
    plot.save(ax, tmp_path / "b.svg")


def test_the_command_draws_all_or_one_and_writes_nothing_else(
    files: dict[str, Path], tmp_path: Path
) -> None:
    home, out = tmp_path / "home", tmp_path / "all.svg"
    home.mkdir()
    words = [sys.executable, "-m", "refimpl", "plot", files["sweep.json"], "-o", out]
    kept = {
        k: v
        for k, v in os.environ.items()
        if k not in ("MPLCONFIGDIR", "XDG_CACHE_HOME")
    }
    subprocess.run(words, check=True, env=kept | {"HOME": str(home)}, cwd=tmp_path)
    assert sorted(x.name for x in tmp_path.rglob("*")) == ["all.svg", "home"]
    one = tmp_path / "one.png"
    ran("plot", files["sweep.json"], "--figure", "drift", "-o", one)
    assert one.read_bytes().startswith(b"\x89PNG")
    assert "no comparison" in refused(
        "plot", files["one.json"], "--figure", "comparison", "-o", tmp_path / "x.svg"
    )
    assert "no format of figures" in refused(
        "plot", files["one.json"], "-o", tmp_path / "x.gif"
    )
    assert "exists" in refused("plot", files["one.json"], "-o", one)

"""The table: what a reader needs is in it, and every column is straight."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from refimpl.allocation.allocate import Allocation, allocate
from refimpl.allocation.request import Noise, Probes, Request
from refimpl.allocation.scores import Absorption, ProbedErrors, PrunedAt, Scores, Signal
from refimpl.loading.samples import TokenFacts
from refimpl.running.provenance import Run
from refimpl.show.blocks import SCALE, scores_table
from refimpl.show.table import WIDEST

LINEARS = {"q_proj": (30, 20), "down_proj": (20, 30)}
SEVEN_B = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), (4096, 4096))
SEVEN_B |= {
    "gate_proj": (11008, 4096),
    "up_proj": (11008, 4096),
    "down_proj": (4096, 11008),
}
TOKENS = TokenFacts(
    3, 48, "a text, 3 samples of 48 tokens", "text", None, "0123456789abcdef"
)


def absorption(r: Sequence[float], eta: float | None = 0.25, **more: Any) -> Absorption:
    """What was found at one eta, its coefficients given."""
    each = len(r)
    drift = np.triu(np.linspace(0.5, 0.1, each * each).reshape(each, each))
    whole = {"stderr": np.full(each, 0.0123), "left_out": np.zeros(each, np.int64)}
    factors = {"error_growth": 2.5, "passed_on": 0.25}
    factors |= {"error_growth_stderr": 0.1, "passed_on_stderr": 0.01}
    whole |= {"steps": drift} | {k: np.full(each, x) for k, x in factors.items()} | more
    return Absorption(eta, *[drift] * 4, np.array(r), **whole)


def scores(*sweep: Absorption, **changes: Any) -> Scores:
    """Scores that hold this sweep, of a model whose every fact has a value of its own."""
    sweep = sweep or (absorption([2.0, 1.0]),)
    blocks = len(sweep[0].coefficient)
    ramp = np.linspace(1.0, 2.0, blocks)
    etas = tuple(found.eta for found in sweep if found.eta is not None)
    whole = Scores(
        model="tiny",
        family="llama",
        linears=(LINEARS,) * blocks,
        tokens=TOKENS,
        plan=Noise(eta=etas or (0.01,), draws=4, seed=11),
        sweep=sweep,
        sinks=np.arange(blocks),
        sink_share=np.zeros(blocks),
        signals={
            "owl": Signal({"m": 5.0}, {"outlier_percent": ramp}),
            "dlp": Signal({"statistic": "mean"}, {"score": 2 * ramp}),
        },
        run=Run(
            "float64", 7, 3 << 29, 12.34, 456 << 20, {"refimpl": "9.8", "numpy": "7.6"}
        ),
        measured_samples=TOKENS.samples,
    )
    return replace(whole, **changes)


def shown(found: Scores, **request: Any) -> str:
    return scores_table(found, allocated(found, **request))


def allocated(found: Scores, **request: Any) -> Allocation:
    correct = None if request.get("compat") == "peer" else "absorption"
    return allocate(found, Request(**{"correct": correct, "sparsity": 0.7} | request))


def rows(text: str) -> list[str]:
    return text.split("\n\n")[1].splitlines()


GOLDEN = """\
The paper's experiment: noise of eta 0.25 on each block's output.
Later blocks amplify the relative errors of 1 of 2 blocks and absorb those of 1; 0 are uncertain at
95%. The errors themselves grow for 2 and shrink for 0; r also depends on the growth of the stream.

block  outliers %              r            g              p  weights to prune  base, %  sparsity, %
    0       1.000    4.00 ± 0.40  2.50 ± 0.10  0.250 ± 0.010               785    70.00        65.42
    1       1.500  0.577 ± 0.012  2.50 ± 0.10  0.250 ± 0.010               764    60.00        63.66
    2       2.000          1.000  2.50 ± 0.10  0.250 ± 0.010               611    50.00        50.92

r:          the relative error at the end, divided by that after this block. Above 1, later blocks
            amplify the relative error; below 1, they absorb it.
g:          the growth of the error's own length, to which r is relative.
p:          what r would be if the later blocks passed the error on unchanged.

model       tiny, family llama, 3 blocks, 3,600 prunable weights
tokens      3 x 48, a text, 3 samples of 48 tokens, sha256 0123456789ab
allocation  sparsity 0.6, base owl, m 5, lam 0.1, correction absorption, strength 0.05

to prune: 2,160 of 3,600 (60.0000%), asked for 60.0000%
"""


def test_the_table_word_for_word() -> None:
    found = scores(absorption([4.0, 0.5773, 1.0], stderr=np.array([0.4, 0.0123, 0.0])))
    made = allocated(found, base="owl", options={"lam": 0.1}, sparsity=0.6)
    assert scores_table(found, made) == GOLDEN


def test_a_sweep_has_a_column_per_eta() -> None:
    found = scores(absorption([4.0, 2.0, 1.0], 1e-4), absorption([0.2, 0.1, 1.0], 1.0))
    text = shown(found)
    assert "\nAt eta 0.0001, as in the allocation: later blocks amplify" in text
    heading, first, *_ = rows(text)
    assert (
        " ".join(heading.split())
        == f"block r at 0.0001 r at 1 weights to prune sparsity, % {SCALE}"
    )
    assert first.split()[1:7] == ["4.000", "±", "0.012", "0.200", "±", "0.012"]


@pytest.mark.parametrize("width", [40, 60, 80])
def test_every_line_fits_the_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    sweep = [absorption([4.0, 0.5, 1.0], eta) for eta in (1e-3, 0.1)]
    for found in (scores(*sweep), scores(sweep[0])):
        text = shown(found, base="owl" if width > 40 else "uniform")
        assert max(map(len, text.splitlines())) <= width


def probed(
    *divergences: list[float], more: float = 1.0, plan: Probes | None = None
) -> Scores:
    """Scores of probes at 0.6, 0.7 and 0.8, of two blocks; of the second, more in one sample."""
    at = PrunedAt("uniform", {}, 0.7, np.full((2, 2), 420))
    measured = absorption([2.0, 1.0], None, divergence=np.array([0.2, 0.2]))
    probes = ProbedErrors(
        np.array([[0.6] * 2, [0.7] * 2, [0.8] * 2]),
        np.array([divergences] * 2) * [[[1.0, 1.0]], [[1.0, more]]],
    )
    return scores(measured, plan=plan or Probes(), pruned_at=at, probes=probes)


THREE = scores(absorption([2.0, 1.0, 1.5]))
PEER = {"base": "owl", "options": {"lam": 0.5}, "sparsity": 0.8, "compat": "peer"}
DIVERGENCE, UP = {"correct": "divergence"}, ([0.1, 0.1], [0.2, 0.2], [0.4, 0.4])
# Scores, a request, what the table says (its lines joined), and what it does not say.
SAYS: list[tuple[Scores, dict[str, Any], tuple[str, ...], tuple[str, ...]]] = [
    (
        scores(absorption([2.0, 0.5, 1.5, 1.0], stderr=np.array([0.1, 0.1, 0.3, 0.0]))),
        {},
        (
            "Later blocks amplify the relative errors of 1 of 3 blocks and absorb those of 1; 1 are "
            "uncertain at 95%.",
        ),
        (),
    ),
    (
        scores(tokens=replace(TOKENS, samples=1), measured_samples=1),
        {},
        ("One sample: these numbers have no error.",),
        (),
    ),
    (scores(), {}, ("strength 0.05",), ("sinks", "max_correction", "lo ", "hi ")),
    (
        scores(),
        {"sparsity": 0.200123},
        ("to prune: 480 of 2,400 (20.0000%), asked for 20.0123%", "sparsity 0.200123"),
        (),
    ),
    (
        THREE,
        PEER,
        (
            "130.00",
            "to prune: 2,520 of 3,600 (70.0000%), asked for 80.0000%",
            "compat peer restores no budget",
        ),
        (),
    ),
    (THREE, {"base": "owl"}, (), ("restores",)),
    (
        replace(THREE, plan=Noise(sink="exclude")),
        {},
        ("3 tokens of all blocks excluded as sinks",),
        (),
    ),
    (
        probed([0.1, 0.1], [0.2, 0.2], [0.4, 0.8]),
        DIVERGENCE,
        (
            "growth kappa 8.66: 10 points of sparsity more have 2.38 times the divergence",
        ),
        (),
    ),
    (
        probed([0.1, 0.4], [0.2, 0.2], [0.4, 0.8]),
        DIVERGENCE,
        ("1 of 2 probed blocks fit",),
        (),
    ),
    *(
        (
            probed(*UP, more=more, plan=Probes(precision=0.02)),
            DIVERGENCE,
            (f"measured on 2 of 3 samples. The goal, 2 points, {end}.",),
            (),
        )
        for more, end in ((1.0, "is reached"), (2.0, "needs more --samples"))
    ),
    (
        probed([0.4, 0.4], [0.2, 0.2], [0.2, 0.2]),
        DIVERGENCE,
        ("no divergence grows as exp(kappa s): strength 0.05, at most 0.1",),
        (),
    ),
    (scores(), {"compat": "peer"}, ("compat peer", "correction none"), ()),
    (scores(), {"base": "atp", "options": {"beta": -0.01}}, ("atp, beta -0.01",), ()),
    (
        scores(linears=(LINEARS, {"q_proj": (10, 20), "down_proj": (20, 10)})),
        {},
        ("block weights r", "0 1,200 2.000", "1 400 1.000"),
        (),
    ),
]


@pytest.mark.parametrize(("found", "request_", "says", "omits"), SAYS)
def test_what_the_table_says_and_omits(
    found: Scores,
    request_: dict[str, Any],
    says: tuple[str, ...],
    omits: tuple[str, ...],
) -> None:
    text = " ".join(shown(found, **request_).split())
    assert [words for words in says if words not in text] == []
    assert [words for words in omits if words in text] == []


def straight(lines: list[str]) -> None:
    """Every line as long as the headings, and a gap of two wherever a column ends."""
    assert len({len(line) for line in lines}) == 1
    for heading in re.finditer(r"\S+(?: \S+)*", lines[0]):
        assert all(line[heading.end() :][:2].strip() == "" for line in lines), heading[
            0
        ]
    assert all(not line.endswith(" ") for line in lines)


@pytest.mark.parametrize("blocks", [1, 32, 126])
def test_columns_are_straight_in_models_of_any_size(blocks: int) -> None:
    r, errors = np.geomspace(0.01, 1234.5, blocks), np.full(blocks, np.nan)
    found = scores(absorption(r, stderr=errors), linears=(SEVEN_B,) * len(r))
    lines = rows(shown(found, base="owl"))
    straight(lines)
    assert len(lines) == 1 + blocks
    assert len(lines[0]) <= WIDEST
    for i, line in enumerate(lines[1:]):
        cells = line.split()
        assert cells[0] == str(i)
        assert float(cells[2]) == pytest.approx(r[i], rel=1e-3)
        (count,) = re.findall(r"\d+(?:,\d{3})+(?= )", line)
        assert int(count.replace(",", "")) <= 202_375_168


def test_what_is_unknown_is_a_dash_and_explained() -> None:
    nan = float("nan")
    text = shown(scores(absorption([nan, 1.0], stderr=np.array([nan, 0.1]))))
    lines = rows(text)
    straight(lines)
    assert lines[1].split()[1] == "-"
    assert "r is - where no token had a drift" in text
    found = absorption([2.0, 1.0], stderr=np.array([nan, nan]))
    text = shown(scores(found, tokens=replace(TOKENS, samples=1)))
    assert "no token had a drift" not in text


def test_alphas_are_means_of_a_block_and_linears_are_announced() -> None:
    alpha = np.array([[2.0, 4.0], [3.0, 6.0]])
    options = {"fit": "peak", "xmin": "shipped"}
    found = scores(signals={"alphapruning": Signal(options, {"alpha": alpha})})
    text = shown(found, base="alphapruning")
    assert [line.split()[1] for line in rows(text)] == ["alpha", "3.000", "4.500"]
    assert "per linear" not in text
    fewer = {
        "alphapruning": Signal(
            options, {"alpha": np.array([[2.0, 3.0], [4.0, np.nan]])}
        )
    }
    uneven = scores(linears=(LINEARS, {"q_proj": (30, 20)}), signals=fewer)
    heads, *each = (
        re.sub(" ± ", "±", x).split() for x in rows(shown(uneven, base="alphapruning"))
    )
    assert [row[heads.index("alpha")] for row in each] == ["2.500", "4.000"]

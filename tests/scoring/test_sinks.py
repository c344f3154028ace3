"""A token that is much longer than the others decides what noise shows; both are measured."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import altered
from gates import model_of

from refimpl import Noise, Probes, Request, Scores, allocate, read_model, score
from refimpl.allocation.scores_json import document, read_scores
from refimpl.report.page import report
from refimpl.show.blocks import sinks, table
from refimpl.storage.files import write_json
from refimpl.tokens import Tokens

IDS = np.random.default_rng(0).integers(2, 264, (3, 24))
IDS[:, 5] = 1  # the long token
TOKENS = Tokens(IDS, "ids with a long one", "ids")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    def lengthen(arrays: dict[str, Any]) -> None:
        arrays["model.embed_tokens.weight"] = arrays["model.embed_tokens.weight"].copy()
        arrays["model.embed_tokens.weight"][1] *= 3000

    return read_model(altered(tmp_path_factory.mktemp("long"), "llama", lengthen))


@pytest.fixture(scope="module")
def both(model: Any) -> Scores:
    plan = Noise(eta=(0.1, 0.3), draws=2)
    return score(model, TOKENS, plan, dtype=np.float64, threads=2)


def test_without_noise_on_sinks_is_what_excluding_them_measures(model: Any, both: Scores) -> None:
    alone = Noise(eta=(0.1,), draws=2, sink="exclude")
    excluded = score(model, TOKENS, alone, dtype=np.float64)
    found, expected = both.without_sinks, excluded.sweep[0]
    assert found is not None
    np.testing.assert_allclose(found.coefficient, expected.coefficient, rtol=1e-9)
    np.testing.assert_allclose(found.stderr, expected.stderr, rtol=1e-6, atol=1e-12)
    assert (both.sinks == 0).all()  # none is excluded
    assert (np.abs(found.coefficient - both.sweep[0].coefficient)[:-1] > 1e-4).all()
    assert (found.share > 0.9).all()


def test_r_is_the_same_with_and_without_the_others_beside(both: Scores, model: Any) -> None:
    """The noise on all tokens travels as it did; memory and threads change neither."""
    state = IDS.shape[1] * model.config.hidden_size * 8
    again = score(model, TOKENS, both.plan, dtype=np.float64, threads=1, memory=(2 * 4 + 2) * state)
    for one, other in ((both, again), (again, both)):
        assert one.without_sinks is not None
        assert other.without_sinks is not None
        for name in ("coefficient", "stderr", "share"):
            a, b = getattr(one.without_sinks, name), getattr(other.without_sinks, name)
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(one.sweep[0].coefficient, other.sweep[0].coefficient)


def test_a_certain_difference_is_kept_shown_and_drawn(both: Scores, tmp_path: Path) -> None:
    quiet = both.without_sinks
    assert quiet is not None
    assert sinks(both) == []  # a random model: less than its error
    quiet = replace(quiet, coefficient=np.array([0.4, 0.5, 0.6, 1.0]), stderr=np.full(4, 1e-3))
    both = replace(both, without_sinks=quiet)
    made = tuple(allocate(both, which=i) for i in (0, 1))
    text = " ".join(table(both, made).split())
    assert "tokens of more than 20 times the median norm hold 100.0% of the squared norm" in text
    assert "Without noise on such tokens, later blocks amplify none and absorb 3." in text
    assert "no noise on sinks" in text
    write_json(tmp_path / "s.json", document(both, made))
    read = read_scores(tmp_path / "s.json")
    assert sinks(read) == sinks(both) != []
    page = report([tmp_path / "s.json"])
    assert page.count("without noise on sinks") >= 2  # a mark, and a column
    assert "Without noise on such tokens, later blocks" in page


@pytest.mark.parametrize("plan", [Noise(sink="exclude"), Probes()])
def test_only_noise_on_sinks_has_both(plan: Any, model: Any) -> None:
    scores = score(model, TOKENS, plan, Request(correct=None))
    assert scores.without_sinks is None
    assert sinks(scores) == []
    assert score(model_of("llama"), TOKENS, Noise()).without_sinks is None

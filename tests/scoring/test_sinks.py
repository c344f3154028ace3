"""A token that is much longer than the others decides what noise shows: it is named."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from checkpoints import altered
from gates import model_of

from refimpl import Noise, Probes, Request, allocate, read_model, score
from refimpl.loading.samples import Tokens
from refimpl.show.blocks import scores_table, sinks

IDS = np.random.default_rng(0).integers(2, 264, (3, 24))
IDS[:, 5] = 1  # the long token
TOKENS = Tokens(IDS, "ids with a long one", "ids")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    def lengthen(arrays: dict[str, Any]) -> None:
        arrays["model.embed_tokens.weight"] = arrays["model.embed_tokens.weight"].copy()
        arrays["model.embed_tokens.weight"][1] *= 3000

    return read_model(altered(tmp_path_factory.mktemp("long"), "llama", lengthen))


def test_noise_on_sinks_is_named_with_the_option_that_spares_them(model: Any) -> None:
    scores = score(model, TOKENS, Noise(eta=0.1), dtype=np.float64, threads=2)
    assert (scores.sinks == 0).all()  # none is excluded
    assert (scores.sink_share > 0.9).all()
    text = " ".join(scores_table(scores, allocate(scores)).split())
    assert (
        "tokens of more than 20 times the median norm hold 100.0% of the squared norm"
        in text
    )
    assert "--sink exclude" in text
    excluded = score(model, TOKENS, Noise(eta=0.1, sink="exclude"), dtype=np.float64)
    assert (excluded.sinks == 3).all()
    others = (
        np.abs(excluded.sweep[0].coefficient - scores.sweep[0].coefficient)[:-1] > 1e-4
    ).all()
    assert others
    assert sinks(excluded) == []
    assert sinks(replace(scores, sink_share=np.zeros(4))) == []


def test_only_noise_on_sinks_is_named(model: Any) -> None:
    assert sinks(score(model, TOKENS, Probes(), Request(correct=None))) == []
    assert sinks(score(model_of("llama"), TOKENS, Noise())) == []

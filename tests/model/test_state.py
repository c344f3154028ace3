"""What a state has beside the residual stream: of whom it is, and that nobody perturbs it."""

from pathlib import Path

import numpy as np
import pytest
from candidates import stepwise_steps, written
from gates import GATES, model_of

from refimpl import Noise, Probes, Request, score
from refimpl.loading.samples import Tokens
from refimpl.model.stream import Stream, state_bytes
from refimpl.oracle.case import computed_case, make_case, read_case
from refimpl.oracle.check import check
from refimpl.oracle.recipe import Recipe
from refimpl.scoring.measurements import Address
from refimpl.scoring.state_group import with_noise

CASE = "gemma4_small"  # whose blocks 1 and 2 compute the keys and values of 4 and 3
IDS = np.random.default_rng(4).integers(0, 61, (2, 9))


def states(upto: int) -> Stream:
    """The sequences before a block, in float64."""
    model = model_of(CASE)
    passing = Stream(model, dict(enumerate(IDS)), np.float64)
    for i in range(upto):
        weights = model.block(i, np.float64)
        passing.advance(
            {n: passing.through(h, weights) for n, h in passing.states.items()}
        )
    return passing


def test_each_block_adds_what_later_ones_read() -> None:
    config = model_of(CASE).config
    found = [states(i).states[0] for i in range(6)]
    assert [[*state.shared_kv] for state in found] == [[], [], [1], *(3 * [[1, 2]])]
    assert [x.shape for x in found[5].shared_kv[1]] == 2 * [(1, 2, 9, 16)]
    assert [x.shape for x in found[5].shared_kv[2]] == 2 * [(1, 2, 9, 10)]
    assert config.state_size == config.hidden_size + 2 * 2 * 16 + 2 * 2 * 10
    assert state_bytes(config, 9, np.float32) == 4 * 9 * config.state_size
    assert model_of("llama").config.state_size == model_of("llama").config.hidden_size


@pytest.mark.parametrize("index", range(5))
def test_noise_changes_the_residual_stream_alone(index: int) -> None:
    """Keys and values of a block or of those before it, and ids, stay clean."""
    clean = states(index + 1).states[1]
    changed = with_noise(clean, Address(1, 0, 0, index), Noise())
    assert changed.with_stream(clean.stream).equals(clean)
    assert (changed.stream != clean.stream).all()


def test_the_oracle_and_the_experiment_carry_the_same() -> None:
    """The oracle puts states together from trace points, and the experiment lets them travel."""
    model, tokens = model_of(CASE), Tokens(IDS, "random ids", "ids")
    recipe = Recipe(bases=("owl",), draws=1)
    steps = computed_case(model, tokens, recipe).expected
    plans = {"perturbed": recipe.perturbation, "pruned": Probes(delta=None)}
    for name, plan in plans.items():
        scores = score(
            model, tokens, plan, Request("owl", {}, 0.5, correct=None), dtype="float64"
        )
        for i in range(model.config.num_blocks):
            right, measured = steps[f"{name}.{i}.drift"], scores.sweep[0].drift[i, i:]
            np.testing.assert_allclose(measured, right, rtol=GATES["float64"])


def test_a_check_finds_what_is_of_another_block(tmp_path: Path) -> None:
    recipe, tokens = Recipe(bases=("owl",), draws=1), Tokens(IDS, "random ids", "ids")
    make_case(model_of(CASE), tokens, recipe, tmp_path / CASE)
    case = read_case(tmp_path / CASE)
    actual = written(case, stepwise_steps(case, "float32"), "float32")
    assert check(case, actual).first is None
    for point in ("k", "v"):  # blocks 0 and 3 have heads of the same size
        wrong = actual | {f"blocks.3.{point}": actual[f"blocks.0.{point}"]}
        found = check(case, wrong, ("blocks.3.*",)).first
        assert found is not None
        assert found.step == f"blocks.3.{point}"

"""What a state carries behind the residual stream: of whom it is, and that nobody perturbs it."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from candidates import written
from gates import GATES, model_of

from refimpl import Noise, Probes, Request, score
from refimpl.model.mixers.carried import apart, whole_state
from refimpl.model.stream import Stream, state_bytes
from refimpl.oracle.case import computed_case, make_case, read_case, stepwise_steps
from refimpl.oracle.check import check
from refimpl.oracle.recipe import Recipe
from refimpl.oracle.rounding import Bfloat16, Float16
from refimpl.scoring.measurements import Address
from refimpl.scoring.state_group import with_noise
from refimpl.tokens import Tokens

CASES = ("gemma4_small",)  # blocks 1 and 2 compute the keys and values of 4 and 3
IDS = np.random.default_rng(4).integers(0, 61, (2, 9))


def states(case: str, upto: int) -> Stream:
    """The sequences before a block, in float64."""
    model = model_of(case)
    passing = Stream(model, dict(enumerate(IDS)), np.float64)
    for i in range(upto):
        weights = model.block(i, np.float64)
        passing.advance({n: passing.through(h, weights) for n, h in passing.states.items()})
    return passing


@pytest.mark.parametrize(
    ("case", "first", "carried"),
    [
        ("gemma4_small", {-1: 3}, {1: 2 * 2 * 16, 2: 2 * 2 * 10}),
    ],
)
def test_each_block_adds_what_later_ones_read(
    case: str, first: dict[int, int], carried: dict[int, int]
) -> None:
    config, least = model_of(case).config, sum(first.values())
    assert [*config.carried.items()] == [*first.items(), *carried.items()]
    sizes = [states(case, i).states[0].shape[-1] - config.hidden_size - least for i in range(6)]
    assert sizes == [0, 0, carried[1], *(3 * [carried[1] + carried[2]])]
    assert states(case, 5).states[0].shape[-1] == config.state_size
    assert state_bytes(config, 9, np.float32) == 4 * 9 * config.state_size
    assert model_of("llama").config.state_size == model_of("llama").config.hidden_size


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_ids_survive_every_dtype(case: str, dtype: type) -> None:
    config, ids = model_of(case).config, np.array([[0, 255, 256, 262_143, 2**24 - 1]])
    place = next(iter(states(case, 0)._places[9].values()))
    h = np.zeros((1, 5, config.hidden_size))
    state = whole_state(h.astype(dtype), ids, config)
    np.testing.assert_array_equal(apart(state, place, config)[1].token_ids, ids)
    for rounded in (Float16, Bfloat16):
        held = whole_state(rounded.of(h), ids, config)
        np.testing.assert_array_equal(apart(held, place, config)[1].token_ids, ids)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("index", range(5))
def test_noise_changes_the_residual_stream_alone(case: str, index: int) -> None:
    """Keys and values of a block or of those before it, and ids, stay clean."""
    width = model_of(case).config.hidden_size
    clean = states(case, index + 1).states[1]
    changed = with_noise(clean, Address(1, 0, 0, index), Noise(), width)
    np.testing.assert_array_equal(changed[..., width:], clean[..., width:])
    assert (changed[..., :width] != clean[..., :width]).all()


@pytest.mark.parametrize("case", CASES)
def test_the_oracle_and_the_experiment_carry_the_same(case: str) -> None:
    """The oracle puts states together from trace points, and the experiment lets them travel."""
    model, tokens = model_of(case), Tokens(IDS, "random ids", "ids")
    recipe = Recipe(bases=("owl",), draws=1)
    steps = computed_case(model, tokens, recipe).expected
    plans = {"perturbed": recipe.perturbation, "pruned": Probes(delta=None)}
    for name, plan in plans.items():
        scores = score(model, tokens, plan, Request("owl", {}, 0.5), dtype="float64")
        for i in range(model.config.num_blocks):
            right, measured = steps[f"{name}.{i}.drift"], scores.sweep[0].drift[i, i:]
            np.testing.assert_allclose(measured, right, rtol=GATES["float64"])


@pytest.mark.parametrize("name", CASES)
def test_a_check_finds_what_is_carried_of_another_block(name: str, tmp_path: Path) -> None:
    recipe, tokens = Recipe(bases=("owl",), draws=1), Tokens(IDS, "random ids", "ids")
    make_case(model_of(name), tokens, recipe, tmp_path / name)
    case = read_case(tmp_path / name)
    actual = written(case, stepwise_steps(case, "float32"), "float32")
    assert check(case, actual, stepwise=True).first is None
    for point in ("k", "v"):  # blocks 0 and 3 have heads of the same size
        wrong = actual | {f"blocks.3.{point}": actual[f"blocks.0.{point}"]}
        found = check(case, wrong, ("blocks.3.*",), stepwise=True).first
        assert found is not None
        assert found.step == f"blocks.3.{point}"

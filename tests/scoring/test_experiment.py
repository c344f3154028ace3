"""The experiment on whole models, against one full forward pass per perturbed state.

The oracle knows nothing of groups, threads and running states: for every sequence, draw, eta and
block it runs the whole model again, with the output of that block replaced on the way.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from math import sqrt
from pathlib import Path
from statistics import stdev
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gates import bits, model_as, model_of

from refimpl import Model, Noise, Probes, Request, Scores, allocate, score
from refimpl.allocation.scores import Absorption
from refimpl.allocation.scores_json import scores_document
from refimpl.loading.samples import Tokens
from refimpl.model import kernels
from refimpl.model.forward import block, embed, head, places
from refimpl.model.mixers.parts import Weights
from refimpl.pruners.counts import apportion, split_count
from refimpl.pruners.wanda import wanda_keep, wanda_score
from refimpl.running.outputs import json_text, write_text
from refimpl.running.settings import Settings
from refimpl.scoring import experiment as experiment_module
from refimpl.scoring import state_group
from refimpl.scoring.experiment import grouped, stacks
from refimpl.scoring.measurements import addresses

Floats = npt.NDArray[np.float64]

CASES = ["llama", "gemma3", "gpt_neox", "gpt2"]
SEQUENCES, LENGTH, SEED = 2, 9, 5
ALWAYS_SINK, EARLY_SINK = 3, 4  # token ids
TOLERANCE = 1e-12  # relative, of float64 against float64; measured below 1e-14
INPUTS = {
    "attn_norm": ("q_proj", "k_proj", "v_proj"),
    "attn_heads": ("o_proj",),
    "mlp_norm": ("gate_proj", "up_proj"),
    "mlp_hidden": ("down_proj",),
}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces so small that these sequences have several, with edges inside windows.

    And stacks so small that the four blocks of an experiment are cut into two.
    """
    monkeypatch.setattr(experiment_module, "_ROWS", 2 * LENGTH)
    monkeypatch.setattr(kernels, "QUERIES", 4)
    monkeypatch.setattr(kernels, "ELEMENTS", 50)
    monkeypatch.setattr(state_group, "HEAD_BYTES", 3000)


class WithSinks(Model):
    """A model with a token of huge norm everywhere, and one that is huge in the first block."""

    def embedding(self) -> dict[str, npt.NDArray[Any]]:
        found = super().embedding()
        table = np.array(found["embed.weight"])
        for token, size in ((ALWAYS_SINK, 5000), (EARLY_SINK, 450)):
            unit = table[token] / np.linalg.norm(table[token])
            table[token] = unit * size / self.config.embed_scale
        return found | {"embed.weight": table}


@cache
def subject(case: str) -> Model:
    return model_as(case, WithSinks)


@cache
def tokens_of(case: str, count: int = SEQUENCES) -> Tokens:
    ids = np.random.default_rng(11).integers(
        5, model_of(case).config.vocab_size, (8, LENGTH)
    )
    ids[0, 0], ids[1, 4], ids[1, 7] = ALWAYS_SINK, EARLY_SINK, ALWAYS_SINK
    return Tokens(ids[:count], "by hand", "ids")


# The oracle


def passed(
    model: Model,
    row: npt.NDArray[np.int64],
    at: int = -1,
    change: Callable[[Floats], Floats] = lambda h: h,
    weights_at: Weights | None = None,
) -> tuple[list[Floats], Floats]:
    """All residual streams [S, D] and logits of one pass; the output of block `at` is changed."""
    config, positions = model.config, np.arange(len(row))
    place = places(positions, config, np.float64)
    x = embed(row[None], positions, model.embedding(), config, np.float64)
    found = []
    for i, kind in enumerate(config.blocks):

        def point(name: str, value: Floats, here: bool = i == at) -> Floats:
            return change(value[0])[None] if here and name == "resid_post" else value

        weights = weights_at if i == at and weights_at else model.block(i, np.float64)
        x = block(x, weights, replace(place[kind], observe=point), config)
        found.append(x.stream[0])
    return found, head(x, model.head(np.float64), config)[0]


def kept_of(h: Floats, sink: str) -> list[int]:
    """Numbers of the tokens that take part."""
    norms = [sqrt(row @ row) for row in h]
    ordered = sorted(norms)
    median = (ordered[(len(h) - 1) // 2] + ordered[len(h) // 2]) / 2
    return [
        t for t, norm in enumerate(norms) if sink == "include" or norm <= 20 * median
    ]


def perturbed(h: Floats, z: Floats, eta: float, kept: list[int]) -> Floats:
    """The state h + e, token by token."""
    result = h.copy()
    for t in kept:
        result[t] = h[t] + eta * sqrt((h[t] @ h[t]) / (z[t] @ z[t])) * z[t]
    return result


def measured(
    path: list[Floats], clean: list[Floats], start: int, kept: list[int]
) -> tuple[Floats, Floats, Floats]:
    """Drift, alignment, and lengths of error and state from `start` on, [blocks, tokens]."""
    drift, alignment, lengths = [], [], []
    for a, b in zip(path[start:], clean[start:], strict=True):
        pairs = [(a[t], b[t]) for t in kept]
        drift.append([sqrt(((x - y) ** 2).sum() / (y @ y)) for x, y in pairs])
        alignment.append([x @ y / sqrt((x @ x) * (y @ y)) for x, y in pairs])
        lengths.append([(sqrt(((x - y) ** 2).sum()), sqrt(y @ y)) for x, y in pairs])
    return np.array(drift), np.array(alignment), np.moveaxis(np.array(lengths), 2, 0)


def divergence_of(logits: Floats, clean: Floats, kept: list[int]) -> float:
    """Mean KL over the tokens that take part."""
    log_p, log_q = (
        x - x.max(axis=1, keepdims=True) for x in (clean[kept], logits[kept])
    )
    log_p, log_q = (
        x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (log_p, log_q)
    )
    return float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean())


@dataclass
class Expected:
    """What the oracle found for one eta, each [sequences, draws, blocks, ...]."""

    drift: Floats
    alignment: Floats
    steps: Floats
    ratios: Floats
    growth: Floats
    passed_on: Floats
    divergence: Floats

    @classmethod
    def empty(cls, draws: int, blocks: int) -> "Expected":
        shape = SEQUENCES, draws, blocks
        return cls(*(np.full((*shape, *x), np.nan) for x in [(blocks,)] * 3 + [()] * 4))

    def note(
        self,
        where: tuple[int, int, int],
        path: tuple[list[Floats], Floats],
        clean: tuple[list[Floats], Floats],
        kept: list[int],
    ) -> None:
        drift, alignment, (error, length) = measured(path[0], clean[0], where[2], kept)
        self.drift[where][where[2] :] = drift.mean(axis=1)
        self.alignment[where][where[2] :] = alignment.mean(axis=1)
        if drift[0].all():
            self.ratios[where] = (drift[-1] / drift[0]).mean()
            self.steps[where][where[2] : -1] = (drift[1:] / drift[:-1]).mean(axis=1)
            self.growth[where] = (error[-1] / error[0]).mean()
            self.passed_on[where] = (length[0] / length[-1]).mean()
        self.divergence[where] = divergence_of(path[1], clean[1], kept)

    def check(self, found: Absorption) -> None:
        """Means over draws and then over sequences."""
        later = np.triu_indices(self.ratios.shape[2])
        for mine, theirs in (
            (self.drift, found.drift),
            (self.alignment, found.alignment),
        ):
            assert np.isnan(theirs[np.tril_indices(len(theirs), -1)]).all()
            np.testing.assert_allclose(
                theirs[later], mine.mean(axis=1).mean(axis=0)[later], rtol=TOLERANCE
            )
        np.testing.assert_allclose(
            found.steps, self.steps.mean(axis=1).mean(axis=0), TOLERANCE
        )
        for each, mean, error in (
            (self.ratios, found.coefficient, found.stderr),
            (self.growth, found.error_growth, found.error_growth_stderr),
            (self.passed_on, found.passed_on, found.passed_on_stderr),
        ):
            sequences = each.mean(axis=1)
            np.testing.assert_allclose(mean, sequences.mean(axis=0), rtol=TOLERANCE)
            errors = [
                stdev(column) / sqrt(SEQUENCES) for column in sequences.T.tolist()
            ]
            room = TOLERANCE * float(sequences.max())
            np.testing.assert_allclose(error, errors, rtol=0, atol=room)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("sink", ["include", "exclude"])
def test_gaussian_experiment(case: str, sink: Any) -> None:
    model, etas, draws = subject(case), (0.03, 1.0), 2
    blocks = model.config.num_blocks
    expected = [Expected.empty(draws, blocks) for _ in etas]
    sinks = np.zeros(blocks, np.int64)
    for s, row in enumerate(tokens_of(case).ids):
        clean = passed(model, row)
        for d, at in product(range(draws), range(blocks)):
            key = np.random.SeedSequence(SEED, spawn_key=(s, at, d))
            z = np.random.Generator(np.random.Philox(key)).standard_normal(
                clean[0][0].shape
            )
            kept = kept_of(clean[0][at], sink)
            sinks[at] += LENGTH - len(kept) if d == 0 else 0
            for e, eta in enumerate(etas):
                change = perturbed(clean[0][at], z, eta, kept)
                path = passed(model, row, at, lambda _, change=change: change)
                expected[e].note((s, d, at), path, clean, kept)
    if (
        sink == "exclude"
    ):  # the mask belongs to the perturbed block, and differs between blocks
        assert sinks[0] == 3
        assert sinks[-1] == 2
    plan = Noise(eta=etas, draws=draws, seed=SEED, sink=sink)
    found = score(model, tokens_of(case), plan, dtype=np.float64)
    np.testing.assert_array_equal(found.sinks, sinks)
    assert [result.eta for result in found.sweep] == list(etas)
    for e, result in enumerate(found.sweep):
        expected[e].check(result)
        assert not result.left_out.any()
        assert result.divergence is None
        assert result.coefficient[-1] == 1
        assert result.stderr[-1] == 0


# The oracle of the pruning perturbation


def pruned_blocks(
    model: Model, ids: Any, sparsity: list[float]
) -> list[dict[str, Floats]]:
    """Every block's weights after Wanda, with statistics of all sequences."""
    config, positions = model.config, np.arange(ids.shape[1])
    place = places(positions, config, np.float64)
    x, result = embed(ids, positions, model.embedding(), config, np.float64), []
    sizes = {name: out * width for name, (out, width) in config.linears[0].items()}
    total, whole = sum(sizes.values()), float(np.mean(sparsity))
    quotas = [s * total for s in sparsity]
    counts = apportion(
        quotas, [total] * len(sparsity), round(whole * total * len(sparsity))
    )
    for i, kind in enumerate(config.blocks):
        moments: dict[str, Floats] = {}

        def point(
            name: str, value: Floats, moments: dict[str, Floats] = moments
        ) -> Floats:
            for linear in INPUTS.get(name, ()):
                moments[linear] = (value**2).sum(axis=(0, 1)) / len(ids)
            return value

        weights = model.block(i, np.float64)
        x = block(x, weights, replace(place[kind], observe=point), config)
        thin = dict(weights)
        parts = split_count(int(counts[i]), [*sizes.values()])
        for name, count in zip(sizes, parts.tolist(), strict=True):
            weight = weights[f"{name}.weight"]
            keep = wanda_keep(wanda_score(weight, moments[name]), count)
            thin[f"{name}.weight"] = np.where(keep, weight, 0)
        result.append(thin)
    return result


@cache
def uneven(blocks: int) -> list[float]:
    """Sparsities around 0.6 that every block is given on its own."""
    steps = np.linspace(-0.211, 0.211, blocks)
    return (0.6 + steps).tolist()


@pytest.fixture
def custom(tmp_path: Path) -> Callable[[int], Path]:
    def write(blocks: int) -> Path:
        path = tmp_path / "base.json"
        path.write_text(str(uneven(blocks)))
        return path

    return write


@pytest.mark.parametrize("case", CASES)
def test_pruning_experiment(case: str, custom: Callable[[int], Path]) -> None:
    model, every = subject(case), list(range(LENGTH))
    blocks, ids = model.config.num_blocks, tokens_of(case).ids
    expected, pruned = (
        Expected.empty(1, blocks),
        pruned_blocks(model, ids, uneven(blocks)),
    )
    for s, row in enumerate(ids):
        clean = passed(model, row)
        for at in range(blocks):
            path = passed(model, row, at, weights_at=pruned[at])
            expected.note((s, 0, at), path, clean, every)
    wanted = Request(str(custom(blocks)), sparsity=0.6, correct="divergence")
    found = score(model, tokens_of(case), Probes(), wanted, dtype=np.float64)
    (result,) = found.sweep
    assert result.eta is None
    expected.check(result)
    assert result.divergence is not None
    mine = expected.divergence[:, 0].mean(axis=0)
    np.testing.assert_allclose(result.divergence, mine, rtol=TOLERANCE)
    assert mine.min() > 1e-4  # something was measured
    zeros = [
        [
            int((weights[f"{name}.weight"] == 0).sum())
            for name in model.config.linears[0]
        ]
        for weights in pruned
    ]
    assert found.pruned_at is not None
    np.testing.assert_array_equal(found.pruned_at.linear_pruned, zeros)
    assert allocate(found, wanted).total_pruned == round(
        0.6 * int(model.config.block_sizes.sum())
    )


# Threads, groups and order


def state_bytes(model: Model, dtype: npt.DTypeLike) -> int:
    return LENGTH * model.config.hidden_size * np.dtype(dtype).itemsize


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("kind", "dtype"), [("gaussian", np.float32), ("pruning", np.float64)]
)
def test_threads_and_groups_leave_every_bit_in_place(
    case: str, dtype: type, kind: str
) -> None:
    model = subject(case)
    if kind == "gaussian":
        plan = Noise(eta=(0.01, 1.0), sink="exclude")
        request = Request("owl", correct=None)
    else:
        plan, request = Probes(), Request("owl", correct="divergence")
    one = state_bytes(model, dtype)
    found = score(model, tokens_of(case), plan, request, dtype=dtype, threads=1)
    for threads, memory in ((2, 4 * one), (4, 9 * one), (1, 6 * one), (2, None)):
        options: Any = {"dtype": dtype, "threads": threads, "memory": memory}
        assert bits(found) == bits(
            score(model, tokens_of(case), plan, request, **options)
        )


@pytest.mark.parametrize("case", CASES)
def test_float32_agrees_with_float64(case: str) -> None:
    model = model_of(case)
    for plan, request, gate in (
        # Measured at most 3e-6, 7e-8 and 9e-7: noise is rounded to the size of the state.
        (Noise(eta=(0.01,)), Request(correct=None), 2e-5),
        (Noise(eta=(1.0,)), Request(correct=None), 1e-6),
        (Probes(), Request(correct="divergence"), 1e-5),
    ):
        exact, rounded = (
            score(model, tokens_of(case), plan, request, dtype=dtype)
            for dtype in (np.float64, np.float32)
        )
        assert rounded.run.dtype == "float32"
        for name in ("drift", "alignment", "coefficient", "divergence"):
            mine, theirs = (getattr(found.sweep[0], name) for found in (rounded, exact))
            if theirs is not None:
                np.testing.assert_allclose(
                    mine, theirs, rtol=gate, atol=0, err_msg=name
                )


# What must hold


def assert_nothing_moved(found: Scores, tmp_path: Path, correct: Any) -> None:
    """No drift anywhere, coefficients unknown, a correction of nothing, and no NaN in JSON."""
    (result,) = found.sweep
    later = np.triu_indices(found.num_blocks)
    assert not result.drift[later].any()
    np.testing.assert_allclose(result.alignment[later], 1, rtol=1e-15)
    assert np.isnan(result.coefficient).all()
    assert np.isnan(result.stderr).all()
    assert (result.left_out == found.tokens.samples * found.tokens.seq_len).all()
    sparsity = found.pruned_at.sparsity if found.pruned_at else 0.7
    allocation = allocate(found, sparsity=sparsity, correct=correct)
    np.testing.assert_array_equal(
        allocation.corrected_sparsity, allocation.base_sparsity
    )
    assert not allocation.clipped.any()
    content = scores_document(found, (allocation,))
    write_text(tmp_path / "scores.json", json_text(content))  # refuses NaN
    result = content["scores"]["sweep"][0]
    assert result["coefficient"] == result["stderr"] == [None] * found.num_blocks
    assert not any(x for row in result["drift"] for x in row)


def test_noise_below_rounding_is_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refimpl.scoring.score.require_resolved", lambda *_: None)
    found = score(model_of("llama"), tokens_of("llama"), Noise(eta=(1e-30,)))
    assert_nothing_moved(found, tmp_path, "absorption")


@pytest.mark.parametrize("correct", ["absorption", "divergence"])
def test_pruning_nothing_changes_nothing(tmp_path: Path, correct: Any) -> None:
    request = Request(sparsity=0.0, correct="divergence")
    found = score(model_of("gpt2"), tokens_of("gpt2"), Probes(), request)
    assert found.sweep[0].divergence is not None
    assert not found.sweep[0].divergence.any()
    assert_nothing_moved(found, tmp_path, correct)


def test_pruning_everything_is_survived() -> None:
    request = Request(sparsity=1.0, correct="divergence")
    found = score(model_of("llama"), tokens_of("llama"), Probes(), request)
    assert np.isfinite(found.sweep[0].coefficient).all()
    assert (
        allocate(found, request).total_pruned == allocate(found, request).total_weights
    )


def test_one_token_is_enough() -> None:
    one = Tokens(np.array([[7], [9]]), "by hand", "ids")
    found = score(model_of("llama"), one)
    assert np.isfinite(found.sweep[0].coefficient).all()


def test_a_zero_state_has_no_drift_to_speak_of() -> None:
    class Silent(Model):
        """Token 0 is nothing, and no block adds to it: its state stays zero."""

        def embedding(self) -> dict[str, npt.NDArray[Any]]:
            found = super().embedding()
            table = np.array(found["embed.weight"])
            table[0] = 0
            return found | {"embed.weight": table}

        def block(self, *arguments: Any) -> dict[str, npt.NDArray[Any]]:
            found = super().block(*arguments)
            idle = ("o_proj.weight", "down_proj.weight")
            return found | {name: np.zeros_like(found[name]) for name in idle}

    model = model_as("llama", Silent)
    ids = np.array([[0, 5, 6, 0], [5, 6, 7, 0]])
    (result,) = score(
        model, Tokens(ids, "by hand", "ids"), Noise(), dtype=np.float64
    ).sweep
    assert result.left_out.tolist() == [3] * 4
    # No block changes anything, so the other tokens keep their drift.
    np.testing.assert_allclose(result.coefficient, 1, rtol=1e-12)
    np.testing.assert_allclose(result.drift[np.triu_indices(4)], 0.01, rtol=1e-12)


# Groups, loads and progress


class Counting(Model):
    def block(self, index: int, *rest: Any) -> dict[str, npt.NDArray[Any]]:
        loads.append(index)
        return super().block(index, *rest)


loads: list[int] = []


@pytest.mark.parametrize(("room", "parts"), [(4, 8), (8, 3), (10**6, 1)])
def test_a_block_is_loaded_once_per_group(room: int, parts: int) -> None:
    model = model_as("llama", Counting)
    plan = Noise(eta=(0.1, 0.2), sink="exclude")
    loads.clear()
    memory = room * state_bytes(model, np.float64)
    with Settings(np.float64, threads=2, memory=memory).open() as resources:
        experiment_module.experiment(model, tokens_of("llama").ids, plan, resources)
    cut = stacks(addresses(SEQUENCES, 4, plan), LENGTH)
    assert len(list(grouped(cut, room))) == parts
    assert loads == list(range(4)) * parts

"""The memory of outer products and of pruning by them: bounded by --memory."""

import tracemalloc
from math import inf
from pathlib import Path

import numpy as np
import pytest
from checkpoints import config_of, sparse
from conftest import FIXTURES
from program import ran, refused
from refusals import refusal_of

from refimpl import Probes, Request, read_model, score
from refimpl.loading.samples import random_tokens
from refimpl.model import stream
from refimpl.model.stream import inputs_of, sum_of_outer_products
from refimpl.pruners import pruner as pruner_module
from refimpl.pruners.counts import Pattern
from refimpl.pruners.decision import PrunerOptions
from refimpl.pruners.pruner import SharedFactor
from refimpl.pruning.block import matrix_bytes, portions
from refimpl.pruning.prune import prune

LLAMA = FIXTURES / "llama"
SPARSEGPT = (
    *("--nm", "2:4", "--pruner", "sparsegpt"),
    *("--samples", 3, "--seq-len", 12, "--tokens", "random"),
)
WIDE = 2240  # inputs of down_proj: its outer products take 38 MiB
CONFIG = config_of("llama", intermediate_size=WIDE, num_hidden_layers=1, head_dim=500)


@pytest.fixture
def in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices of more than 24 inputs count as large."""
    monkeypatch.setattr(pruner_module, "_WHOLE", 24)
    monkeypatch.setattr(pruner_module, "_PANEL", 9)
    monkeypatch.setattr(stream, "ONE_PRODUCT", 24)
    monkeypatch.setattr(stream, "ROWS_AT_ONCE", 10)


@pytest.mark.parametrize("whole", [WIDE, 512])
@pytest.mark.parametrize("together", [True, False])
def test_one_matrix_is_factored_in_its_place(
    whole: int, together: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sum of an input, its Hessian and its factor are one matrix; with little memory, alone."""
    monkeypatch.setattr(pruner_module, "_WHOLE", whole)
    monkeypatch.setattr(stream, "ONE_PRODUCT", whole)
    monkeypatch.setattr(stream, "ROWS_AT_ONCE", 128)
    model = read_model(sparse(tmp_path / "wide", CONFIG))
    tokens, pruner = random_tokens(264, 2, 8), PrunerOptions("sparsegpt")
    shapes = model.config.linears[0]
    sums = 8 * sum(width**2 for width in {width for _, width in shapes.values()})
    largest = 8 * WIDE**2
    beside = sum(
        13 * out * width for out, width in shapes.values()
    )  # weights, new ones, changes
    factoring = 16 * min(WIDE, whole) * WIDE
    tracemalloc.start()
    memory = None if together else sums
    prune(
        model, tmp_path / "out", Pattern(2, 4), pruner, tokens, threads=1, memory=memory
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (
        largest
        < peak
        < (sums if together else largest) + max(factoring, beside) + (4 << 20)
    )


@pytest.mark.parametrize("case", ["llama", "qwen3_moe"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.usefixtures("in_place")
def test_results_do_not_depend_on_memory(
    case: str, threads: int, tmp_path: Path
) -> None:
    """Too little is refused with what is enough; with that, one matrix at a time is kept."""
    words = ("prune", FIXTURES / case, *SPARSEGPT, "--threads", threads)
    said = refused(*words, "-o", tmp_path / "none", "--memory", "1K")
    assert "states and outer products" in said
    assert list(tmp_path.iterdir()) == []
    least = int(said.rsplit("--memory ", 1)[1].split()[0])
    refused(*words, "-o", tmp_path / "none", "--memory", least - 1)
    ran(*words, "-o", tmp_path / "least", "--memory", least)
    ran(*words, "-o", tmp_path / "most")
    one, other = (
        (tmp_path / x / "model.safetensors").read_bytes() for x in ("least", "most")
    )
    assert one == other
    linears = read_model(FIXTURES / case).config.linears[0]
    sparsegpt, wanda = PrunerOptions("sparsegpt"), PrunerOptions("wanda")
    assert (
        portions(linears, sparsegpt, inf)
        == portions(linears, wanda, 0)
        == [inputs_of(linears)]
    )
    assert len(portions(linears, sparsegpt, least)) == len(inputs_of(linears))
    half = 2 * sum(
        matrix_bytes(linears, sparsegpt)
    )  # is enough, and one byte less is not
    assert [len(portions(linears, sparsegpt, half - x)) for x in (0, 1)] == [1, 4]


def test_scores_by_probes_of_sparsegpt_have_room_for_its_matrices() -> None:
    plan, request = (
        Probes(pruner="sparsegpt"),
        Request(sparsity=0.5, correct="divergence"),
    )
    model, tokens = read_model(LLAMA), random_tokens(264, 2, 12)
    error = refusal_of(
        score, model, tokens, plan, request, memory=1000, says="one experiment"
    )
    assert "bytes for the outer products of inputs" in error.expected
    least = int(error.remedy.split("--memory ")[1].split()[0])
    assert least > 8 * sum(
        x**2 for x in {width for _, width in model.config.linears[0].values()}
    )
    scores = [score(model, tokens, plan, request, memory=x) for x in (least, None)]
    np.testing.assert_array_equal(*(x.sweep[0].divergence for x in scores))
    refusal_of(
        score, model, tokens, plan, request, memory=least - 1, says="one experiment"
    )


@pytest.mark.parametrize("columns", [25, 40, 97])
@pytest.mark.usefixtures("in_place")
def test_a_large_matrix_is_factored_in_parts(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """V V^T = H to rounding, as with LAPACK; what does not factor is refused in the same words."""
    x = np.random.default_rng(columns).standard_normal((2, columns, columns))
    h = sum_of_outer_products(x)
    np.testing.assert_allclose(
        h, np.einsum("nti,ntj->ij", x, x), rtol=1e-12, atol=1e-12
    )
    np.testing.assert_array_equal(h, h.T)
    upper, _ = SharedFactor.of(h).factored(0.01)
    np.testing.assert_array_equal(upper, np.triu(upper))
    damped = h + 0.01 * np.diag(h).mean() * np.eye(columns)
    eps = np.finfo(float).eps
    assert np.linalg.norm(
        upper @ upper.T - damped
    ) <= 8 * columns * eps * np.linalg.norm(damped)
    h[3] = h[:, 3] = 0
    h[3, 3] = -0.02 * np.diag(h).sum() / columns
    parts = SharedFactor.of(h)
    said = [
        refusal_of(parts.factored, 0.01, remedy="a larger damping") for _ in range(2)
    ]
    monkeypatch.setattr(pruner_module, "_WHOLE", columns)
    said.append(refusal_of(SharedFactor.of(h).factored, 0.01))
    assert len(set(map(str, said))) == 1  # another linear fails alike

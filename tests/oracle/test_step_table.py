"""The table of steps: a chain of its functions computes what the commands do."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from gates import case_of
from pruned_models import pruned_blocks

from refimpl.allocation.allocate import allocate
from refimpl.allocation.request import Probes
from refimpl.allocation.scores_json import allocation_targets
from refimpl.loading.samples import Tokens
from refimpl.model.forward import forward
from refimpl.model.ops import Array
from refimpl.oracle.case import Case
from refimpl.oracle.steps import steps
from refimpl.pruners.decision import PrunerOptions
from refimpl.running.settings import Settings
from refimpl.scoring.score import score


def by_commands(case: Case) -> Iterator[tuple[str, Array]]:
    """The steps of a case from `forward`, `score`, `allocate` and what `prune` calls."""
    model, recipe, ids = case.model, case.recipe, case.inputs["token_ids"]
    tokens, first = Tokens(ids, "of the case", "ids"), recipe.bases[0]
    yield from forward(model, ids, trace=True, dtype=np.float64).trace.items()
    absorption = recipe.request(first)
    divergence = replace(absorption, correct="divergence")
    for name, plan, request in (
        ("perturbed.", recipe.perturbation, absorption),
        ("coarse.", recipe.coarse_perturbation, absorption),
        ("pruned.", Probes(), divergence),
    ):
        scores = score(model, tokens, plan, request, dtype=np.float64)
        (experiment,) = scores.sweep
        for i in range(scores.num_blocks):
            yield f"{name}{i}.drift", experiment.drift[i, i:]
            yield f"{name}{i}.alignment", experiment.alignment[i, i:]
        yield (
            f"{name.replace('perturbed.', '')}absorption_coefficient",
            experiment.coefficient,
        )
        if name == "perturbed.":
            chained = scores
    assert experiment.divergence is not None
    yield "pruned.divergence", experiment.divergence
    made = allocate(scores, divergence)
    yield "divergence.corrected", made.corrected_sparsity
    made = allocate(chained, absorption)
    yield f"{first}.signal", chained.signals[first].main
    yield f"{first}.base", made.base_sparsity
    yield f"{first}.corrected", made.corrected_sparsity
    yield f"{first}.counts", made.linear_pruned
    for method in ("magnitude", "wanda", "sparsegpt"):
        how = allocation_targets(made), PrunerOptions(method, recipe.damping), ids
        with Settings(np.float64).open() as resources:
            for block in pruned_blocks(model, *how, resources):
                prefix = f"{method}.blocks.{block.index}"
                for linear, pruned in block.linears.items():
                    yield f"{prefix}.{linear}.keep", np.packbits(pruned.keep, axis=1)
                    yield f"{prefix}.{linear}.weight", block.weights[f"{linear}.weight"]
                for point, total in block.sums.items():
                    yield f"{prefix}.{point}.squares", total
                    yield f"{prefix}.{point}.products", total


@pytest.mark.parametrize("name", ["gemma2"])
def test_a_chain_computes_what_the_commands_do(name: str) -> None:
    """`qwen3` measures drifts by sequence; `gemma2` leaves sinks out, and has windows."""
    case, compared = case_of(name), set[str]()
    chain = steps(case.model, case.inputs["token_ids"], case.recipe)
    assert list(chain) == list(case.expected)
    for step, value in by_commands(case):
        if step in chain:
            compared.add(step)
            np.testing.assert_allclose(
                value, chain[step], rtol=1e-12, atol=1e-12, err_msg=step
            )
    rest = {step.split(".")[-1] for step in chain.keys() - compared}
    assert rest <= {
        "stderr",
        "score",
        "keep",
        "squares",
        "signal",
        "base",
        "corrected",
        "counts",
        "perplexity",
    }, rest
    assert len(compared) > len(chain) / 2

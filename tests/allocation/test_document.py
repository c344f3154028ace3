"""`scores.json`: what it holds, that it comes back whole, and what is done to damaged ones."""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documents import changed
from gates import CASES, bits, model_of
from hypothesis import given
from hypothesis import strategies as st
from refusals import refusal_of
from tables import cases

import refimpl
from refimpl import Noise, Probes, RefimplError, Request, Scores, allocate, score
from refimpl.allocation.scores_json import parsed_scores, read_scores, scores_document
from refimpl.loading.files.documents import plain
from refimpl.loading.samples import random_tokens
from refimpl.running.outputs import json_text, write_text
from refimpl.show.blocks import scores_table

GAUSSIAN = Noise(
    eta=(0.01, 0.3), noise_norm="expected", sink="exclude", draws=2, seed=7
)
PRUNING = Probes()


@cache
def scored(
    case: str, pruning: bool = False, samples: int = 3
) -> tuple[Scores, Request]:
    """Scores with every signal, and what they were made for."""
    model = model_of(case)
    correct: Any = "divergence" if pruning else "absorption"
    wanted = Request("alphapruning", {"epsilon": 0.2}, sparsity=0.55, correct=correct)
    tokens = random_tokens(model.config.vocab_size, samples, 7)
    return score(model, tokens, PRUNING if pruning else GAUSSIAN, wanted), wanted


def whole_document(scores: Scores, wanted: Request) -> dict[str, Any]:
    return scores_document(
        scores, [allocate(scores, wanted, i) for i in range(len(scores.sweep))]
    )


@pytest.mark.parametrize(
    ("case", "pruning"),
    list(zip(("llama", "gemma3", *CASES[::5]), cycle((True, False)), strict=False)),
)
def test_scores_come_back_as_they_were(
    case: str, pruning: bool, tmp_path: Path
) -> None:
    scores, wanted = scored(case, pruning)
    path, content = tmp_path / "scores.json", whole_document(scores, wanted)
    write_text(path, json_text(content))
    read = read_scores(path)
    assert (bits(read), read.run) == (bits(scores), scores.run)
    assert whole_document(read, wanted) == content
    others = [Request("alphapruning", sparsity=0.55, correct=None)]
    if not pruning:
        others += [Request("owl", sparsity=0.3, correct=None)]
        others += [Request("dlp", correct=None, compat="peer")]
    for other in others:
        assert whole_document(read, other) == whole_document(scores, other)


@pytest.mark.parametrize(
    "plan",  # at 1e-30 no coefficient is known
    [Noise(), Noise(eta=(1e-30,)), replace(GAUSSIAN, eta=(1.0, 1e-30))],
)
@pytest.mark.parametrize("samples", [1, 2])
def test_unknown_numbers_come_back_too(
    plan: Noise | Probes, samples: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refimpl.scoring.score.require_resolved", lambda *_: None)
    scores = score(model_of("gpt2"), random_tokens(101, samples, 5), plan)
    write_text(
        tmp_path / "scores.json",
        json_text(whole_document(scores, Request(correct=None))),
    )
    read = read_scores(tmp_path / "scores.json")
    assert (bits(read), read.run) == (bits(scores), scores.run)


def test_the_document_is_the_scores_and_the_allocations() -> None:
    scores, wanted = scored("llama")
    content = whole_document(scores, wanted)
    assert content.keys() == {"format", "scores", "allocations"}
    assert content["scores"]["made_for"] == vars(wanted)
    assert content["scores"]["plan"] == plain(scores.plan)
    assert content["scores"]["run"] == vars(scores.run)
    assert content["scores"]["linears"][0]["k_proj"] == [16, 32]
    for i, (found, result) in enumerate(
        zip(content["allocations"], scores.sweep, strict=True)
    ):
        allocation = allocate(scores, wanted, i)
        assert found["linear_pruned"] == allocation.linear_pruned.tolist()
        assert found["num_pruned"] == [sum(row) for row in found["linear_pruned"]]
        assert found["corrected_sparsity"] == allocation.corrected_sparsity.tolist()
        assert (
            found["total_pruned"] == allocation.total_pruned == round(0.55 * 4 * 7296)
        )
        drift = content["scores"]["sweep"][i]["drift"]
        assert drift[3] == [None] * 3 + [result.drift[3, 3]]


@cache
def text_of(pruning: bool) -> str:
    return json.dumps(whole_document(*scored("llama", pruning)))


def read_and_use(text: str) -> str | None:
    """Do what `refimpl allocate` does with a file; the problem where it is refused."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "scores.json")
        path.write_text(text)
        try:
            scores = read_scores(path)
        except RefimplError as refused:
            return refused.problem
        problem = None
        for wanted in (
            Request(),
            Request("owl", correct=None, compat="peer"),
            Request(
                "alphapruning", {"epsilon": 0.2}, sparsity=0.55, correct="divergence"
            ),
        ):
            try:
                allocations = [
                    allocate(scores, wanted, i) for i in range(len(scores.sweep))
                ]
            except RefimplError as refused:
                problem = refused.problem
                continue
            json.dumps(scores_document(scores, allocations), allow_nan=False)
            scores_table(scores, allocations[0])
        return problem


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a document, of its parts too."""
    if path:
        yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


@given(st.booleans(), st.data())
def test_changed_documents(pruning: bool, data: st.DataObject) -> None:
    read_and_use(json.dumps(changed(text_of(pruning), data)))


@pytest.mark.parametrize("pruning", [False, True])
def test_every_key_is_needed_and_no_other(pruning: bool) -> None:
    """But for the bases that a signal is of, the shapes of linears, and the growth."""
    every = [
        path
        for path in places(json.loads(text_of(pruning)))
        if isinstance(path[-1], str)
    ]
    free = ("signals", "values", "options", "versions", "linears", "growth")
    every = [path for path in dict.fromkeys(every) if not {*path[:-1]} & {*free}]
    assert len(every) > 60
    for path in every:
        for name in (path[-1], "unknown"):
            part = content = json.loads(text_of(pruning))
            for key in path[:-1]:
                part = part[key]
            part.pop(name, None)
            if name == "unknown":
                part[name] = None
            problem = read_and_use(json.dumps(content))
            assert problem is not None, path
            named = name in problem or path[-1] in ("format", "kind")
            assert named, problem


@pytest.mark.parametrize("context", [None, [1.3, 1.2]])
def test_a_context_of_other_files_of_this_format_is_left_out(context: Any) -> None:
    content = json.loads(text_of(True))
    right = plain(parsed_scores(content).allocations)
    for x in content["allocations"]:
        x["context"] = context
    assert plain(parsed_scores(content).allocations) == right


@pytest.mark.parametrize(("old", "new", "path"), cases("allocation", "scores_values"))
def test_values_that_scores_cannot_have(old: str, new: str, path: str) -> None:
    text = text_of(False)
    assert old in text
    problem = read_and_use(text.replace(old, new, 1))
    assert problem is not None
    assert path in problem


def test_scores_are_saved_read_and_shown_in_one_line(tmp_path: Path) -> None:
    scores, _ = scored("llama", pruning=True)
    scores.save(path := tmp_path / "scores.json")
    assert (
        refimpl.read_scores(path).to_dict()
        == scores.to_dict()
        == json.loads(path.read_text())
    )
    assert (
        repr(scores)
        == "<Scores of llama: 4 blocks, pruning, 3 of 3 samples of 7 tokens>"
    )
    noise = scored("llama")[0]
    assert "eta 0.01, 0.3" in repr(noise)
    found = noise.sweep[0]
    later = np.triu_indices(4)
    assert (found.drift_stderr[later] > 0).all()
    assert (found.alignment_stderr[later] > 0).all()
    one = scored("llama", samples=1)[0].sweep[0]
    assert np.isnan(one.drift_stderr).all()


def test_a_file_of_refimpl_is_not_called_damaged(tmp_path: Path) -> None:
    scores, _ = scored("llama")
    scores.save(path := tmp_path / "scores.json")
    refusal_of(allocate, scores, base=str(path), says="is a file of scores, whose")

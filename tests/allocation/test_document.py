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
from gates import CASES, bits, model_of
from hypothesis import given
from hypothesis import strategies as st
from refusals import refusal_of

from refimpl import Perturbation, RefimplError, Request, Scores, allocate, score
from refimpl.allocation.dataclass_json import to_json
from refimpl.allocation.scores_json import document, read_scores, scores_of
from refimpl.show.table import table
from refimpl.storage.files import write_json
from refimpl.tokens import random_tokens

GAUSSIAN = Perturbation("gaussian", (0.01, 0.3), "sequence", "channel", "sequence", "exclude", 2, 7)
PRUNING = Perturbation("pruning", (0.01,), sink="exclude", norm="sequence")


@cache
def scored(case: str, pruning: bool = False, samples: int = 3) -> tuple[Scores, Request]:
    """Scores with every signal, and what they were made for."""
    model = model_of(case)
    correct: Any = "divergence" if pruning else "absorption"
    wanted = Request("alphapruning", {"unit": "linear"}, sparsity=0.55, correct=correct)
    tokens = random_tokens(model.config.vocab_size, samples, 7)
    return score(model, tokens, PRUNING if pruning else GAUSSIAN, wanted), wanted


def whole_document(scores: Scores, wanted: Request) -> dict[str, Any]:
    return document(scores, [allocate(scores, wanted, i) for i in range(len(scores.sweep))])


@pytest.mark.parametrize(
    ("case", "pruning"),
    list(zip(("llama", "gemma3", *CASES[::5]), cycle((True, False)), strict=False)),
)
def test_scores_come_back_as_they_were(case: str, pruning: bool, tmp_path: Path) -> None:
    scores, wanted = scored(case, pruning)
    path, content = tmp_path / "scores.json", whole_document(scores, wanted)
    write_json(path, content)
    read = read_scores(path)
    assert (bits(read), read.run) == (bits(scores), scores.run)
    assert whole_document(read, wanted) == content
    others = [Request("alphapruning", {"unit": "linear"}, sparsity=0.55, strength=0.5)]
    if not pruning:
        others += [Request("owl", sparsity=0.3), Request("dlp", compat="peer")]
    for other in others:
        assert whole_document(read, other) == whole_document(scores, other)


def test_errors_of_lsa_come_back(tmp_path: Path) -> None:
    wanted, tokens = Request("lsa", {"block": 8}, 0.6), random_tokens(264, 2, 7)
    scores = score(model_of("llama"), tokens, request=wanted)
    content = whole_document(scores, wanted)
    write_json(tmp_path / "scores.json", content)
    read = read_scores(tmp_path / "scores.json")
    assert bits(read) == bits(scores)
    assert whole_document(read, replace(wanted, options={"beta": 0.1, "block": 8})) != content
    signal = content["signals"].pop("lsa")
    assert signal == {
        "options": {"block": 8}, "values": {"error": scores.signals["lsa"].main.tolist()}
    }  # fmt: skip
    with pytest.raises(RefimplError, match="lsa with block 8: not in these scores"):
        allocate(scores_of(content), wanted)


@pytest.mark.parametrize(
    "plan",  # at 1e-30 no coefficient is known
    [Perturbation(), Perturbation(eta=(1e-30,)), replace(GAUSSIAN, eta=(1.0, 1e-30))],
)
@pytest.mark.parametrize("samples", [1, 2])
def test_unknown_numbers_come_back_too(
    plan: Perturbation, samples: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refimpl.scoring.score.require_resolved", lambda *_: None)
    scores = score(model_of("gpt2"), random_tokens(101, samples, 5), plan)
    write_json(tmp_path / "scores.json", whole_document(scores, Request()))
    read = read_scores(tmp_path / "scores.json")
    assert (bits(read), read.run) == (bits(scores), scores.run)


def test_a_custom_base_is_named_but_not_its_folder(tmp_path: Path) -> None:
    base = tmp_path / "my base.json"
    base.write_text("[0.5, 0.6, 0.7, 0.6]")
    wanted = Request(str(base), sparsity=0.6)
    scores = score(model_of("llama"), random_tokens(264, 2, 7), PRUNING, wanted)
    content = whole_document(scores, wanted)
    assert content["base"] == "my base.json"
    write_json(tmp_path / "scores.json", content)
    read = read_scores(tmp_path / "scores.json")
    assert allocate(read, wanted).total_pruned == round(0.6 * 4 * 7296)


def test_the_document_holds_what_it_should() -> None:
    scores, wanted = scored("llama")
    content = whole_document(scores, wanted)
    assert {"dtype", "perturbation", "tokens", "clipped_share", "run"} < content.keys()
    assert content["base_options"] == dict(wanted.options)
    assert content["requested_sparsity"] == wanted.sparsity
    correction = ("correct", "strength", "max_correction", "correction_scale")
    for name in ("base", *correction, "lo", "hi", "compat"):
        assert content[name] == getattr(wanted, name)
    for name in ("noise_scale", "noise_shape", "norm", "sink", "draws", "seed"):
        assert content[name] == getattr(scores.plan, name)
    assert (content["model"], content["family"], content["num_blocks"]) == ("llama", "llama", 4)
    assert content["linears"] == {name: list(shape) for name, shape in scores.shapes.items()}
    assert content["total_pruned"] == round(0.55 * content["total_weights"])
    assert content["eta"] == 0.01
    assert [found["eta"] for found in content["sweep"]] == [0.01, 0.3]
    assert content["sweep"][0]["blocks"] == content["blocks"]
    assert content["signals"] == {
        name: {
            "options": dict(signal.options),
            "values": {key: to_json(x) for key, x in signal.values.items()},
        }
        for name, signal in scores.signals.items()
    }
    assert content["signals"].keys() == {"alphapruning", "dlp", "owl"}
    allocation = allocate(scores, wanted)
    assert allocation.total_pruned == round(0.55 * allocation.total_weights)
    for found, result in zip(content["sweep"], scores.sweep, strict=True):
        allocation = allocate(scores, wanted, scores.sweep.index(result))
        for i, row in enumerate(found["blocks"]):
            linears = row.pop("linears")
            assert row.pop("tokens_excluded_as_sinks") == scores.sinks[i]
            assert row == {
                "index": i,
                "num_weights": 7296,
                "absorption_coefficient": result.coefficient[i],
                "absorption_stderr": result.stderr[i],
                "log_absorption": np.log(result.coefficient[i]),
                "tokens_left_out": result.left_out[i],
                "drift": result.drift[i, i:].tolist(),
                "alignment": result.alignment[i, i:].tolist(),
                "arrival": row["drift"][-1],
                "divergence": None,
                "base_sparsity": allocation.base_sparsity[i],
                "corrected_sparsity": allocation.corrected_sparsity[i],
                "num_pruned": sum(x["num_pruned"] for x in linears),
            }
            assert [(x["name"], tuple(x["shape"])) for x in linears] == [*scores.linears[i].items()]
            assert [x["num_pruned"] for x in linears] == allocation.linear_pruned[i].tolist()


def test_one_eta_is_no_sweep_and_pruning_says_where() -> None:
    scores, wanted = scored("llama", pruning=True)
    content = whole_document(scores, wanted)
    assert "sweep" not in content
    assert content["eta"] is None
    assert content["perturbed_at"]["base"] == "alphapruning"
    assert content["perturbed_at"]["sparsity"] == 0.55
    assert np.sum(content["perturbed_at"]["linear_pruned"]) == content["total_pruned"]
    assert all(row["divergence"] > 0 for row in content["blocks"])
    assert whole_document(*scored("llama"))["perturbed_at"] is None


@cache
def text_of(pruning: bool) -> str:
    return json.dumps(whole_document(*scored("llama", pruning)), indent=1)


def read_and_use(text: str | bytes) -> str | None:
    """Do what `refimpl allocate` does with a file; the problem where it is refused."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "scores.json")
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        try:
            scores = read_scores(path)
        except RefimplError as refused:
            return refused.problem
        problem = None
        for wanted in (
            Request(),
            Request("owl", compat="peer"),
            Request("alphapruning", {"unit": "linear"}, sparsity=0.55, correct="divergence"),
        ):
            try:
                allocations = [allocate(scores, wanted, i) for i in range(len(scores.sweep))]
            except RefimplError as refused:
                problem = refused.problem
                continue
            json.dumps(document(scores, allocations), allow_nan=False)
            table(scores, allocations)
        return problem


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a document, of its parts too."""
    if path:
        yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


@cache
def places_of(pruning: bool) -> list[tuple[Any, ...]]:
    """All places, those near the top as often as all those below them together."""
    every = list(places(json.loads(text_of(pruning))))
    top = [path for path in every if len(path) <= 2]
    return every + top * (len(every) // len(top))


JUNK = [
    None, True, 0, -1, 3, 10**30, 10**400, 0.5, -0.5, 1e300, "", "x", "0.5", [], {}, [1], [None],
    [[]], [0.5] * 4, {"a": 1},
]  # fmt: skip


@given(st.booleans(), st.data())
def test_changed_documents(pruning: bool, data: st.DataObject) -> None:
    content = json.loads(text_of(pruning))
    path = data.draw(st.sampled_from(places_of(pruning)))
    part = content
    for key in path[:-1]:
        part = part[key]
    what = data.draw(st.sampled_from(["change", "remove", "repeat"]))
    if what == "change":
        part[path[-1]] = data.draw(st.sampled_from(JUNK))
    elif what == "remove":
        del part[path[-1]]
    elif isinstance(part, list):
        part.append(part[path[-1]])
    else:
        part[f"{path[-1]}2"] = part[path[-1]]
    read_and_use(json.dumps(content))


NEEDED: dict[tuple[Any, ...], str] = {
    (): "format model family num_blocks perturbation noise_scale noise_shape norm sink draws seed "
    "tokens linears signals perturbed_at run blocks",
    ("tokens",): "samples seq_len source kind bos sha256",
    ("signals",): "alphapruning",
    ("signals", "owl"): "options values",
    ("run",): "dtype threads memory seconds peak_memory versions",
    ("blocks", 1): "linears tokens_excluded_as_sinks",
    ("sweep", 1): "eta blocks",
    ("sweep", 1, "blocks", 2): "absorption_coefficient absorption_stderr tokens_left_out drift "
    "alignment divergence",
}


@pytest.mark.parametrize(
    ("place", "name"), [(place, name) for place, names in NEEDED.items() for name in names.split()]
)
def test_every_key_that_is_needed_is_missed(place: tuple[Any, ...], name: str) -> None:
    part = content = json.loads(text_of(False))
    for key in place:
        part = part[key]
    del part[name]
    problem = read_and_use(json.dumps(content))
    assert problem is not None
    assert name in problem


@given(st.booleans(), st.data())
def test_truncated_documents(pruning: bool, data: st.DataObject) -> None:
    text = text_of(pruning)
    end = data.draw(st.integers(0, len(text) - 1))
    assert read_and_use(text[:end]) is not None


@given(st.binary(max_size=40), st.data())
def test_garbled_documents(junk: bytes, data: st.DataObject) -> None:
    text = text_of(False).encode()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 60)))
    read_and_use(text[:start] + junk + text[end:])
    assert read_and_use(junk) is not None


@pytest.mark.parametrize(
    "text",
    ["null", "[]", "5", '"x"', "{}", '{"format": 1}', "[" * 100_000, b"\xff", "\ufeff{}", "NaN"],
)
def test_other_files(text: str | bytes) -> None:
    assert read_and_use(text) is not None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"absorption_coefficient": ', '"absorption_coefficient": NaN, "x": '),
        ('"absorption_coefficient": ', '"absorption_coefficient": 1e999, "x": '),
        ('"score": [', '"score": [-Infinity, '),
        ('"score": [', '"score": [null, '),
        ('"score": ', '"score": {}, "x": '),
        ('"alpha": ', '"alpha": null, "x": '),
        ('"m": 5.0', '"m": null'),
        ('"num_blocks": 4', '"num_blocks": 3'),
        ('"perturbation": "gaussian"', '"perturbation": "pruning"'),
        ('"perturbation": "gaussian"', '"perturbation": "uniform"'),
        ('"perturbed_at": null', '"perturbed_at": {"base": "owl"}'),
        ('"threads": ', '"threads": "2", "x": '),
        ('"memory": ', f'"memory": {10**400}, "x": '),
        ('"seconds": ', '"seconds": null, "x": '),
        ('"samples": 3', '"samples": 3.5'),
        ('"draws": 2', '"draws": 0'),
    ],
)
def test_values_that_scores_cannot_have(old: str, new: str) -> None:
    assert old in text_of(False)
    assert read_and_use(text_of(False).replace(old, new)) is not None


def test_no_such_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        refusal_of(read_scores, path, says="cannot be read")

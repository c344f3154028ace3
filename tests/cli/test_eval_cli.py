"""`refimpl eval`: its table, its JSON, what it refuses, and a run that is killed and taken up."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import program
import pytest
from conftest import FIXTURES
from documents import before_unit, interrupt
from tables import cases

from refimpl.evaluation import evaluate as job
from refimpl.show.evaluation import FLOOR

LLAMA = FIXTURES / "llama"
TEXT = FIXTURES / "text.txt"
ROWS: list[dict[str, Any]] = [
    {"question": "Drop a stone", "choices": ["into the third", "no"], "answer": 0},
    {"question": "A river", "choices": ["runs", "sings", "x"], "answer": 1},
    {"question": "", "choices": ["to", "be"], "answer": 1},
]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS))
    return path


def ran(*words: object) -> str:
    return program.ran("eval", *words)


def refused(*words: object) -> str:
    return program.refused("eval", *words)


def evaluated(*words: object) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(ran(*words, "--json"))
    return document


def without_run(document: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name != "run"}


def test_the_table_says_what_was_measured(questions: Path) -> None:
    words = (LLAMA, "--text", TEXT, "--window", 32, "--choices", questions)
    out, document = ran(*words, "--threads", 1), evaluated(*words)
    text, choices = document["text"], document["choices"]
    assert {" ".join(line.split()) for line in out.splitlines()} >= {
        "model llama, family llama, 4 blocks",
        f"perplexity {text['perplexity']:#.6g} {text['perplexity_stderr']:#.6g} 33 windows",
        f"bits per byte {text['bits_per_byte']:.5f} - 1,006 bytes",
        f"acc {choices['acc']:.4f} {choices['acc_stderr']:.4f} 3 questions",
        f"acc_norm {choices['acc_norm']:.4f} {choices['acc_norm_stderr']:.4f} 3 questions",
    }
    assert "33 windows of 32 tokens (the last of 15), BOS 1 added by tokenizer.json" in out
    assert text["sha256"][:12] in out
    assert "1 thread, float32, refimpl" in out
    assert "stderr is" not in out


def test_the_document_holds_what_its_numbers_are_made_of(questions: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    words = (LLAMA, "--text", TEXT, "--window", 32, "--choices", questions)
    printed = ran(*words, "-o", output, "--json")
    document = json.loads(output.read_text())
    assert json.loads(printed) == document
    text, choices, how = document["text"], document["choices"], document["run"]
    assert text["predicted_tokens"] == sum(w["tokens"] for w in text["windows"]) == 1006
    assert text["bytes"] == sum(w["bytes"] for w in text["windows"]) == TEXT.stat().st_size
    assert (text["bos"], text["window"], text["num_windows"]) == (1, 32, 33)
    assert [document[key] for key in ("model", "family", "dtype")] == ["llama", "llama", "float32"]
    for row, found in zip(ROWS, choices["questions"], strict=True):
        assert found["answer"] == row["answer"]
        likelihoods, lengths = np.array(found["log_likelihoods"]), [*map(len, row["choices"])]
        assert found["picked"] == likelihoods.argmax()
        assert found["picked_norm"] == (likelihoods / lengths).argmax()
    right = [q["picked"] == q["answer"] for q in choices["questions"]]
    assert choices["acc"] == pytest.approx(sum(right) / 3)
    assert (choices["num_questions"], choices["num_choices"]) == (3, 7)
    assert how["versions"].keys() == {"refimpl", "numpy", "python"}
    assert how["tokens_per_second"] == pytest.approx(how["tokens"] / how["seconds"])
    assert how["resumed_sequences"] == 0


def test_one_window_one_question_have_no_standard_error(questions: Path) -> None:
    questions.write_text(questions.read_text().partition("\n")[0])
    words = (LLAMA, "--text", TEXT, "--windows", 1, "--choices", questions)
    assert "stderr is -: it takes two windows, or two questions, or more" in ran(*words)
    document = evaluated(*words)
    assert document["text"]["perplexity_stderr"] is None
    assert document["choices"]["acc_norm_stderr"] is None
    assert document["text"]["window"] == 64  # the model's longest


def test_a_pruned_model_has_a_noise_floor_which_its_error_omits(tmp_path: Path) -> None:
    program.ran("prune", LLAMA, "-o", tmp_path / "pruned", "--nm", "2:4", "--pruner", "magnitude")
    said = [ran(model, "--text", TEXT, "--windows", 4) for model in (LLAMA, tmp_path / "pruned")]
    assert [f"stderr does not include the noise floor of pruning: {FLOOR}" in x for x in said] == [
        False,
        True,
    ]


def test_ids_in_place_of_a_text(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.arange(96).reshape(4, 24))
    words = (FIXTURES / "gemma2", "--tokens", tmp_path / "ids.npy", "--dtype", "float64")
    document = evaluated(*words)
    assert (document["text"]["num_windows"], document["dtype"]) == (4, "float64")
    assert document["text"]["bits_per_byte"] is None
    assert "choices" not in document
    out = ran(FIXTURES / "gemma2", "--tokens", tmp_path / "ids.npy")
    assert "ids         ids.npy" in out
    assert "bits per byte" not in out


def test_a_run_says_how_much_an_earlier_one_did(
    questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refimpl.evaluation.likelihood.BATCH", 40)
    monkeypatch.setattr(job, "GROUP", 80)
    output = tmp_path / "out.json"
    output.write_text("old")
    words = (LLAMA, "--text", TEXT, "--window", 40, "--windows", 9, "--choices", questions)
    with before_unit(4, interrupt):
        assert program.run("eval", *words, "-o", output, "--force").code == 130
    assert output.read_text() == "old"
    run, whole = (evaluated(*words, *x)["run"] for x in (("-o", output, "--force"), ()))
    assert (run["resumed_sequences"], whole["resumed_sequences"]) == (8, 0)
    assert run["tokens"] == whole["tokens"] - 8 * 39  # of a window's tokens, the last is no input


@pytest.mark.parametrize(("words", "problem"), cases("cli", "eval"))
def test_bad_input_is_one_clear_error(words: str, problem: str) -> None:
    places = {"LLAMA": LLAMA, "GEMMA2": FIXTURES / "gemma2", "TEXT": TEXT}
    assert problem in refused(*(places.get(word, word) for word in words.split()))

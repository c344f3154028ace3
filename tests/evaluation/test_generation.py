"""`refimpl generate`: greedy and sampled continuations, where they end, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import program
import pytest
from conftest import FIXTURES
from refusals import refusal_of

import refimpl
from refimpl.evaluation import generation

LLAMA = FIXTURES / "llama"
PROMPT = "A stone"


def ran(*words: object) -> str:
    return program.ran("generate", *words)


def refused(*words: object) -> str:
    return program.refused("generate", *words)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(LLAMA, tmp_path / "copy"))


def with_config(folder: Path, **more: Any) -> refimpl.Model:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    return refimpl.read_model(folder)


def test_greedy_takes_the_most_likely_token_of_the_forward() -> None:
    model = refimpl.read_model(LLAMA)
    (found,) = refimpl.generate([model], PROMPT, 6, dtype="float64")
    ids = [*found.prompt_ids, *found.ids]
    for i in range(len(found.prompt_ids), len(ids)):
        z = refimpl.forward(model, ids[:i], dtype=np.float64).logits[0, -1]
        assert ids[i] == z.argmax()
    assert (found.model, len(found.ids)) == ("llama", 6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_have_the_probabilities_of_the_softmax(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    chances, count = np.array([0.6, 0.3, 0.1]), 56
    z = np.full(264, -np.inf)
    z[5:8] = np.log(chances)
    monkeypatch.setattr(generation, "logits", lambda *_: [z[None]])
    models, drawn = [refimpl.read_model(LLAMA)], list[int]()
    for seed in range(20):
        (found,) = refimpl.generate(models, "A", count, temperature=temperature, seed=seed)
        drawn += found.ids
    expected = chances ** (1 / temperature)
    expected *= len(drawn) / expected.sum()
    seen = np.bincount(np.array(drawn) - 5, minlength=3)
    assert np.sum((seen - expected) ** 2 / expected) < 13.8  # chi^2 of 2 degrees: p = 0.001


def test_every_model_gets_the_same_noise_and_every_seed_another() -> None:
    models = [refimpl.read_model(LLAMA)] * 2
    first, second = refimpl.generate(models, PROMPT, 8, temperature=1.0, seed=3)
    (again,) = refimpl.generate(models[:1], PROMPT, 8, temperature=1.0, seed=3)
    (other,) = refimpl.generate(models[:1], PROMPT, 8, temperature=1.0, seed=4)
    assert first == second == again
    assert other.ids != first.ids


@pytest.mark.parametrize("as_list", [False, True])
def test_a_model_stops_at_its_end_of_text(as_list: bool, copy: Path) -> None:
    (free,) = refimpl.generate([refimpl.read_model(LLAMA)], PROMPT, 6)
    end = free.ids[2]
    length = 1 + free.ids.index(end)
    model = with_config(copy, eos_token_id=[end, 9999] if as_list else end)
    (found,) = refimpl.generate([model], PROMPT, 6)
    assert found.ids == free.ids[:length]


def test_the_last_token_is_never_read(copy: Path) -> None:
    model = with_config(copy, max_position_embeddings=10)  # the prompt has 8 tokens
    (found,) = refimpl.generate([model], PROMPT, 3)
    assert len(found.ids) == 3
    refusal_of(refimpl.generate, [model], PROMPT, 4, says="at most 10", remedy="--tokens 3")
    refusal_of(refimpl.generate, [model], PROMPT * 2, 1, remedy="shorter --prompt")


def test_progress_counts_the_tokens_of_all_models() -> None:
    told: list[tuple[float, float]] = []
    models = [refimpl.read_model(LLAMA)] * 2
    refimpl.generate(models, PROMPT, 2, progress=lambda *x: told.append(x))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_the_document_has_what_the_library_returns() -> None:
    words = (LLAMA, LLAMA, "--prompt", PROMPT, "--tokens", 4, "--temperature", 0.7, "--seed", 2)
    document = json.loads(ran(*words, "--json"))
    models = [refimpl.read_model(LLAMA)] * 2
    found = refimpl.generate(models, PROMPT, 4, temperature=0.7, seed=2)
    assert document == {
        "prompt": PROMPT, "tokens": 4, "temperature": 0.7, "seed": 2, "dtype": "float32",
        "continuations": [
            vars(x) | {"prompt_ids": [*x.prompt_ids], "ids": [*x.ids]} for x in found
        ],
    }  # fmt: skip


def test_the_text_keeps_lines_and_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    spelt = iter([b"A stone", b"A stone rolls.\n\x1b[31mIt " + b"rolls " * 30])
    decode = "refimpl.tokens.text.TextTokenizer.decode"
    monkeypatch.setattr(decode, lambda *_: next(spelt).decode())
    lines = ran(LLAMA, "--prompt", PROMPT, "--tokens", 1).splitlines()
    assert lines[:2] == [f"{LLAMA}:", "   rolls."]
    assert lines[2].startswith("  \\x1b[31mIt rolls ")
    assert max(map(len, lines[1:])) <= 100
    assert len(lines) == 4


def test_what_cannot_be_continued_is_refused(copy: Path) -> None:
    text = ("--prompt", PROMPT)
    assert "the prompt '' has no tokens" in refused(LLAMA, "--prompt", "")
    assert "use --tokens" in refused(LLAMA, *text, "--tokens", 10**6)
    assert "tokens 0" in refused(LLAMA, *text, "--tokens", 0)
    assert "temperature -1.0" in refused(LLAMA, *text, "--temperature", -1)
    assert "seed -1" in refused(LLAMA, *text, "--seed", -1)
    assert "--prompt" in refused(LLAMA)
    (copy / "tokenizer.json").write_text((copy / "tokenizer.json").read_text() + "\n")
    assert "llama, copy have different tokenizers" in refused(LLAMA, copy, *text)
    (copy / "tokenizer.json").unlink()
    assert "no tokenizer at" in refused(copy, *text)
    assert "no tokenizer at" in refused(LLAMA, copy, *text)
    refusal_of(refimpl.generate, [], PROMPT, says="0 models")

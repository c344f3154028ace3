"""lm-evaluation-harness on a model of ours, offline, against `refimpl eval` on the same file."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES
from gates import model_of
from program import ran
from refusals import refusal_of
from scipy.special import log_softmax

from refimpl import forward, read_model
from refimpl.evaluation.encoding import encoder

LLAMA = FIXTURES / "llama"
TEXT = (FIXTURES / "text.txt").read_text()
WORDS = TEXT.replace(".", " ").replace(",", " ").split()
INSTALL = "lm-evaluation-harness is missing: pip install -e '.[eval]'"


def harness(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that runs the harness, which warns."""
    return pytest.mark.lm_eval(pytest.mark.filterwarnings("ignore")(test))


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    pytest.importorskip("lm_eval", reason=INSTALL)
    from refimpl.evaluation import lm_eval

    return lm_eval


def questions() -> list[dict[str, Any]]:
    """Questions of every awkward kind, of choices of several lengths."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = [
        {"question": "", "choices": ["runs", "thirty lakes"], "answer": 1},
        {"question": "A river \n ", "choices": ["runs", "x"], "answer": 0},
        {"question": "<s>A river", "choices": ["runs", "<s>"], "answer": 0},
        {"question": TEXT[:150], "choices": ["drop", "a stone"], "answer": 1},  # too long: cut
        {"question": "été – 😀", "choices": ["ça", "là là", "Ωmega"], "answer": 2},
    ]
    for _ in range(25):
        k = int(rng.integers(2, 6))
        start, choices = int(rng.integers(0, 99)), rng.choice(WORDS, k).tolist()
        question = " ".join(WORDS[start : start + 3])
        rows.append({"question": question, "choices": choices, "answer": int(rng.integers(0, k))})
    return rows


def task(name: str, path: Path, rows: list[dict[str, Any]], *metrics: str, **more: Any) -> Any:
    """A task of the harness on these rows, written to a local file."""
    path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}},
        "test_split": "test",
        "metric_list": [{"metric": metric} for metric in metrics],
        **more,
    }


def evaluated(model: Any, made: dict[str, Any], folder: Path) -> tuple[Any, Any]:
    """The harness's results and samples of one task, from its file in a folder."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    name = made["task"]
    (folder / f"{name}.yaml").write_text(json.dumps(made))  # JSON is YAML
    tasks = TaskManager(include_path=str(folder), include_defaults=False)
    found = lm_eval.simple_evaluate(model, tasks=[name], task_manager=tasks, bootstrap_iters=100)
    assert found is not None
    return found["results"][name], sorted(found["samples"][name], key=lambda row: row["doc_id"])


@harness
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_harness_and_the_command_agree(adapter: Any, dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "choices.jsonl"
    made = task(
        *("local_choices", path, questions(), "acc", "acc_norm"),
        output_type="multiple_choice",
        doc_to_text="{{question}}",
        doc_to_choice="{{choices}}",
        doc_to_target="{{answer}}",
    )
    model = adapter.RefimplLM(str(LLAMA), dtype=dtype, threads=1)
    results, samples = evaluated(model, made, tmp_path)
    words = ("--choices", path, "--dtype", dtype, "--json")
    ours = json.loads(ran("eval", LLAMA, *words, quiet=False))["choices"]
    assert ours["truncated_choices"] > 0
    assert 0 < ours["acc"] < 1
    assert ours["acc"] != ours["acc_norm"]
    for name in ("acc", "acc_norm"):
        assert results[f"{name},none"] == pytest.approx(ours[name], abs=1e-15)
        assert results[f"{name}_stderr,none"] == pytest.approx(ours[f"{name}_stderr"], abs=1e-15)
    for sample, found in zip(samples, ours["questions"], strict=True):
        theirs = [float(value) for value, _ in sample["filtered_resps"]]
        assert theirs == found["log_likelihoods"]  # the same batches: the same bits


@harness
def test_rolling_scores_every_token_once(adapter: Any, tmp_path: Path) -> None:
    texts = [TEXT[:30], TEXT[:200], TEXT]
    rows = [{"text": text} for text in texts]
    made = task(
        *("local_rolling", tmp_path / "texts.jsonl", rows, "bits_per_byte"),
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
    )
    model = adapter.RefimplLM(str(LLAMA), dtype="float64", threads=1)
    results, samples = evaluated(model, made, tmp_path)
    longest = model_of("llama").config.max_position_embeddings
    total = 0.0
    for text, sample in zip(texts, samples, strict=True):
        ids = encoder(read_model(LLAMA)).ids(text)  # with BOS, before which a prefix stands
        whole = [1, *ids]
        value = 0.0
        for start in range(0, len(ids), longest):
            n = min(longest, len(ids) - start)
            window = whole[max(0, start + n - longest) : start + n]
            p = log_softmax(forward(model_of("llama"), window, dtype="f8").logits[0], -1)[-n:]
            value += float(p[np.arange(n), ids[start : start + n]].sum())
        assert float(sample["filtered_resps"][0]) == pytest.approx(value, rel=1e-10)
        total += value
    size = sum(len(text.encode()) for text in texts)
    assert results["bits_per_byte,none"] == pytest.approx(-total / size / np.log(2), rel=1e-10)


@harness
def test_the_harness_finds_the_model_by_name(adapter: Any, tmp_path: Path) -> None:
    from lm_eval.api.registry import get_model

    assert get_model("refimpl") is adapter.RefimplLM
    given = {"batch_size": 8, "max_batch_size": None, "device": "cuda:0"}
    made = adapter.RefimplLM.create_from_arg_string(f"pretrained={LLAMA},threads=1", given)
    assert made.tok_encode("A") == [1, *made.tok_encode("A", add_special_tokens=False)]
    assert made.prefix_token_id == made.eot_token_id == 1


@harness
def test_generation_is_refused_by_name(adapter: Any, tmp_path: Path) -> None:
    made = task(
        *("local_generation", tmp_path / "texts.jsonl", [{"text": "A river"}], "exact_match"),
        output_type="generate_until",
        doc_to_text="{{text}}",
        doc_to_target="{{text}}",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 4},
    )
    model, says = adapter.RefimplLM(str(LLAMA), threads=1), "not supported; asked for by local_gen"
    refusal_of(evaluated, model, made, tmp_path, says=says)
    refusal_of(adapter.RefimplLM, str(LLAMA), dtype="bfloat16", says="float32 or float64")


def without_the_harness(code: str) -> "subprocess.CompletedProcess[str]":
    words = [sys.executable, "-c", f"import sys; sys.modules['lm_eval'] = None; {code}"]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_without_the_harness_the_error_says_what_to_install() -> None:
    done = without_the_harness("import refimpl.evaluation.lm_eval")
    assert "RefimplError: lm_eval: not installed" in done.stderr
    assert "next: pip install 'refimpl[eval]'" in done.stderr


def test_as_a_program_it_says_so_without_a_traceback() -> None:
    code = "import runpy; runpy.run_module('refimpl.evaluation.lm_eval', run_name='__main__')"
    done = without_the_harness(code)
    assert done.returncode == 2
    assert done.stderr.startswith("error: lm_eval: not installed")
    assert "Traceback" not in done.stderr

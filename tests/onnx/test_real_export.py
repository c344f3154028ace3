"""Real models as graphs, against NumPy and transformers.

    REFIMPL_REAL=FOLDER pytest -m real tests/onnx/test_real_export.py -s

The folder holds the models and the text that docs/how-to/real-models.md describes; needs room for
a copy of each model, and 4 GB for a graph of more than one message can hold; the comparison with
transformers needs the `fixtures` dependency group. Prints a line per comparison.
"""

from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_models import REAL, real_model
from transformers_forward import transformers_forward

from refimpl.evaluation.evaluate import evaluate
from refimpl.evaluation.likelihood import Perplexity
from refimpl.loading.text import text_tokens, text_windows
from refimpl.model.ops import Array
from refimpl.onnx.export import export
from refimpl.onnx.session import LARGEST_GRAPH, open_session
from refimpl.onnx.validate import Validation, validate
from refimpl.oracle.measures import error_of

pytestmark = pytest.mark.real

TEXT = REAL / "text" / "sotu-1980-on.txt"
SMOL, GEMMA, QWEN = MODELS = (
    "SmolLM2-135M-Instruct",
    "gemma-3-270m",
    "Qwen2.5-Coder-0.5B-Instruct",
)
GATE = 1e-4


def print_worst(result: Validation) -> None:
    worst = {x.dtype: max(x.steps, key=lambda step: step.error) for x in result.reports}
    words = (f"{dtype} {x.error:.1e} at {x.step}" for dtype, x in worst.items())
    print(f"\n{result.model}, {result.ran}: {'; '.join(words)}")


@pytest.mark.parametrize("name", MODELS)
def test_a_graph_agrees(name: str, tmp_path: Path) -> None:
    model = real_model(name, TEXT)
    folder, made = model.folder, export(model, tmp_path / "model.onnx")
    assert made.graph_bytes < 1_000_000

    tokens = text_tokens(TEXT, folder / "tokenizer.json", 2, 128)
    result = validate(model, tokens, made.graph)
    print_worst(result)
    assert result.verdict == "pass"

    run = open_session(made.graph).run
    windows = text_windows(TEXT, folder / "tokenizer.json", 512, 1)
    ids = np.array(windows.ids)
    logits = run({"token_ids": ids})["logits"]
    theirs = Perplexity(np.array([nats(logits, ids)]), np.array([511]), None).value
    ours = evaluate(model, windows).perplexity
    assert ours is not None
    print(f"{name}: perplexity {theirs:.6f} by onnxruntime, {ours.value:.6f} by NumPy")
    assert theirs == pytest.approx(ours.value, rel=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_a_graph_agrees_with_transformers(name: str, tmp_path: Path) -> None:
    model = real_model(name, TEXT)
    made = export(model, tmp_path / "x.onnx")
    ids = text_tokens(TEXT, model.folder / "tokenizer.json", 1, 256).ids
    graph = open_session(made.graph).run({"token_ids": ids})["logits"]
    error = error_of(
        "logits", graph, transformers_forward(model, "float32")(ids)["logits"]
    )[0]
    print(f"\n{name}: logits {error:.1e} from transformers'")
    assert error < GATE


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "float32") for name in MODELS), (SMOL, "float64")]
)
def test_every_trace_point_agrees(name: str, dtype: str) -> None:
    model = real_model(name, TEXT)
    tokens = text_tokens(TEXT, model.folder / "tokenizer.json", 1, 64)
    result = validate(model, tokens, dtype=dtype)
    print_worst(result)
    assert result.verdict == "pass"


def test_a_graph_of_more_than_one_message(tmp_path: Path) -> None:
    model = real_model(QWEN, TEXT)
    made = export(model, tmp_path / "x.onnx", dtype="float64")
    assert made.data_bytes > LARGEST_GRAPH
    assert (
        len(onnx.load(made.graph, load_external_data=False).graph.initializer)
        > made.tensors
    )
    tokens = text_tokens(TEXT, model.folder / "tokenizer.json", 1, 8)
    result = validate(model, tokens, made.graph)
    print_worst(result)
    assert result.verdict == "pass"


def nats(logits: Array, ids: Array) -> float:
    """Summed negative log likelihood of every token of one window but the first."""
    x = logits[0, :-1].astype(np.float64)
    chosen = np.take_along_axis(x, ids[0, 1:, None], -1)[:, 0]
    top = x.max(-1)
    return float((top + np.log(np.exp(x - top[:, None]).sum(-1)) - chosen).sum())

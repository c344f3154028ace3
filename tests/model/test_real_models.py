"""Every trace point and the logits of real models against transformers, on real text, in float32.

    REFIMPL_REAL=FOLDER pytest -m real tests/model/test_real_models.py -s

The folder holds the models and the text that docs/how-to/real-models.md describes; needs the
`fixtures` dependency group. Prints the worst token of every model.
"""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import FIXTURES
from gates import worst_token

from refimpl import forward, read_model
from refimpl.loading.text import text_tokens
from refimpl.model.kernels import PLAIN, TILED

REAL = Path(os.environ.get("REFIMPL_REAL", "real"))
TEXT = REAL / "text" / "sotu-1980-on.txt"
GATE = 1e-4
MODELS = {  # tokens: Gemma needs more than twice its window of 512
    "SmolLM2-135M-Instruct": 512,
    "gemma-3-270m": 1280,
    "Qwen2.5-Coder-0.5B-Instruct": 512,
}


@pytest.mark.real
@pytest.mark.parametrize("kernels", ["plain", "tiled"])
@pytest.mark.parametrize("name", MODELS)
def test_every_trace_point_agrees_with_transformers(name: str, kernels: str) -> None:
    folder = REAL / name
    if not (folder / "config.json").exists() or not TEXT.exists():
        pytest.skip(f"no {name} or text in {REAL}: see docs/how-to/real-models.md")
    torch, transformers = (
        pytest.importorskip("torch"),
        pytest.importorskip("transformers"),
    )
    sys.path.insert(0, str(FIXTURES))
    from transformers_trace import traced

    model = read_model(folder)
    tokens = text_tokens(TEXT, folder / "tokenizer.json", 1, MODELS[name])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    expected = traced(theirs, torch.tensor(tokens.ids))
    ours = forward(
        model, tokens.ids, trace=True, kernels={"plain": PLAIN, "tiled": TILED}[kernels]
    )
    assert set(ours.trace) == set(expected)
    errors = {}
    while expected:  # one at a time: a trace with its logits is gigabytes
        point, value = expected.popitem()
        errors[point] = worst_token(ours.trace[point], np.asarray(value))
    worst = max(errors, key=errors.__getitem__)
    print(
        f"\n{name}, {tokens.source}, float32, {kernels}: {len(errors)} trace points, worst token "
        f"{errors[worst]:.1e} at {worst}, logits {errors['logits']:.1e} "
        f"(torch {torch.__version__}, transformers {transformers.__version__}, "
        f"numpy {np.__version__})"
    )
    assert errors[worst] <= GATE

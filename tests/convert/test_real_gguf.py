"""Real GGUF files against the safetensors folders that were made from them by other programs.

    REFIMPL_REAL=FOLDER pytest -m real tests/convert/test_real_gguf.py -s

The folder holds the models, the texts and the GGUF files (in `gguf`) that
docs/how-to/real-models.md describes; the models' weights are float16.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from refimpl import read_model
from refimpl.convert.conversion import convert

REAL = Path(os.environ.get("REFIMPL_REAL", "real"))
MODELS = {
    "SmolLM2-135M-Instruct": "SmolLM2-135M-Instruct.Q4_1.gguf",
    "gemma-3-270m": "gemma-3-270m-q4_k_m.gguf",
}
TEXTS = ("austen-emma.txt", "austen-persuasion.txt", "sotu-1980-on.txt")
ODD = "Naïve café — 1,234 déjà vu\t\n\n  x+=1; def f(a): '😀' 漢 <|im_start|>user\n<start_of_turn>"


@pytest.mark.real
@pytest.mark.parametrize("name", MODELS)
def test_a_real_file_is_the_folder_made_from_it(name: str, tmp_path: Path) -> None:
    path, folder = REAL / "gguf" / MODELS[name], REAL / name
    if not path.exists() or not (folder / "config.json").exists():
        pytest.skip(
            f"no {path.name} or {name} in {REAL}: see docs/how-to/real-models.md"
        )
    convert(path, tmp_path / "out")
    ours, theirs = read_model(tmp_path / "out"), read_model(folder)
    assert ours.config == theirs.config
    for weight_name, weight in theirs.weights.items():
        stored = weight.stored.array
        rounded = ours.weights[weight_name].stored.array.astype(stored.dtype)
        np.testing.assert_array_equal(rounded, stored, weight_name)
    made, original = (
        Tokenizer.from_file(str(x.tokenizer_json)) for x in (ours, theirs)
    )
    texts = [(REAL / "text" / text).read_text("utf-8") for text in TEXTS]
    for text in (*texts, ODD):
        assert made.encode(text).ids == original.encode(text).ids
    print(
        f"\n{path.name}: {len(theirs.weights)} weights, and ids of {len(texts) + 1} texts equal"
    )

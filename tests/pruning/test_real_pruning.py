"""Real models pruned by the program, then read by transformers and safetensors, without refimpl.

    REFIMPL_REAL=FOLDER pytest -m real tests/pruning/test_real_pruning.py -s

The folder holds the models and the text that docs/how-to/real-models.md describes; needs the
`fixtures` dependency group, and room on the disk for two models at a time. What pruning did is
counted again from the two files, as safetensors reads them. Prints a line per pruned model.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gates import worst_token
from program import run
from safetensors.numpy import load_file

from refimpl import forward, read_model
from refimpl.loading.text import text_tokens
from refimpl.model.ops import Array

pytestmark = pytest.mark.real

REAL = Path(os.environ.get("REFIMPL_REAL", "real"))
CALIBRATION = REAL / "text" / "sotu-1901-1979.txt"
TEXT = REAL / "text" / "sotu-1980-on.txt"
SMOL = "SmolLM2-135M-Instruct"
TARGETS = SPARSITY, PATTERN = ("--sparsity", "0.6"), ("--nm", "2:4")
GATE = 1e-4
QWEN = "Qwen2.5-Coder-0.5B-Instruct"
CASES = [  # every method on one model, and each file and family with a method that rewrites weights
    *(
        (SMOL, *x)
        for x in product(("wanda", "sparsegpt", "magnitude", "random"), TARGETS)
    ),
    ("gemma-3-270m", "magnitude", SPARSITY),
    ("gemma-3-270m", "wanda", SPARSITY),
    ("gemma-3-270m", "sparsegpt", PATTERN),
    (QWEN, "wanda", PATTERN),
    (QWEN, "sparsegpt", SPARSITY),
    (QWEN, "random", SPARSITY),
]
LINEARS = {  # transformers' names, the same in the three families
    **{name: f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")},
    **{name: f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")},
}

WITHOUT_REFIMPL = """
import json, sys
sys.modules["refimpl"] = None  # to import it would fail
import numpy, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, original, ids, text, logits = sys.argv[1:]
model, info = AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
)
with torch.no_grad():
    found = model(torch.tensor(numpy.load(ids)), use_cache=False).logits
numpy.save(logits, found.numpy())
encoded = [AutoTokenizer.from_pretrained(path).encode(text) for path in (folder, original)]
print(json.dumps([{name: sorted(map(str, what)) for name, what in info.items()}, encoded]))
"""


def python(script: str, *words: object) -> str:
    """Run a script in a Python of its own, away from this repository and from any network."""
    command = [sys.executable, "-I", "-c", script, *map(str, words)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def original(name: str) -> Path:
    folder = REAL / name
    if not (folder / "config.json").exists() or not (
        TEXT.exists() and CALIBRATION.exists()
    ):
        pytest.skip(f"no {name} or text in {REAL}: see docs/how-to/real-models.md")
    for needed in ("torch", "transformers"):
        pytest.importorskip(needed)
    return folder


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """A folder that is emptied right after the test: models are large."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize(
    ("name", "method", "target"),
    CASES,
    ids=["-".join((n, m, t[1])) for n, m, t in CASES],
)
def test_transformers_and_safetensors_read_a_pruned_model(
    name: str, method: str, target: tuple[str, str], room: Path
) -> None:
    dense, out = original(name), room / "out"
    options: list[object] = [*target, "--pruner", method]
    if target == SPARSITY:
        options += ["--allocation", "uniform"]
    if method in ("wanda", "sparsegpt"):
        options += ["--text", CALIBRATION, "--samples", 2, "--seq-len", 128]
    done = run("prune", dense, "-o", out, *options)
    assert done.code == 0, done.err
    record = json.loads((out / "pruning.json").read_text("utf-8"))
    assert record["method"] == method

    check_files(dense, out, record, target)
    found = json.loads(run("inspect", out, "--json").out)
    assert (found["weights"], found["zeros"]) == (
        record["total_weights"],
        record["total_zeros"],
    )
    worst = check_transformers(dense, out, room)
    print(
        f"\n{name}, {method}, {target[1]}: {record['total_pruned']:,} of "
        f"{record['total_weights']:,} weights pruned as asked, {record['total_zeros']:,} "
        f"zeros in the file; logits against transformers {worst:.1e}"
    )


def check_files(
    dense: Path, out: Path, record: Mapping[str, Any], target: tuple[str, str]
) -> None:
    """Compare both folders' files bit by bit, and the counts of the record with these bits."""
    names, zeros, kept = {path.name for path in dense.iterdir()}, 0, 0
    assert {path.name for path in out.iterdir()} == names | {"pruning.json"}
    linears = {
        f"model.layers.{block['index']}.{LINEARS[linear['name']]}.weight": linear
        for block in record["blocks"]
        for linear in block["linears"]
    }
    share = 0.5 if target == PATTERN else 0.6
    assert record["total_requested"] == round(share * record["total_weights"])
    for file in sorted(names):
        if not file.endswith(".safetensors"):
            assert (out / file).read_bytes() == (dense / file).read_bytes(), file
            continue
        assert header(dense / file) == header(out / file)
        before, after = (load_file(folder / file) for folder in (dense, out))
        for key, old, new in ((x, *map(bits, (before[x], after[x]))) for x in before):
            count = linears.pop(key, None)
            if count is None:
                assert np.array_equal(old, new), key
                continue
            zero = new & np.iinfo(new.dtype).max == 0  # zeros that stay may be -0.0
            assert count["pruned"] == count["requested"]
            assert (
                np.count_nonzero(zero)
                == count["zeros"]
                == count["pruned"] + count["kept_zeros"]
            )
            assert abs(count["requested"] - share * count["weights"]) < 2
            assert (
                target == SPARSITY or (new == 0).reshape(-1, 4).sum(axis=1).min() >= 2
            )
            assert record["method"] == "sparsegpt" or (new == 0)[new != old].all()
            zeros, kept = zeros + count["zeros"], kept + count["kept_zeros"]
    assert not linears
    assert zeros == record["total_zeros"]
    assert zeros - kept == record["total_pruned"] == record["total_requested"]


def header(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        return json.loads(opened.read(int.from_bytes(opened.read(8), "little")))


def bits(tensor: Array) -> Array:
    """A tensor's bits as integers: without the sign they are in the order of magnitudes."""
    return tensor.view(f"i{tensor.itemsize}")


def check_transformers(dense: Path, out: Path, room: Path) -> float:
    """Load and run the folder in transformers; returns the worst token of the logits."""
    ids = text_tokens(TEXT, out / "tokenizer.json", 1, 128).ids
    np.save(room / "ids.npy", ids)
    words = "The state of our Union: 1,2 and 3!\n\n  naïve"
    said = python(
        WITHOUT_REFIMPL, out, dense, room / "ids.npy", words, room / "logits.npy"
    )
    info, (encoded, expected) = json.loads(said)
    assert {"missing_keys", "unexpected_keys", "mismatched_keys"} <= set(info)
    assert not any(info.values()), info
    assert encoded == expected
    assert len(encoded) > 5
    worst = worst_token(
        forward(read_model(out), ids).logits, np.load(room / "logits.npy")
    )
    assert worst <= GATE
    return worst

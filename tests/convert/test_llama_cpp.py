"""GGUF files against llama.cpp itself: every architecture, and real models with their texts.

pytest -m "programs and not real" tests/convert/test_llama_cpp.py -s
REFIMPL_REAL=FOLDER pytest -m "programs and real" tests/convert/test_llama_cpp.py -s
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from conftest import HERE
from gates import worst_token
from gguf_files import RECIPES, Q, gguf_file
from test_real_gguf import ODD, TEXTS

from refimpl import Model, forward, read_model
from refimpl.convert.conversion import convert
from refimpl.loading.text import text_tokens
from refimpl.model import ops
from refimpl.model.ops import Array

pytestmark = pytest.mark.programs
TRACE = HERE.parent / "docs/how-to/port/llama_cpp_trace.py"
IDS, REAL = np.arange(3, 23), Path(os.environ.get("REFIMPL_REAL", "real"))
GELUS = ("gelu", "gelu_tanh", "gelu_tanh_8")
# llama.cpp masks no window in these; the tokens are within it
SHORT = {"phi3": 6}


def in_table(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """GELU as llama.cpp has it on the CPU: a table in float16, 0 below -10, x above 10."""

    def looked_up(x: Array) -> Array:
        y = (
            function(np.clip(x, -10, 10).astype("f2").astype("f8"))
            .astype("f2")
            .astype(x.dtype)
        )
        return np.where(np.abs(x) < 10, y, np.maximum(x, 0))

    return looked_up


@pytest.fixture(autouse=True)
def activations_of_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its GELU everywhere; GPT-NeoX's is the one by tanh, too."""
    for name in GELUS:
        monkeypatch.setitem(ops.ACTIVATIONS, name, in_table(ops.gelu_tanh))  # type: ignore[index]


def ran_python(*words: str | Path) -> None:
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def assert_near(path: Path, model: Model, ids: Array, shown: str) -> None:
    """Check llama.cpp's states and logits by token, against ours in float64 with its GELU.

    Its cache, sums and products are in float32, which is off by 1e-6. A number at the edge of an
    entry of GELU's table becomes the next one in float32: that is 2^-11 of it, and later blocks
    amplify it, in float32 of our own as in theirs.
    """
    folder, points = path.parent, {"result_output": "logits"}
    points |= {
        f"l_out-{i}": f"blocks.{i}.resid_post" for i in range(model.config.num_blocks)
    }
    np.save(folder / "ids.npy", ids)
    ran_python(TRACE, path, folder / "ids.npy", folder / "out.npz")
    found = np.load(folder / "out.npz")
    right, single = (
        forward(model, ids[None], dtype=x, trace=True) for x in ("f8", "f4")
    )
    truth, ours = (x.trace | {"logits": x.logits} for x in (right, single))
    theirs = {
        points[k]: found[k].reshape(-1, *truth[points[k]].shape)[0] for k in points
    }
    error, own = (
        max(worst_token(x[k], truth[k]) for k in theirs) for x in (theirs, ours)
    )
    print(f"\n{shown}: {error:.1e}, refimpl in float32 {own:.1e}")
    assert error < (max(2**-11, 3 * own) if model.config.activation in GELUS else 1e-5)


@pytest.mark.parametrize("name", RECIPES)
def test_llama_cpp_computes_the_same(name: str, tmp_path: Path) -> None:
    def finish(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("no_vocab")
        writer.add_vocab_size(264)

    convert(
        path := gguf_file(tmp_path, name, Q.F32, change=finish), tmp_path / "converted"
    )
    assert_near(
        path, read_model(tmp_path / "converted"), IDS[: SHORT.get(name, len(IDS))], name
    )


IDS_OF = """
import sys, numpy as np
from llama_cpp_py_sync import _cffi_bindings as bindings
llama, ffi = bindings.get_lib(), bindings.get_ffi()
llama.llama_backend_init()
settings = llama.llama_model_default_params()
settings.vocab_only = True
model = llama.llama_model_load_from_file(sys.argv[1].encode(), settings)
text, room = open(sys.argv[2], "rb").read(), ffi.new("int32_t[]", 1 << 20)
vocab = llama.llama_model_get_vocab(model)
count = llama.llama_tokenize(vocab, text, len(text), room, len(room), True, True)
np.save(sys.argv[3], np.array(list(room[0:count])))
"""


def as_float32(source: Path, target: Path) -> Path:
    """The file with every tensor de-quantised, and its metadata."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(
        target, str(reader.fields["general.architecture"].contents())
    )
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            of = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], of)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.mark.real
@pytest.mark.parametrize(
    "path",
    sorted(REAL.glob("gguf/*.gguf")),
    ids=lambda path: getattr(path, "stem", None),
)
def test_llama_cpp_computes_a_real_model_and_its_ids(
    path: Path, tmp_path: Path
) -> None:
    whole = as_float32(path, tmp_path / "model.gguf")
    convert(path, tmp_path / "converted")
    model = read_model(tmp_path / "converted")
    for text in [
        (REAL / "text" / name).read_text("utf-8")[:100_000] for name in TEXTS
    ] + [ODD]:
        (tmp_path / "text").write_text(text, "utf-8")
        ran_python("-c", IDS_OF, whole, tmp_path / "text", tmp_path / "theirs.npy")
        theirs = np.load(tmp_path / "theirs.npy")
        bos = model.config_file.get("bos_token_id")
        ours = text_tokens(
            tmp_path / "text", model.tokenizer_json, 1, len(theirs), bos_id=bos
        ).ids
        np.testing.assert_array_equal(ours[0], theirs)
    assert_near(whole, model, theirs[:24], path.name)

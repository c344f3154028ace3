"""Why libraries run in processes of their own, and that none of these harms ours.

The first tests give the libraries, as installed, input on which they end, fill or hold the process
that they run in. If a newer version passes them, its isolation can go.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
import onnx
import pytest
from checkpoints import needs_proc
from conftest import FIXTURES
from onnx import TensorProto, helper, numpy_helper
from processes import ENV, ran, started
from program import refused
from refusals import refusal_of
from tables import cases

from refimpl.loading.text import TextTokenizer

TOKENIZER = (FIXTURES / "llama" / "tokenizer.json").read_bytes()
LLAMA = FIXTURES / "llama"
LIMIT = 1 << 30  # bytes of a process that a library runs in alone


def alone(code: str, seconds: float, *words: object) -> int | None:
    """Exit code of code that runs in a process; None if it does not end in time."""
    limited = f"import resource, sys; resource.setrlimit(resource.RLIMIT_DATA, ({LIMIT},) * 2)\n"
    command = [sys.executable, "-c", limited + code, *map(str, words)]
    try:
        return subprocess.run(command, env=ENV, timeout=seconds, stderr=-3, check=False).returncode
    except subprocess.TimeoutExpired:
        return None


def replaced(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def normalized(*normalizers: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    return lambda file: file.update(
        normalizer={"type": "Sequence", "normalizers": list(normalizers)}
    )


# How `tokenizer.json` is changed, and how the library's own process ends: None if it does not.
TOKENIZERS: dict[str, tuple[Callable[[dict[str, Any]], None], tuple[int | None, ...], str]] = {
    "a panic": (
        lambda file: file.update(pre_tokenizer={"type": "FixedLength", "length": 0}),
        (1,), "Panic",
    ),
    "an abort": (
        normalized({"type": "Precompiled", "precompiled_charsmap": "/////w=="}),
        (-signal.SIGABRT,), "ended its process",
    ),
    "memory without end": (
        normalized(*[replaced("n", "n" * 20_000)] * 2), (-signal.SIGABRT,), "ended its process",
    ),
    "time without end": (
        normalized(*[replaced("n", "nn")] * 40), (None, -signal.SIGABRT), "took longer than 3 s",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [pytest.param(x, marks=pytest.mark.thorough) if "time" in x else x for x in TOKENIZERS],
)
def test_the_tokenizers_library_needs_a_process(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, codes, says = TOKENIZERS[name]
    file, path = json.loads(TOKENIZER), tmp_path / "tokenizer.json"
    change(file)
    path.write_text(json.dumps(file))
    code = "import tokenizers; tokenizers.Tokenizer.from_file(sys.argv[1]).encode('Entia entium')"
    endless = None in codes
    assert alone(code, 5 if endless else 60, path) in codes
    monkeypatch.setattr("refimpl.loading.text.SECONDS", 3.0 if endless else 60.0)
    monkeypatch.setattr("refimpl.loading.text.MEMORY", LIMIT)

    def encode() -> None:
        TextTokenizer(path, path.read_bytes()).encode("Entia entium")

    error = refusal_of(encode, says=says, remedy="--tokens")
    assert f"{path} is not a tokenizer" in error.problem


def graph(*nodes: onnx.NodeProto, functions: Any = (), **numbers: Any) -> onnx.ModelProto:
    """A graph from token ids, as floats in `x`, to logits."""
    value, cast = (
        helper.make_tensor_value_info,
        helper.make_node("Cast", ["token_ids"], ["x"], to=1),
    )
    inside = [numpy_helper.from_array(np.asarray(x), name) for name, x in numbers.items()]
    made = helper.make_graph(
        [cast, *nodes], "g", [value("token_ids", TensorProto.INT64, ["b", "s"])],
        [value("logits", TensorProto.FLOAT, None)], inside,
    )  # fmt: skip
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
    return helper.make_model(made, opset_imports=imports, functions=functions, ir_version=10)


def endless() -> onnx.ModelProto:
    value, node = helper.make_tensor_value_info, helper.make_node
    body = helper.make_graph(
        [node("Identity", ["go"], ["on"]), node("Identity", ["h"], ["y"])], "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []),
         value("h", TensorProto.FLOAT, None)],
        [value("on", TensorProto.BOOL, []), value("y", TensorProto.FLOAT, None)],
    )  # fmt: skip
    return graph(node("Loop", ["", "yes", "x"], ["logits"], body=body), yes=True)


def doubling() -> onnx.ModelProto:
    """Functions of which each calls the next twice: 2^40 nodes when they are put in place."""
    node, imports = helper.make_node, [helper.make_opsetid("own", 1)]
    functions = [
        helper.make_function(
            "own", f"f{i}", ["a"], ["c"],
            [node(f"f{i + 1}", [a], [b], domain="own") for a, b in (("a", "b"), ("b", "c"))]
            if i < 39 else [node("Neg", ["a"], ["c"])],
            [*imports, helper.make_opsetid("", 21)],
        )
        for i in range(40)
    ]  # fmt: skip
    return graph(node("f0", ["x"], ["logits"], domain="own"), functions=functions)


def quotient() -> onnx.ModelProto:
    """The one quotient of integers that does not fit into 64 bits."""
    node = helper.make_node
    return graph(
        node("Div", ["a", "b"], ["q"]), node("Cast", ["q"], ["logits"], to=1),
        a=np.array([-(2**63)]), b=np.array([-1]),
    )  # fmt: skip


# The graph, and how the runtime's own process ends.
GRAPHS: dict[str, tuple[Callable[[], onnx.ModelProto], tuple[int | None, ...], str]] = {
    "a quotient": (quotient, (-signal.SIGFPE,), "ended its process"),
    "a loop without an end": (endless, (None,), "took longer than 3 s"),
    "functions that double": (doubling, (None, 1, -signal.SIGABRT), ""),
}


@pytest.mark.parametrize(
    "name",
    [x if x == "a quotient" else pytest.param(x, marks=pytest.mark.thorough) for x in GRAPHS],
)
def test_onnxruntime_needs_a_process(name: str, tmp_path: Path) -> None:
    make, codes, says = GRAPHS[name]
    path = tmp_path / "graph.onnx"
    onnx.save(make(), path)
    code = (
        "import numpy, onnxruntime\nprovider = ['CPUExecutionProvider']\n"
        "session = onnxruntime.InferenceSession(sys.argv[1], providers=provider)\n"
        "session.run(None, {'token_ids': numpy.zeros((1, 4), int)})\n"
    )
    assert alone(code, 5, path) in codes
    assert says in refused("validate", LLAMA, "--graph", path, "--time-limit", 3)


def test_a_graph_without_an_end_has_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute, and more for a large model or many tokens, unless --time-limit says otherwise."""
    path = tmp_path / "graph.onnx"
    onnx.save(endless(), path)
    monkeypatch.setattr("refimpl.onnx.session.SECONDS", 4.0)
    assert "took longer than 4 s" in refused("validate", LLAMA, "--graph", path)


def library(action: str, folder: Path) -> None:
    """Put a library of tokenizers into a folder that does this with a file."""
    (folder / "tokenizers.py").write_text(
        "import os, sys, time\n"
        "class Tokenizer:\n"
        "    @classmethod\n"
        "    def from_buffer(cls, content):\n"
        f"        print('noise'); print('noise', file=sys.stderr); {action}\n"
        "        return cls()\n"
        "    def no_truncation(self): pass\n"
        "    def no_padding(self): pass\n"
        "    def encode_batch_fast(self, texts, **options):\n"
        "        return [self]\n"
        "    ids, sequence_ids, offsets = [1, 2], [0], []\n"
    )


ACTIONS = dict(cases("running", "actions"))


@pytest.mark.parametrize("fault", ACTIONS)
def test_whatever_the_library_does_is_our_error(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    action, says = ACTIONS[fault]
    library(action, tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("refimpl.loading.text.SECONDS", 2.0)
    started = time.monotonic()
    error = refusal_of(TextTokenizer, Path("t.json"), TOKENIZER, says=says, remedy="--tokens")
    assert "t.json is not a tokenizer" in error.problem
    assert len(error.problem) < 3000
    assert time.monotonic() - started < 10


def test_a_script_without_a_guard_reads_a_text(tmp_path: Path) -> None:
    """The process of the library does not run the user's script."""
    script = tmp_path / "script.py"
    words = (FIXTURES / "text.txt", LLAMA / "tokenizer.json", 2, 8)
    arguments = ", ".join(repr(str(x) if isinstance(x, Path) else x) for x in words)
    script.write_text(
        f"from refimpl import text_tokens\nprint(text_tokens({arguments}).ids.shape)\n"
    )
    assert ran(program=(sys.executable, str(script))) == "(2, 8)\n"


@needs_proc
def test_a_library_does_not_outlive_us(tmp_path: Path) -> None:
    """Our process is killed while the library is at work."""
    os.mkfifo(tmp_path / "pipe")
    words = f"io.open, {str(tmp_path / 'pipe')!r}, name='', seconds=60, refused=('', '')"
    code = f"import io; from refimpl.running.isolation import Isolated; Isolated({words})"
    with subprocess.Popen([sys.executable, "-c", code], env=ENV) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while len(children.read_text().split()) < 2:  # that of multiprocessing, and ours
            assert process.poll() is None
            time.sleep(0.01)
        status = Path(f"/proc/{children.read_text().split()[1]}/status")
        process.kill()
    until = time.monotonic() + 10
    while status.exists() and "zombie" not in status.read_text():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_ctrl_c_ends_a_graph_without_an_end(tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    onnx.save(endless(), path)
    with started("validate", LLAMA, "--graph", path, "--time-limit", 600) as process:
        timer = Timer(4, process.send_signal, [signal.SIGINT])
        timer.start()
        _, err = process.communicate(timeout=100)  # of the 600 that the graph may take
    assert process.returncode == 130
    assert "Traceback" not in err

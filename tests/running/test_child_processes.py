"""Libraries run in processes of their own, and nothing that they do there harms ours."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
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


def graph(*nodes: onnx.NodeProto, **numbers: Any) -> onnx.ModelProto:
    """A graph from token ids, as floats in `x`, to logits."""
    value, cast = (
        helper.make_tensor_value_info,
        helper.make_node("Cast", ["token_ids"], ["x"], to=1),
    )
    inside = [
        numpy_helper.from_array(np.asarray(x), name) for name, x in numbers.items()
    ]
    made = helper.make_graph(
        [cast, *nodes],
        "g",
        [value("token_ids", TensorProto.INT64, ["b", "s"])],
        [value("logits", TensorProto.FLOAT, None)],
        inside,
    )
    return helper.make_model(
        made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )


def endless() -> onnx.ModelProto:
    value, node = helper.make_tensor_value_info, helper.make_node
    body = helper.make_graph(
        [node("Identity", ["go"], ["on"]), node("Identity", ["h"], ["y"])],
        "body",
        [
            value("i", TensorProto.INT64, []),
            value("go", TensorProto.BOOL, []),
            value("h", TensorProto.FLOAT, None),
        ],
        [value("on", TensorProto.BOOL, []), value("y", TensorProto.FLOAT, None)],
    )
    return graph(node("Loop", ["", "yes", "x"], ["logits"], body=body), yes=True)


def quotient() -> onnx.ModelProto:
    """The one quotient of integers that does not fit into 64 bits."""
    node = helper.make_node
    return graph(
        node("Div", ["a", "b"], ["q"]),
        node("Cast", ["q"], ["logits"], to=1),
        a=np.array([-(2**63)]),
        b=np.array([-1]),
    )


@pytest.fixture
def endless_graph(tmp_path: Path) -> Path:
    onnx.save(endless(), path := tmp_path / "graph.onnx")
    return path


def test_a_graph_that_ends_its_process_is_refused(tmp_path: Path) -> None:
    onnx.save(quotient(), path := tmp_path / "graph.onnx")
    assert "ended its process" in refused("validate", LLAMA, "--graph", path)


def test_a_graph_without_an_end_has_one(
    endless_graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A minute, and more for a large model or many tokens, unless --time-limit says otherwise."""
    words = ("validate", LLAMA, "--graph", endless_graph)
    monkeypatch.setattr("refimpl.onnx.session._SECONDS", 0.5)
    assert "took longer than 0.5 s" in refused(*words)
    assert "took longer than 0.4 s" in refused(*words, "--time-limit", 0.4)


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


@pytest.mark.parametrize(("fault", "case"), cases("running", "actions"))
def test_whatever_the_library_does_is_our_error(
    fault: str, case: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    action, says = case
    library(action, tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("refimpl.loading.text.SECONDS", 1.0)
    monkeypatch.setattr("refimpl.loading.text.MEMORY", 1 << 30)
    started = time.monotonic()
    error = refusal_of(
        TextTokenizer, Path("t.json"), TOKENIZER, says=says, remedy="--tokens"
    )
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


def wait_for_child(process: "subprocess.Popen[Any]") -> str:
    """Wait until a process has a child beside that of multiprocessing; the child's number."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while len(found := children.read_text().split()) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    return found[1]


@needs_proc
def test_a_library_does_not_outlive_us(tmp_path: Path) -> None:
    """Our process is killed while the library is at work."""
    os.mkfifo(tmp_path / "pipe")
    words = (
        f"io.open, {str(tmp_path / 'pipe')!r}, name='', seconds=60, refused=('', '')"
    )
    code = (
        f"import io; from refimpl.running.isolation import Isolated; Isolated({words})"
    )
    with subprocess.Popen([sys.executable, "-c", code], env=ENV) as process:
        status = Path(f"/proc/{wait_for_child(process)}/status")
        process.kill()
    until = time.monotonic() + 10
    while status.exists() and "zombie" not in status.read_text():
        assert time.monotonic() < until
        time.sleep(0.05)


@needs_proc
def test_ctrl_c_ends_a_graph_without_an_end(endless_graph: Path) -> None:
    words = ("validate", LLAMA, "--graph", endless_graph, "--time-limit", 600)
    with started(*words) as process:
        wait_for_child(process)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=100)  # of the 600 that the graph may take
    assert process.returncode == 130
    assert "Traceback" not in err

"""Which device runs a graph: CUDA only if it works, and a message where it was asked for."""

import sys
from dataclasses import replace
from typing import Any

import pytest
from conftest import FIXTURES
from program import ran, refused

from refimpl.errors import RefimplError
from refimpl.onnx import session
from refimpl.onnx.session import Session, onnxruntime

WORDS = ("validate", FIXTURES / "llama", "--dtype", "float32", "--seq-len", 5)


def against(*words: object) -> str:
    """What validate says that it compared with."""
    (line,) = (x for x in ran(*WORDS, *words).splitlines() if x.startswith("against"))
    return line


def test_without_a_gpu_the_cpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime(), "get_available_providers", lambda: [session.CPU])
    assert against().endswith(", cpu")
    error = refused(*WORDS, "--device", "cuda")
    assert "CUDAExecutionProvider is not installed" in error
    assert "pip install onnxruntime-gpu" in error


@pytest.mark.parametrize("works", [False, True])
def test_a_gpu_is_taken_if_it_loads_the_graph(works: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = session._open

    def on_gpu(graph: bytes, provider: str, *others: Any) -> Session:
        if provider == session.CPU:
            return opened(graph, provider, *others)
        if not works:
            raise RefimplError("out of memory", "a larger GPU", "use another")
        return replace(opened(graph, session.CPU, *others), runtime="a test, cuda")

    monkeypatch.setattr(onnxruntime(), "get_available_providers", lambda: [session.CUDA])
    monkeypatch.setattr(session, "_open", on_gpu)
    assert against().endswith(", cuda" if works else ", cpu")
    assert against("--device", "cpu").endswith(", cpu")
    if works:
        assert against("--device", "cuda").endswith(", cuda")
    else:
        assert "out of memory" in refused(*WORDS, "--device", "cuda")


def test_a_missing_runtime_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    error = refused(*WORDS)
    assert "onnxruntime: not installed" in error
    assert "pip install 'refimpl[onnx]'" in error

"""Which device runs a graph: CUDA only if it works, and a message where it was asked for."""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from conftest import FIXTURES
from program import ran, refused
from refusals import refusal_of

from refimpl.errors import RefimplError
from refimpl.onnx import session
from refimpl.onnx.session import Session, onnxruntime, uses_gpu

WORDS = ("validate", FIXTURES / "llama", "--dtype", "float32", "--seq-len", 5)
Gpu = Callable[[Callable[[bytes], bool]], None]


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """A provider of CUDA's name that loads some graphs, and runs them on the CPU."""
    opened = session._open

    def installed(takes: Callable[[bytes], bool]) -> None:
        def on_gpu(graph: bytes, provider: str, *others: Any) -> Session:
            if provider == session.CUDA and not takes(graph):
                raise RefimplError("out of memory", "a larger GPU", "use another")
            on_cpu = opened(graph, session.CPU, *others)
            return replace(on_cpu, runtime="cuda (Test)") if provider == session.CUDA else on_cpu

        providers = [session.CUDA, session.CPU]
        monkeypatch.setattr(onnxruntime(), "get_available_providers", lambda: providers)
        monkeypatch.setattr(session, "_open", on_gpu)
        session._reason_against_cuda.cache_clear()

    return installed


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


def test_a_gpu_that_does_not_work_is_not_taken(a_gpu: Gpu) -> None:
    a_gpu(lambda graph: False)
    assert against().endswith(", cpu")
    assert "does not work (out of memory)" in refused(*WORDS, "--device", "cuda")
    a_gpu(lambda graph: len(graph) < 1000)  # it computes the small product, and not the graph
    assert against().endswith(", cpu")
    assert "out of memory" in refused(*WORDS, "--device", "cuda")


def test_a_gpu_of_nonsense_is_not_taken(a_gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    a_gpu(lambda graph: True)
    assert uses_gpu("auto")
    right = session._open

    def wrong(*arguments: Any) -> Session:
        opened = right(*arguments)
        return replace(opened, run=lambda *inputs: {"y": opened.run(*inputs)["y"] + 1})

    monkeypatch.setattr(session, "_open", wrong)
    session._reason_against_cuda.cache_clear()
    assert not uses_gpu("auto")
    refusal_of(uses_gpu, "cuda", says="3 x 3")


def test_a_gpu_that_works_is_taken_and_named(a_gpu: Gpu) -> None:
    a_gpu(lambda graph: True)
    for words in ((), ("--device", "cuda")):
        assert against(*words).endswith("cuda (Test)")
    assert against("--device", "cpu").endswith(", cpu")


def test_a_missing_runtime_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    error = refused(*WORDS)
    assert "onnxruntime: not installed" in error
    assert "pip install 'refimpl[onnx]'" in error

"""A runtime that is missing."""

import sys

import pytest
from conftest import FIXTURES
from program import refused

WORDS = ("validate", FIXTURES / "llama", "--dtype", "float32", "--seq-len", 5)


def test_a_missing_runtime_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    error = refused(*WORDS)
    assert "onnxruntime: not installed" in error
    assert "pip install 'refimpl[onnx]'" in error

"""An error is short, whatever was wrong: what it lists and quotes is bounded, others counted."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import FIXTURES
from gates import model_of
from processes import ENV, PROGRAM
from program import ran, refused

import refimpl.onnx
from refimpl import RefimplError
from refimpl.cli.options import as_options
from refimpl.errors import LONGEST, MOST_LINES, first_few, listed
from refimpl.loading.samples import random_tokens

LLAMA = FIXTURES / "llama"


def test_the_first_problems_are_listed_and_the_others_counted() -> None:
    error = RefimplError(
        "many:", "none", "correct them", [f"problem {i}" for i in range(900_000)]
    )
    lines = error.problem.split("\n  ")
    assert lines[:2] == ["many:", "problem 0"]
    assert lines[-2:] == [
        f"problem {MOST_LINES - 2}",
        f"and {900_000 - MOST_LINES + 1:,} more",
    ]
    assert len(lines) == 1 + MOST_LINES
    again = pickle.loads(pickle.dumps(error))  # as an error of a child process travels
    assert (str(again), again.args) == (str(error), error.args)
    assert len(pickle.dumps(error)) < 10_000


@pytest.mark.parametrize("number", [0, 1, MOST_LINES])
def test_few_problems_are_all_listed(number: int) -> None:
    problems = [str(i) for i in range(number)]
    assert first_few(problems) == problems
    assert RefimplError("x", "y", "z", problems).problem.split("\n  ")[1:] == problems
    assert listed(problems) == ", ".join(problems)


def test_a_quoted_value_is_cut_and_a_command_is_not() -> None:
    long = "a" * 100_000
    command = f"refimpl inspect {long}"
    error = RefimplError(
        f"key {long} is wrong", long, command, [f"value {long} of a key"] * 3
    )
    first, *others = error.problem.split("\n  ")
    assert first.startswith("key aaa")
    assert first.endswith("aaa is wrong")
    assert others == [others[0]] * 3
    assert max(map(len, (first, error.expected, *others))) <= LONGEST
    assert error.remedy == command


def test_errors_of_a_config_and_an_index_are_short(tmp_path: Path) -> None:
    config = json.loads((FIXTURES / "llama/config.json").read_text())
    more = {f"key_{i}": "v" * 50 for i in range(100_000)} | {"k" * 100_000: "v"}
    (tmp_path / "config.json").write_text(json.dumps(config | more))
    (tmp_path / "model.safetensors").symlink_to(FIXTURES / "llama/model.safetensors")
    said = refused("inspect", tmp_path)
    assert len(said) < 10_000
    assert said.count("not understood") == MOST_LINES - 1
    assert "\n  and 99,982 more\n" in said

    index = tmp_path / "x.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {str(i): f"{i}.safetensors" for i in range(9999)}})
    )
    said = refused("inspect", index)
    assert len(said) < 2_000
    assert ", 18.safetensors, and 9,980 more\n" in said


MISSING: dict[str, tuple[str, tuple[object, ...]]] = {
    "onnx": ("onnx", ("export", LLAMA, "-o", "x.onnx")),
    "onnxruntime": ("onnx", ("validate", LLAMA, "--dtype", "float32", "--seq-len", 5)),
    "tokenizers": ("text", ("score", LLAMA, "--text", FIXTURES / "text.txt")),
    "huggingface_hub": ("hub", ("inspect", "org/tiny")),
    "gguf": ("convert", ("convert", "x.gguf", "-o", "out")),
}


@pytest.mark.parametrize("library", MISSING)
def test_a_missing_library_is_named(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra, words = MISSING[library]
    monkeypatch.chdir(tmp_path)
    Path("x.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(
        refimpl, "onnx", refimpl.onnx
    )  # or the modules imported here stay there
    for name in [name for name in sys.modules if name.startswith("refimpl.onnx")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    assert f"pip install 'refimpl[{extra}]'" in refused(*words)


def test_the_library_names_parameters_and_a_command_its_options() -> None:
    with pytest.raises(RefimplError) as caught:
        random_tokens(264, 1, 0)
    assert caught.value.problem == "`seq_len` 0"
    assert caught.value.remedy == "use `seq_len=1`"
    shown = as_options(caught.value)
    assert (shown.problem, shown.remedy) == ("--seq-len 0", "use --seq-len 1")


def test_a_text_in_place_of_tokens_says_how_to_make_tokens() -> None:
    with pytest.raises(RefimplError, match=r"refimpl\.text_tokens"):
        refimpl.score(model_of("llama"), "text.txt")  # type: ignore[arg-type]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
@pytest.mark.parametrize(
    "words", [("inspect", LLAMA), ("inspect", "nowhere"), ("--help",)]
)
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_stream_that_takes_nothing(words: tuple[object, ...], name: str) -> None:
    with open("/dev/full", "w") as full:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, name: full}
        command = [*PROGRAM, *map(str, words)]
        done = subprocess.run(command, env=ENV, text=True, check=False, **streams)  # type: ignore[call-overload]
    fails = name == "stdout" and "nowhere" not in words
    assert done.returncode == (2 if fails or "nowhere" in words else 0)
    if fails:
        assert "-o" not in done.stderr.split()
        assert done.stderr.count("\n") == 3


def test_a_terminal_of_any_width_is_filled_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "999999999999")
    assert len(ran("score", "--help")) < 1 << 20

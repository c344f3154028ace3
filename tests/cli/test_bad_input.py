"""Input that cannot be used: one clear error, exit code 2, nothing written, nothing touched.

Malformed files of every kind are refused in the tests of `loading` and `tokens`; here are a few of
each kind, and all options.
"""

import errno
import json
import mmap
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from conftest import FIXTURES
from program import Result, refusal, run
from safetensors.numpy import load_file, save_file

from refimpl.running.threads import Progress

SMALL = "--samples 1 --seq-len 4"
WORDS = "Entia non sunt multiplicanda praeter necessitatem.\n" * 4
Change = Callable[[Path], object]


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and time of change of every file under a folder, and every folder."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.lstat().st_mtime_ns)
        if path.is_file()
        else (b"", 0)
        for path in sorted(folder.rglob("*"))
    }


def refused(command: str, *words: str) -> str:
    """Run in the current folder, see it refused and nothing changed; returns the error."""
    before = state(Path())
    error = refusal(run(*command.split(), *([] if "-o " in command else ["-o", "out/new.json"])))
    assert state(Path()) == before
    for word in words:
        assert word in error, error
    return error


@contextmanager
def never(label: str) -> Iterator[Progress]:
    """In the place of the progress bar: fail if any work begins."""

    def began(done: float, total: float) -> None:
        raise AssertionError("the experiment began before the error was found")

    yield began


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a model and other inputs that are valid."""
    shutil.copytree(
        FIXTURES / "llama", tmp_path / "model", ignore=shutil.ignore_patterns("expected*", "prov*")
    )
    (tmp_path / "out").mkdir()
    (tmp_path / "text.txt").write_text(WORDS)
    np.save(tmp_path / "ids.npy", np.arange(200) % 250)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What `refimpl score -o` wrote, with noise and with the pruning perturbation."""
    folder = tmp_path_factory.mktemp("scores")
    for name, options in (("noise", "--eta 0.01,1"), ("pruning", "--perturbation pruning")):
        words = f"--samples 2 --seq-len 6 {options}".split()
        assert run("score", FIXTURES / "llama", *words, "-o", folder / name).code == 0
    return {name: (folder / name).read_text() for name in ("noise", "pruning")}


# ---- options -----------------------------------------------------------------------------------

OPTIONS = {
    "--bogus": "--bogus",
    "extra": "unexpected extra argument",
    "--eta 0": "positive, finite",
    "--eta -0.1": "positive, finite",
    "--eta nan": "positive, finite",
    "--eta inf": "positive, finite",
    "--eta 0.1,1e999": "positive, finite",
    "--eta ,": "numbers separated by commas",
    "--eta 0.1,,1": "numbers separated by commas",
    "--eta big": "--eta 0.01",
    "--eta 0.1,0.10": "each value once",
    "--perturbation pruned": "'gaussian', 'pruning'",
    "--noise-scale channel": "'token', 'sequence'",
    "--noise-shape round": "'isotropic', 'channel'",
    "--norm max": "'token', 'sequence'",
    "--sink drop": "'include', 'exclude'",
    "--draws 0": "at least one draw",
    "--draws many": "--draws",
    "--seed -1": "a seed of 0 or more",
    "--perturbation pruning --eta 0.01": "omit --eta",
    "--perturbation pruning --noise-scale token": "omit --noise-scale",
    "--perturbation pruning --noise-shape channel": "omit --noise-shape",
    "--perturbation pruning --draws 2": "omit --draws",
    "--sparsity -0.1": "a number from 0 to 1",
    "--sparsity 1.01": "a number from 0 to 1",
    "--sparsity nan": "a number from 0 to 1",
    "--sparsity most": "--sparsity",
    "--lo 0.8": "0.8",
    "--hi 0.6": "0.6",
    "--lo 0.9 --hi 0.5": "0.5",
    "--lo nan": "lo nan",
    "--hi 2": "hi 2",
    "--base owls": "'owls'",
    "--base out": "'out'",
    "--base owl --base-option lambda=1": "m, lam",
    "--base owl --base-option m": "NAME=VALUE",
    "--base owl --base-option =5": "NAME=VALUE",
    "--base owl --base-option m=": "NAME=VALUE",
    "--base owl --base-option m=five": "a finite number",
    "--base owl --base-option m=nan": "a finite number",
    "--base owl --base-option m=5 --base-option m=6": "given twice",
    "--base uniform --base-option m=5": "no option",
    "--base dlp --base-option statistic=mode": "mean or median",
    "--base alphapruning --base-option unit=row": "block or linear",
    "--base atp": "--base-option beta=NUMBER",
    "--base atp --base-option beta=0.3": "every block in [0, 1]",
    "--base atp --base-option beta=nan": "a finite number",
    "--correct all": "'absorption', 'arrival', 'divergence', 'none'",
    "--correct arrival": "--perturbation pruning",
    "--correct divergence": "--perturbation pruning",
    "--compat peer --correct absorption": "omit --correct",
    "--compat both": "'exact', 'peer'",
    "--strength nan": "strength nan",
    "--strength 1e9": "strength",
    "--max-correction -1": "max-correction -1",
    "--max-correction 2": "max-correction 2",
    "--correction-scale mean": "'raw', 'max'",
    "--dtype float16": "'float32', 'float64'",
    "--dtype nonsense": "'float32', 'float64'",
    "--threads 0": "1 or more",
    "--threads -2": "1 or more",
    "--threads two": "--threads",
    "--memory nonsense": "a size such as 512M",
    "--memory 0": "a size such as 512M",
    "--memory -1G": "a size such as 512M",
    "--memory nan": "a size such as 512M",
    "--memory 100": "at least 1536 bytes",
    "--samples 0": "at least 1 sample",
    "--seq-len 0": "at least 1 sample",
    "--seq-len 65": "--seq-len 64 or less",
    "--samples few": "--samples",
    "--text text.txt --tokens ids.npy": "--text and --tokens",
    "--config absent.json": "absent.json",
    "--config out": "out",
    "--config text.txt": "text.txt is not JSON",
}


@pytest.mark.parametrize("options", OPTIONS)
def test_options(options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refimpl.cli.score.progress_bar", never)
    given = {word for word in options.split() if word.startswith("--")}
    small = [f"{name} {n}" for name, n in (("--samples", 1), ("--seq-len", 4)) if name not in given]
    refused(f"score model {' '.join(small)} {options}", OPTIONS[options])


def test_what_is_missing_from_the_command_line() -> None:
    for words, message in (
        ("score", "Missing argument 'MODEL'"),
        ("allocate", "Missing argument 'SCORES'"),
        ("score model -o", "requires an argument"),
        ("prune model", "Missing option '-o'"),
        ("trim model", "No such command 'trim'"),
        ("--model model", "No such option"),
    ):
        error = refusal(run(*words.split()))
        assert message in error
        assert "--help" in error


def test_noise_beyond_float32() -> None:
    refused(f"score model {SMALL} --eta 1e38", "beyond the range", "smaller --eta")
    assert run(*f"score model {SMALL} --eta 1e38 --dtype float64".split()).code == 0


def test_a_memory_from_an_error_is_enough() -> None:
    (size,) = re.findall(r"--memory (\d+)", refused(f"score model {SMALL} --memory 1"))
    assert run(*f"score model {SMALL} --memory {size}".split()).code == 0
    refused(f"score model {SMALL} --memory {int(size) - 1}")


# ---- outputs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "output",
    [
        "model/model.safetensors",
        "model/config.json",
        "model/tokenizer.json",
        "model/tokenizer_config.json",
        "text.txt",
        "link",
        "pipe",
        "out",
        "absent/new.json",
        "text.txt/new.json",
    ],
)
def test_outputs(output: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refimpl.cli.score.progress_bar", never)
    (here / "link").symlink_to("model/model.safetensors")
    os.mkfifo(here / "pipe")
    refused(f"score model --text text.txt {SMALL} -o {output}", output)


def test_an_output_that_is_another_input(here: Path, kept: dict[str, str]) -> None:
    shutil.copytree(FIXTURES / "llama_sharded", here / "sharded")
    index = "sharded/model.safetensors.index.json"
    refused(f"score sharded {SMALL} -o {index}", "index.json")
    refused(f"score {index} {SMALL} -o {index}", "index.json")
    refused(f"score model {SMALL} --tokens ids.npy -o ids.npy", "--tokens")
    shutil.copy(here / "model/config.json", here / "other.json")
    refused(f"score model {SMALL} --config other.json -o other.json", "--config")
    (here / "base.json").write_text("[0.7, 0.7, 0.7, 0.7]")
    refused(f"score model {SMALL} --base base.json -o base.json", "--base")
    (here / "scores.json").write_text(kept["noise"])
    refused("allocate scores.json -o scores.json", "SCORES")
    refused("allocate scores.json --base base.json -o base.json", "--base")


def test_a_folder_that_may_not_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    refused(f"score model {SMALL} -o out/new.json", "out/new.json")


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_an_output_that_fails_while_it_is_written(
    reason: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Mock(side_effect=OSError(reason, os.strerror(reason)))
    monkeypatch.setattr(os, "fsync", full)
    refused(f"score model {SMALL} -o out/new.json", os.strerror(reason), "-o")


def test_an_old_output_survives_a_failure(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "out/old.json").write_text("precious")
    monkeypatch.setattr(os, "replace", lambda *paths: os.fspath(os.open("absent/x", os.O_RDONLY)))
    refused(f"score model {SMALL} -o out/old.json", "out/old.json")


# ---- tokens ------------------------------------------------------------------------------------


def tokens(name: str, content: bytes | str | np.ndarray[Any, Any]) -> str:
    """Write a file of tokens or text, named as an option."""
    path = Path(name)
    if isinstance(content, np.ndarray):
        np.save(path, content)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return f"{'--text' if path.suffix == '.txt' else '--tokens'} {name}"


TOKENS: dict[str, tuple[str, bytes | str | np.ndarray[Any, Any], tuple[str, ...]]] = {
    "too large": ("a.npy", np.array([[1, 264, 300, 3]]), ("2 token ids", "264", "from 0 to 263")),
    "negative": ("a.npy", np.array([[1, 2, -1, 3]]), ("1 token id", "-1", "position 2")),
    "huge": ("a.npy", np.full((1, 4), 2**64 - 1, np.uint64), ("18446744073709551615",)),
    "float": ("a.npy", np.ones((1, 4)), ("float64", "int64")),
    "three axes": ("a.npy", np.ones((2, 2, 2), np.int64), ("[2, 2, 2]",)),
    "truncated npy": ("a.npy", b"\x93NUMPY\x01\x00v\x00{'descr'", ("a.npy",)),
    "another format": ("a.csv", "1,2,3,4", (".npy or a .jsonl", "--text")),
    "too few rows": ("a.npy", np.ones((1, 3), np.int64), ("1 rows of 3", "--seq-len 3")),
    "unequal rows": ("a.jsonl", "[1, 2]\n\n[1]\n", ("a.jsonl line 3", "1 ids", "have 2")),
    "a row with null": ("a.jsonl", "[1, null]\n", ("a.jsonl line 1",)),
    "an object": ("a.jsonl", '{"text": "hello"}\n', ("a.jsonl line 1", "input_ids")),
    "empty jsonl": ("a.jsonl", "", ("no ids",)),
    "outside, jsonl": ("a.jsonl", "[1, 2, 3, 264]\n", ("264", "from 0 to 263")),
    "empty text": ("a.txt", "", ("a.txt is empty",)),
    "not UTF-8": ("a.txt", b"caf\xe9", ("a.txt", "byte 3")),
}


@pytest.mark.parametrize("case", TOKENS)
def test_tokens(case: str) -> None:
    name, content, words = TOKENS[case]
    refused(f"score model {SMALL} {tokens(name, content)}", *words)


def test_token_files_that_are_not_there() -> None:
    for option in ("--text absent.txt", "--tokens absent.npy", "--tokens absent.jsonl"):
        refused(f"score model {SMALL} {option}", "absent", "No such file")
    for option in ("--text out", "--tokens out"):
        refused(f"score model {SMALL} {option}", "out")


def test_a_sequence_longer_than_the_model_allows() -> None:
    given = tokens("long.npy", np.ones((2, 65), np.int64))
    error = refused(f"score model {given}", "65", "64")
    (length,) = re.findall(r"--seq-len (\d+)", error)
    assert run(*f"score model {given} --seq-len {length}".split()).code == 0


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        ("--text text.txt", "--samples 9 --seq-len 48"),
        ("--text text.txt", ""),
        ("--tokens ids.npy", "--samples 5 --seq-len 60"),
        ("--tokens rows.jsonl", "--samples 3 --seq-len 5"),
    ],
)
def test_every_number_suggested_for_too_few_tokens_works(given: str, sizes: str) -> None:
    tokens("rows.jsonl", "[1, 2, 3]\n[4, 5, 6]\n")
    remedy = refused(f"score model {given} {sizes}", "at least").split("next: ")[1]
    ways = [re.findall(r"--[\w-]+ \d+", way) for way in remedy.split(" or ")]
    assert all(ways), remedy
    for way in ways:
        assert run(*f"score model {given} {sizes} {' '.join(way)}".split()).code == 0, way


def test_a_text_without_a_tokenizer(here: Path) -> None:
    (here / "model/tokenizer.json").write_text("{}")
    refused(f"score model --text text.txt {SMALL}", "tokenizer.json", "--tokens")
    (here / "model/tokenizer.json").unlink()
    refused(f"score model --text text.txt {SMALL}", "no tokenizer", "--tokens")


def test_a_text_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    refused(f"score model --text text.txt {SMALL}", "refimpl[text]", "--tokens")


# ---- weights -----------------------------------------------------------------------------------

WEIGHTS = Path("model/model.safetensors")
DOWN = "model.layers.1.mlp.down_proj.weight"


def edited(**changes: np.ndarray[Any, Any] | None) -> None:
    """Save the model again with tensors changed, or left out where None."""
    kept = load_file(WEIGHTS) | {name.replace("__", "."): x for name, x in changes.items()}
    save_file({name: tensor for name, tensor in kept.items() if tensor is not None}, WEIGHTS)


def broken(change: Callable[[np.ndarray[Any, Any]], object], name: str = DOWN) -> None:
    """Save the model again with one tensor changed in place."""
    tensor = load_file(WEIGHTS)[name].copy()
    change(tensor)
    edited(**{name: tensor})


FILES: dict[str, tuple[Change, tuple[str, ...]]] = {
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-100]), ("not a whole safetensors",)),
    "overflow": (lambda p: broken(lambda w: w.fill(1e38)), ("beyond the range", "--dtype float64")),
    "integers": (lambda p: edited(**{DOWN: np.ones((32, 44), np.int64)}), (DOWN, "F32")),
    "missing tensor": (lambda p: edited(**{DOWN: None}), (f"{DOWN}: missing", "[32, 44]")),
    "missing tensors": (
        lambda p: edited(**{DOWN: None, "model.norm.weight": None}),
        ("2 ", f"{DOWN}: missing", "model.norm.weight: missing"),
    ),
    "all at once": (
        lambda p: edited(**{DOWN: np.ones(3, np.float32), "b": np.ones(3), "lm_head.weight": None}),
        ("3 ", DOWN, "b: no role", "lm_head.weight: missing"),
    ),
    "NaN": (
        lambda p: broken(lambda w: w.__setitem__((0, slice(3)), np.nan)),
        (f"{DOWN} holds 3 NaN or Inf", "1408"),
    ),
    "NaN in the head": (
        lambda p: broken(lambda w: w.__setitem__((3, 3), np.nan), "lm_head.weight"),
        ("lm_head.weight holds 1 NaN or Inf",),
    ),
    "NaN in the embedding": (
        lambda p: broken(lambda w: w.__setitem__((200, 3), np.nan), "model.embed_tokens.weight"),
        ("model.embed_tokens.weight holds 1 NaN or Inf",),
    ),
    "beyond float32": (
        lambda p: edited(**{DOWN: np.full((32, 44), 1e300)}),
        (DOWN, "--dtype float64"),
    ),
    "quantised (int8)": (
        lambda p: edited(**{DOWN: np.ones((32, 44), np.int8)}),
        ("quantised", "original"),
    ),
}


def only(name: str) -> Change:
    """A folder that holds the weights in another file only."""
    return lambda p: p.rename(p.with_name(name))


FILES |= {
    "no weights": (lambda p: p.unlink(), ("no .safetensors file",)),
    "only .pth": (only("consolidated.00.pth"), (".pth", "save_pretrained")),
    "an adapter": (only("adapter_model.safetensors"), ("adapter", "merge_and_unload")),
    "several files": (
        lambda p: (shutil.copy(p, p.with_name("a.safetensors")), only("b.safetensors")(p)),
        ("a.safetensors, b.safetensors", "name the file itself"),
    ),
    "no config": (lambda p: p.with_name("config.json").unlink(), ("--config", "head counts")),
}


@pytest.mark.parametrize("case", FILES)
def test_weights(case: str) -> None:
    change, words = FILES[case]
    change(WEIGHTS)
    refused(f"score model {SMALL}", *words)


def test_paths_that_hold_no_model(here: Path) -> None:
    refused(f"score absent {SMALL}", "absent: no such file or folder")
    refused(f"score text.txt {SMALL}", "text.txt")
    refused(f"score out {SMALL}", "no .safetensors file")
    (here / "model.gguf").write_bytes(b"GGUF")
    refused(f"score model.gguf {SMALL}", "gguf", "gguf_file")


# ---- config ------------------------------------------------------------------------------------

CONFIGS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "unknown family": ({"model_type": "mamba"}, ("mamba", "llama, ")),
    "no family": ({"model_type": None}, ("model_type", "llama, ")),
    "unknown key": ({"logit_tricks": 3}, ("logit_tricks: not understood", "3")),
    "all at once": (
        {"hidden_act": "mish", "logit_tricks": 3, "rms_norm_eps": -1},
        ("hidden_act", "logit_tricks", "rms_norm_eps"),
    ),
    "another size": ({"intermediate_size": 48}, ("expected shape [32, 48], got [32, 44]",)),
    "another depth": ({"num_hidden_layers": 3}, ("model.layers.3.", "no role claims it")),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configs(case: str) -> None:
    changes, words = CONFIGS[case]
    path = Path("model/config.json")
    given = json.loads(path.read_text()) | changes
    path.write_text(
        json.dumps({k: v for k, v in given.items() if v is not None or k not in changes})
    )
    refused(f"score model {SMALL}", *words)


@pytest.mark.parametrize("text", ["[1]", "[" * 100_000, b"\xff\xfe{}"], ids=range(3))
def test_configs_that_are_no_object(text: str | bytes) -> None:
    Path("model/config.json").write_bytes(text.encode() if isinstance(text, str) else text)
    refused(f"score model {SMALL}", "config.json")


# ---- shards ------------------------------------------------------------------------------------


def outside(name: str) -> Callable[[dict[str, Any]], object]:
    """An index whose first tensor lies elsewhere."""
    return lambda index: index["weight_map"].update({next(iter(index["weight_map"])): name})


INDICES: dict[str, tuple[Callable[[dict[str, Any]], object], tuple[str, ...]]] = {
    "parent": (outside("../model/model.safetensors"), ("outside its folder", "../model")),
    "a folder": (outside("."), ("index.json",)),
    "a tensor too few": (
        lambda index: index["weight_map"].pop("model.norm.weight"),
        ("model.norm.weight", "nothing"),
    ),
}


@pytest.mark.parametrize("case", INDICES)
def test_indices(case: str, here: Path) -> None:
    shutil.copytree(FIXTURES / "llama_sharded", here / "sharded")
    path = here / "sharded/model.safetensors.index.json"
    index = json.loads(path.read_text())
    change, words = INDICES[case]
    change(index)
    path.write_text(json.dumps(index))
    refused(f"score sharded {SMALL}", *words)


# ---- files that may not be read ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("model.safetensors", "score model"),
        ("config.json", "score model"),
        ("text.txt", "score model --text text.txt"),
        ("tokenizer.json", "score model --text text.txt"),
        ("tokenizer_config.json", "score model --text text.txt"),
        ("ids.npy", "score model --tokens ids.npy"),
        ("ids.jsonl", "score model --tokens ids.jsonl"),
        ("base.json", "score model --base base.json"),
        ("scores.json", "allocate scores.json"),
        ("base.json", "allocate scores.json --base base.json"),
    ],
)
def test_a_file_that_may_not_be_read(
    name: str, command: str, here: Path, kept: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "ids.jsonl").write_text("[1, 2, 3, 4]\n")
    (here / "base.json").write_text("[0.7, 0.7, 0.7, 0.7]")
    (here / "scores.json").write_text(kept["noise"])
    really, library = open, sys.modules["refimpl.loading.safetensors_file"].safe_open
    before = state(here)

    def denied(opened: Callable[..., Any]) -> Callable[..., Any]:
        def one(path: Any, *rest: Any, **more: Any) -> Any:
            if Path(str(path)).name == name:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return opened(path, *rest, **more)

        return one

    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda path, mode: os.path.basename(path) != name)
        patched.setattr("builtins.open", denied(really))
        patched.setattr("io.open", denied(really))
        patched.setattr("refimpl.loading.safetensors_file.safe_open", denied(library))
        small = SMALL if command.startswith("score") else ""
        result = run(*command.split(), *small.split(), "-o", "out/new.json")
    error = refusal(result)
    assert name in error
    assert "Permission denied" in error
    assert state(here) == before


# ---- custom bases ------------------------------------------------------------------------------

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
UNITS = {f"blocks.{i}.{name}": 0.7 for i in range(4) for name in LINEARS}
BLOCKS = '"blocks.0": 0.7, "blocks.1": 0.7, "blocks.2": 0.7'
CUSTOM = {
    "a.json": [
        *("", "nonsense", "0.7", "{}", "[]", "[0.7, 0.7, 0.7]", "[0.7, 0.7, 0.7, 0.7, 0.7]"),
        *('[0.7, 0.7, 0.7, "x"]', "[0.7, 0.7, 0.7, null]", "[0.7, 0.7, 0.7, NaN]"),
        *("[0.7, 0.7, 0.7, 1.1]", "[0.7, 0.7, 0.7, -0.1]", "[0.7, 0.7, 0.7, Infinity]"),
        *("[[0.7], [0.7], [0.7], [0.7, 0.8]]", "[[0.7, 0.7], [0.7, 0.7]]", "[" * 100_000),
        *(
            f"[{10**400}]",
            f"{{{BLOCKS}}}",
            f'{{{BLOCKS}, "b": 0.7}}',
            f'{{{BLOCKS}, "blocks.3": []}}',
        ),
        *(json.dumps(UNITS | {"blocks.4.q_proj": 0.7}), json.dumps(UNITS | {"blocks.0": 0.7})),
    ],
    "a.csv": [
        *("", "nonsense", "\n\n", "\x00\n", "0.7\n0.7\n0.7\n", "blocks.0,0.7\n", "a,b,c\n" * 4),
        *("0.7,0.7,0.7,0.7\n", "0.7\n0.7\n0.7\nx\n", "0.7\n0.7\n0.7\n1.5\n", '0.7\n"0.7\n'),
        *("0.7\n0.7\n0.7\n0.7,1\n", "blocks.0,0.7\n" * 4, "a,0.7\nb,0.7\nc,0.7\nd,0.7\n"),
        "blocks.0,0.7\nblocks.1,0.7\nblocks.2,0.7\nblocks.3,\n",
    ],
}


@pytest.mark.parametrize(
    ("name", "text"),
    [(name, text) for name, texts in CUSTOM.items() for text in texts],
    ids=lambda value: value[:24],
)
def test_custom_bases(name: str, text: str, here: Path, kept: dict[str, str]) -> None:
    (here / name).write_text(text)
    (here / "scores.json").write_text(kept["noise"])
    refused(f"allocate scores.json --base {name}", name, "4 numbers", "28")


def test_a_custom_base_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refimpl.cli.score.progress_bar", never)
    Path("a.json").write_text("[0.7, 0.7, 0.7]")
    refused(f"score model {SMALL} --base a.json", "a.json", "4 numbers")
    refused(f"score model {SMALL} --base absent.json", "absent.json")


def test_a_custom_base_that_is_not_utf_8(here: Path, kept: dict[str, str]) -> None:
    (here / "a.csv").write_bytes(b"\xff")
    (here / "scores.json").write_text(kept["noise"])
    refused("allocate scores.json --base a.csv", "a.csv")


# ---- scores ------------------------------------------------------------------------------------

ALLOCATE = {
    "--base owl --base-option m=7": "score again with --base owl --base-option m=7",
    "--base dlp --base-option statistic=median": "--base-option statistic=median",
    "--base alphapruning": "score again with --base alphapruning",
    "--correct arrival": "--perturbation pruning",
    "--correct divergence": "--perturbation pruning",
    "--base atp --base-option beta=0.4": "every block in [0, 1]",
    "--sparsity 2": "a number from 0 to 1",
    "--lo 0.9": "0.9",
    "--eta 0.1": "No such option",
    "--compat peer --correct absorption": "omit --correct",
}


@pytest.mark.parametrize("options", ALLOCATE)
def test_allocations(options: str, here: Path, kept: dict[str, str]) -> None:
    (here / "scores.json").write_text(kept["noise"])
    refused(f"allocate scores.json {options}", ALLOCATE[options])


@pytest.mark.parametrize(
    "options", ["--sparsity 0.6", "--base owl", "--lo 0.1 --base owl", "--correct divergence"]
)
def test_scores_of_the_pruning_perturbation(options: str, here: Path, kept: dict[str, str]) -> None:
    (here / "scores.json").write_text(kept["pruning"])
    refused(f"allocate scores.json {options}", "--perturbation pruning")


def test_scores_that_are_no_scores(here: Path, kept: dict[str, str]) -> None:
    refused("allocate absent.json", "absent.json")
    refused("allocate out", "out")
    for text in ("", "nonsense", "[]", "{}", "null", "[" * 100_000, kept["noise"][:-40], "1e999"):
        (here / "scores.json").write_text(text)
        refused("allocate scores.json", "scores.json")
    (here / "scores.json").write_bytes(b"\xff\xfe")
    refused("allocate scores.json", "scores.json")


REPLACED: tuple[Any, ...] = (None, True, "x", -1, 1.5, 1e308, [], {}, [1], 10**30)


def damaged(given: Any, path: tuple[str | int, ...], value: Any) -> str:
    """Scores with one value replaced, or left out where the value is `...`."""
    whole = json.loads(json.dumps(given))
    place = whole
    for step in path[:-1]:
        place = place[step]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(whole)


def leaves(given: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Paths to all that a document holds; of a list, to its first and last entry."""
    if path:
        yield path
    keys = given if isinstance(given, dict) else sorted({0, len(given) - 1} - {-1})
    for key in keys:
        if isinstance(given[key], dict | list):
            yield from leaves(given[key], (*path, key))
        else:
            yield (*path, key)


def test_a_key_left_out_of_scores(here: Path, kept: dict[str, str]) -> None:
    whole = json.loads(kept["noise"])
    needed = {"format", "model", "family", "num_blocks", "seed", "tokens", "linears", "run"}
    for key in needed:
        (here / "scores.json").write_text(damaged(whole, (key,), ...))
        refused("allocate scores.json", "scores.json", "score again")


@pytest.mark.parametrize("kind", ["noise", "pruning"])
def test_damaged_scores_are_refused_or_make_an_allocation(
    kind: str, here: Path, kept: dict[str, str]
) -> None:
    """Whatever a value is replaced with, there is an allocation or one clear error."""
    whole = json.loads(kept[kind])
    paths = list(leaves(whole))
    for i, path in enumerate(paths):
        for value in (REPLACED[i % len(REPLACED)], REPLACED[(i + 3) % len(REPLACED)], ...):
            (here / "scores.json").write_text(damaged(whole, path, value))
            try:
                result = run("allocate", "scores.json")
            except Exception as error:
                raise AssertionError(f"{path} = {value!r}: {error!r}") from error
            if result.code != 0:
                refusal(result)


# ---- what nobody expects -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (MemoryError("Unable to allocate 9.9 TiB"), ("out of memory", "9.9 TiB", "--memory")),
        (
            OSError(errno.EIO, os.strerror(errno.EIO), "model.safetensors"),
            ("model.safetensors", os.strerror(errno.EIO)),
        ),
    ],
)
def test_faults_of_the_machine(
    fault: Exception, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refimpl.cli.score.score", Mock(side_effect=fault))
    refused(f"score model {SMALL}", *words)


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refimpl.cli.score.score", Mock(side_effect=ZeroDivisionError))
    with pytest.raises(ZeroDivisionError):
        run("score", "model", *SMALL.split())


def started(*words: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run the program as a process of its own."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "refimpl", *words],
        env=os.environ | {"PYTHONPATH": str(FIXTURES.parent), "PYTHONUNBUFFERED": ""},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
        **options,
    )


@pytest.mark.parametrize(
    "words", ["score absent", "allocate model --bogus", f"score model {SMALL} --eta 1e38"]
)
def test_as_a_process(words: str, here: Path) -> None:
    before = state(here)
    done = started(*words.split(), "-o", "out/new.json", stdout=subprocess.PIPE)
    refusal(Result(done.returncode, done.stdout, done.stderr))
    assert state(here) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout() -> None:
    for words in (f"score model {SMALL}", "--help"):
        with open("/dev/full", "w") as full:
            done = started(*words.split(), stdout=full)
        assert "No space left" in refusal(Result(done.returncode, "", done.stderr))


def test_a_limit_on_the_size_of_files(here: Path) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    before = state(here)
    words = f"score model {SMALL} -o out/new.json".split()
    done = started(*words, stdout=subprocess.PIPE, preexec_fn=limited)
    error = refusal(Result(done.returncode, done.stdout, done.stderr))
    assert "out/new.json" in error
    assert "-o" in error
    assert state(here) == before


def test_a_file_that_cannot_be_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    fault = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    monkeypatch.setattr(mmap, "mmap", Mock(side_effect=fault))
    refused(f"score model {SMALL}", "model.safetensors", os.strerror(errno.ENOMEM))

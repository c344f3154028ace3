"""What is fuzzed: a folder with one good input of every kind, and the commands that read each."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal, get_args, get_origin

import mutators
from mutators import BYTES, header_bytes, json_bytes, line_bytes
from server import run_forked

FIXTURES = Path(__file__).parents[2] / "fixtures"
SMALL = ["--samples", "1", "--seq-len", "4"]
WEIGHTS = [["inspect", "model"], ["score", "model", *SMALL], ["export", "model", "-o", "out.onnx"]]
READERS: dict[str, list[list[str]]] = {  # the commands that read a file, by its path
    "model/config.json": [["inspect", "model"], ["score", "model", *SMALL]],
    "model/model.safetensors": WEIGHTS,
    "sharded/model.safetensors.index.json": [["inspect", "sharded"]],
    "model/tokenizer.json": [
        ["eval", "model", "--text", "text.txt", "--window", "8", "--windows", "2"],
        ["eval", "model", "--choices", "q.jsonl"],
    ],
    "model/tokenizer_config.json": [["score", "model", "--text", "text.txt", *SMALL]],
    "pruned/pruning.json": [
        ["inspect", "pruned"], ["report", "scores.json", "pruned/pruning.json", "-o", "out.html"],
    ],
    "text.txt": [["score", "model", "--text", "text.txt", *SMALL]],
    "ids.npy": [["score", "model", "--tokens", "ids.npy", *SMALL]],
    "ids.jsonl": [["eval", "model", "--tokens", "ids.jsonl"]],
    "q.jsonl": [["eval", "model", "--choices", "q.jsonl"]],
    "base.json": [["allocate", "scores.json", "--base", "base.json"]],
    "base.csv": [["allocate", "scores.json", "--base", "base.csv"]],
    "scores.json": [
        ["allocate", "scores.json"], ["report", "scores.json", "-o", "out.html"],
        ["prune", "model", "-o", "out", "--allocation", "scores.json", "--method", "magnitude"],
    ],
    "eval.json": [["report", "scores.json", "eval.json", "-o", "out.html"]],
    "case/case.json": [["check", "case", "case/expected.safetensors", "--only", "embed"]],
    "case/inputs.safetensors": [["check", "case", "case/expected.safetensors", "--only", "embed"]],
    "case/margins.safetensors": [["check", "case", "actual.safetensors", "--only", "blocks.*"]],
    "case/expected.safetensors": [["check", "case", "actual.safetensors", "--only", "blocks.*"]],
    "actual.safetensors": [["check", "case", "actual.safetensors", "--only", "blocks.*"]],
    "model.gguf": [
        ["inspect", "model.gguf"], ["score", "model.gguf", *SMALL],
        ["score", "model.gguf", "--text", "text.txt", *SMALL],
    ],
    "graph.onnx": [
        ["validate", "model", "--graph", "graph.onnx", "--time-limit", "5"],
        ["check", "case", "graph.onnx", "--only", "logits", "--time-limit", "5"],
    ],
}  # fmt: skip
SLOW = ("graph.onnx",)  # a second per case: onnxruntime starts in a process of its own
Mutator = Callable[[bytes, Random], bytes]


@dataclass(frozen=True)
class FuzzCase:
    """A command, and the file that was changed before it, how; or the options that were."""

    words: list[str]
    file: str | None = None
    mutator: str = ""
    content: bytes = b""


def make_folder(folder: Path) -> None:
    """One good input of every kind."""
    folder.mkdir(parents=True)
    for name, source in (("model", "llama"), ("sharded", "llama_sharded"), ("case", "cases/llama")):
        names = [
            p
            for p in (FIXTURES / source).iterdir()
            if not p.name.startswith(("expected.j", "prov"))
        ]
        (folder / name).mkdir()
        for path in names:
            if name == "case" or not path.name.startswith("expected"):
                shutil.copy(path, folder / name / path.name)
    facts = (folder / "case/case.json").read_text().replace('"../../llama"', '"../model"')
    (folder / "case/case.json").write_text(facts)
    (folder / "model/tokenizer_config.json").write_text(
        '{"add_bos_token": true, "bos_token": "<s>"}'
    )
    (folder / "text.txt").write_text("Entia non sunt multiplicanda praeter necessitatem.\n" * 6)
    (folder / "ids.jsonl").write_text("[1, 2, 3, 4]\n[5, 6, 7, 8]\n")
    from gguf_files import gguf_file

    gguf_file(_new(folder / "made"), "llama", tokenizer=True).rename(folder / "model.gguf")
    shutil.rmtree(folder / "made")
    rows = [{"question": "Is it?", "choices": ["yes", "no"], "answer": i} for i in (0, 1)]
    (folder / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "base.json").write_text("[0.7, 0.7, 0.7, 0.7]")
    (folder / "base.csv").write_text("".join(f"blocks.{i},0.7\n" for i in range(4)))
    import numpy as np

    np.save(folder / "ids.npy", np.arange(60) % 250)
    shutil.copy(folder / "case/expected.safetensors", folder / "actual.safetensors")
    for words in (
        ["score", "model", "--samples", "1", "--seq-len", "6", "-o", "scores.json"],
        ["prune", "model", "-o", "pruned", "--sparsity", "0.5", "--method", "magnitude"],
        ["eval", "model", "--tokens", "ids.jsonl", "--choices", "q.jsonl", "-o", "eval.json"],
        ["export", "model", "-o", "graph.onnx", "--weights", "embedded", "--outputs", "logits"],
    ):
        left = run_forked(words, folder)
        assert left.code == 0, left.err
    os.mkfifo(folder / "pipe")
    os.symlink("loop", folder / "loop")
    os.symlink("scores.json", folder / "link.json")


def mutators_of(path: str) -> tuple[Mutator, ...]:
    """The changes that fit a file; those of its form come twice as often."""
    form: dict[str, Mutator] = {
        ".json": json_bytes, ".jsonl": line_bytes, ".safetensors": header_bytes,
    }  # fmt: skip
    own = form.get(Path(path).suffix)
    return BYTES if own is None else (*BYTES, *(own for _ in range(2 * len(BYTES))))


def file_case(folder: Path, random: Random, slow: bool) -> FuzzCase:
    """A changed file, and a command that reads it."""
    names = [name for name in READERS if (name in SLOW) == slow]
    path = random.choice(names)
    mutator = random.choice(mutators_of(path))
    content = mutator((folder / path).read_bytes(), random)
    return FuzzCase(list(random.choice(READERS[path])), path, mutator.__name__, content)


def option_case(random: Random) -> FuzzCase:
    """A command with absurd values of a few of its options, or absurd paths as arguments."""
    name, command = random.choice(commands())
    words, options = [*name.split()], [p for p in command.params if p.param_type_name == "option"]
    for argument in (p for p in command.params if p.param_type_name == "argument"):
        good = {"model": "model", "scores": "scores.json", "files": "scores.json", "case": "case"}
        value = good.get(argument.name, "actual.safetensors")
        words.append(random.choice(mutators.PATHS) if random.random() < 0.2 else value)
    if name in ("score", "explain", "case make", "prune", "validate"):
        words += SMALL
    outputs = [f"{o}" for p in options for o in p.opts if o == "-o"]
    if outputs and random.random() < 0.4:
        words += ["-o", random.choice([*mutators.PATHS, "pipe"])]
    elif name in ("report", "case make", "prune", "export"):
        words += ["-o", {"report": "out.html", "export": "out.onnx"}.get(name, "out")]
    for option in random.sample(options, min(len(options), random.choice((1, 1, 2, 3)))):
        word = option.opts[-1]
        if word in EXCLUDED:
            continue
        words += [word] if option.is_flag else [word, value_of(option, random)]
    return FuzzCase(words, None, "options")


EXCLUDED = ("--help", "--executor", "--device", "--download", "--budget", "-o", "--output")


def value_of(option: object, random: Random) -> str:
    """An absurd value, or sometimes a good one, by the type of an option."""
    kind, name = option.type_descriptor.annotation, option.opts[-1]  # type: ignore[attr-defined]
    if get_origin(kind) is Literal:
        return random.choice([*get_args(kind), "x", ""])
    if name == "--memory":
        return random.choice(mutators.SIZES)
    if kind is int:
        return random.choice(mutators.INTEGERS)
    if kind is float or name == "--eta":
        return random.choice(mutators.NUMBERS)
    return random.choice(mutators.PATHS if kind is Path else [*mutators.TEXTS, *mutators.PATHS])


def commands() -> list[tuple[str, object]]:
    """Every command of the program and its parameters."""
    import typer

    from refimpl.cli.main import app

    found = []
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        found += (
            [(name, command)] if inner is None else [(f"{name} {k}", v) for k, v in inner.items()]
        )
    return found


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder

"""What is fuzzed: a folder with one good input of every kind, and the commands that read each."""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import mutators
import own_records
from mutators import BYTES, KINDS, json_bytes, line_bytes, protobuf_bytes, tensor_bytes
from server import run_forked

FIXTURES = Path(__file__).parents[3] / "fixtures"
RANDOM = ["--tokens", "random"]
SMALL = ["--samples", "1", "--seq-len", "4"]
DRAWN = [*RANDOM, *SMALL]
FAMILIES = (
    *(
        "gemma2",
        "gemma3",
        "gpt2",
        "gpt_neox",
        "opt",
        "phi3_longrope",
        "falcon_alibi",
        "mpt",
    ),
    *(
        "mixtral",
        "qwen2_moe",
        "phimoe",
        "ernie4_5_moe",
        "cohere2",
        "exaone4",
        "llama_yarn",
    ),
    *("gptj", "bloom", "olmo3"),
)
GGUF = ("llama", "gemma3", "granitemoe")
COMMIT = "0123456789" * 4
HUB = "hub/models--org--tiny"
SNAPSHOT = f"{HUB}/snapshots/{COMMIT}"


def _model_commands(model: str) -> list[list[str]]:
    """What reads the weights of a model and computes with them."""
    half, uniform = ["--sparsity", "0.5"], ["--allocation", "uniform"]
    return [
        ["inspect", model],
        ["inspect", model, "--json"],
        ["score", model, *DRAWN],
        ["score", model, *DRAWN, "--correct", "divergence", "--json"],
        ["score", model, *DRAWN, "--perturbation", "pruning", "--base", "owl"],
        ["eval", model, "--tokens", "ids.npy"],
        ["explain", model, *DRAWN],
        ["prune", model, "-o", "out", *half, *uniform, "--pruner", "magnitude"],
        ["prune", model, "-o", "out", *half, *DRAWN],
        ["prune", model, "-o", "out", *DRAWN, "--nm", "2:4", "--pruner", "sparsegpt"],
        ["export", model, "-o", "out.onnx"],
    ]


BENCH = [
    *(
        "bench",
        "model",
        "-o",
        "bench",
        "--bases",
        "uniform",
        "--sparsity",
        "0.5",
        *SMALL,
    ),
    *("--measure-on", "text.txt", "--window", "8", "--windows", "2"),
]
NAMED = {  # names of models and texts
    'x" onload="alert(1)': "model",
    "<b>|$x^2$": "model",
    "$(touch x)": "model",
    "-x": "model",
    "x\x1b[2Jy\nerror: forged": "model",
    "\u202e%s{}{0}": "model",
    "a" * 240: "model",
    ".hidden.part": "model",
    "seeds.txt": "text.txt",
    "bench.jsonl": "text.txt",
    "x\x1b[2J,\n|.txt": "text.txt",
    "seconds": "text.txt",
    "b" * 240: "text.txt",
}
MODELS, NAMED_TEXTS = (
    [name for name, other in NAMED.items() if other == x] for x in ("model", "text.txt")
)
_PRUNED = ["prune", "model", "-o", "out", *DRAWN]
_SHARE, _PATTERN = ["--sparsity", "0.5"], ["--nm", "2:4"]
OF_RECORDS = {  # commands that take a base, or a pruner, of another package
    "base": [
        ["score", "model", *DRAWN, "--base", "own"],
        ["score", "model", *DRAWN, "--base", "own", "--perturbation", "pruning"],
        ["explain", "model", *DRAWN, "--base", "own"],
        [*_PRUNED, *_SHARE, "--allocation", "own"],
        [*_PRUNED, *_SHARE, "--allocation", "own", "--compat", "peer"],
    ],
    "pruner": [
        [*x, "--pruner", "own"]
        for x in (
            [*_PRUNED, *_PATTERN],
            [*_PRUNED, *_SHARE],
            [*_PRUNED, *_PATTERN, "--compat", "peer"],
            [*_PRUNED, *_SHARE, "--allocation", "uniform"],
            [*_PRUNED, *_SHARE, "--allocation", "uniform", "--compat", "peer"],
            ["score", "model", *DRAWN, "--perturbation", "pruning"],
            ["explain", "model", *DRAWN, "--perturbation", "pruning"],
            BENCH,
            ["prune", "model", "-o", "out", *_PATTERN],
        )
    ],
}
CHECK = ["check", "case", "actual.safetensors"]
TRACE = ["check", "model", "trace.npz"]  # what other programs write
TEXT = ["--text", "text.txt"]
COMMANDS: list[list[str]] = [  # on good files
    *(
        words
        for name in ("model", "sharded", *FAMILIES)
        for words in _model_commands(name)
    ),
    *(
        ["case", "make", "model", "-o", "out", *words]
        for words in (DRAWN, [*TEXT, *SMALL])
    ),
    *([word, "model", *TEXT, *SMALL] for word in ("score", "explain")),
    *([word, "model", *SMALL] for word in ("score", "explain")),
    ["eval", "model", *TEXT, "--window", "8"],
    ["score", "model", "--tokens", "ids.npy", *SMALL],
    ["prune", "model", "--tokens", "ids.npy", *SMALL, "-o", "out", *_PATTERN],
    ["inspect", "pruned"],
    ["eval", "pruned", "--tokens", "ids.npy"],
    ["prune", "pruned", "-o", "out", *_SHARE, "--pruner", "magnitude"],
    ["prune", "model", "-o", "pruned", *_PATTERN, "--pruner", "magnitude", "--force"],
    ["allocate", "scores.json"],
    ["allocate", "scores.json", "--base", "owl", "--json"],
    ["allocate", "scores.json", "--base", "base.json"],
    ["allocate", "scores.json", "--correct", "none"],
    ["allocate", "pruning-scores.json", "--base", "owl", "--correct", "divergence"],
    ["prune", "model", "-o", "out", "--allocation", "scores.json"],
    ["prune", "model", "-o", "out", "--allocation", "scores.json", *DRAWN, "--json"],
    *(
        ["plot", *files, "-o", f"out.{kind}"]
        for files in (
            ["pruned"],
            ["scores.json"],
            ["pruning-scores.json"],
            ["scores.json", "pruned"],
            ["eval.json", "pruned"],
            ["scores.json", "eval.json"],
            ["bench/bench.jsonl"],
            ["scores.json", "pruning-scores.json"],
            ["bench", "eval.json"],
        )
        for kind in ("html", "svg")
    ),
    BENCH,
    CHECK,
    [*CHECK, "--only", "embed"],
    ["check", "case", "case/expected.safetensors"],
    TRACE,
    [*TRACE, "--tokens", "ids.npy"],
    [*TRACE, "--names", "names.json"],
    *(["convert", f"{x}.gguf", "-o", "out"] for x in (*GGUF, "split-00001-of-00002")),
    *(["inspect", name] for name in ("org/tiny", SNAPSHOT)),
    *(["score", "org/tiny", *words] for words in (DRAWN, [*TEXT, *SMALL])),
    ["validate", "model", "--graph", "graph.onnx", "--time-limit", "5", *DRAWN],
    ["fuzz", "--family", "llama", "--cases", "1", "-o", "out", "--", "true"],
    ["vectors", "router", "-o", "out"],
    ["check", "vectors", "vectors/router.safetensors"],
    ["export", "model", "-o", "graph.onnx", "--force"],
    ["validate", "model", "--graph", "beside.onnx", "--time-limit", "5", *DRAWN],
    ["validate", "model", "--graph", "beside.onnx", "--dtype", "float32", *DRAWN],
]
ALSO = {
    "org/tiny": HUB,
    "split-00001-of-00002.gguf": "split-00002-of-00002.gguf",
}  # as read


@cache
def readers(folder: Path) -> dict[str, list[list[str]]]:
    """The commands that name each file of a folder, or a folder around it."""
    found: dict[str, list[list[str]]] = {}
    for path in sorted(
        x for x in folder.rglob("*") if x.is_file() and not x.is_symlink()
    ):
        name = str(path.relative_to(folder))
        around = {name, name.removesuffix(".data"), *map(str, Path(name).parents)} - {
            "."
        }
        some = [x for x in COMMANDS if around & {*x, *(ALSO.get(word) for word in x)}]
        found |= {name: some} if some else {}
    return found


# A second per case: onnxruntime starts in a process of its own, `check` computes every step.
SLOW = (
    *("graph.onnx", "beside.onnx.data", "actual.safetensors", "names.json"),
    "trace.npz",
)
READ_BY_OTHERS = (f"{HUB}/refs/main",)  # by huggingface_hub, from its own cache
OF_A_KIND = 0.15  # share of changed files that are links, pipes, devices and such
Mutator = Callable[[bytes, Random], bytes]


@dataclass(frozen=True)
class FuzzCase:
    """A command, and what changed before it: a file and how, options, a record."""

    words: list[str]
    file: str | None = None
    mutator: str = ""
    content: bytes = b""
    record: tuple[str, str, str] | None = None  # as `own_records.CHOSEN`


def make_folder(folder: Path) -> None:
    """One good input of every kind."""
    folder.mkdir(parents=True)
    _make_model(folder / "model")
    shutil.copytree(FIXTURES / "llama_sharded", folder / "sharded")
    (folder / "model/tokenizer_config.json").write_text(
        '{"add_bos_token": true, "bos_token": "<s>"}'
    )
    (folder / "model/special_tokens_map.json").write_text('{"bos_token": "<s>"}')
    (folder / "text.txt").write_text(
        "Entia non sunt multiplicanda praeter necessitatem.\n" * 6
    )
    for name in FAMILIES:
        (folder / name).mkdir()
        for file in ("config.json", "model.safetensors"):
            shutil.copy(FIXTURES / name / file, folder / name)
    (folder / HUB / "refs").mkdir(parents=True)
    (folder / HUB / "refs/main").write_text(COMMIT)
    shutil.copytree(folder / "model", folder / SNAPSHOT)
    _make_gguf(folder)
    (folder / "base.json").write_text("[0.7, 0.7]")
    import numpy as np

    np.save(folder / "ids.npy", np.arange(60) % 250)
    pruning = ["--perturbation", "pruning", "--base", "owl", "--correct", "divergence"]
    for words in (
        ["score", "model", "--samples", "1", "--seq-len", "6", "-o", "scores.json"],
        ["score", "model", *DRAWN, *pruning, "-o", "pruning-scores.json"],
        [
            "prune",
            "model",
            "-o",
            "pruned",
            "--sparsity",
            "0.5",
            "--pruner",
            "magnitude",
        ],
        ["eval", "model", "--tokens", "ids.npy", "-o", "eval.json"],
        ["export", "model", "-o", "beside.onnx"],
        ["case", "make", "model", "-o", "case", *DRAWN],
        ["vectors", "router", "-o", "vectors"],
        BENCH,
    ):
        left = run_forked(words, folder)
        assert left.code == 0, left.err
    import onnx

    onnx.save(
        onnx.load(folder / "beside.onnx"), folder / "graph.onnx"
    )  # its weights are in it
    shutil.copy(folder / "case/expected.safetensors", folder / "actual.safetensors")
    _make_trace(folder)
    for name, other in NAMED.items():
        copied = shutil.copytree if (folder / other).is_dir() else shutil.copy
        copied(folder / other, folder / name)
    os.mkfifo(folder / "pipe")
    os.symlink("loop", folder / "loop")
    os.symlink("scores.json", folder / "link.json")


def _make_model(folder: Path) -> None:
    """The first two blocks of a fixture, and its tokenizer."""
    from checkpoints import arrays_of, config_of, write

    arrays = {
        n: x
        for n, x in arrays_of("llama").items()
        if not re.search(r"layers\.[23]\.", n)
    }
    write(folder, arrays, config_of("llama", num_hidden_layers=2))
    shutil.copy(FIXTURES / "llama/tokenizer.json", folder)


def _make_trace(folder: Path) -> None:
    """Arrays of another program, and names of modules."""
    import numpy as np
    from safetensors.numpy import load_file

    steps = load_file(folder / "case/expected.safetensors")
    ids = load_file(folder / "case/inputs.safetensors")["token_ids"]
    some = {"e": steps["embed"], "embed": steps["embed"], "logits": steps["logits"]}
    np.savez(folder / "trace.npz", token_ids=ids, **some)
    names = {
        "blocks.{}.attn_norm": "layers.{}.input_layernorm",
        "embed": ["layers.0:input", "e"],
    }
    (folder / "names.json").write_text(json.dumps(names))


def _make_gguf(folder: Path) -> None:
    """Models, one with a tokenizer, and one in parts."""
    from gguf_files import gguf_file

    made = folder / "made"
    for name in GGUF:
        made.mkdir()
        gguf_file(made, name, tokenizer=name == "llama").rename(folder / f"{name}.gguf")
        shutil.rmtree(made)
    made.mkdir()
    gguf_file(made, "llama", shard_tensors=30)
    for path in made.glob("*.gguf"):
        path.rename(folder / f"split{path.name[-20:]}")
    shutil.rmtree(made)


def mutators_of(path: str) -> tuple[Mutator, ...]:
    """The changes that fit a file; those of its form come twice as often."""
    form: dict[str, Mutator] = {
        ".json": json_bytes,
        ".jsonl": line_bytes,
        ".safetensors": tensor_bytes,
        ".onnx": protobuf_bytes,
    }
    own = form.get(Path(path).suffix)
    return BYTES if own is None else (*BYTES, *(own for _ in range(2 * len(BYTES))))


def file_case(folder: Path, random: Random, slow: bool) -> FuzzCase:
    """A changed file, and a command that reads it."""
    files = readers(folder)
    path = random.choice([x for x in files if (x in SLOW or x[:5] == "case/") == slow])
    words = list(random.choice(files[path]))
    if random.random() < OF_A_KIND and path not in READ_BY_OTHERS:
        return FuzzCase(words, path, random.choice(list(KINDS)))
    mutator = random.choice(mutators_of(path))
    content = mutator((folder / path).read_bytes(), random)
    return FuzzCase(words, path, mutator.__name__, content)


def good_cases() -> list[FuzzCase]:
    """Every command as it is, on good files: what is refused would be fuzzed in vain."""
    return [FuzzCase(words, None, "good") for words in COMMANDS]


def record_case(random: Random) -> FuzzCase:
    """A command with a base or a pruner of another package."""
    sort, record = own_records.choice(random)
    entry = random.choice([*own_records.ENTRIES]) if random.random() < 0.1 else "own"
    words = random.choice(OF_RECORDS[sort])
    return FuzzCase(
        [entry if x == "own" else x for x in words], None, sort, record=record
    )


def option_case(random: Random) -> FuzzCase:
    """A command with absurd values of a few of its options, or absurd names and paths."""
    name, command = random.choice([*commands().items()])
    words = list(
        random.choice([x for x in COMMANDS if x[: name.count(" ") + 1] == name.split()])
    )
    for i, word in enumerate(words):
        others = {
            "model": [*MODELS, "sharded", "org/tiny"],
            "text.txt": NAMED_TEXTS,
        }.get(word, [])
        if (others or "." in word or word == "out") and random.random() < 0.3:
            words[i] = random.choice([*others, *random.sample(mutators.PATHS, 8)])
    options = [p for p in command.params if p.param_type_name == "option"]
    for option in random.sample(
        options, min(len(options), random.choice((1, 1, 2, 3)))
    ):
        word = option.opts[-1]
        if word not in EXCLUDED:
            words += [word] if option.is_flag else [word, value_of(option, random)]
    return FuzzCase(words, None, "options")


EXCLUDED = ("--help", "--download", "-o", "--output")


def value_of(option: Any, random: Random) -> str:
    """An absurd value, or sometimes a good one, by the type of an option."""
    kind, name = option.type, option.opts[-1]
    if words := getattr(kind, "choices", None):
        return random.choice([*words, "x", ""])
    if name == "--memory":
        return random.choice(mutators.SIZES)
    if kind.name == "integer":
        return random.choice(mutators.INTEGERS)
    if kind.name == "float" or name == "--eta":
        return random.choice(mutators.NUMBERS)
    texts = [] if kind.name == "path" else mutators.TEXTS
    return random.choice([*texts, *mutators.PATHS])


@cache
def commands() -> dict[str, Any]:
    """Every command of the program by name, with its parameters."""
    from pages import commands

    return commands()

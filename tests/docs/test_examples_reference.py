"""The reference pages say what the program does: options, fields, names."""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import altered
from cli_page import PAGE, commands, page_of, pages
from conftest import FIXTURES
from program import run

from refimpl import Noise, Probes, Request, allocate, read_model, score
from refimpl.allocation.scores_json import document
from refimpl.loading.samples import random_tokens
from refimpl.model.config import BLOCK_EMBED, LINEARS, NORMS, BlockKind
from refimpl.model.forward import MIXERS, forward
from refimpl.model.position_tables import Rope

REFERENCE = PAGE.parent
# Keys are names in these.
OPEN = tuple(
    f"scores.{name}"
    for name in ("linears", "made_for.options", "run.versions", "pruned_at.options", "signals")
)


def test_the_pages_of_the_commands_are_the_programs() -> None:
    for page, text in pages().items():
        assert page.read_text("utf-8") == text, "run python tests/tools/cli_page.py"
        assert "<!-- from the program -->\n" in text
    assert set(PAGE.with_name("commands").iterdir()) == set(map(page_of, commands()))


@pytest.mark.parametrize("name", commands())
def test_a_command_has_examples_that_it_accepts(name: str) -> None:
    command = commands()[name]
    examples = re.findall(rf"^refimpl {name}(.*)$", command.epilog or "", re.MULTILINE)
    assert len(examples) >= 2
    for words in examples:
        assert command.make_context(name, shlex.split(words.replace("CASE", "llama")))


def fields(value: Any, at: str = "", left: tuple[str, ...] = OPEN) -> Iterator[str]:
    """Names of all fields of a document."""
    if isinstance(value, dict):
        for key, inner in value.items():
            name = f"{at}.{key}" if at else key
            yield name
            if name not in left:
                yield from fields(inner, name, left)
    elif isinstance(value, list):
        for inner in value:
            yield from fields(inner, f"{at}[]", left)


def documented(text: str) -> set[str]:
    """Names of the fields in the tables of a page, or of a part of it."""
    rows = re.findall(r"^\| (`.*?) \| .* \|$", text, re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert len(set(names)) == len(names)
    return set(names)


def longer(arrays: dict[str, Any]) -> None:
    """Token 1 becomes a sink: its state is much longer than those of the others."""
    row = (np.arange(264) == 1)[:, None]
    arrays["model.embed_tokens.weight"] = arrays["model.embed_tokens.weight"] * np.where(
        row, np.float32(3000), np.float32(1)
    )


def test_the_page_of_fields_is_complete_and_true(tmp_path: Path) -> None:
    page = (REFERENCE / "scores-json.md").read_text("utf-8")
    model, found = read_model(altered(tmp_path, "llama", longer)), set()
    for samples, plan, request in (
        (2, Noise(eta=(0.01, 0.1)), Request("lsa", correct=None)),
        (1, Probes(), Request("alphapruning", correct="divergence")),
    ):
        tokens = random_tokens(264, samples, 12)
        scores = score(model, replace(tokens, ids=np.insert(tokens.ids, 5, 1, 1)), plan, request)
        made = tuple(allocate(scores, request, i) for i in range(len(scores.sweep)))
        content = document(scores, made)
        found |= set(fields(content))
        signals = content["scores"]["signals"].values()
        found |= {f"scores.signals.*.{key}" for signal in signals for key in signal}
    assert documented(page) == found


LEFT = ("run.versions", "allocation.base_options", "allocation.tokens")  # the same of other pages
FEW = ("--samples", 1, "--seq-len", 12)
LLAMA, PRUNED = FIXTURES / "llama", ("prune", FIXTURES / "llama", "-o")
# Where a part of a page ends or begins, fields with open names, and commands that print it.
PRINTED: dict[str, tuple[str, tuple[str, ...], list[tuple[object, ...]]]] = {
    "pruning-json before": ("inspect", (*LEFT, "before", "measured"), [
        (*PRUNED, "0", "--sparsity", 0.5, *FEW, "--measure"),
        (*PRUNED, "1", "--allocation", "scores.json", *FEW),
        (*PRUNED, "4", "--nm", "2:4", "--pruner", "sparsegpt", *FEW),
        ("prune", FIXTURES / "mixtral", "-o", "2", "--nm", "2:4", "--tokens", "random",
         "--seq-len", 2, "--samples", 1),
        ("prune", "0", "-o", "3", "--nm", "2:4", "--pruner", "random"),
    ]),
    "pruning-json after": ("inspect", ("files",), [("inspect", "half")]),
    "evaluation-json before": ("no other", LEFT, [
        ("eval", LLAMA, "--text", FIXTURES / "text.txt", "--windows", 2),
        ("eval", "half", "--tokens", "ids.npy"),
    ]),
    "graphs-json before": ("validate", ("functions",), [
        ("export", "half", "-o", "y.onnx", "--outputs", "trace")]),
    "graphs-json after": ("validate", OPEN, [("validate", LLAMA, "--graph", "x.onnx")]),
}  # fmt: skip
VISION = {"pruning-json before": {"files.ignored"}}  # tests/loading/test_composites.py


@pytest.mark.parametrize("name", PRINTED)
def test_the_page_of_a_document_is_complete_and_true(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("ids.npy", np.arange(12))
    run("score", LLAMA, *FEW, "-o", "scores.json")
    run(*PRUNED, "half", "--nm", "2:4", "--pruner", "magnitude")
    run("export", "half", "-o", "x.onnx", "--outputs", "trace")
    heading, left, commands = PRINTED[name]
    found = set(VISION.get(name, set()))
    for words in commands:
        result = run(*words, "--json")
        assert (result.code, result.err) == (words[0] == "validate", "")
        if words[0] == "prune":
            record = Path(str(words[3]), "pruning.json").read_text("utf-8")
            assert json.loads(result.out) == json.loads(record)
        found |= set(fields(json.loads(result.out), left=left))
    page = (REFERENCE / f"{name.split()[0]}.md").read_text("utf-8")
    before, _, after = page.partition(f"## `refimpl {heading}")
    assert documented(before if name.endswith("before") else after) == found


POINTS = (
    *BlockKind(None, Rope(1.0, 2)).points,
    *(point for mixer in MIXERS for point in mixer.points),
)


@pytest.mark.parametrize("names", [LINEARS, (*NORMS, "final_norm"), POINTS])
def test_the_page_of_names_has_them_all(names: tuple[str, ...]) -> None:
    words = re.findall(r"`([\w.]+)`", (REFERENCE / "names.md").read_text("utf-8"))
    assert set(names) <= set(words)


def test_the_page_of_names_lists_trace_points_in_order() -> None:
    page = (REFERENCE / "names.md").read_text("utf-8").partition("## Trace points")[2]
    page = page.partition("Blocks with another mixer")[0]
    rows = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    trace = forward(read_model(FIXTURES / "llama"), [[1, 2]], trace=True).trace
    other_blocks = ("blocks.0", "blocks.1", "blocks.2")
    last_block = [name.split(".")[-1] for name in trace if not name.startswith(other_blocks)]
    lacking = {"experts_norm", "router_norm", *BLOCK_EMBED}  # in llama
    assert lacking < {*listed}
    assert [name for name in listed if name not in lacking] == last_block

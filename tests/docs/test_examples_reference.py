"""The reference pages say what the program does: options, fields, names."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_page import PAGE, commands, page_of, pages
from conftest import FIXTURES
from program import ran, run

from refimpl import Perturbation, Request, allocate, read_model, score
from refimpl.allocation.scores_json import document
from refimpl.model.config import LINEARS, NORMS
from refimpl.model.forward import TRACE_POINTS, forward
from refimpl.tokens import random_tokens

REFERENCE = PAGE.parent
# Keys are names in these.
OPEN = ("linears", "base_options", "run.versions", "perturbed_at.options", "signals")
LEFT = ("run.versions", "allocation.base_options", "allocation.tokens")  # the same of other pages


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
    """Names of all fields of a document; those of a sweep's blocks are those of blocks."""
    if isinstance(value, dict):
        for key, inner in value.items():
            name = f"{at}.{key}" if at else key
            yield name
            if name not in left:
                yield from fields(inner, "blocks" if name == "sweep[].blocks" else name, left)
    elif isinstance(value, list):
        for inner in value:
            yield from fields(inner, f"{at}[]", left)


def documented(text: str) -> set[str]:
    """Names of the fields in the tables of a page, or of a part of it."""
    rows = re.findall(r"^\| (`.*?) \| .* \|$", text, re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert len(set(names)) == len(names)
    return set(names)


def printed(*words: object) -> Any:
    """What a command prints with --json."""
    return json.loads(ran(*words, "--json"))


def test_the_page_of_fields_is_complete_and_true() -> None:
    page = (REFERENCE / "scores-json.md").read_text("utf-8")
    model, found = read_model(FIXTURES / "llama"), set()
    for samples, plan, request in (
        (2, Perturbation(eta=(0.01, 0.1)), Request("lsa")),
        (1, Perturbation("pruning"), Request("alphapruning", correct="divergence")),
    ):
        scores = score(model, random_tokens(264, samples, 12), plan, request)
        made = tuple(allocate(scores, request, i) for i in range(len(scores.sweep)))
        content = document(scores, made)
        found |= set(fields(content))
        found |= {f"signals.*.{key}" for signal in content["signals"].values() for key in signal}
    assert documented(page) == found


def test_the_page_of_pruning_json_is_complete_and_true(tmp_path: Path) -> None:
    page = (REFERENCE / "pruning-json.md").read_text("utf-8").partition("## `refimpl inspect")[0]
    dense, few = FIXTURES / "llama", ("--samples", 1, "--seq-len", 12)
    allocation = tmp_path / "allocation.json"
    run("score", dense, *few, "-o", allocation)
    found: set[str] = set()
    for number, (model, *words) in enumerate(
        (
            (dense, "--sparsity", 0.5, *few, "--measure"),
            (dense, "--allocation", allocation, "--method", "sparsegpt", *few),
            (
                FIXTURES / "mixtral",
                "--nm",
                "2:4",
                "--tokens",
                "random",
                "--seq-len",
                2,
                "--samples",
                1,
            ),
            (tmp_path / "0", "--nm", "2:4", "--method", "random"),
        )
    ):
        out = tmp_path / str(number)
        record = printed("prune", model, "-o", out, *words)
        assert record == json.loads((out / "pruning.json").read_text("utf-8"))
        found |= set(fields(record, left=(*LEFT, "before", "measured")))
    assert isinstance(record["before"], dict)
    found.add("files.ignored")  # no fixture has a vision part: tests/loading/test_composites.py
    assert documented(page) == found


def test_the_page_of_inspections_is_complete_and_true(tmp_path: Path) -> None:
    page = (REFERENCE / "pruning-json.md").read_text("utf-8").partition("## `refimpl inspect")[2]
    out = tmp_path / "pruned"
    printed("prune", FIXTURES / "llama", "-o", out, "--nm", "2:4", "--method", "magnitude")
    found = set(fields(printed("inspect", out), left=("files",)))
    assert documented(page) == found


def test_the_page_of_evaluations_is_complete_and_true(tmp_path: Path) -> None:
    page = (REFERENCE / "evaluation-json.md").read_text("utf-8")
    model, ids, asked = FIXTURES / "llama", tmp_path / "ids.npy", tmp_path / "asked.jsonl"
    np.save(ids, np.arange(12))
    asked.write_text('{"question": "A stone", "choices": ["sinks", "swims"], "answer": 0}')
    found: set[str] = set()
    pruned = tmp_path / "pruned"
    ran("prune", model, "-o", pruned, "--sparsity", 0.5, "--method", "magnitude")
    for words in (
        (model, "--text", FIXTURES / "text.txt", "--windows", 2),
        (pruned, "--tokens", ids),
    ):
        found |= set(fields(printed("eval", *words, "--choices", asked), left=LEFT))
    assert documented(page) == found


def test_the_page_of_graphs_is_complete_and_true(tmp_path: Path) -> None:
    exported, _, validated = (
        (REFERENCE / "graphs-json.md").read_text("utf-8").partition("## `refimpl validate --json`")
    )
    half, graph = tmp_path / "half", tmp_path / "x.onnx"
    printed("prune", FIXTURES / "llama", "-o", half, "--nm", "2:4", "--method", "magnitude")
    made = printed("export", half, "-o", graph, "--experiment")
    assert documented(exported) == set(fields(made, left=("functions",)))
    result = run("validate", FIXTURES / "llama", "--graph", graph, "--json")
    assert (result.code, result.err) == (1, "")
    assert documented(validated) == set(fields(json.loads(result.out)))


@pytest.mark.parametrize("names", [LINEARS, (*NORMS, "final_norm"), TRACE_POINTS])
def test_the_page_of_names_has_them_all(names: tuple[str, ...]) -> None:
    words = re.findall(r"`([\w.]+)`", (REFERENCE / "names.md").read_text("utf-8"))
    assert set(names) <= set(words)


def test_the_page_of_names_lists_trace_points_in_order() -> None:
    page = (REFERENCE / "names.md").read_text("utf-8").partition("## Trace points")[2]
    rows = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    trace = forward(read_model(FIXTURES / "llama"), [[1, 2]], trace=True).trace
    other_blocks = ("blocks.0", "blocks.1", "blocks.2")
    last_block = [name.split(".")[-1] for name in trace if not name.startswith(other_blocks)]
    assert listed == last_block

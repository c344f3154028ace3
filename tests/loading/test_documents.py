"""Documents: what is accepted comes back as it was, and everything else names its place.

`PYTHONPATH=.:tests python tests/loading/test_documents.py` writes their JSON Schemas.
"""

import inspect
import json
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jsonschema
import msgspec
import numpy as np
import pytest
from candidates import write_arrays
from conftest import FIXTURES
from documents import changed
from hypothesis import given
from hypothesis import strategies as st
from program import ran, refused, run

from refimpl.allocation.request import Noise, Perturbation, Probes
from refimpl.allocation.scores_json import ScoresDocument, parsed_scores
from refimpl.evaluation.evaluate import EvaluationDocument
from refimpl.loading.files.documents import converted, plain
from refimpl.oracle.case_folders import CaseFacts
from refimpl.pruning.record import Pruning
from refimpl.show.oracle import CheckDocument

LLAMA, FEW = FIXTURES / "llama", ("--samples", 1, "--seq-len", 8)
ONE = ("--only", "embed")
REFERENCE = FIXTURES.parent / "docs" / "reference"


def pruning_of(content: Any) -> Pruning:
    pruning = converted(content, Pruning)
    assert pruning.facts.sparsity >= 0
    return pruning


DOCUMENTS: dict[str, tuple[type, Callable[[Any], Any]]] = {
    "scores": (ScoresDocument, parsed_scores),
    "pruning": (Pruning, pruning_of),
    "evaluation": (EvaluationDocument, lambda x: converted(x, EvaluationDocument)),
    "case": (CaseFacts, lambda x: converted(x, CaseFacts)),
    "check": (CheckDocument, lambda x: converted(x, CheckDocument)),
}
READERS = {name: reader for name, (_, reader) in DOCUMENTS.items()}


@cache
def texts() -> dict[str, str]:
    with TemporaryDirectory() as folder:
        scores, out = Path(folder) / "scores.json", Path(folder) / "out"
        ran("score", LLAMA, *FEW, "--correct", "absorption", "-o", scores)
        ran("prune", LLAMA, "-o", out, "--allocation", scores, "--pruner", "magnitude")
        case, wrong = FIXTURES / "cases" / "llama", Path(folder) / "wrong.safetensors"
        write_arrays(wrong, {"embed": np.zeros((2, 12, 32), np.float32)})
        text = ("--text", FIXTURES / "text.txt", "--window", 8, "--windows", 2)
        return {
            "scores": scores.read_text("utf-8"),
            "pruning": (out / "pruning.json").read_text("utf-8"),
            "evaluation": ran("eval", out, *text, "--json"),
            "case": (case / "case.json").read_text("utf-8"),
            "check": run("check", case, wrong, *ONE, "--json").out,
        }


def meanings(name: str) -> dict[str, str]:
    """The meaning of each field of a class: from its docstring, its options, and comments."""
    modules = [
        module for path, module in sys.modules.items() if path.startswith("refimpl.")
    ]
    kind = next(vars(x)[name] for x in modules if isinstance(vars(x).get(name), type))
    source, options = (
        inspect.getsource(kind),
        getattr(kind, "__dataclass_fields__", {}).values(),
    )
    listed = re.findall(
        r"^ {8}(\w+): ((?:.|\n {12})+)$", source.partition("Args:")[2], re.MULTILINE
    )
    found = {x.name: x.metadata["help"] for x in options if "help" in x.metadata}
    found |= {field: " ".join(text.split()) for field, text in listed}
    declared = r"^    (\w+): (?:.*|.*[\[(](?:\n {8}.*)*\n    .*[\])].*)  # (.*)$"
    found |= dict(re.findall(declared, source, re.MULTILINE))
    above = re.findall(r"^    # (.*)\n    (\w+): ", source, re.MULTILINE)
    return found | {field: text for text, field in above}


def schema_text(kind: str) -> str:
    """The schema of a document, the same in every version of the library."""

    def tidy(part: dict[str, Any]) -> dict[str, Any]:
        if "description" in part:
            part["description"] = part["description"].partition("\n\n")[0]
        part.get("anyOf", []).sort(key=json.dumps)
        return {key: x for key, x in part.items() if (key, x) != ("default", {})}

    def custom(hint: Any) -> dict[str, Any]:
        if hint is not Perturbation:
            return {"type": "array"}
        return {"anyOf": [{"$ref": "#/$defs/Noise"}, {"$ref": "#/$defs/Probes"}]}

    schema = msgspec.json.schema(DOCUMENTS[kind][0], schema_hook=custom)
    if kind == "scores":
        schema["$defs"] |= msgspec.json.schema_components([Noise, Probes])[1]
    for name, part in schema["$defs"].items():
        for field, text in meanings(name).items():
            part["properties"].get(field, {})["description"] = text
    return json.dumps(json.loads(json.dumps(schema), object_hook=tidy), indent=1) + "\n"


@pytest.mark.parametrize("kind", READERS)
def test_the_published_schemas_are_of_the_documents(kind: str) -> None:
    text = schema_text(kind)
    assert (REFERENCE / f"{kind}.schema.json").read_text("utf-8") == text
    document = json.loads(texts()[kind])
    jsonschema.validate(document, json.loads(text))
    assert plain(READERS[kind](document)) == document


@given(kind=st.sampled_from([*READERS]), data=st.data())
def test_what_is_accepted_comes_back_as_it_was(kind: str, data: st.DataObject) -> None:
    content = changed(texts()[kind], data)
    with suppress(ValueError):
        read = READERS[kind](deepcopy(content))
        assert is_part(plain(read), content)
        assert plain(READERS[kind](plain(read))) == plain(read)


def is_part(part: Any, whole: Any) -> bool:
    """Whether all of a JSON value is in another; null may be absent, 10^30 may be a float."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(
            is_part(x, whole.get(k)) for k, x in part.items()
        )
    if isinstance(part, list):
        return isinstance(whole, list) and [*map(is_part, part, whole)] == [True] * len(
            whole
        )
    return part == (
        float(whole) if isinstance(part, float) and type(whole) is int else whole
    )


HOSTILE = {
    "a bomb": (b"[" * 100_000, "nested deeper than 64"),
    "a bomb in an unknown key": (
        b'{"x":' + b"[" * 99 + b"]" * 99 + b"}",
        "nested deeper than 64",
    ),
    "300,000 unknown keys": (
        b"{" + b",".join(b'"k%d":0' % i for i in range(300_000)) + b"}",
        "",
    ),
    "NaN": (b'{"format": NaN}', "the number NaN"),
    "a number beyond float64": (b'{"format": 1e999}', "the number"),
    "a number beyond 64 bits": (b'{"format": 1' + b"0" * 400 + b"}", "the number 1000"),
    "digits beyond Python's limit": (
        b'{"format": 1' + b"0" * 5000 + b"}",
        "4300 digits",
    ),
    "a key twice": (b'{"format": 1, "schema": 2, "format": 9}', ""),
    "no UTF-8": (b'{"format": "\xff"}', "'utf-8' codec"),
}


@pytest.mark.parametrize("why", HOSTILE)
@pytest.mark.parametrize(
    "kind", [x for x in READERS if x != "check"]
)  # which is only written
def test_hostile_files_are_refused_quickly(kind: str, why: str, tmp_path: Path) -> None:
    names = {"pruning": "pruning.json", "case": "case.json"}
    name = names.get(kind, "x.json")
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).symlink_to(LLAMA / file)
    words = {
        "scores": ("allocate", tmp_path / name),
        "pruning": ("inspect", tmp_path),
        "evaluation": ("plot", tmp_path / name, "-o", tmp_path / "x.svg"),
        "case": ("check", tmp_path, LLAMA / "model.safetensors"),
    }[kind]
    content, problem = HOSTILE[why]
    (tmp_path / name).write_bytes(content)
    started = time.perf_counter()
    error = refused(*words)
    assert time.perf_counter() - started < 20
    assert problem in error
    assert len(error.splitlines()) == 3
    assert name in error or kind == "case"


if __name__ == "__main__":
    for name in DOCUMENTS:
        (REFERENCE / f"{name}.schema.json").write_text(schema_text(name), "utf-8")

"""JSON Schemas of the documents, in docs/reference: `python tests/tools/document_schemas.py`."""

import json
from pathlib import Path
from typing import Any

import msgspec

from refimpl.allocation.scores_json import ScoresDocument
from refimpl.evaluation.document import EvaluationDocument
from refimpl.oracle.case_folders import CaseFacts
from refimpl.pruning.record import PruningRecord

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
DOCUMENTS: dict[str, type] = {
    "scores": ScoresDocument,
    "pruning": PruningRecord,
    "evaluation": EvaluationDocument,
    "case": CaseFacts,
}


def schema_text(kind: type) -> str:
    """The schema of a document; arrays of NumPy are arrays of numbers."""
    schema = msgspec.json.schema(kind, schema_hook=lambda _: {"type": "array"})
    return json.dumps(without_arguments(schema), indent=1) + "\n"


def without_arguments(schema: Any) -> Any:
    """The schema with the first sentence of each docstring, the same in every version."""
    if isinstance(schema, list | tuple):
        return [*map(without_arguments, schema)]
    if not isinstance(schema, dict):
        return schema
    made = {key: without_arguments(x) for key, x in schema.items()}
    if "anyOf" in made:  # whose order differs between versions of the library
        made["anyOf"].sort(key=json.dumps)
    if "description" in made:
        made["description"] = made["description"].partition("\n\n")[0]
    return made


if __name__ == "__main__":
    for name, kind in DOCUMENTS.items():
        (REFERENCE / f"{name}.schema.json").write_text(schema_text(kind), "utf-8")

"""The files that a report is made of."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from math import nan
from pathlib import Path
from typing import Any, Self, TypeVar

from refimpl.allocation.scores import Scores, StoredAllocation
from refimpl.allocation.scores_json import FORMAT, recorded, scores_document
from refimpl.evaluation.evaluate import ChoicesResult, EvaluationDocument, TextResult
from refimpl.loading.files.documents import converted, parsed_object, plain, reading_document
from refimpl.loading.files.file_reading import read_file
from refimpl.pruning.record import BlockRecord, PruningFacts, pruning_record
from refimpl.report.figure import MOST
from refimpl.storage.target_checks import RECORD

Json = Mapping[str, Any]
OTHER_FORMAT = 1  # of every file but scores
KINDS = "a file that refimpl score, allocate, prune or eval wrote"
NAMED = "a whole file of refimpl", KINDS, "run that command again"
FACTS = ("family", "num_blocks", "budget_minutes", "measured_samples")
TOTALS = ("total_weights", "total_pruned", "clipped_share")


@dataclass(frozen=True)
class SourceFile:
    """A file of the report; of scores, `document` has the facts of how they were made."""

    path: Path
    sha256: str
    document: Json


@dataclass(frozen=True)
class ReportInput:
    """A file of any kind, and its name in the report: that of the folder, and the pruning.

    Without a digest of the model (None), nothing says that another file is about the same one.
    """

    file: SourceFile
    name: str
    pruning: PruningFacts | None
    sha256: str | None

    @property
    def model(self) -> str:
        """The name of the model, before it was pruned."""
        return self.file.document["model"] if self.pruning is None else self.pruning.model


@dataclass(frozen=True)
class ScoresInput(ReportInput):
    """A `scores.json`: the scores, and an allocation per eta."""

    scores: Scores
    allocations: tuple[StoredAllocation, ...]


@dataclass(frozen=True)
class PruningInput(ReportInput):
    """A `pruning.json`, with the sparsity and the counts of each linear."""

    blocks: Sequence[BlockRecord]


@dataclass(frozen=True)
class MeasuredValue:
    """A number and its standard error; NaN if unknown."""

    value: float = nan
    error: float = nan

    @classmethod
    def of(cls, part: object, name: str) -> Self:
        """A number of a document with its error."""
        both = getattr(part, name), getattr(part, f"{name}_stderr")
        return cls(*(nan if x is None else float(x) for x in both))


@dataclass(frozen=True)
class EvaluationInput(ReportInput):
    """A file of `refimpl eval -o`: by measure its value, and what it is on: source and SHA-256."""

    measures: Mapping[str, MeasuredValue]
    sources: Mapping[str, tuple[str, str]]


AnyInput = TypeVar("AnyInput", bound=ReportInput)


def of_kind(kind: type[AnyInput], inputs: Iterable[ReportInput]) -> list[AnyInput]:
    """The inputs of a kind."""
    return [x for x in inputs if isinstance(x, kind)]


def read_inputs(paths: Sequence[Path]) -> list[ReportInput]:
    """Read files of any kind, in the order of the page."""
    inputs = [one for path in paths for one in _read(path)]
    evaluated = _distinct(of_kind(EvaluationInput, inputs))
    return [*of_kind(ScoresInput, inputs), *of_kind(PruningInput, inputs), *evaluated]


def _read(path: Path) -> Sequence[ReportInput]:
    """One file, of the kind that its fields tell; a folder stands for its `pruning.json`."""
    path = path / RECORD if path.is_dir() else path
    with reading_document(path, NAMED):
        content = read_file(path)
        document = parsed_object(content, None, MOST)
        file, keys = SourceFile(path, sha256(content).hexdigest(), document), document.keys()
        is_scores, version = "perturbation" in keys or "scores" in keys, document.get("format")
        if version != (expected := FORMAT if is_scores else OTHER_FORMAT):
            raise ValueError(f"format {version!r}, expected {expected}")
        if is_scores:
            return [_scores_input(file)]
        if {"method", "calibration"} <= keys:
            return [_pruning_input(file), *_measured_inputs(file)]
        if {"family", "run"} <= keys and {"text", "choices"} & keys:
            return [_evaluation_input(file, document)]
        raise ValueError("no command writes these fields")


def _scores_input(file: SourceFile) -> ScoresInput:
    whole = scores_document(file.document)
    scores, allocation = whole.scores, whole.allocations[0]
    facts = recorded(scores.made_for, scores) | {name: getattr(scores, name) for name in FACTS}
    facts |= {"linears": scores.shapes, "run": scores.run}
    facts |= {name: getattr(allocation, name) for name in TOTALS}
    file = replace(file, document=plain(facts))
    return ScoresInput(file, scores.model, None, None, scores, tuple(whole.allocations))


def _pruning_input(file: SourceFile) -> PruningInput:
    record = pruning_record(file.document)
    for names in ([x.name for x in block.linears] for block in record.blocks):
        if len(set(names)) < len(names):
            raise ValueError("a linear twice in a block")
    facts = record.facts
    name = f"{_folder_name(file.path)}, {facts.name}"
    return PruningInput(file, name, facts, facts.sha256, record.blocks)


def _folder_name(path: Path) -> str:
    """The name of the folder that a record is of; of a copy under another name, that name."""
    return path.absolute().parent.name if path.name == RECORD else path.stem


def _measured_inputs(file: SourceFile) -> Iterator[EvaluationInput]:
    """The evaluations before and after a pruning, if it was measured."""
    document = file.document
    if (both := document.get("measured")) is None:
        return
    for at, record in (("before", document.get("before")), ("after", document)):
        facts = {key: document.get(key) for key in ("format", "model", "family", "run")}
        pruned = None if record is None else pruning_record(record).facts
        facts |= {"num_blocks": len(document["blocks"]), "text": both[at], "pruning": plain(pruned)}
        facts |= {"model_sha256": both[at].get("model_sha256"), "dtype": document["run"]["dtype"]}
        if at == "after":
            facts["model"] = _folder_name(file.path)
        yield _evaluation_input(file, facts)


def _distinct(evaluated: Sequence[EvaluationInput]) -> list[EvaluationInput]:
    """Evaluations without those that measured the same again, as every pruning of a model does."""
    different: list[EvaluationInput] = []
    for x in evaluated:
        again = x.file.path.name == RECORD and x.pruning is None
        if not (again and any(replace(y, file=x.file) == x for y in different)):
            different.append(x)
    return different


def _evaluation_input(file: SourceFile, content: Json) -> EvaluationInput:
    document = converted(content, EvaluationDocument)
    pruning, parts = document.pruning, dict[str, TextResult | ChoicesResult]()
    if document.text is not None:
        parts["perplexity"] = document.text
    if document.choices is not None:
        parts |= dict.fromkeys(("acc", "acc_norm"), document.choices)
    words = [document.model, *([] if pruning is None else [pruning.name])]
    if pruning and None is not pruning.sha256 != document.model_sha256 is not None:
        words.append("weights changed since")
    return EvaluationInput(
        replace(file, document=content),
        ", ".join(words),
        pruning,
        document.model_sha256,
        {x: MeasuredValue.of(part, x) for x, part in parts.items()},
        {x: (y.source, getattr(y, "ids_sha256", y.sha256)) for x, y in parts.items()},
    )


def named(inputs: Sequence[AnyInput]) -> list[AnyInput]:
    """The same with names that differ: equal names get the file's name too, and then a number."""
    often, seen = Counter(x.name for x in inputs), Counter[str]()
    distinct = []
    for x in inputs:
        path = x.file.path
        whose = "/".join(path.parts[-2:] if path.name == RECORD else path.parts[-1:])
        name = x.name if often[x.name] == 1 else f"{x.name} ({whose})"
        seen[name] += 1
        distinct.append(replace(x, name=name if seen[name] == 1 else f"{name} #{seen[name]}"))
    return distinct

"""Multiple choice: questions from a file, and the accuracy on them."""

import re
from dataclasses import dataclass
from hashlib import sha256
from math import nan, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.loading.files.file_reading import json_value, read_lines, reading
from refimpl.model.ops import Array

FORM = '{"question": "...", "choices": ["...", "..."], "answer": 0}'
BOM = b"\xef\xbb\xbf"
HALVES = re.compile("[\ud800-\udfff]")  # lone surrogates, which no encoding has
DELIMITER = " "  # between question and choice


@dataclass(frozen=True)
class Question:
    """A question, its choices (two or more), the correct one (from 0), and its file and line."""

    question: str
    choices: tuple[str, ...]
    answer: int
    where: str


@dataclass(frozen=True)
class Questions:
    """Questions, their source in one line for people, and the SHA-256 of the lines in hex."""

    questions: tuple[Question, ...]
    source: str
    sha256: str


@dataclass(frozen=True)
class Accuracy:
    """Fractions of questions answered correctly, by two rules of lm-evaluation-harness 0.4."""

    log_likelihoods: tuple[Array, ...]  # ``sum ln p`` of each choice, per question, [choices]
    lengths: tuple[Array, ...]  # characters of each choice, per question, [choices]
    answers: npt.NDArray[np.int64]  # the correct choice of each, [n]

    @property
    def picked(self) -> npt.NDArray[np.int64]:
        """The likeliest choice of each question, the first of several, [n]."""
        return np.array([ll.argmax() for ll in self.log_likelihoods])

    @property
    def picked_norm(self) -> npt.NDArray[np.int64]:
        """The same by log likelihood per character of the choice, [n]."""
        pairs = zip(self.log_likelihoods, self.lengths, strict=True)
        return np.array([(ll / length).argmax() for ll, length in pairs])

    @property
    def acc(self) -> float:
        """Fraction of questions whose likeliest choice is right."""
        return float(np.mean(self.picked == self.answers))

    @property
    def acc_norm(self) -> float:
        """Fraction of questions whose likeliest choice per character is right."""
        return float(np.mean(self.picked_norm == self.answers))

    @property
    def acc_stderr(self) -> float:
        """Standard error of `acc`."""
        return mean_stderr(self.picked == self.answers)

    @property
    def acc_norm_stderr(self) -> float:
        """Standard error of `acc_norm`."""
        return mean_stderr(self.picked_norm == self.answers)


def mean_stderr(right: npt.NDArray[np.bool_]) -> float:
    """``s / sqrt(n)``, s the sample deviation (over n - 1); NaN for fewer than two."""
    if len(right) < 2:
        return nan
    return float(np.std(right.astype(np.float64), ddof=1)) / sqrt(len(right))


def read_questions(path: str | Path) -> Questions:
    """The questions of JSON lines of the form `FORM`, which may have other keys."""
    path = Path(path)
    with reading(path):
        numbered = [(n, line.removeprefix(BOM)) for n, line in read_lines(path)]
    if not numbered:
        raise RefimplError(f"{path} is empty", "at least one question", f"add lines: {FORM}")
    questions = tuple(_question(line, f"{path}:{n}") for n, line in numbered)
    digest = sha256(b"\n".join(line.strip() for _, line in numbered)).hexdigest()
    return Questions(questions, path.name, digest)


def _question(line: bytes, where: str) -> Question:
    """The question on a line."""
    row: Any = json_value(line, where)
    row = row if isinstance(row, dict) else {}
    question, choices, answer = (row.get(key) for key in ("question", "choices", "answer"))
    texts = isinstance(choices, list) and all(isinstance(c, str) and c for c in choices)
    if not isinstance(question, str):
        problem = f"question {question!r:.40}, not a text"
    elif not texts or len(choices) < 2:
        problem = f"choices {choices!r:.40}, not a list of two or more texts"
    elif type(answer) is not int or not 0 <= answer < len(choices):
        problem = f"answer {answer!r:.40}, not the index of one of its {len(choices)} choices"
    elif HALVES.search(question + "".join(choices)):
        problem = "half a character (a lone surrogate such as \\ud800)"
    else:
        return Question(question, tuple(choices), answer, where)
    raise RefimplError(f"{where}: {problem}", f"{FORM} on each line", "correct the line")

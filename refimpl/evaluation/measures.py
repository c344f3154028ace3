"""Perplexity over windows and accuracy on multiple choice, with standard errors; questions."""

import re
from dataclasses import dataclass
from hashlib import sha256
from math import exp, inf, log, nan, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.loading.files.file_reading import json_value, read_lines, reading
from refimpl.model.ops import Array

LOG_MOST = log(np.finfo(np.float64).max)


@dataclass(frozen=True)
class Perplexity:
    """``exp(m)``, ``m = sum_w nats_w / sum_w n_w``, the mean nats of a predicted token."""

    nats: Array  # ``- sum ln p`` over the predicted tokens of each window, [W], float64
    tokens: Array  # predicted tokens n_w of each window: all but its first, [W]
    bytes: Array | None = None  # of the text that they cover, [W], if there is a text

    @property
    def mean_nats(self) -> float:
        """Mean nats per predicted token, m."""
        return float(self.nats.sum() / self.tokens.sum())

    def minus(self, other: "Perplexity") -> "Perplexity":
        """The nats that it takes more than another on the same windows: a paired change."""
        return Perplexity(self.nats - other.nats, self.tokens)

    @property
    def value(self) -> float:
        """``exp(m)``; Inf beyond float64, where the mean nats still have a meaning."""
        return exp(self.mean_nats) if self.mean_nats < LOG_MOST else inf

    @property
    def nats_stderr(self) -> float:
        """``sqrt(W / (W - 1) sum_w (nats_w - m n_w)^2) / sum_w n_w``, of a ratio; NaN for W < 2."""
        windows = len(self.nats)
        if windows < 2:
            return nan
        squares = float(np.square(self.nats - self.mean_nats * self.tokens).sum())
        return sqrt(windows / (windows - 1) * squares) / float(self.tokens.sum())

    @property
    def stderr(self) -> float:
        """Standard error of the perplexity to first order, ``exp(m)`` times that of m."""
        return self.value * self.nats_stderr

    @property
    def bits_per_byte(self) -> float:
        """``sum nats / (ln 2 sum bytes)``; NaN where there is no text."""
        covered = 0.0 if self.bytes is None else float(self.bytes.sum())
        return float(self.nats.sum()) / (log(2) * covered) if covered else nan


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

"""The job: perplexity and multiple choice of a model, in groups that can be taken up again."""

import time
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.evaluation.batch import BATCH, Batch, batches, groups
from refimpl.evaluation.choices import Accuracy, Questions
from refimpl.evaluation.encoding import Choices, Sequences, choice_sequences, encoder
from refimpl.evaluation.likelihood import group_likelihoods, room
from refimpl.evaluation.perplexity import Perplexity
from refimpl.model.config import Config
from refimpl.model.model import Model
from refimpl.running.executors import open_pool
from refimpl.running.memory import parse_memory
from refimpl.running.provenance import Run, identity, run_since
from refimpl.running.threads import Progress, Workers
from refimpl.running.work_units import Tick, results
from refimpl.storage.partial_results import PartialResults
from refimpl.tokens import Windows

GROUP = 16 * BATCH  # tokens: what a kill loses at most, half a minute of a small model

Found = dict[int, tuple[float, bool]]
"""By number of the sequence: its summed log likelihood, and whether it is greedy."""


@dataclass(frozen=True)
class Evaluation:
    """What a model is worth, and how that was found.

    Args:
        model: Its name.
        family: Its family.
        num_blocks: L.
        windows: The text, if there was one.
        perplexity: On the windows.
        questions: The questions, if there were any.
        accuracy: On the questions.
        choices: The questions as token ids.
        tokens: Inputs read in this run, padding left out.
        resumed: Sequences (windows, choices) taken over from an earlier run.
        run: How the numbers were made.
    """

    model: str
    family: str
    num_blocks: int
    windows: Windows | None
    perplexity: Perplexity | None
    questions: Questions | None
    accuracy: Accuracy | None
    choices: Choices | None
    tokens: int
    resumed: int
    run: Run

    @property
    def tokens_per_second(self) -> float:
        """Inputs read per second of this run."""
        return self.tokens / max(self.run.seconds, 1e-9)


def evaluate(
    model: Model,
    windows: Windows | None = None,
    questions: Questions | None = None,
    *,
    dtype: npt.DTypeLike = np.float32,
    threads: int | None = None,
    memory: str | int | None = None,
    executor: Executor | str | None = None,
    progress: Progress = lambda done, total: None,
    part: Path | None = None,
    resume: bool = False,
) -> Evaluation:
    """Perplexity of a model on windows of a text, its accuracy on questions, or both.

    Args:
        model: From `read_model`; its folder holds the tokenizer where there are questions.
        windows: From `text_windows` or `id_windows`.
        questions: From `read_questions`.
        dtype: float32, or float64 to certify; sums over the vocabulary are float64.
        threads: Worker threads, or processes; one per core if None.
        memory: Memory for residual states, such as "1G"; what is free, at most 2 GiB, if None.
        executor: Where the units run, as for `score`.
        progress: Called with the units of work done and in all.
        part: Where to keep what was found so far, or None; the caller removes it in the end.
        resume: Whether to take up what is there.

    Returns:
        The numbers, the same for every executor, memory and number of threads, resumed or not.

    Raises:
        RefimplError: Neither windows nor questions; tokens the model cannot read; NaN or Inf among
            the weights; a part of another run.

    Source:
        docs/explanation/method.md, section 8; lm-evaluation-harness 0.4 (peer) for the questions.

    Example:
        >>> from refimpl import read_model
        >>> from refimpl.tokens import text_windows
        >>> model = read_model("fixtures/llama")
        >>> windows = text_windows("fixtures/text.txt", "fixtures/llama/tokenizer.json", 32)
        >>> found = evaluate(model, windows)
        >>> len(found.perplexity.nats), round(found.perplexity.value)
        (33, 1589)
    """
    if windows is None and questions is None:
        raise RefimplError("nothing to evaluate on", "a text, ids or questions", "use --text FILE")
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise RefimplError(f"dtype {dtype}", "float32 or float64", "choose one of these")
    texts: Sequences = [] if windows is None else [(ids, 1) for ids in windows.ids]
    choices = None if questions is None else choice_sequences(encoder(model), questions)
    made = _all_batches(model, texts, [] if choices is None else choices.sequences)
    budget = parse_memory(memory)
    keep = (
        PartialResults(part, _identity(model, windows, choices, dtype), resume, _meaning)
        if part
        else nullcontext()
    )
    with keep as kept, open_pool(executor, threads) as where, Workers(threads) as workers:
        found: Found = {} if kept is None else dict(kept.results)
        left = [batch for batch in made if not found.keys() >= set(batch.members)]
        total = sum(batch.cost(model.config) for batch in made)
        done = total - sum(batch.cost(model.config) for batch in left)
        resumed, started = len(found), time.perf_counter()

        def tick(cost: float) -> None:
            nonlocal done
            done += cost
            progress(done, total)

        size = min(GROUP, room(model, made, budget // where.workers, dtype))
        if where.executor is not None:  # two units or more for every worker
            size = min(size, -(-sum(batch.ids.size for batch in left) // (2 * where.workers)))
        units = [Reading(tuple(group), dtype) for group in groups(left, size)]
        for _, new in results(units, model, where, workers, tick):
            if kept is not None:
                kept.add(new)
            found |= new
    sums = np.array([found[n][0] for n in range(len(found))])
    return Evaluation(
        model.name,
        model.config.family,
        model.config.num_blocks,
        windows,
        None if windows is None else _perplexity(windows, sums[: len(texts)]),
        questions,
        None if questions is None else _accuracy(questions, sums[len(texts) :]),
        choices,
        sum(batch.tokens for batch in left),
        resumed,
        run_since(started, dtype, workers, budget),
    )


@dataclass(frozen=True)
class Reading:
    """Batches that pass through the model together: the unit of an evaluation.

    Args:
        batches: The batches, token ids only.
        dtype: Of the computation.
    """

    batches: tuple[Batch, ...]
    dtype: npt.DTypeLike

    def cost(self, config: Config) -> float:
        """As of the batches."""
        return sum(batch.cost(config) for batch in self.batches)

    def run(self, model: Model, workers: Workers, tick: Tick) -> Found:
        """What the model says of each sequence."""
        likelihoods = group_likelihoods(model, self.batches, workers, self.dtype, tick=tick)
        return {n: (float(x.log_probabilities.sum()), x.greedy) for n, x in likelihoods.items()}


def _all_batches(model: Model, texts: Sequences, pairs: Sequences) -> list[Batch]:
    """Batches of windows, then of choices: neither depends on whether the other is there."""
    made: list[Batch] = []
    for first, some in ((0, texts), (len(texts), pairs)):
        laid = batches([ids for ids, _ in some], [start for _, start in some], model.config)
        made += [replace(b, members=tuple(first + n for n in b.members)) for b in laid]
    return made


def _perplexity(windows: Windows, sums: npt.NDArray[np.float64]) -> Perplexity:
    """From the summed log likelihoods of the windows."""
    tokens = np.array([len(ids) - 1 for ids in windows.ids])
    return Perplexity(-sums, tokens, None if windows.bytes is None else np.array(windows.bytes))


def _accuracy(questions: Questions, sums: npt.NDArray[np.float64]) -> Accuracy:
    """From the summed log likelihoods of the choices, question by question."""
    ends = np.cumsum([len(q.choices) for q in questions.questions])
    lengths = tuple(np.array([len(c) for c in q.choices]) for q in questions.questions)
    answers = np.array([q.answer for q in questions.questions])
    return Accuracy(tuple(np.split(sums, ends[:-1])), lengths, answers)


def _identity(
    model: Model, windows: Windows | None, choices: Choices | None, dtype: npt.DTypeLike
) -> dict[str, Any]:
    """Everything that the log likelihoods depend on."""
    return identity(model) | {
        "windows": windows and [windows.window, windows.sha256],
        "choices": choices and choices.sha256,
        "dtype": np.dtype(dtype).name,
    }


def _meaning(key: str, value: Any) -> tuple[int, tuple[float, bool]]:
    """A sequence that an earlier run found."""
    nats, greedy = value
    return int(key), (float(nats), bool(greedy))

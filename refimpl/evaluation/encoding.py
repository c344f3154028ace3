"""Contexts and continuations as token ids, by the rule of lm-evaluation-harness."""

from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from refimpl.errors import RefimplError
from refimpl.evaluation.batch import Ids
from refimpl.evaluation.choices import DELIMITER, Questions
from refimpl.model.model import Model
from refimpl.tokens.tokenizer import bos_rule, of_text, read_tokenizer, special_token

Sequences = list[tuple[Ids, int]]
"""Ids of each, and the first scored one."""


@dataclass(frozen=True)
class Choices:
    """The choices of some questions as token ids.

    Args:
        sequences: One per choice, question by question.
        truncated: How many lost the start of their question, being too long for the model.
        start: What stands before every question, for people.
    """

    sequences: Sequences
    truncated: int
    start: str

    @property
    def sha256(self) -> str:
        """Provenance: SHA-256 of all ids and of where scoring starts, in hex."""
        content = [(ids.tolist(), start) for ids, start in self.sequences]
        return sha256(repr(content).encode()).hexdigest()


@dataclass(frozen=True)
class Encoder:
    """A model's tokenizer, what it puts before a text, and how long a text may be.

    Args:
        tokenizer: A `tokenizers.Tokenizer`.
        bos: Id put before every text, or None.
        said: Who says so, for people.
        prefix: What stands for a context where there is none: BOS, or else EOS; None where no
            file names either.
        longest: Most tokens that the model reads.
    """

    tokenizer: Any
    bos: int | None
    said: str
    prefix: int | None
    longest: int

    def ids(self, text: str, special: bool | None = None) -> list[int]:
        """Ids of a text.

        Args:
            text: The text.
            special: Whether BOS is put before it; None for the tokenizer's rule, except before a
                text that begins with the prefix token already.

        Returns:
            The ids.
        """
        inner = self.tokenizer.encode(text, add_special_tokens=False).ids
        if special is None:
            begins = None if self.prefix is None else self.tokenizer.id_to_token(self.prefix)
            special = not (begins and text.startswith(begins))
        return [*([self.bos] if special and self.bos is not None else []), *inner]

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of a context and of its continuation.

        White space at the end of the context goes to the continuation; both are tokenised as one
        text, and what follows as many ids as the context alone has is the continuation. In place
        of an empty context stands the prefix token.

        Args:
            context: What is given.
            continuation: What is scored.

        Returns:
            Both parts.

        Raises:
            RefimplError: An empty context where no file names BOS or EOS.

        Source:
            lm-evaluation-harness 0.4 (peer), `_encode_pair` and `loglikelihood`.
        """
        if context:
            stripped = context.rstrip()
            given, whole = self.ids(stripped), self.ids(context + continuation)
            return given, whole[len(given) :]
        scored = self.ids(continuation, special=False)
        if self.prefix is None:
            raise RefimplError(
                "an empty context, and neither BOS nor EOS is named beside the tokenizer",
                "a token to start from",
                "name bos_token in tokenizer_config.json, or give a context",
            )
        return [self.prefix], scored[1:] if scored[:1] == [self.prefix] else scored

    def fitted(self, given: list[int], scored: list[int]) -> tuple[list[int], int]:
        """One sequence of what is given and what is scored; it loses its start if it is too long.

        Args:
            given: Ids of the context.
            scored: Ids of the continuation.

        Returns:
            The ids, at most `longest` + 1 (the last one is no input), and the first scored one.

        Raises:
            RefimplError: No token to score, none before it, or more than the model reads.

        Source:
            lm-evaluation-harness 0.4 (peer), `_loglikelihood_tokens`.
        """
        if not given or not 1 <= len(scored) <= self.longest:
            raise RefimplError(
                f"{len(given)} tokens of context and {len(scored)} of continuation",
                f"at least one of each, and at most {self.longest} of continuation",
                "give a longer context, or a shorter continuation",
            )
        ids = [*given, *scored][-(self.longest + 1) :]
        return ids, len(ids) - len(scored)


def encoder(model: Model) -> Encoder:
    """The tokenizer in a model's folder, with its rule about BOS.

    Args:
        model: The model.

    Returns:
        The encoder.

    Raises:
        RefimplError: No tokenizer, or a malformed one; the `tokenizers` library is missing.

    Source:
        lm-evaluation-harness 0.4 (peer) on what stands for an empty context.

    Differs:
        BOS is put before a text by the rule of `text_tokens`, where the harness leaves it to
        transformers; what a post-processor puts after a text is left away.

    Example:
        >>> from refimpl import read_model
        >>> encode = encoder(read_model("fixtures/llama"))
        >>> encode.pair("to be ", "or")
        ([1, 86, 81, 223, 68, 71], [223, 81, 84])
    """
    path = model.folder / "tokenizer.json"
    tokenizer = read_tokenizer(path)
    _, front, _ = of_text(tokenizer.encode("a"))
    known = {name: model.config_file.get(f"{name}_id") for name in ("bos_token", "eos_token")}
    bos, said = bos_rule(tokenizer, path.parent, front, known["bos_token"])
    named = [special_token(tokenizer, path.parent, name) for name in known]
    prefix = next((id for id in (*named, *known.values()) if isinstance(id, int)), bos)
    return Encoder(tokenizer, bos, said, prefix, model.config.max_position_embeddings)


def choice_sequences(encode: Encoder, questions: Questions) -> Choices:
    """Tokenise every choice after its question and a space.

    Args:
        encode: From `encoder`.
        questions: From `read_questions`.

    Returns:
        A sequence per choice.

    Raises:
        RefimplError: A choice without tokens, or too long for the model; the error names the line.

    Source:
        lm-evaluation-harness 0.4 (peer), `multiple_choice` with its default `target_delimiter`.
    """
    sequences: Sequences = []
    truncated = 0
    for question in questions.questions:
        for choice in question.choices:
            try:
                given, scored = encode.pair(question.question, DELIMITER + choice)
                ids, start = encode.fitted(given, scored)
            except RefimplError as error:
                problem = f"{question.where}: {error.problem}"
                raise RefimplError(problem, error.expected, error.remedy) from error
            sequences.append((np.array(ids, np.int64), start))
            truncated += len(given) + len(scored) > len(ids)
    return Choices(sequences, truncated, encode.said)

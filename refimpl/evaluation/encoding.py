"""Contexts and continuations as token ids, by the rule of lm-evaluation-harness."""

from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from refimpl.errors import RefimplError
from refimpl.evaluation.measures import DELIMITER, Questions
from refimpl.model.model import Model
from refimpl.tokens.samples import Ids
from refimpl.tokens.text import TextTokenizer, bos_rule, read_tokenizer, special_token

Sequences = list[tuple[Ids, int]]
"""Ids of each, and the first scored one."""


@dataclass(frozen=True)
class Choices:
    """The choices of some questions as token ids."""

    sequences: Sequences
    truncated: int  # choices whose question lost its start: too long for the model
    start: str  # the token before every question, for people

    @property
    def sha256(self) -> str:
        """Provenance: SHA-256 of all ids and of where scoring starts, in hex."""
        content = [(ids.tolist(), start) for ids, start in self.sequences]
        return sha256(repr(content).encode()).hexdigest()


@dataclass(frozen=True)
class Encoder:
    """A model's tokenizer, the ids it puts before a text, and the longest text."""

    tokenizer: TextTokenizer
    bos: int | None  # put before every text, as some file says
    bos_source: str
    prefix: int | None  # in place of an empty context: BOS, or else EOS, if a file names either
    longest: int

    @property
    def start(self) -> int:
        """The id in place of an empty context."""
        if self.prefix is None:
            raise RefimplError(
                "an empty context, and no file beside the tokenizer names BOS or EOS",
                "a token to start from",
                "name bos_token in tokenizer_config.json, or give a context",
            )
        return self.prefix

    def ids(self, text: str, special: bool | None = None) -> list[int]:
        """Ids of a text, with BOS if `special`; by default unless the text begins with it."""
        inner = self.tokenizer.encode(text, special=False).ids.tolist()
        if special is None:
            begins = None if self.prefix is None else self.tokenizer.id_to_token(self.prefix)
            special = not (begins and text.startswith(begins))
        return [*([self.bos] if special and self.bos is not None else []), *inner]

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of a context and of its continuation, as lm-evaluation-harness's `_encode_pair`."""
        if context:  # white space at its end goes to the continuation
            stripped = context.rstrip()
            first, whole = self.ids(stripped), self.ids(context + continuation)
            return first, whole[len(first) :]
        scored, start = self.ids(continuation, special=False), self.start
        return [start], scored[1:] if scored[:1] == [start] else scored

    def fitted(self, context: list[int], scored: list[int]) -> tuple[list[int], int]:
        """Ids of both, without the start of what is too long, and the first scored one."""
        if not context or not 1 <= len(scored) <= self.longest:
            raise RefimplError(
                f"{len(context)} tokens of context and {len(scored)} of continuation",
                f"at least one of each, and at most {self.longest} of continuation",
                "give a longer context, or a shorter continuation",
            )
        ids = [*context, *scored][-(self.longest + 1) :]  # of which the last is no input
        return ids, len(ids) - len(scored)


def encoder(model: Model) -> Encoder:
    """The tokenizer in a model's folder, with the rule of `text_tokens` about BOS."""
    path = model.tokenizer_json
    tokenizer = read_tokenizer(path)
    front = tokenizer.encode("a").front
    ids = {name: model.config_file.get(f"{name}_id") for name in ("bos_token", "eos_token")}
    bos, bos_source = bos_rule(tokenizer, path.parent, front, ids["bos_token"])
    named = [special_token(tokenizer, path.parent, name) for name in ids]
    prefix = next((id for id in (*named, *ids.values()) if isinstance(id, int)), bos)
    return Encoder(tokenizer, bos, bos_source, prefix, model.config.max_position_embeddings)


def choice_sequences(encode: Encoder, questions: Questions) -> Choices:
    """Tokenise every choice after its question and a space, as the harness's `multiple_choice`."""
    sequences: Sequences = []
    truncated = 0
    for question in questions.questions:
        for choice in question.choices:
            try:
                context, scored = encode.pair(question.question, DELIMITER + choice)
                ids, start = encode.fitted(context, scored)
            except RefimplError as error:
                problem = f"{question.where}: {error.problem}"
                raise RefimplError(problem, error.expected, error.remedy) from error
            sequences.append((np.array(ids, np.int64), start))
            truncated += len(context) + len(scored) > len(ids)
    return Choices(sequences, truncated, encode.bos_source)

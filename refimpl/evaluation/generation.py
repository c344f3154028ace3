"""Logits of several sequences, and continuations of a text by one or several models."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from refimpl.arguments import AtLeastOne, Count
from refimpl.errors import RefimplError
from refimpl.evaluation.encoding import Encoder, encoder
from refimpl.loading.files.file_reading import read_file
from refimpl.model.forward import forward
from refimpl.model.kernels import TILED
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.running.held_model import HeldModel
from refimpl.running.threads import Progress, Workers
from refimpl.tokens.text import TOKENIZER

TOKENS = 64  # by default


def logits(
    model: Model,
    sequences: Sequence[npt.ArrayLike] | Array,
    dtype: npt.DTypeLike = np.float32,
    threads: int | None = None,
) -> list[Array]:
    """Compute the logits of `forward` for several sequences: one per core, with tiled kernels.

    Each sequence reads the weights that it needs. To read them once, pass a `HeldModel`.

    Args:
        model: From `read_model` or `HeldModel.of`.
        sequences: Token ids of each, [S], integers in [0, vocab_size); lengths may differ.
        dtype: float32, or float64 to certify.
        threads: Worker threads, of which any number gives the same bits. If None, one per core, or
            BLAS's threads for a single sequence.

    Returns:
        Scores of the next token of each sequence, [S, V]; those of `forward` but for rounding.

    Raises:
        RefimplError: As `forward`; ids in place of sequences; a number of threads that cannot be.

    Example:
        >>> from refimpl import forward, read_model
        >>> model = read_model("fixtures/llama")
        >>> found = logits(model, [[1, 5, 7], [2, 4]])
        >>> [z.shape for z in found]
        [(3, 264), (2, 264)]
        >>> bool(np.allclose(found[1], forward(model, [2, 4]).logits[0], atol=1e-5))
        True
    """
    if any(isinstance(ids, Integral) for ids in sequences):
        raise RefimplError(
            "token ids in place of sequences", "a list of sequences of ids", "pass [ids]"
        )

    def compute(ids: Any) -> Array:
        return forward(model, [ids], dtype=dtype, kernels=TILED).logits[0]

    if len(sequences) == 1 and threads is None:
        return [compute(sequences[0])]
    with Workers(threads) as workers:
        return workers.map(compute, sequences)


@dataclass(frozen=True)
class Continuation:
    """What a model writes after a prompt.

    Args:
        model: Its name.
        prompt_ids: Ids of the prompt, with BOS if the tokenizer puts it before a text.
        ids: Ids of the continuation.
        text: The continuation.
    """

    model: str
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    text: str


def generate(
    models: Sequence[Model],
    prompt: str,
    tokens: AtLeastOne = TOKENS,
    *,
    temperature: Annotated[float, Meta(ge=0, le=100)] = 0.0,
    seed: Count = 0,
    dtype: npt.DTypeLike = np.float32,
    progress: Progress = lambda done, total: None,
) -> tuple[Continuation, ...]:
    """Continue a text with each of several models that share a tokenizer.

    ``id = argmax_i (z_i + temperature g_i)``: z the logits of the last token, g Gumbel noise

    Temperature 0 is greedy; any other samples from ``softmax(z / temperature)``. All models get the
    same noise. There is no cache: each token costs a forward pass over all tokens before it.

    Args:
        models: From `read_model`, with `tokenizer.json` in their folders.
        prompt: The text to continue.
        tokens: The most tokens to add. A model stops at an `eos_token_id` of its `config.json`.
        temperature: From 0 to 100.
        seed: Of the noise.
        dtype: float32 or float64.
        progress: Called with the tokens done and in all.

    Returns:
        A continuation per model, in their order.

    Raises:
        RefimplError: No models; no tokenizer, or several; a prompt without tokens; more tokens than
            a model's longest sequence.

    Example:
        >>> from refimpl import read_model
        >>> (found,) = generate([read_model("fixtures/llama")], "A stone", tokens=3)
        >>> len(found.prompt_ids), len(found.ids)
        (8, 3)
    """
    if not models:
        raise RefimplError("0 models", "one or more", "add one")
    encoders = [encoder(model) for model in models]
    if len({read_file(model.tokenizer_json, TOKENIZER) for model in models}) > 1:
        raise RefimplError(
            f"{', '.join(model.name for model in models)} have different tokenizers",
            "models with the same tokenizer.json",
            "run refimpl generate once for each",
        )
    starts, found = [_start(encode, prompt, tokens) for encode in encoders], list[Continuation]()
    for model, encode, start in zip(models, encoders, starts, strict=True):
        end, ids = model.config_file.get("eos_token_id"), list(start)
        held, noise = HeldModel.of(model), np.random.Generator(np.random.Philox(seed))
        for done in range(tokens):
            z = logits(held, [ids], dtype)[0][-1]
            ids.append(int(np.argmax(z + temperature * noise.gumbel(size=z.size))))
            progress(len(found) * tokens + done + 1, len(models) * tokens)
            if ids[-1] in (end if isinstance(end, list) else [end]):
                break
        before, whole = map(encode.tokenizer.decode, (start, ids))
        text, new = whole.removeprefix(before), tuple(ids[len(start) :])
        found.append(Continuation(model.name, tuple(start), new, text))
    return tuple(found)


def _start(encode: Encoder, prompt: str, tokens: int) -> list[int]:
    """Ids of a prompt, which leaves room for so many tokens."""
    ids = encode.ids(prompt) if prompt else []
    if not ids:
        raise RefimplError(f"the prompt {prompt!r} has no tokens", "a text", "change --prompt")
    if (most := encode.longest + 1 - len(ids)) < tokens:  # the last token is never read
        raise RefimplError(
            f"a prompt of {len(ids):,} tokens and {tokens:,} more are too long for this model",
            f"sequences of at most {encode.longest:,} tokens (its max_position_embeddings)",
            f"use --tokens {most}" if most > 0 else "use a shorter --prompt",
        )
    return ids

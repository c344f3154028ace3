"""The tokens of a computation: from a text, from a file of ids, or drawn at random."""

from pathlib import Path

from refimpl.errors import RefimplError
from refimpl.model.model import Model
from refimpl.model.token_ids import checked_ids
from refimpl.tokens import SAMPLES, SEQ_LEN, Tokens, id_tokens, random_tokens, text_tokens


def model_tokens(
    model: Model,
    text: Path | None = None,
    ids: Path | None = None,
    samples: int | None = None,
    seq_len: int | None = None,
    seed: int = 0,
) -> Tokens:
    """Tokens for a model, whose folder holds the tokenizer, checked against its limits.

    They are cut from the text or read from the ids; without either they are drawn with `seed`. By
    default there are 8 samples of 512 tokens, or of as many as the model allows; a file of ids
    decides for itself.
    """
    config = model.config
    longest = min(SEQ_LEN, config.max_position_embeddings)
    length = longest if seq_len is None else seq_len
    count = SAMPLES if samples is None else samples
    if text is not None and ids is not None:
        raise RefimplError(
            "--text and --tokens exclude each other", "one of them", "omit one of them"
        )
    if text is not None:
        bos = model.config_file.get("bos_token_id")
        tokens = text_tokens(text, model.tokenizer_json, count, length, bos_id=bos)
    elif ids is not None:
        tokens = id_tokens(ids, samples, seq_len, longest)
    else:
        tokens = random_tokens(config.vocab_size, count, length, seed)
    checked_ids(tokens.ids, config)
    return tokens

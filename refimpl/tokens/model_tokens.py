"""Which tokens a model is given: from a text, from ids, or drawn."""

from pathlib import Path

from refimpl.errors import RefimplError
from refimpl.model.model import Model
from refimpl.model.token_ids import checked_ids
from refimpl.tokens import Tokens, id_tokens, random_tokens, text_tokens

SAMPLES, SEQ_LEN = 8, 512


def model_tokens(
    model: Model,
    text: Path | None = None,
    ids: Path | None = None,
    samples: int | None = None,
    seq_len: int | None = None,
    seed: int = 0,
) -> Tokens:
    """Tokens for a model, checked against it.

    Args:
        model: The model; its folder holds the tokenizer.
        text: A text file, or None.
        ids: A file of token ids, or None.
        samples: Number of samples; 8 if None (all rows of a file of ids).
        seq_len: Tokens per sample; 512 or what the model allows if None (the rows of ids).
        seed: For drawn ids.

    Returns:
        The tokens and where they came from; drawn uniformly where neither text nor ids are given.

    Raises:
        RefimplError: Both text and ids; too few tokens; ids or lengths the model cannot take.
    """
    config = model.config
    longest = min(SEQ_LEN, config.max_position_embeddings)
    length = longest if seq_len is None else seq_len
    count = SAMPLES if samples is None else samples
    if text is not None and ids is not None:
        raise RefimplError("both --text and --tokens", "one of them", "remove the other")
    if text is not None:
        bos = model.config_file.get("bos_token_id")
        tokens = text_tokens(text, model.folder / "tokenizer.json", count, length, bos_id=bos)
    elif ids is not None:
        tokens = id_tokens(ids, samples, seq_len, longest)
    else:
        tokens = random_tokens(config.vocab_size, count, length, seed)
    checked_ids(tokens.ids, config)
    return tokens

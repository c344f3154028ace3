"""The tokens of a computation: from a text, from a file of ids, or drawn at random."""

from dataclasses import replace
from pathlib import Path

from refimpl.errors import RefimplError
from refimpl.loading.samples import SAMPLES, SEQ_LEN, Tokens, Windows, id_tokens, random_tokens
from refimpl.loading.text import text_tokens, text_windows
from refimpl.model.model import Model
from refimpl.model.state import checked_ids

RANDOM = Path("random")  # in place of a file of ids
# Two speeches in the public domain, which come with refimpl: docs/how-to/calibrate.md
CALIBRATION, EVALUATION = "roosevelt-1901.txt", "roosevelt-1902.txt"
FOLDER = Path(__file__).parent


def model_tokens(
    model: Model,
    text: Path | None = None,
    ids: Path | None = None,
    samples: int | None = None,
    seq_len: int | None = None,
    seed: int = 0,
    calibration: bool = False,
    default: tuple[int, int] = (SAMPLES, SEQ_LEN),
) -> Tokens:
    """Tokens of a text or of ids, checked against the model's limits.

    Without either, those for a calibration are cut from a text that comes with refimpl, and others
    are drawn. `default` has the number of samples and of tokens in each; rows have their own.
    """
    config = model.config
    usual, longest = default[0], min(default[1], config.max_position_embeddings)
    length = longest if seq_len is None else seq_len
    count = usual if samples is None else samples
    tokenizer, bos = model.tokenizer_json, model.config_file.get("bos_token_id")
    if text is not None and ids is not None:
        raise RefimplError("`text` with `tokens`", "one of them", "omit one of them")
    own = calibration and text is None and ids is None
    if own or text is not None:
        path = text or FOLDER / CALIBRATION
        tokens = text_tokens(path, tokenizer, count, length, bos_id=bos)
    elif ids is not None and ids != RANDOM:
        tokens = id_tokens(ids, samples, seq_len, (usual, longest))
    else:
        tokens = random_tokens(config.vocab_size, count, length, seed)
    checked_ids(tokens.ids, config)
    return replace(tokens, source=f"refimpl's {tokens.source}") if own else tokens


def model_windows(
    model: Model, text: Path | None = None, window: int | None = None, count: int | None = None
) -> Windows:
    """Windows of a text for a model; without a text, of one that comes with refimpl."""
    longest = model.config.max_position_embeddings
    if window is not None and window > longest:
        raise RefimplError(
            f"windows of {window} tokens",
            f"at most {longest}, the model's max_position_embeddings",
            f"use `window={longest}` or less",
        )
    size = min(SEQ_LEN, longest) if window is None else window
    bos, tokenizer = model.config_file.get("bos_token_id"), model.tokenizer_json
    windows = text_windows(text or FOLDER / EVALUATION, tokenizer, size, count, bos_id=bos)
    return windows if text else replace(windows, source=f"refimpl's {windows.source}")

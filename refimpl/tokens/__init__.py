"""What a model is fed: token ids in samples of equal length, and where they came from."""

from refimpl.tokens.ids import id_tokens
from refimpl.tokens.samples import SAMPLES, SEQ_LEN, Tokens, random_tokens
from refimpl.tokens.text import text_tokens

__all__ = [
    "SAMPLES",
    "SEQ_LEN",
    "Tokens",
    "id_tokens",
    "random_tokens",
    "text_tokens",
]

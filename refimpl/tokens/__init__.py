"""Token ids in samples or windows, and where they came from."""

from refimpl.tokens.samples import (
    SAMPLES,
    SCORED,
    SEQ_LEN,
    Tokens,
    Windows,
    id_tokens,
    id_windows,
    random_tokens,
)
from refimpl.tokens.text import text_tokens, text_windows

__all__ = [
    "SAMPLES", "SCORED", "SEQ_LEN", "Tokens", "Windows", "id_tokens", "id_windows", "random_tokens",
    "text_tokens", "text_windows",
]  # fmt: skip

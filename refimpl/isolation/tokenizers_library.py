"""The tokenizers library, as the child process runs it: strings in, ids as bytes out."""

from array import array
from itertools import chain
from typing import Any

from refimpl.isolation.serving import limit_memory


class Library:
    """An open `tokenizer.json`, without truncation and padding."""

    def __init__(self, content: bytes, memory: bytes) -> None:
        limit_memory(int(memory))
        from tokenizers import Tokenizer  # takes memory within the limit

        self._tokenizer: Any = Tokenizer.from_buffer(content)
        self._tokenizer.no_truncation()  # a file saved after training may truncate texts
        self._tokenizer.no_padding()

    def encode(self, text: bytes, special: bytes, offsets: bytes) -> tuple[bytes, bytes, bytes]:
        """Ids, which of them are the text's, and first and last character of each, as bytes."""
        tokenizer = self._tokenizer
        encode = tokenizer.encode_batch if offsets else tokenizer.encode_batch_fast  # less memory
        (encoding,) = encode([_text(text)], add_special_tokens=bool(special))
        places = chain.from_iterable(encoding.offsets) if offsets else ()
        is_text = bytes([sequence is not None for sequence in encoding.sequence_ids])
        return array("I", encoding.ids).tobytes(), is_text, array("I", places).tobytes()

    def token_to_id(self, token: bytes) -> tuple[bytes, ...]:
        """The id of a token, or nothing."""
        token_id: int | None = self._tokenizer.token_to_id(_text(token))
        return () if token_id is None else (array("I", [token_id]).tobytes(),)

    def id_to_token(self, token_id: bytes) -> tuple[bytes, ...]:
        """The token of an id, or nothing."""
        token: str | None = self._tokenizer.id_to_token(int(token_id))
        return () if token is None else (token.encode(),)

    def decode(self, ids: bytes) -> tuple[bytes, ...]:
        """The text of ids, without special tokens."""
        text: str = self._tokenizer.decode(array("I", ids).tolist())
        return (text.encode(),)


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogatepass")

"""The tokenizers library, as a process of its own runs it, which imports nothing else."""

from array import array
from itertools import chain
from typing import Any

from refimpl.running.isolation import limit_memory


class Library:
    """An open `tokenizer.json`, without truncation and padding."""

    def __init__(self, content: bytes, memory: int) -> None:
        limit_memory(memory)
        from tokenizers import Tokenizer  # takes memory within the limit

        tokenizer: Any = Tokenizer.from_buffer(content)
        tokenizer.no_truncation()  # a file saved after training may truncate texts
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.token_to_id, self.id_to_token = (
            tokenizer.token_to_id,
            tokenizer.id_to_token,
        )

    def encode(self, text: str, spans: bool) -> tuple[Any, bytes, Any]:
        """Ids, which of them are the text's, and first and last character of each, [2 N]."""
        tokenizer = self._tokenizer
        encode = (
            tokenizer.encode_batch if spans else tokenizer.encode_batch_fast
        )  # less memory
        (encoding,) = encode([text])
        is_text = bytes(sequence is not None for sequence in encoding.sequence_ids)
        pairs = chain.from_iterable(encoding.offsets) if spans else ()
        return array("I", encoding.ids), is_text, array("I", pairs)

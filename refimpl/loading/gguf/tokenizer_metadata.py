"""A `tokenizer.json` and its settings out of the metadata of a GGUF file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from refimpl.errors import RefimplError

NORMAL, UNKNOWN, SPECIAL, USER, UNUSED, BYTE = range(1, 7)  # types of tokens
SPACE = "▁"  # SentencePiece's
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# What cuts a text before BPE, by tokenizer.ggml.pre: a pattern, digits one by one, NFC first.
CUTS: dict[str, tuple[str, bool, bool]] = {
    "default": (GPT2, False, False),
    "gpt-2": (GPT2, False, False),
    "phi-2": (GPT2, False, False),
    "olmo": (GPT2, False, False),
    "smollm": (GPT2, True, False),
    "starcoder": (GPT2, True, False),
    "refact": (GPT2, True, False),
    "command-r": (GPT2, True, False),
    "llama-bpe": (LLAMA3, False, False),
    "llama3": (LLAMA3, False, False),
    "dbrx": (LLAMA3, False, False),
    "smaug-bpe": (LLAMA3, False, False),
    "qwen2": (QWEN2, False, True),
}


def write_tokenizer(metadata: Mapping[str, Any], folder: Path, path: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`; nothing if the file has no tokenizer."""
    facts = {
        key.removeprefix("tokenizer.ggml."): value
        for key, value in metadata.items()
        if key.startswith("tokenizer.ggml.")
    }
    if "tokens" not in facts:
        return
    tokens, kinds = facts["tokens"], facts.get("token_type")
    kinds = [NORMAL] * len(tokens) if kinds is None else list(map(int, kinds))
    model = facts.get("model")
    if model not in ("gpt2", "llama"):
        raise _refusal(
            path, f"the tokenizer model {model!r}", "gpt2 (BPE) or llama (SentencePiece)"
        )
    if len(set(tokens)) < len(tokens) or len(kinds) != len(tokens):
        raise _refusal(path, "tokens that repeat, or that lack a type", "one type per token")
    make = _byte_level if model == "gpt2" else _sentence_piece
    tokenizer = make(facts, tokens, kinds, path)
    _add_special(tokenizer, tokens, kinds, path)
    bos = _token(facts, "bos", tokens)
    adds_bos = bool(facts.get("add_bos_token", model == "llama")) and bos is not None
    if adds_bos:
        from tokenizers import processors

        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos}:1 $B:1",
            special_tokens=[(bos, tokens.index(bos))],
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": adds_bos,
        "clean_up_tokenization_spaces": False,
        "chat_template": metadata.get("tokenizer.chat_template"),
    }
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        settings[f"{ours}_token"] = _token(facts, theirs, tokens)
    settings = {key: value for key, value in settings.items() if value is not None}
    text = json.dumps(settings, indent=1, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text, "utf-8")


def _byte_level(
    facts: Mapping[str, Any], tokens: Sequence[str], kinds: Sequence[int], path: Path
) -> Any:
    """GPT-2's BPE over bytes, with the merges of the file."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    cut = facts.get("pre", "default")
    if cut not in CUTS:
        raise _refusal(path, f"the pre-tokenizer {cut!r}", f"one of {', '.join(CUTS)}")
    pattern, digits, normalised = CUTS[cut]
    # Tokens behind the last normal one are added later, in their order; the others stay.
    last = max((i for i, kind in enumerate(kinds) if kind == NORMAL), default=-1)
    vocab = {token: i for i, token in enumerate(tokens[: last + 1])}
    merges = [tuple(merge.split(" ")) for merge in facts.get("merges", ())]
    used = {part for merge in merges for part in (*merge, "".join(merge))}
    missing = sorted(used - vocab.keys())
    if missing or any(len(merge) != 2 for merge in merges):
        raise _refusal(path, f"merges of tokens that it lacks ({missing[:3]})", "merges of tokens")
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    if pattern != GPT2:
        steps.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern == GPT2))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if normalised:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(
    facts: Mapping[str, Any], tokens: Sequence[str], kinds: Sequence[int], path: Path
) -> Any:
    """SentencePiece's BPE: merges in the order of the scores, bytes for what is no token."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = facts.get("scores")
    if scores is None or len(scores) != len(tokens):
        raise _refusal(path, "no score for each of its tokens", "tokenizer.ggml.scores")
    unknown = _token(facts, "unknown", tokens) or next(
        (token for token, kind in zip(tokens, kinds, strict=True) if kind == UNKNOWN), None
    )
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=_merges(tokens, scores, kinds),
            unk_token=unknown,
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    prefix = bool(facts.get("add_space_prefix", True))
    steps = [normalizers.Prepend(SPACE)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _merges(
    tokens: Sequence[str], scores: Sequence[float], kinds: Sequence[int]
) -> list[tuple[str, str]]:
    """Every split of a token into two tokens, by falling score, then by their ids."""
    ids = {token: i for i, token in enumerate(tokens)}
    found = [
        (-float(scores[i]), i, ids[token[:k]], ids[token[k:]])
        for i, token in enumerate(tokens)
        if kinds[i] != BYTE
        for k in range(1, len(token))
        if token[:k] in ids and token[k:] in ids
    ]
    return [(tokens[left], tokens[right]) for _, _, left, right in sorted(found)]


def _add_special(tokenizer: Any, tokens: Sequence[str], kinds: Sequence[int], path: Path) -> None:
    """Add the tokens that a text is searched for first, and check that they keep their ids."""
    from tokenizers import AddedToken

    added = [
        AddedToken(token, normalized=False, special=kind in (SPECIAL, UNUSED))
        for token, kind in zip(tokens, kinds, strict=True)
        if kind in (SPECIAL, USER) or (kind == UNUSED and tokenizer.token_to_id(token) is None)
    ]
    tokenizer.add_tokens(added)
    ids = {token: i for i, token in enumerate(tokens)}
    if any(tokenizer.token_to_id(x.content) != ids[x.content] for x in added):
        raise _refusal(path, "special tokens between others", "tokens that keep their ids")


def _token(facts: Mapping[str, Any], role: str, tokens: Sequence[str]) -> str | None:
    """The token of a role such as "bos", or None."""
    number = facts.get(f"{role}_token_id")
    return tokens[number] if isinstance(number, int) and 0 <= number < len(tokens) else None


def _refusal(path: Path, problem: str, expected: str) -> RefimplError:
    """The refusal of a tokenizer."""
    return RefimplError(
        f"{path} has {problem}, which refimpl cannot convert",
        f"a tokenizer with {expected}",
        "pass ids with --tokens, or use the original checkpoint",
    )

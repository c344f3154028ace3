"""`tokenizer.json` and its settings out of the metadata of a GGUF file."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from refimpl.convert.gguf_config import Facts

NORMAL, UNKNOWN, SPECIAL, USER, UNUSED, BYTE = range(1, 7)  # types of tokens
MOST_SPLIT = (
    1 << 27
)  # squares of the lengths of all tokens: the time to split them in all ways
SPACE = "▁"  # SentencePiece's
_GPT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN = _LLAMA.replace(r"\p{N}{1,3}", r"\p{N}")
# What cuts a text before BPE, by tokenizer.ggml.pre: a pattern, digits one by one, NFC first (as in
# the model's own tokenizer), and whether pieces that are tokens stay whole whatever the merges say
# and BOS begins a text unless the file says otherwise.
CUTS = {
    name: cut
    for names, *cut in (
        (
            "gpt-2 phi-2 olmo mpt trillion mellum a.x-4.0 granite-docling",
            _GPT,
            False,
            False,
            False,
        ),
        (
            "smollm starcoder refact command-r codeshell exaone minerva-7b",
            _GPT,
            True,
            False,
            False,
        ),
        (
            "llama-bpe llama3 llama-v3 falcon3 pixtral midm-2.0 lfm2",
            _LLAMA,
            False,
            False,
            True,
        ),
        ("dbrx smaug-bpe glm4 chatglm-bpe", _LLAMA, False, False, False),
        ("qwen2", _QWEN, False, True, False),
        ("deepseek-r1-qwen megrez kormo stablelm2", _QWEN, False, False, False),
    )
    for name in names.split()
}
UNDERSTOOD = re.compile(  # no id follows a text, whatever add_eos_token says
    r"model|pre|tokens|token_type|scores|merges|add_(bos|eos|sep)_token|add_space_prefix"
    r"|\w+_token_ids?|token_type_count|suppress_tokens|remove_extra_whitespaces"
    r"|precompiled_charsmap|normalizer\.\w+"
)


def tokenizer_files(metadata: Facts) -> dict[str, bytes]:
    """`tokenizer.json` and `tokenizer_config.json`; none if the file has no tokenizer."""
    prefix = "tokenizer.ggml."
    facts = {
        k.removeprefix(prefix): x for k, x in metadata.items() if k.startswith(prefix)
    }
    if "tokens" not in facts:
        return {}
    tokens, model, pre = facts["tokens"], facts.get("model"), str(facts.get("pre"))
    facts.setdefault("token_type", [NORMAL] * len(tokens))
    for key, value in facts.items():
        kind = (
            int
            if key.endswith("_token_id")
            else bool
            if key.startswith("add_")
            else type(value)
        )
        if not UNDERSTOOD.fullmatch(key) or type(value) is not kind:
            raise ValueError(f"{prefix}{key} {value!r:.80} has no known meaning")
    if model != "llama" and (model != "gpt2" or pre not in CUTS):
        known = f"not llama, nor gpt2 with one of {', '.join(CUTS)}"
        raise ValueError(
            f"tokenizer {model!r}, with the pre-tokenizer {pre!r}: {known}"
        )
    if len(set(tokens)) < len(tokens) or len(facts["token_type"]) != len(tokens):
        raise ValueError("it has tokens that repeat, or that lack a type")
    parts = (_byte_level if model == "gpt2" else _sentence_piece)(facts, tokens)
    bos = _token(facts, "bos", tokens)
    adds_bos = facts.get("add_bos_token", model != "gpt2" or CUTS[pre][-1])
    template = None
    if adds_bos:
        if bos is None:
            raise ValueError(
                f"BOS begins a text, but its id is {facts.get('bos_token_id')}"
            )
        first = {"SpecialToken": {"id": bos, "type_id": 0}}
        text, other = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
        template = {
            "type": "TemplateProcessing",
            "single": [first, text],
            "pair": [first, text, first, other],
            "special_tokens": {
                bos: {"id": bos, "ids": [tokens.index(bos)], "tokens": [bos]}
            },
        }
    tokenizer = {
        "version": "1.0",
        "added_tokens": _added(parts["model"]["vocab"], tokens, facts["token_type"]),
        "post_processor": template,
        **parts,
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": facts.get("add_bos_token"),
        "clean_up_tokenization_spaces": False,
        "chat_template": metadata.get("tokenizer.chat_template"),
    }
    for ours, theirs in (
        ("bos", "bos"),
        ("eos", "eos"),
        ("unk", "unknown"),
        ("pad", "padding"),
    ):
        settings[f"{ours}_token"] = _token(facts, theirs, tokens)
    settings = {key: value for key, value in settings.items() if value is not None}
    files = {"tokenizer.json": tokenizer, "tokenizer_config.json": settings}
    return {
        name: json.dumps(x, ensure_ascii=False).encode() for name, x in files.items()
    }


def _byte_level(facts: Facts, tokens: Sequence[str]) -> dict[str, Any]:
    """GPT-2's BPE over bytes, with the merges of the file."""
    pattern, digits, normalised, whole = CUTS[facts["pre"]]
    kinds = facts["token_type"]
    # Tokens behind the last normal one are added later, in their order; the others stay.
    last = max((i for i, kind in enumerate(kinds) if kind == NORMAL), default=-1)
    vocab = {token: i for i, token in enumerate(tokens[: last + 1])}
    merges = [tuple(merge.split(" ")) for merge in facts.get("merges", ())]
    missing = {
        part for merge in merges for part in (*merge, "".join(merge))
    } - vocab.keys()
    long = any(
        len(x) > 1 and kind == NORMAL for x, kind in zip(tokens, kinds, strict=True)
    )
    if missing or any(len(merge) != 2 for merge in merges) or (long and not merges):
        raise ValueError("it has merges of tokens that it lacks, or no merges")
    steps: list[Any] = [{"type": "Digits", "individual_digits": True}] if digits else []
    if pattern != _GPT:
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
        steps.append({**split, "invert": False})
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    steps.append({**byte_level, "use_regex": pattern == _GPT})
    return {
        "normalizer": {"type": "NFC"} if normalised else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": {**byte_level, "add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": merges,
            "ignore_merges": whole,
        },
    }


def _sentence_piece(facts: Facts, tokens: Sequence[str]) -> dict[str, Any]:
    """SentencePiece's BPE: merges by the scores, bytes for what is no token."""
    scores, kinds = facts.get("scores", ()), facts["token_type"]
    ids = {token: i for i, token in enumerate(tokens)}
    if (
        len(scores) != len(tokens)
        or sum(len(token) ** 2 for token in tokens) > MOST_SPLIT
    ):
        raise ValueError(
            "it has too many long tokens, or no score for each of its tokens"
        )
    splits = [  # every split of a token into two tokens, by falling score, then by their ids
        (-float(scores[i]), i, ids[token[:k]], ids[token[k:]])
        for i, token in enumerate(tokens)
        if kinds[i] != BYTE
        for k in range(1, len(token))
        if token[:k] in ids and token[k:] in ids
    ]
    named = _token(facts, "unknown", tokens)
    model = {
        "type": "BPE",
        "unk_token": named
        or (tokens[kinds.index(UNKNOWN)] if UNKNOWN in kinds else None),
        "fuse_unk": True,
        "byte_fallback": True,
        "vocab": ids,
        "merges": [
            (tokens[left], tokens[right]) for _, _, left, right in sorted(splits)
        ],
    }
    steps: list[Any] = [
        {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    ]
    decoders: list[Any] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if facts.get("add_space_prefix", True):
        steps.insert(0, {"type": "Prepend", "prepend": SPACE})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }


def _added(
    vocab: Mapping[str, int], tokens: list[str], kinds: list[int]
) -> list[dict[str, Any]]:
    """The tokens that a text is searched for first, if they keep their ids."""
    added, following = list[dict[str, Any]](), len(vocab)
    for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if kind not in (SPECIAL, USER) and (kind != UNUSED or token in vocab):
            continue
        if token not in vocab:  # the library gives these the next ids, in their order
            if following != i:
                raise ValueError("it has special tokens between others")
            following += 1
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        added.append({"id": i, "content": token, **flags, "special": kind != USER})
    return added


def _token(facts: Facts, role: str, tokens: Sequence[str]) -> str | None:
    """The token of a role such as "bos", or None."""
    number = facts.get(f"{role}_token_id", -1)
    return tokens[number] if 0 <= number < len(tokens) else None

"""A `tokenizer.json` and its settings out of the metadata of a GGUF file."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from refimpl.errors import RefimplError
from refimpl.loading.gguf.header import types_of

NORMAL, UNKNOWN, SPECIAL, USER, UNUSED, BYTE = range(1, 7)  # types of tokens
MOST_SPLIT = 1 << 27  # squares of the lengths of all tokens: the time to split them in all ways
SPACE = "▁"  # SentencePiece's
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35 = QWEN2.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"[^\s\p{L}", r"[^\s\p{L}\p{M}")
DEEPSEEK3 = (  # one after the other
    r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)  # fmt: skip
_WORD = (  # capitals, then small letters, of which one or the other may lack
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = "|".join((*_WORD, r"\p{N}")) + _REST
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
GPT4O = "|".join((*(word + _ENDING for word in _WORD), r"\p{N}{1,3}")) + _REST
# What cuts a text before BPE, by tokenizer.ggml.pre: a pattern, digits one by one, NFC first (as in
# the model's own tokenizer), and whether pieces that are tokens stay whole whatever the merges say
# and BOS begins a text unless the file says otherwise.
CUTS = {
    name: cut
    for names, *cut in (
        ("gpt-2 phi-2 olmo mpt jais trillion granite-docling", GPT2, False, False, False),
        ("exaone4 mellum gigachat a.x-4.0 modern-bert", GPT2, False, False, False),
        ("jina-es jina-de jina-v2-es jina-v2-de", GPT2, False, False, False),
        ("smollm starcoder refact command-r codeshell", GPT2, True, False, False),
        ("exaone minerva-7b", GPT2, True, False, False),
        ("llama-bpe llama3 llama-v3 falcon3 falcon-h1", LLAMA3, False, False, True),
        ("pixtral midm-2.0 lfm2 jina-v5-nano", LLAMA3, False, False, True),
        ("dbrx smaug-bpe glm4 chatglm-bpe", LLAMA3, False, False, False),
        ("deepseek-v3 hunyuan-dense", DEEPSEEK3, False, False, False),
        ("tekken", TEKKEN, False, False, True),
        ("gpt-4o llama4", GPT4O, False, False, False),
        ("qwen2", QWEN2, False, True, False),
        ("qwen35", QWEN35, False, True, False),
        ("deepseek-r1-qwen megrez kormo stablelm2", QWEN2, False, False, False),
        ("hunyuan solar-open grok-2", QWEN2, False, False, False),
    )
    for name in names.split()
}
# Beside the keys that have a type; no id follows a text, whatever add_eos_token says.
IRRELEVANT = re.compile(
    r"\w+_token_ids|token_type_count|suppress_tokens|remove_extra_whitespaces"
    r"|precompiled_charsmap|normalizer\.\w+"
)


def write_tokenizer(metadata: Mapping[str, Any], folder: Path, path: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`; nothing if the file has no tokenizer."""
    facts = {
        key.removeprefix("tokenizer.ggml."): value
        for key, value in metadata.items()
        if key.startswith("tokenizer.ggml.")
    }
    if "tokens" not in facts:
        return
    for key in facts:
        if not types_of(f"tokenizer.ggml.{key}") and not IRRELEVANT.fullmatch(key):
            raise _refusal(path, f"tokenizer.ggml.{key}", "keys that refimpl understands")
    tokens, kinds = facts["tokens"], facts.get("token_type")
    kinds = [NORMAL] * len(tokens) if kinds is None else list(map(int, kinds))
    model = facts.get("model")
    if model not in ("gpt2", "llama", "gemma4"):
        accepted = "gpt2 (BPE), llama (SentencePiece) or gemma4 (its pieces, with merges)"
        raise _refusal(path, f"the tokenizer model {model!r}", accepted)
    if len(set(tokens)) < len(tokens) or len(kinds) != len(tokens):
        raise _refusal(path, "tokens that repeat, or that lack a type", "one type per token")
    make = _byte_level if model == "gpt2" else _sentence_piece
    parts = make(facts, tokens, kinds, path)
    bos = _token(facts, "bos", tokens)
    by_default = model != "gpt2" or CUTS[facts["pre"]][-1]
    adds_bos = facts.get("add_bos_token", by_default)
    if adds_bos and bos is None:
        found = f"bos_token_id {facts.get('bos_token_id')} of {len(tokens)} tokens"
        raise _refusal(path, found, "the id of a token, since BOS begins each text")
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(parts["model"]["vocab"], tokens, kinds, path),
        "post_processor": _with_bos(bos, tokens.index(bos)) if adds_bos and bos else None,
        **parts,
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), "utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": facts.get("add_bos_token"),
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
) -> dict[str, Any]:
    """GPT-2's BPE over bytes, with the merges of the file."""
    if (name := facts.get("pre")) not in CUTS:
        found = f"the pre-tokenizer {name!r}" if name else "no pre-tokenizer (tokenizer.ggml.pre)"
        raise _refusal(path, found, f"one of {', '.join(CUTS)}")
    pattern, digits, normalised, whole = CUTS[name]
    patterns = [pattern] if isinstance(pattern, str) else [*DEEPSEEK3]
    # Tokens behind the last normal one are added later, in their order; the others stay.
    last = max((i for i, kind in enumerate(kinds) if kind == NORMAL), default=-1)
    vocab = {token: i for i, token in enumerate(tokens[: last + 1])}
    long = any(len(x) > 1 and kind == NORMAL for x, kind in zip(tokens, kinds, strict=True))
    merges = _listed_merges(facts, vocab, long, path)
    steps: list[Any] = [{"type": "Digits", "individual_digits": True}] if digits else []
    for regex in patterns:
        if regex != GPT2:
            split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated"}
            steps.append({**split, "invert": False})
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    steps.append({**byte_level, "use_regex": pattern == GPT2})
    return {
        "normalizer": {"type": "NFC"} if normalised else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": {**byte_level, "add_prefix_space": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": whole},
    }


def _sentence_piece(
    facts: Mapping[str, Any], tokens: Sequence[str], kinds: Sequence[int], path: Path
) -> dict[str, Any]:
    """SentencePiece's BPE: merges of the file or by the scores, bytes for what is no token."""
    scores, vocab = facts.get("scores"), {token: i for i, token in enumerate(tokens)}
    if facts["model"] == "gemma4":
        merges = _listed_merges(facts, vocab, True, path)
    elif sum(len(token) ** 2 for token in tokens) > MOST_SPLIT:
        raise _refusal(path, "too many long tokens", "tokens of a few letters each")
    elif scores is None or len(scores) != len(tokens):
        raise _refusal(path, "no score for each of its tokens", "tokenizer.ggml.scores")
    else:
        merges = _merges(tokens, scores, kinds)
    unknown = _token(facts, "unknown", tokens) or next(
        (token for token, kind in zip(tokens, kinds, strict=True) if kind == UNKNOWN), None
    )
    model = {
        "type": "BPE",
        "unk_token": unknown,
        "fuse_unk": True,
        "byte_fallback": True,
        "vocab": vocab,
        "merges": merges,
    }
    prefix = bool(facts.get("add_space_prefix", True))
    steps: list[Any] = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    decoders: list[Any] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }


def _listed_merges(
    facts: Mapping[str, Any], vocab: Mapping[str, int], needed: bool, path: Path
) -> list[tuple[str, ...]]:
    """The merges of the file, all of tokens."""
    merges = [tuple(merge.split(" ")) for merge in facts.get("merges", ())]
    used = {part for merge in merges for part in (*merge, "".join(merge))}
    missing = sorted(used - vocab.keys())
    if missing or any(len(merge) != 2 for merge in merges) or (needed and not merges):
        found = f"merges of tokens that it lacks ({missing[:3]})" if merges else "no merges"
        raise _refusal(path, found, "merges of tokens")
    return merges


def _merges(
    tokens: Sequence[str], scores: Sequence[float], kinds: Sequence[int]
) -> list[tuple[str, ...]]:
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


def _added(
    vocab: Mapping[str, int], tokens: Sequence[str], kinds: Sequence[int], path: Path
) -> list[dict[str, Any]]:
    """The tokens that a text is searched for first, if they keep their ids."""
    added, following = list[dict[str, Any]](), len(vocab)
    for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if kind not in (SPECIAL, USER) and (kind != UNUSED or token in vocab):
            continue
        if token not in vocab:  # the library gives these the next ids, in their order
            if following != i:
                raise _refusal(path, "special tokens between others", "tokens that keep their ids")
            following += 1
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        added.append({"id": i, "content": token, **flags, "special": kind != USER})
    return added


def _with_bos(bos: str, bos_id: int) -> dict[str, Any]:
    """The post-processor that puts BOS before each text."""
    first, second = (
        [{"SpecialToken": {"id": bos, "type_id": i}}, {"Sequence": {"id": name, "type_id": i}}]
        for i, name in enumerate("AB")
    )
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": [*first, *second],
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }


def _token(facts: Mapping[str, Any], role: str, tokens: Sequence[str]) -> str | None:
    """The token of a role such as "bos", or None."""
    number = facts.get(f"{role}_token_id", -1)
    return tokens[number] if 0 <= number < len(tokens) else None


def _refusal(path: Path, problem: str, expected: str) -> RefimplError:
    """The refusal of a tokenizer."""
    return RefimplError(
        f"{path} has {problem}, which refimpl cannot convert",
        f"a tokenizer with {expected}",
        "pass ids with --tokens; to prune, use the original checkpoint",
    )

"""Small reproductions of every failure that fuzzing ever found."""

import json

from targets import FuzzCase

_HEADER = b'{"embed":{"dtype":"F32","shape":[4611686018427387904,0,7],"data_offsets":[0,0]}}'
_CASE = ["check", "case", "actual.safetensors", "--only", "embed"]
_QUESTION = {"question": "\ud800", "choices": ["a", "b"], "answer": 0}
_SMALL = ["--samples", "1", "--seq-len", "4"]

CHANGED: list[tuple[str, bytes, list[str]]] = [
    ("actual.safetensors", len(_HEADER).to_bytes(8, "little") + _HEADER, _CASE),
    ("actual.safetensors", b"", _CASE),
    ("case/case.json", b"[" * 100_000, _CASE),
    ("case/case.json", b'{"schema": 1, "spec": 1, "steps": [{}]}', _CASE),
    ("case/case.json", b"null", _CASE),
    ("case/margins.safetensors", b"\x02" + b"\x00" * 7 + b"{}", _CASE),
    ("q.jsonl", json.dumps(_QUESTION).encode(), ["eval", "model", "--choices", "q.jsonl"]),
    ("q.jsonl", b"[" * 100_000, ["eval", "model", "--choices", "q.jsonl"]),
    ("pruned/pruning.json", b'{"method": {}, "pattern": 3}', ["inspect", "pruned"]),
    ("pruned/pruning.json", b'{"method": "\\u001b[2J", "pattern": "x\\nerror: forged"}',
     ["inspect", "pruned"]),
    ("model/config.json", b'{"model_type": "a\\nerror: \\u001b[2Jforged"}', ["inspect", "model"]),
    ("model/config.json", b'{"model_type": "llama", "vocab_size": 1' + b"0" * 400 + b"}",
     ["inspect", "model"]),
    ("scores.json", b'{"format": 4, "seed": 1' + b"0" * 400 + b"}", ["allocate", "scores.json"]),
    ("eval.json", b'{"format": 1, "model": "m", "family": "llama", "num_blocks": 4, "run": {}, '
     b'"text": null}', ["report", "scores.json", "eval.json", "-o", "out.html"]),
    ("eval.json", b'{"format": 1, "model": "\\u001b[2J", "family": "llama", "num_blocks": 2, '
     b'"run": {"dtype": "float32"}, "text": null}', ["compare", "eval.json", "--json"]),
    ("ids.jsonl", b"[1]\n" * 3_000_000, ["eval", "model", "--tokens", "ids.jsonl"]),
    ("base.json", b"[" * 100_000, ["allocate", "scores.json", "--base", "base.json"]),
    ("model/tokenizer.json", b"{}", ["eval", "model", "--choices", "q.jsonl"]),
    ("sharded/model.safetensors.index.json", b'{"weight_map": {"a\\u001b[2J": "../x"}}',
     ["inspect", "sharded"]),
]  # fmt: skip
OPTIONS = [
    ["prune", "opt", *_SMALL, "--sparsity", "0.5", "-o", "out"],
    ["--show-completion"],
    ["validate", "model", "--graph", "/dev/zero"],
    ["case", "make", "model", *_SMALL, "-o", "out", "--seed", "-1"],
    ["score", "mixtral", "--tokens", "random", *_SMALL, "--estimate"],
    ["case"],
    ["score", "model", *_SMALL, "--draws", str(2**64)],
    ["score", "model", *_SMALL, "--threads", str(2**64)],
    ["score", "model", *_SMALL, "--seed", "1" + "0" * 400],
    ["score", "model", *_SMALL, "-o", ""],
    ["score", "model", *_SMALL, "-o", "/"],
    ["eval", "model", "--tokens", "ids.jsonl", "-o", "."],
    ["export", "model", "-o", ""],
    ["prune", "model", "-o", "/", "--pruner", "magnitude"],
    ["prune", "model", "-o", "a" * 246, "--seq-len", "65"],
    ["check", "case", "actual.safetensors", "-o", "model/model.safetensors"],
    ["explain", "model", *_SMALL, "--eta", "1e-7"],
    ["inspect", "x\x1b[2J\nerror: forged"],
]
REGRESSIONS = [
    *(FuzzCase(words, file, "regressions", content) for file, content, words in CHANGED),
    *(FuzzCase(words, None, "regressions") for words in OPTIONS),
]

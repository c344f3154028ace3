"""Small reproductions of every failure that fuzzing ever found, and inputs of hostile sizes."""

from own_records import THIEF
from targets import BENCH, OF_RECORDS, FuzzCase

_HEADER = (
    b'{"embed":{"dtype":"F32","shape":[4611686018427387904,0,7],"data_offsets":[0,0]}}'
)
_CASE = ["check", "case", "actual.safetensors", "--only", "embed"]
_SMALL = ["--samples", "1", "--seq-len", "4"]

CHANGED: list[tuple[str, bytes, list[str]]] = [
    ("actual.safetensors", len(_HEADER).to_bytes(8, "little") + _HEADER, _CASE),
    ("actual.safetensors", b"", _CASE),
    ("case/case.json", b"[" * 100_000, _CASE),
    ("case/case.json", b'{"schema": 1, "spec": 1, "steps": [{}]}', _CASE),
    ("case/case.json", b"null", _CASE),
    ("pruned/pruning.json", b'{"method": {}, "pattern": 3}', ["inspect", "pruned"]),
    (
        "pruned/pruning.json",
        b'{"method": "\\u001b[2J", "pattern": "x\\nerror: forged"}',
        ["inspect", "pruned"],
    ),
    (
        "model/config.json",
        b'{"model_type": "a\\nerror: \\u001b[2Jforged"}',
        ["inspect", "model"],
    ),
    (
        "model/config.json",
        b'{"model_type": "llama", "vocab_size": 1' + b"0" * 400 + b"}",
        ["inspect", "model"],
    ),
    (
        "scores.json",
        b'{"format": 4, "seed": 1' + b"0" * 400 + b"}",
        ["allocate", "scores.json"],
    ),
    (
        "eval.json",
        b'{"format": 1, "model": "m", "family": "llama", "num_blocks": 4, "run": {}, '
        b'"text": null}',
        ["plot", "scores.json", "eval.json", "-o", "out.html"],
    ),
    (
        "eval.json",
        b'{"format": 1, "model": "\\u001b[2J", "family": "llama", "num_blocks": 2, '
        b'"run": {"dtype": "float32"}, "text": null}',
        ["plot", "eval.json", "-o", "out.html"],
    ),
    ("base.json", b"[" * 100_000, ["allocate", "scores.json", "--base", "base.json"]),
    (
        "text.txt",
        b"abcdefgh" * 10**6,
        ["score", "model", "--text", "text.txt", *_SMALL],
    ),
    ("model/config.json", b"[" * 30 * 10**6, ["inspect", "model"]),
    ("model/model.safetensors", (b"\0" * 5 + b"\1\0\0") * 9, ["inspect", "model"]),
    (
        "sharded/model.safetensors.index.json",
        b'{"weight_map": {"a\\u001b[2J": "../x"}}',
        ["inspect", "sharded"],
    ),
]
OPTIONS = [
    ["prune", "opt", *_SMALL, "--sparsity", "0.5", "-o", "out"],
    ["--show-completion"],
    ["validate", "model", "--graph", "/dev/zero"],
    ["case", "make", "model", *_SMALL, "-o", "out", "--seed", "-1"],
    ["case"],
    ["score", "model", *_SMALL, "--draws", str(2**64)],
    ["score", "model", *_SMALL, "--threads", str(2**64)],
    ["score", "model", *_SMALL, "--seed", "1" + "0" * 400],
    ["score", "model", "--samples", "2147483647"],
    ["score", "model", *_SMALL, "-o", ""],
    ["score", "model", *_SMALL, "-o", "/"],
    ["eval", "model", "--tokens", "ids.npy", "-o", "."],
    ["export", "model", "-o", ""],
    ["prune", "model", "-o", "/", "--pruner", "magnitude"],
    ["prune", "model", "-o", "a" * 246, "--seq-len", "65"],
    ["check", "case", "actual.safetensors", "-o", "model/model.safetensors"],
    ["explain", "model", *_SMALL, "--eta", "1e-7"],
    ["inspect", "x\x1b[2J\nerror: forged"],
]
RECORDS = [  # of other packages: base or pruner, number of the command, what is odd, entry point
    ("base", 0, ("owl", "allocation", "0"), "own"),
    ("base", 0, ("owl", "needs", "0"), "own"),
    ("base", 0, ("owl", "signal", "masked"), "own"),
    ("base", 3, ("lsa", "signal", "a name of each block"), "own"),
    ("base", 4, ("alphapruning", "signal", "a number of the last"), "own"),
    ("base", 0, ("owl", "signal", "text"), "exits"),
    ("pruner", 0, ("sparsegpt", "needs", "1"), "own"),
    ("pruner", 0, ("random", "score", "0"), "own"),
    ("pruner", 4, ("wanda", "options", "0"), "own"),
    ("pruner", 1, ("sparsegpt", "compensate weight", "masked"), "own"),
    ("pruner", 3, ("wanda", "score", THIEF), "own"),
]

KINDS = [  # what stands in the place of a file
    (
        "model/special_tokens_map.json",
        "sparse",
        ["prune", "model", "--nm", "2:4", "-o", "out"],
    ),
    ("bench/table.md", "folder", BENCH),
]

REGRESSIONS = [
    *(FuzzCase(words, file, kind) for file, kind, words in KINDS),
    *(
        FuzzCase(words, file, "regressions", content)
        for file, content, words in CHANGED
    ),
    *(FuzzCase(words, None, "regressions") for words in OPTIONS),
    *(
        FuzzCase([{"own": entry}.get(x, x) for x in OF_RECORDS[sort][i]], record=record)
        for sort, i, record, entry in RECORDS
    ),
]

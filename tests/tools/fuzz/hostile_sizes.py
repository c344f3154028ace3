"""Peak memory and time of inputs of hostile sizes: `python tests/tools/fuzz/hostile_sizes.py`.

Prints the table of docs/explanation/safety.md.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), *map(str, Path(__file__).parents[2:4])]
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

from fuzz import prepare  # noqa: E402
from server import Left, run_forked  # noqa: E402

SMALL = "--samples 1 --seq-len 4"
HAN = "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工"


def sparse(path: Path, size: int = 1 << 30) -> None:
    """A file of zeros that takes no room."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(size)


def zero(path: Path) -> None:
    """A link to a device without an end."""
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def written(content: Callable[[], bytes]) -> Callable[[Path], None]:
    """Write this content."""
    return lambda path: _replace(path, content())


def _replace(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def han(characters: int) -> bytes:
    """Chinese in lines, without spaces."""
    return ((HAN * 23 + "\n") * (characters // 1000)).encode()


TEXT, EVAL = f"score model --text text.txt {SMALL}", "eval model --text text.txt --window 64"
INPUTS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "text, 1 GB sparse": ("text.txt", sparse, TEXT),
    "text, 4 MB of Chinese": ("text.txt", written(lambda: han(1_400_000)), TEXT),
    "text, 8 MB without a space": ("text.txt", written(lambda: b"abcdefgh" * 10**6), TEXT),
    "text, 8 MB of one letter": ("text.txt", written(lambda: b"a" * 8 * 10**6), TEXT),
    "text, 4 MB of Chinese, first window": (
        "text.txt", written(lambda: han(1_400_000)), f"{EVAL} --windows 1",
    ),
    "text, `/dev/zero`": ("text.txt", zero, TEXT),
    "`config.json`, `/dev/zero`": ("model/config.json", zero, "inspect model"),
    "`config.json`, 30 MB of `[`": (
        "model/config.json", written(lambda: b"[" * 30 * 10**6), "inspect model",
    ),
    "`config.json`, 30 MB of `[],`": (
        "model/config.json", written(lambda: b"[" + b"[]," * 10**7 + b"1]"), "inspect model",
    ),
    "`scores.json`, `/dev/zero`": ("scores.json", zero, "allocate scores.json"),
    "`scores.json`, 1 TB sparse": (
        "scores.json", lambda path: sparse(path, 1 << 40), "allocate scores.json",
    ),
    "questions, `/dev/zero`": ("q.jsonl", zero, "eval model --choices q.jsonl"),
    "questions, 30 MB of empty lines": (
        "q.jsonl", written(lambda: b"\n" * 30 * 10**6), "eval model --choices q.jsonl",
    ),
    "`tokenizer.json`, 1 GB sparse": ("model/tokenizer.json", sparse, TEXT),
    "weights, `/dev/zero`": ("model/model.safetensors", zero, "inspect model"),
    "weights, a header of 1 TB": (
        "model/model.safetensors", written(lambda: (1 << 40).to_bytes(8, "little") * 9),
        "inspect model",
    ),
    "weights, 1 GB sparse": ("model/model.safetensors", sparse, "inspect model"),
    "ids, `.npy` of 1 TB, sparse": (
        "ids.npy", lambda path: sparse(path, 1 << 40), f"score model --tokens ids.npy {SMALL}",
    ),
    "candidate of shape [2^62, 0, 7]": (
        "actual.safetensors",
        written(lambda: _tensor(b'{"embed":{"dtype":"F32","shape":[4611686018427387904,0,7],'
                                b'"data_offsets":[0,0]}}')),
        "check case actual.safetensors",
    ),
    "graph, 1 TB sparse": (
        "graph.onnx", lambda path: sparse(path, 1 << 40), "validate model --graph graph.onnx",
    ),
    "`--draws 18446744073709551616`": ("base.csv", zero, f"score model {SMALL} --draws {2**64}"),
    "`--samples 2147483647`": ("base.csv", zero, "score model --samples 2147483647"),
    "`--threads 18446744073709551616`": ("base.csv", zero, f"validate model --threads {2**64}"),
}  # fmt: skip


def _tensor(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


def measured() -> Iterator[tuple[str, Left]]:
    """Every input, and what its run left."""
    with tempfile.TemporaryDirectory() as parent:
        good = prepare(Path(parent))
        for label, (name, make, words) in INPUTS.items():
            old = (good / name).read_bytes() if (good / name).is_file() else b""
            make(good / name)
            yield label, run_forked(words.split(), good, 120)
            _replace(good / name, old)


if __name__ == "__main__":
    print("| input | exit code | MiB | CPU seconds | seconds |\n|---|---|---|---|---|")
    for label, left in measured():
        times = f"{left.cpu:.1f} | {left.seconds:.1f}"
        print(f"| {label} | {left.code} | {left.memory >> 20} | {times} |", flush=True)
        if left.code != 0:
            print(f"  {left.err.decode()[:150]!r}", file=sys.stderr)

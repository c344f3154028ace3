"""`refimpl check` on 46 candidates that are damaged or made to deceive: the exit code, each time.

Eight run always, the rest in a tier. Every one is drawn from its number;
`python -m pytest -k "corrupt and 17"` runs it again.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from candidates import CASES, Arrays, computed
from checkpoints import save_tensors
from gates import case_of
from program import refused, run

from refimpl.model.ops import Array

pytestmark = pytest.mark.usefixtures("few_attempts")
COUNT = 46
CASE = CASES / "llama"
Draw = np.random.Generator


@pytest.fixture(autouse=True, scope="module")
def one_case() -> None:
    """The case is read once: what is tested is the candidate."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "refimpl.oracle.case.read_case", lambda path, **_: case_of("llama")
        )
        yield


def steps_of(which: int | str) -> list[str]:
    """Steps of floats with as many axes at least, not all of one size; others by their end."""
    arrays = computed("llama").items()
    if isinstance(which, str):
        return [k for k, v in arrays if v.dtype.kind != "f" and k.endswith(which)]
    return [
        k for k, v in arrays if v.dtype.kind == "f" and v.ndim >= which and v.size > 1
    ]


def one_number(value: Array, draw: Draw) -> Array:
    """One float that is not finite, or one count that is another."""
    value = value.copy()
    odd = (
        [np.nan, np.inf, -np.inf]
        if value.dtype.kind == "f"
        else [-1, 1, -(10**6), 2**62]
    )
    change = draw.choice(odd)
    at = np.unravel_index(draw.integers(value.size), value.shape)
    value[at] = change if value.dtype.kind == "f" else value[at] + change
    return value


def swapped(right: Arrays, draw: Draw) -> Arrays:
    names = [
        f"blocks.{i}.{point}" for i in range(4) for point in ("attn_norm", "mlp_out")
    ]
    one, other = draw.choice(names, 2, replace=False)
    return right | {one: right[other], other: right[one]}


def lacking(right: Arrays, draw: Draw) -> Arrays:
    gone = draw.choice(list(right), int(draw.integers(1, 99)), replace=False)
    return {k: v for k, v in right.items() if k not in gone}


def renamed(right: Arrays, draw: Draw) -> Arrays:
    step = str(draw.choice(steps_of(1)))
    return {f"{k}." if k == step else k: v for k, v in right.items()}


def more(right: Arrays, draw: Draw) -> Arrays:
    name = str(
        draw.choice(["", "a" * 3000, "blocks.99.q", "../../x", "\n", "owl.signal.keep"])
    )
    return right | {name: draw.standard_normal((2, 0) if draw.integers(2) else (2, 3))}


def in_order(right: Arrays, draw: Draw) -> Arrays:
    return {str(name): right[str(name)] for name in draw.permutation(list(right))}


# The exit code; of which steps one is changed, if not the whole file; how.
KINDS: list[tuple[int, int | str | None, Callable[[Any, Draw], Any]]] = [
    (1, 1, one_number),
    (1, 2, lambda x, _: np.zeros_like(x)),
    (1, 1, lambda x, _: -x),
    (1, 3, lambda x, _: x * np.float32(1.001)),
    (1, 3, lambda x, _: np.roll(x, 1, axis=1)),
    (1, 2, lambda x, _: np.swapaxes(x, -1, -2)),
    (
        1,
        1,
        lambda x, d: np.clip(np.rint(x), 0, 1).astype(
            d.choice(["i1", "u1", "i8", "?"])
        ),
    ),
    (
        1,
        0,
        lambda x, d: np.zeros([(0,), (0, 0), (3, 0, 2)][int(d.integers(3))], x.dtype),
    ),
    (1, None, swapped),
    (1, 1, lambda x, _: np.full(x.shape, 1e308)),
    (1, "", lambda x, _: x.astype(np.float32)),
    (1, ".keep", lambda x, _: np.unpackbits(x, axis=1)),
    (1, ".keep", lambda x, _: np.unpackbits(x, axis=1).astype(np.bool_)),
    (1, ".keep", lambda x, d: x[:, :-1] if d.integers(2) else np.repeat(x, 2, axis=1)),
    (1, ".keep", lambda x, _: ~x),
    (1, ".keep", lambda x, d: x.astype(np.int64) - int(d.choice([256, -256, 2**32]))),
    (1, ".counts", one_number),
    (3, None, lacking),
    (3, None, renamed),
    (0, None, more),
    (0, None, in_order),
    (0, 1, lambda x, _: x.astype(np.float64)),
    (0, ".keep", lambda x, d: x.astype(d.choice(["int16", "int64", "uint64"]))),
]


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(
            x, marks=() if x < len(KINDS) and x % 3 == 0 else pytest.mark.thorough
        )
        for x in range(COUNT)
    ],
)
def test_a_corrupt_candidate_ends_as_it_should(number: int, tmp_path: Path) -> None:
    code, which, change = KINDS[number % len(KINDS)]
    arrays, draw = dict(computed("llama")), np.random.default_rng(number)
    if which is None:
        arrays = change(arrays, draw)
    else:
        step = str(draw.choice(steps_of(which)))
        arrays[step] = change(arrays[step], draw)
    save_tensors(path := tmp_path / "actual.safetensors", arrays)
    done = run("check", CASE, path)
    assert done.code == code, (done.out, done.err)
    assert "Traceback" not in done.out + done.err
    assert "Warning" not in done.err
    last = {0: "passes: ", 1: "again: ", 3: "not judged: "}[code]
    assert any(line.startswith(last) for line in done.out.splitlines())


def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("", "empty", "none", "link", "loop"):
        refused("check", CASE, tmp_path / name)

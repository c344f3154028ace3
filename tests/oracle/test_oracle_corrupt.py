"""`refimpl check` on 120 candidates that are damaged or made to deceive: the exit code, each time.

A dozen run always, the rest in a tier. Every one is drawn from its number;
`python -m pytest -k "corrupt and 17"` runs it again.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from candidates import CASES, Arrays, computed
from checkpoints import save_tensors
from gates import case_of
from program import refused, run

from refimpl.model.ops import Array

COUNT = 120
CASE = CASES / "llama"
Draw = np.random.Generator
Change = Callable[[Array, Draw], Array]
Make = Callable[[Draw], Arrays]


@pytest.fixture(autouse=True, scope="module")
def one_case() -> None:
    """The case is read once: what is tested is the candidate."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("refimpl.oracle.case.read_case", lambda path, **_: case_of("llama"))
        yield


def right() -> Arrays:
    """The arrays of a right candidate in float32."""
    return computed("llama")


def pick(draw: Draw, options: Sequence[Any]) -> Any:
    return options[int(draw.integers(len(options)))]


# Files that are read and are wrong: exit code 1.


def changed_step(change: Change, names: Callable[[], list[str]]) -> Make:
    """One of some steps, changed."""

    def make(draw: Draw) -> Arrays:
        step = str(draw.choice(names()))
        return right() | {step: change(right()[step], draw)}

    return make


def floats(axes: int = 1) -> list[str]:
    """Steps of float numbers, with as many axes at least, and not all of one size."""
    arrays = right().items()
    return [k for k, v in arrays if v.dtype.kind == "f" and v.ndim >= axes and v.size > 1]


def float_step(change: Change, axes: int = 1) -> Make:
    return changed_step(change, lambda: floats(axes))


def whole_step(change: Change, suffix: str = ".keep") -> Make:
    """One step of whole numbers changed: decisions, or another kind."""
    return changed_step(
        change,
        lambda: [k for k, v in right().items() if v.dtype.kind != "f" and k.endswith(suffix)],
    )


def one_number(value: Array, draw: Draw) -> Array:
    """One float that is not finite, or one count that is another."""
    value = value.copy()
    at = np.unravel_index(draw.integers(value.size), value.shape)
    if value.dtype.kind == "f":
        value[at] = draw.choice([np.nan, np.inf, -np.inf])
    else:
        value[at] += draw.choice([-1, 1, -(10**6), 2**62])
    return value


def integers(value: Array, draw: Draw) -> Array:
    kind = draw.choice(["int8", "uint8", "int64", "bool"])
    return np.clip(np.rint(value), 0, 1).astype(kind)


def empty(draw: Draw) -> Arrays:
    step = str(draw.choice(list(right())))
    shape = pick(draw, [(0,), (0, 0), (3, 0, 2)])
    return right() | {step: np.zeros(shape, right()[step].dtype)}


def swapped(draw: Draw) -> Arrays:
    names = [f"blocks.{i}.{point}" for i in range(4) for point in ("attn_norm", "mlp_out")]
    one, other = draw.choice(names, 2, replace=False)
    return right() | {one: right()[other], other: right()[one]}


WRONG: tuple[Make, ...] = (
    float_step(one_number),
    float_step(lambda x, _: np.zeros_like(x), 2),
    float_step(lambda x, _: -x),
    float_step(lambda x, _: x * np.float32(1.001), 3),
    float_step(lambda x, _: np.roll(x, 1, axis=1), 3),
    float_step(lambda x, _: np.swapaxes(x, -1, -2), 2),
    float_step(integers),
    empty,
    swapped,
    float_step(lambda x, _: np.full(x.shape, 1e308)),
    whole_step(lambda x, _: x.astype(np.float32), ""),
    whole_step(lambda x, _: np.unpackbits(x, axis=1)),
    whole_step(lambda x, _: np.unpackbits(x, axis=1).astype(np.bool_)),
    whole_step(lambda x, draw: x[:, :-1] if draw.integers(2) else np.repeat(x, 2, axis=1)),
    whole_step(lambda x, _: ~x),
    whole_step(lambda x, draw: x.astype(np.int64) - int(draw.choice([256, -256, 2**32]))),
    whole_step(one_number, ".counts"),
)


# Files that lack a step: exit code 3; harmless changes: 0.


def lacking(draw: Draw) -> Arrays:
    gone = draw.choice(list(right()), int(draw.integers(1, 99)), replace=False)
    return {k: v for k, v in right().items() if k not in gone}


def renamed(draw: Draw) -> Arrays:
    step = str(draw.choice(floats()))
    return {f"{k}." if k == step else k: v for k, v in right().items()}


def more(draw: Draw) -> Arrays:
    name = str(draw.choice(["", "a" * 3000, "blocks.99.q", "../../x", "\n", "owl.signal.keep"]))
    return right() | {name: draw.standard_normal((2, 0) if draw.integers(2) else (2, 3))}


def in_order(draw: Draw) -> Arrays:
    names = draw.permutation(list(right()))
    return {str(name): right()[str(name)] for name in names}


wider = float_step(lambda x, _: x.astype(np.float64))
wide_integers = whole_step(lambda x, draw: x.astype(draw.choice(["int16", "int64", "uint64"])))

EXPECTED: dict[int, tuple[Make, ...]] = {
    1: WRONG,
    3: (lacking, renamed),
    0: (more, in_order, wider, wide_integers),
}
KINDS = [(code, make) for code, makes in EXPECTED.items() for make in makes]


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(x, marks=() if x < len(KINDS) and x % 3 == 0 else pytest.mark.thorough)
        for x in range(COUNT)
    ],
)
def test_a_corrupt_candidate_ends_as_it_should(number: int, tmp_path: Path) -> None:
    code, make = KINDS[number % len(KINDS)]
    path = tmp_path / "actual.safetensors"
    save_tensors(path, make(np.random.default_rng(number)))
    done = run("check", CASE, path)
    assert done.code == code, (done.out, done.err)
    assert "Traceback" not in done.out + done.err
    assert "Warning" not in done.err
    last = {0: "passes: ", 1: "again: ", 3: "not judged: "}[code]
    assert any(line.startswith(last) for line in done.out.splitlines())


def test_every_kind_is_drawn() -> None:
    assert 5 * len(KINDS) <= COUNT


def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("", "empty", "none", "link", "loop"):
        refused("check", CASE, tmp_path / name)

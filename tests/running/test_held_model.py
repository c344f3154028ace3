"""Models that keep weights: what is read, how often, and that nothing else changes."""

from collections import Counter
from time import sleep
from typing import Any

import numpy as np
import pytest
from gates import CASES, bits, layouts, model_of
from refusals import refusal_of

from refimpl import HeldModel, Model
from refimpl.model.weight import Weight
from refimpl.running.threads import Workers

MOST = 1 << 30


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each tensor is read or checked, by its name in the file."""
    counted, read, check = Counter[str](), Weight.read, Weight.check

    def reading(weight: Weight, *arguments: Any) -> Any:
        counted[weight.stored.name] += 1
        sleep(0.001)  # long enough for another thread
        return read(weight, *arguments)

    def checking(weight: Weight, *arguments: Any) -> Any:
        counted[f"check {weight.stored.name}"] += 1
        return check(weight, *arguments)

    monkeypatch.setattr(Weight, "read", reading)
    monkeypatch.setattr(Weight, "check", checking)
    return counted


def use(model: Model, blocks: int) -> None:
    model.check_finite(np.float32)
    for i in range(blocks):
        model.block(i, np.float32)
    model.head(np.float32)


@pytest.mark.parametrize("case", layouts(CASES))
def test_weights_are_those_of_the_model(case: str) -> None:
    plain, held = model_of(case), HeldModel.of(model_of(case), MOST)
    for dtype in (np.float32, np.float64, np.float32):
        pairs: list[tuple[Any, Any]] = [
            (plain.block(i, dtype), held.block(i, dtype)) for i in range(plain.config.num_blocks)
        ]
        rows = (slice(None), slice(2, 5), slice(3, 5), slice(None))
        pairs += [(plain.head(dtype, part), held.head(dtype, part)) for part in rows]
        for one, other in pairs:
            assert list(one) == list(other)
            every = ([np.asarray(x) for x in weights.values()] for weights in (one, other))
            assert all(bits(x) == bits(y) for x, y in zip(*every, strict=True))


def test_each_weight_is_read_once(reads: Counter[str]) -> None:
    held, blocks = HeldModel.of(model_of("llama"), MOST), model_of("llama").config.num_blocks
    for _ in range(3):
        use(held, blocks)
    assert set(reads.values()) == {1}
    held.block(0, np.float64)
    assert set(reads.values()) == {1, 2}


def test_threads_wait_for_the_one_that_reads(reads: Counter[str]) -> None:
    held, blocks = HeldModel.of(model_of("llama"), MOST), model_of("llama").config.num_blocks
    with Workers(8) as workers:
        workers.run([lambda: use(held, blocks)] * 32)
    assert set(reads.values()) == {1}


def test_what_exceeds_the_limit_is_read_again(reads: Counter[str]) -> None:
    model = model_of("llama")
    size = model.block(0, np.float32).nbytes
    assert size == sum(weight.nbytes for weight in model.block(0, np.float32).values())
    for limit, kept in ((size - 1, 0), (size, 1), (2 * size + size // 2, 2), (3 * size, 3)):
        held = HeldModel.of(model, limit)
        reads.clear()
        for _ in range(2):
            for i in range(4):
                held.block(i, np.float32)
        once = {name.split(".")[2] for name, times in reads.items() if times == 1}
        assert once == {str(i) for i in range(kept)}, limit
        assert set(reads.values()) <= {1, 2}


def test_a_size_that_cannot_be_is_refused() -> None:
    refusal_of(HeldModel.of, model_of("llama"), "much", says="memory 'much'")

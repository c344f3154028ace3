"""Worker threads with BLAS on one core, and memory."""

import sys
import threading
from functools import partial
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from checkpoints import resident
from hypothesis import given
from hypothesis import strategies as st
from processes import forked, printed_json
from program import Result
from refusals import refusal_of
from threadpoolctl import threadpool_info, threadpool_limits

from refimpl.cli.main import _keep_freed_memory
from refimpl.running import settings, threads
from refimpl.running.settings import parse_memory, peak_memory
from refimpl.running.threads import Workers


@pytest.mark.parametrize("number", [1, 2, 4])
def test_results_come_in_order(number: int) -> None:
    seen: list[int] = []
    with Workers(number) as workers:
        assert workers.threads == number
        found = workers.run(
            [lambda i=i: i * i for i in range(50)], lambda: seen.append(1)
        )
    assert found == [i * i for i in range(50)]
    assert len(seen) == 50


def test_one_worker_is_the_caller() -> None:
    with Workers(1) as workers:
        assert (
            workers.run([threading.current_thread] * 2)
            == [threading.current_thread()] * 2
        )


def blas_threads() -> list[int]:
    return [
        found["num_threads"]
        for found in threadpool_info()
        if found["user_api"] == "blas"
    ]


def test_each_thread_has_one_core_and_the_rest_is_as_it_was() -> None:
    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        assert set(before) == {2}
        with Workers(2) as workers:
            assert set(blas_threads()) == {1}
            meet = threading.Barrier(2, timeout=10)  # passed only by two at once
            names = workers.run(
                [lambda: (meet.wait(), threading.current_thread().name)[1]] * 2
            )
            assert len(set(names)) == 2
        assert blas_threads() == before


def test_blas_stays_so_until_the_last_workers_are_done() -> None:
    with threadpool_limits(2, user_api="blas"):
        with Workers(1):
            with Workers(1):
                pass
            assert set(blas_threads()) == {1}
        assert set(blas_threads()) == {2}


SIZE = 100 << 20


def left(command: bool) -> Result:
    """The memory that a freed array leaves, in the library or in the command."""
    if command:
        _keep_freed_memory()
    before = resident()
    with Workers(2) as workers:
        workers.run([lambda: np.ones(SIZE // 8).size])
        return Result(0, str(resident() - before), "")


def print_left() -> None:
    print([int(forked(partial(left, command)).out) for command in (False, True)])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc")
def test_the_command_alone_keeps_freed_memory() -> None:
    # Alone in a process: the allocator of another program's process is not ours.
    library, command = printed_json(__file__, "print_left()")
    assert library < SIZE * 0.2
    assert SIZE * 0.9 < command < SIZE * 1.2


@pytest.mark.parametrize("error", [AttributeError, ValueError, OSError])
def test_another_c_library_is_left_alone(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    confstr = Mock(side_effect=error)  # Windows, macOS, musl
    monkeypatch.setattr("os.confstr", confstr, raising=False)
    _keep_freed_memory()
    confstr.assert_called_once_with("CS_GNU_LIBC_VERSION")


def test_what_fails_on_a_thread_fails_here() -> None:
    def fail() -> None:
        raise KeyError("no such block")

    with threadpool_limits(2, user_api="blas"):
        with pytest.raises(KeyError, match="no such block"), Workers(2) as workers:
            workers.run([fail] + [lambda: None] * 20)
        assert set(blas_threads()) == {2}


def test_threads_are_as_loud_as_their_caller() -> None:
    def overflow() -> Any:
        return np.array([3e38], np.float32) * np.float32(10)

    with Workers(2) as workers:
        with pytest.raises(FloatingPointError):
            workers.run([overflow])
        with np.errstate(over="ignore"):
            assert np.isinf(workers.run([overflow])[0])


@pytest.mark.parametrize("number", [0, -1])
def test_no_threads_are_refused(number: int) -> None:
    refusal_of(Workers, number, says=f"threads {number}")


def test_without_a_blas_to_limit_there_is_one_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Nothing:
        def select(self, **_: str) -> list[str]:
            return []

    monkeypatch.setattr(threads, "ThreadpoolController", Nothing)
    assert Workers(4).threads == 1


@given(
    st.integers(1, 2**40),
    st.sampled_from(["", *"KMG"]),
    st.sampled_from(["", "B", "iB"]),
)
def test_sizes_of_memory(number: int, unit: str, suffix: str) -> None:
    factor = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[unit]
    assert parse_memory(f" {number}{unit}{suffix.lower()} ") == number * factor
    assert parse_memory(f"{number}{unit.lower()}{suffix}") == number * factor
    assert parse_memory(number) == number


@pytest.mark.parametrize(
    "text", ["", "M", "-1G", "0", "many", "1.5.2G", "nan", "1e999", "5X"]
)
def test_what_is_no_size(text: str) -> None:
    refusal_of(parse_memory, text, says="memory")


def test_memory_is_what_is_free_and_at_most_two_gibibytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert parse_memory("1.5G") == 3 * 2**29
    assert 0 < parse_memory(None) <= 2**31
    monkeypatch.setattr(settings, "free_memory", lambda: 12345)
    assert parse_memory(None) == 12345


def test_peak_memory_is_known_here() -> None:
    before = peak_memory()
    assert before is not None
    assert before > 10 * 2**20
    block = np.ones(2**23)  # 64 MiB
    after = peak_memory()
    assert after is not None
    assert after >= max(before, block.nbytes)

"""Errors as every one of ours is: a problem, what was expected instead, and what to do next."""

from collections.abc import Callable

import pytest

from refimpl import RefimplError


def refusal_of(call: Callable[[], object], problem: str = "", remedy: str = "") -> RefimplError:
    """The error of a call, which says these words about the problem and what to do next."""
    with pytest.raises(RefimplError) as caught:
        call()
    error = caught.value
    assert problem in error.problem
    assert error.expected
    assert error.remedy
    assert remedy in error.remedy
    return error

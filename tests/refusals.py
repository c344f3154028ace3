"""Errors as every one of ours is: a problem, what was expected instead, and what to do next."""

from collections.abc import Callable
from typing import Any

import pytest

from refimpl import RefimplError
from refimpl.cli.options import as_options


def refusal_of(
    call: Callable[..., object],
    *arguments: Any,
    says: str = "",
    remedy: str = "",
    **options: Any,
) -> RefimplError:
    """The error of a call, as a command shows it; it says these words, and has all three parts."""
    with pytest.raises(RefimplError) as caught:
        call(*arguments, **options)
    error = as_options(caught.value)
    assert error.problem
    assert error.expected
    assert error.remedy
    assert says in str(error)
    assert remedy in error.remedy
    return error

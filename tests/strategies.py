"""Strategies that the tests of several folders draw from."""

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

seeds = st.integers(0, 2**32 - 1)
generators = seeds.map(np.random.default_rng)  # numbers drawn singly are slow
ties = st.sampled_from([-2.0, -1.0, 0.0, 1.0, 3.0])


def shapes(*largest: int) -> st.SearchStrategy[Any]:
    return st.tuples(*(st.integers(1, size) for size in largest))


def matrices(
    elements: st.SearchStrategy[float], *largest: int
) -> st.SearchStrategy[Any]:
    return shapes(*largest).flatmap(
        lambda s: hnp.arrays(np.float64, s, elements=elements)
    )


def json_like(scalars: st.SearchStrategy[Any], keys: st.SearchStrategy[str]) -> Any:
    """Whatever may stand in a file of JSON, and a few numbers that may not."""
    return st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=5)
        | scalars,
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4)
        ),
        max_leaves=12,
    )

"""Numbers that the peers' own code gave for a tiny Llama."""

import json
from functools import cache
from typing import Any

from conftest import FIXTURES

from refimpl import Model, read_model

PEERS = FIXTURES / "peers"
TINY = PEERS / "tiny-llama"


@cache
def expected() -> dict[str, Any]:
    numbers: dict[str, Any] = json.loads((TINY / "expected.json").read_text())
    return numbers


@cache
def tiny() -> Model:
    return read_model(TINY)

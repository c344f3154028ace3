"""The reference pages say what the program does: options and names."""

import re
import shlex

import pytest
from conftest import FIXTURES
from pages import DOCS, ROOT, commands

from refimpl import read_model
from refimpl.model.config import BLOCK_EMBED, LINEARS, NORMS, BlockKind
from refimpl.model.forward import MIXERS, forward
from refimpl.model.position_tables import Rope

REFERENCE = DOCS / "reference"


@pytest.mark.parametrize("name", commands())
def test_a_command_has_examples_that_it_accepts(name: str) -> None:
    command = commands()[name]
    examples = re.findall(rf"^refimpl {name}(.*)$", command.epilog or "", re.MULTILINE)
    assert len(examples) >= 2
    for words in examples:
        assert command.make_context(name, shlex.split(words.replace("CASE", "llama")))


POINTS = (
    *BlockKind(None, Rope(1.0, 2)).points,
    *(point for mixer in MIXERS for point in mixer.points),
)


@pytest.mark.parametrize("names", [LINEARS, (*NORMS, "final_norm"), POINTS])
def test_the_page_of_names_has_them_all(names: tuple[str, ...]) -> None:
    words = re.findall(r"`([\w.]+)`", (REFERENCE / "names.md").read_text("utf-8"))
    assert set(names) <= set(words)


def test_the_page_of_names_lists_trace_points_in_order() -> None:
    page = (REFERENCE / "names.md").read_text("utf-8").partition("## Trace points")[2]
    page = page.partition("Blocks with another mixer")[0]
    rows = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    trace = forward(read_model(FIXTURES / "llama"), [[1, 2]], trace=True).trace
    other_blocks = ("blocks.0", "blocks.1", "blocks.2")
    last_block = [
        name.split(".")[-1] for name in trace if not name.startswith(other_blocks)
    ]
    lacking = {"experts_norm", "router_norm", *BLOCK_EMBED}  # in llama
    assert lacking < {*listed}
    assert [name for name in listed if name not in lacking] == last_block


def test_every_function_on_the_walks_through_the_code_exists() -> None:
    page = (DOCS / "explanation" / "architecture.md").read_text("utf-8")
    walks = re.findall(r"^\| `(refimpl/[\w/]+\.py)`, `(\w+)` \|", page, re.MULTILINE)
    assert len(walks) > 20
    for path, name in walks:
        source = (ROOT / path).read_text("utf-8")
        assert re.search(rf"^(def|class) {name}\b", source, re.MULTILINE), (path, name)

"""The tutorial's notebooks have the code of their pages, and print what the pages show."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from examples import ROOT, blocks_to_run, matches, repository

sys.path += [str(ROOT / "docs")]
import notebooks


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("page", notebooks.PAGES, ids=lambda page: page.stem)
def test_a_notebook_has_the_blocks_of_its_page(page: Path) -> None:
    found, blocks = notebooks.notebook(page), blocks_to_run(page)
    typed = [("%%bash\n" * (x.language == "bash") + x.text).rstrip() for x in blocks]
    assert [cell["source"] for cell in code(found)] == typed
    shown = ["".join(x["text"] for x in cell["outputs"]) for cell in code(found)]
    assert shown == [x.output or "" for x in blocks]
    texts = "\n".join(cell["source"] for cell in found["cells"])
    assert texts.count("<details>") == texts.count("</details>")


@pytest.mark.notebooks
@pytest.mark.filterwarnings("default")  # of the notebook's programs
def test_notebooks_print_what_their_pages_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """One after another in one folder, as a reader runs them."""
    import nbclient
    import nbformat

    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for name, value in {
        "PATH": path,
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "100",
    }.items():
        monkeypatch.setenv(name, value)
    with repository() as folder:
        for page in notebooks.PAGES:
            shown = notebooks.notebook(page)
            nbformat.validate(ran := nbformat.reads(json.dumps(shown), 4))
            nbclient.NotebookClient(
                ran, resources={"metadata": {"path": folder}}
            ).execute()
            for wanted, got in zip(code(shown), code(ran), strict=True):
                printed = (
                    x.get("text") or x["data"]["text/plain"] for x in got["outputs"]
                )
                words = [
                    "".join(x["text"] for x in wanted["outputs"]),
                    "".join(printed),
                ]
                assert matches(*("".join(x.split()) for x in words)), (
                    f"{wanted}\n{words[1]}"
                )

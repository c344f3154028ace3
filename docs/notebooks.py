"""Notebooks of the tutorial: `python docs/notebooks.py` writes one per page into this folder.

A notebook has the text of its page, and each block of code in a cell, with the output that the page
shows until the cell runs.
"""

import json
import re
from base64 import b64encode
from os.path import normpath
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "tutorial"
TYPED = re.compile("^```(python|bash)$", re.M)
TEXTS = ("index.md", "pico.md")
PAGES = [
    page
    for page in sorted(FOLDER.glob("*.md"))
    if page.name not in TEXTS and TYPED.search(page.read_text("utf-8"))
]
CODE = re.compile(
    r"^(?:<!-- goes on -->\n)?```(python|bash)\n(.*?)^```$(?:\n```output\n(.*?)^```$)?", re.M | re.S
)
LINK = re.compile(r"(?<=\]\()(?!https?:|#)[^)#]+")
PICTURE = re.compile(r"(?<=\]\()\S+\.svg(?=\))")
START = "*Save this notebook in the top folder of the repository, and run its cells in order.*"
FOLDED = "\nThe code is in the folded cells below.\n\n</details>"


def text_cell(text: str) -> dict[str, Any]:
    """Return Markdown whose links start in the top folder, with its pictures."""
    pictures = {name: b64encode((FOLDER / name).read_bytes()) for name in PICTURE.findall(text)}
    text = PICTURE.sub(lambda name: f"attachment:{name[0]}", text)
    names = {page.name: page.stem + ".ipynb" for page in PAGES}

    def moved(link: re.Match[str]) -> str:
        attached = link[0].startswith("attachment:")
        return link[0] if attached else names.get(link[0], normpath(f"docs/tutorial/{link[0]}"))

    bundles = {name: {"image/svg+xml": data.decode()} for name, data in pictures.items()}
    more = {"attachments": bundles} if bundles else {}
    return {"cell_type": "markdown", "metadata": {}, "source": LINK.sub(moved, text), **more}


def notebook(page: Path) -> dict[str, Any]:
    """Return the notebook of a page. The code of an answer is folded."""
    first, *parts = CODE.split(page.read_text("utf-8"))
    title, _, rest = first.partition("\n")
    texts = [f"{title}\n\n{START}\n{rest}", *parts[3::4]]
    blocks = [*zip(parts[::4], parts[1::4], parts[2::4], strict=True), None]
    found, folded = list[dict[str, Any]](), False
    for text, block in zip(texts, blocks, strict=True):
        if folded:
            text, folded = text.replace("</details>", "", 1), "</details>" not in text
        folded = folded or text.count("<details>") > text.count("</details>")
        opened = text.count("<details>") > text.count("</details>")
        if text.strip():
            found.append(text_cell(text.strip() + FOLDED * opened))
        hidden = {"jupyter": {"source_hidden": True, "outputs_hidden": True}} if folded else {}
        if block:
            language, source, output = block
            source = "%%bash\n" * (language == "bash") + source.rstrip("\n")
            shown = {"output_type": "stream", "name": "stdout", "text": output}
            code = {
                "cell_type": "code",
                "execution_count": None,
                "outputs": [shown][: bool(output)],
            }
            found.append({**code, "metadata": hidden, "source": source})
    for number, cell in enumerate(found):
        cell["id"] = f"cell-{number}"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": found}


def write(folder: Path) -> None:
    """Write the notebooks of all pages into a folder."""
    for page in PAGES:
        text = json.dumps(notebook(page), indent=1, ensure_ascii=False) + "\n"
        Path(folder, page.stem + ".ipynb").write_text(text, "utf-8")


if __name__ == "__main__":
    write(Path())

"""Notebooks of the tutorial: `python docs/notebooks.py` writes one per page into this folder.

A notebook has the text of its page, and the code in cells, without prompts. A cell ends where the
page shows output, and has this output until it runs.
"""

import json
import re
from base64 import b64encode
from doctest import DocTestParser
from os.path import normpath
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "tutorial"
PAGES = [page for page in sorted(FOLDER.glob("*.md")) if page.name != "index.md"]
CODE = re.compile(r"^(?:<!-- goes on -->\n)?```(python|console)\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"(?<=\]\()(?!https?:|#)[^)#]+")
PICTURE = re.compile(r"(?<=\]\()\S+\.svg(?=\))")
START = "*Save this notebook in the top folder of the repository, and run its cells in order.*"
FOLDED = "\nThe code is in the folded cells below.\n\n</details>"


def cells(language: str, code: str) -> list[tuple[str, str]]:
    """Split a block of code into the source and the output of each cell."""
    if language == "console":
        commands = re.findall(r"^\$ ((?:.*\\\n)*.*\n)", code, re.M)
        output = re.sub(r"^\$ (?:.*\\\n)*.*\n", "", code, flags=re.M)
        return [("%%bash\n" + "".join(commands), output)]
    found, source = list[tuple[str, str]](), ""
    for example in DocTestParser().get_examples(code):
        source += example.source
        if example.want:
            found.append((source, example.want))
            source = ""
    return [*found, (source, "")] if source else found


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
    texts = [f"{title}\n\n{START}\n{rest}", *parts[2::3]]
    blocks = [*zip(parts[::3], parts[1::3], strict=True), None]
    found, folded = list[dict[str, Any]](), False
    for text, block in zip(texts, blocks, strict=True):
        if folded:
            text, folded = text.replace("</details>", "", 1), "</details>" not in text
        folded = folded or text.count("<details>") > text.count("</details>")
        opened = text.count("<details>") > text.count("</details>")
        if text.strip():
            found.append(text_cell(text.strip() + FOLDED * opened))
        hidden = {"jupyter": {"source_hidden": True, "outputs_hidden": True}} if folded else {}
        for source, output in cells(*block) if block else ():
            shown = {"output_type": "stream", "name": "stdout", "text": output}
            outputs = [shown] if output else []
            code = {"cell_type": "code", "execution_count": None, "outputs": outputs}
            found.append({**code, "metadata": hidden, "source": source.rstrip("\n")})
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

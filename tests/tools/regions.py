"""Regions of pages that programs write: `<!-- name -->` to `<!-- end -->`."""

import re
from collections.abc import Mapping
from pathlib import Path

REGION = re.compile(r"(<!-- ([\w./ -]+) -->)((?:(?!<!-- ).)*)<!-- end -->", re.DOTALL)


def regions(page: str) -> dict[str, str]:
    """What stands in each region of a page."""
    return {name: text for _, name, text in REGION.findall(page)}


def filled(page: str, texts: Mapping[str, str]) -> str:
    """A page with these texts in its regions of these names; the others stay as they are."""
    return REGION.sub(lambda at: f"{at[1]}{texts.get(at[2], at[3])}<!-- end -->", page)


def fill(path: Path, texts: Mapping[str, str]) -> None:
    """Write texts into the regions of a file."""
    path.write_text(filled(path.read_text("utf-8"), texts), "utf-8")

"""The site: `sphinx-build -W docs site`. A link that leads nowhere is an error."""

import re
from typing import Any

project = "refimpl"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "contents"
exclude_patterns = ["study"]
html_theme = "furo"
myst_heading_anchors = 4
napoleon_custom_sections = ["Source", "Differs"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"
default_role = "literal"


def readme_is_a_page(app: Any, name: str, source: list[str]) -> None:
    """Let links to the README lead to its page."""
    page = "../" * name.count("/") + "readme.md"
    source[0] = re.sub(r"\]\((\.\./)+README\.md", f"]({page}", source[0])


def bars_are_bars(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep |x| in a formula from being read as markup."""
    for i, line in enumerate(lines):
        parts = line.split("``")
        parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
        lines[i] = "``".join(parts)


def setup(app: Any) -> None:
    """What Sphinx calls."""
    app.connect("source-read", readme_is_a_page)
    app.connect("autodoc-process-docstring", bars_are_bars)

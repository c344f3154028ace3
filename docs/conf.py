"""The site: `sphinx-build -W docs site`. A link that leads nowhere is an error."""

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

project = "refimpl"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
root_doc = "index"
exclude_patterns = ["contents.md"]
html_theme = "furo"
html_title = "refimpl"
html_theme_options = {"top_of_page_buttons": []}
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_math_renderer = "mathml"
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
myst_enable_extensions = ["dollarmath", "deflist"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_line_continuation_character = "\\"
copybutton_copy_empty_lines = False  # they are output
napoleon_custom_sections = ["Source", "Differs"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"
default_role = "literal"


NAMES = {
    '<p class="caption" role="heading"': 'aria-level="2"',
    '<aside class="sidebar-drawer"': 'aria-label="Site"',
    '<aside class="toc-drawer"': 'aria-label="Page"',
}


def mathml(latex: str, display: str) -> str:
    """Convert a formula to MathML, which browsers typeset without scripts."""
    markup = convert(latex.replace("{aligned}", "{align*}"), display=display)
    if "\\" in markup:
        raise ValueError(f"a command that latex2mathml does not know: {latex}")
    spaced = r'<mi>\1<mspace width=".17em" />'
    return re.sub(r"<mi>((?:log|ln|exp)</mi>)(?!<mo str)", spaced, markup)


def inline_formula(page: Any, node: nodes.Element) -> None:
    """Write a formula of a sentence."""
    page.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def formula(page: Any, node: nodes.Element) -> None:
    """Write a formula on lines of its own, which scroll if the window is narrower."""
    page.body.append(f'<div class="formula">{mathml(node.astext(), "block")}</div>\n')
    raise nodes.SkipNode


def linked(app: Any, name: str, source: list[str]) -> None:
    """Let links to the README lead to its page, and the home page hold the menu."""
    page = "../" * name.count("/") + "readme.md"
    if name == "index":  # the site's menu, which is no part of the page elsewhere
        source[0] += (Path(app.srcdir) / "contents.md").read_text("utf-8").partition("\n")[2]
    source[0] = re.sub(r"(<!-- source .*-->\n```)text", r"\1python", source[0])  # with colours
    source[0] = re.sub(r"\]\((\.\./)+README\.md", f"]({page}", source[0])


def bars_are_bars(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep |x| in a formula from being read as markup."""
    for i, line in enumerate(lines):
        parts = line.split("``")
        parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
        lines[i] = "``".join(parts)


def labelled(app: Any, error: Exception | None) -> None:
    """Give what the theme leaves nameless a name that screen readers read."""
    for page in Path(app.outdir).rglob("*.html"):
        text = page.read_text("utf-8")
        for nameless, name in NAMES.items():
            text = text.replace(f"{nameless}>", f'{nameless} {name}>')
        page.write_text(text, "utf-8")


def setup(app: Any) -> None:
    """What Sphinx calls."""
    app.add_html_math_renderer("mathml", (inline_formula, None), (formula, None))
    app.connect("build-finished", labelled)
    app.connect("source-read", linked)
    app.connect("autodoc-process-docstring", bars_are_bars)

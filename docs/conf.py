"""The site: `sphinx-build -W docs site`. A link that leads nowhere is an error."""

import re
import sys
from html import escape, unescape
from itertools import cycle
from pathlib import Path
from typing import Any

from docutils import nodes
from furo.navigation import get_navigation_tree
from latex2mathml.converter import convert
from sphinx.writers.html5 import HTML5Translator

from refimpl import __version__
from refimpl.plot.style import FAINT, INK

sys.path.append(str(Path(__file__).parent))
import notebooks

project = "refimpl"
version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
root_doc = "index"
exclude_patterns = ["contents.md"]
html_theme = "furo"
html_title = "refimpl"
html_theme_options = {"top_of_page_buttons": []}
html_show_copyright = False
html_static_path = ["_static"]
templates_path = ["_templates"]
html_extra_path = ["play.html"]
html_favicon = "_static/icon.svg"
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
copybutton_selector = "div:not(.highlight-output) > .highlight > pre"
napoleon_custom_sections = ["Source", "Differs"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"
default_role = "literal"

COLOURS = {  # of pictures by matplotlib, whose other colours do for both themes
    "fill: #ffffff": "fill: none",
    INK: "currentColor",
    FAINT: "var(--color-background-border)",
}
PRIME = '<mpadded voffset="-0.3em"><mi style="font-size: 1.4em">&#x02032;</mi></mpadded>'
DOTTED = re.compile(r'(?<=<span class="pre">)\w+[._][\w.*]+(?=</span>)')
NOTEBOOK = '</h1>\n<p><a href="{}.ipynb" download>Download this page as a notebook</a></p>'
TITLE = "refimpl: layer-wise pruning of language models, in NumPy"  # of the front page
PLAY = (Path(__file__).parent / "play.html").read_text("utf-8")
FIGURE = re.compile(r'<figure class="play" id="(\w+)">.*?</figure>', re.DOTALL)
FIGURES = {found[1]: found[0] for found in FIGURE.finditer(PLAY)}
LESSON = re.compile(r"tutorial/(\d)-")
BAR = re.compile("<mo[^>]*>&#x02016;</mo>")
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
    markup = re.sub(r"<mi>((?:log|ln|exp)</mi>)(?!<mo str)", spaced, markup)
    markup = markup.replace("<mi>&#x02032;</mi>", PRIME)
    forms = cycle(("prefix", "postfix"))  # a bar without a form is an operator between two terms
    return BAR.sub(lambda _: f'<mo form="{next(forms)}" stretchy="false">&#x02016;</mo>', markup)


def inline_formula(page: Any, node: nodes.Element) -> None:
    """Write a formula of a sentence."""
    page.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def formula(page: Any, node: nodes.Element) -> None:
    """Write a formula on lines of its own, which scroll if the window is narrower."""
    page.body.append(f'<div class="formula">{mathml(node.astext(), "block")}</div>\n')
    raise nodes.SkipNode


def inlined(page: Any, node: nodes.Element) -> None:
    """Write an SVG picture into the page, where it has the colours of the theme."""
    path = Path(page.builder.srcdir) / node["uri"]
    if path.suffix != ".svg":
        HTML5Translator.visit_image(page, node)
        return
    if path.stem in FIGURES:  # to play with
        page.body.append(FIGURES[path.stem])
        return
    name, text = re.sub(r"\W", "-", f"picture-{path.stem}"), path.read_text("utf-8")
    size, body = re.findall(r'<svg[^>]*?(viewBox="[^"]*")[^>]*>(.*)', text, re.DOTALL)[0]
    body = re.sub(r"<style.*?</style>", "", body, count=1, flags=re.DOTALL)
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body)
    for colour, of_theme in COLOURS.items():
        body = body.replace(colour, of_theme)
    page.body.append(
        f'<svg class="picture" id="{name}" role="img" aria-label="{escape(node["alt"])}" {size} '
        f'style="--natural: {float(size.split()[-2]) * 4 / 3:.0f}px">{body}'
    )


def depart_image(page: Any, node: nodes.Element) -> None:
    """Nothing is left open."""


def linked(app: Any, name: str, source: list[str]) -> None:
    """Let links to the README lead to its page, and add to a page its part of the menu."""
    page = "../" * name.count("/") + "readme.md"
    menu = re.split(r"^## (.+)$", (Path(app.srcdir) / "contents.md").read_text("utf-8"), flags=re.M)
    source[0] += dict(zip(menu[1::2], menu[2::2], strict=True)).get(name, "")
    listing = r"\1{code-block} python\n:class: listing"
    source[0] = re.sub(r"(<!-- source .*-->\n```)text", listing, source[0])
    source[0] = re.sub(r"\[([^]]*)\]\(((?:\.\./)*play\.html)\)", r'<a href="\2">\1</a>', source[0])
    source[0] = source[0].replace("<!-- pico -->", columns(Path(app.srcdir, "tutorial", "pico.py")))
    source[0] = re.sub(r"\]\((\.\./)+README\.md", f"]({page}", source[0])
    source[0] = re.sub(r"\[([^]]*)\]\((\.\./)+fixtures/README\.md[^)]*\)", r"\1", source[0])


def columns(path: Path) -> str:
    """Return a file of Python as Markdown with two columns: comments, and the code below them."""
    title, *parts = path.read_text("utf-8").split("\n\n")
    while not parts[0].startswith("# A block has"):  # imports, and what is above them
        title += "\n\n" + parts.pop(0)
    rows, (_, words, code) = list[tuple[str, str]](), title.split('"""', 2)
    rows.append((words, code.strip()))
    for part in parts:
        lines = part.splitlines()
        count = next((i for i, line in enumerate(lines) if not line.startswith("# ")), 0)
        words, code = "\n".join(line[2:] for line in lines[:count]), "\n".join(lines[count:])
        if words:
            rows.append((words, code))
        else:  # a function below another one that says what it is for
            rows[-1] = rows[-1][0], f"{rows[-1][1]}\n\n{code}"
    sides = (
        "`````{container} columns\n````{container} words\n"
        f"{words.strip()}\n````\n```{{code-block}} python\n{code}\n```\n`````\n"
        for words, code in rows
    )
    return "\n".join(sides)


def described(body: str) -> str:
    """Return the first paragraph of a page, without markup, as its description."""
    found = re.search(r"<p>(.*?)</p>", body, re.DOTALL)
    words = " ".join(unescape(re.sub("<[^>]*>", "", found[1] if found else "")).split())
    return words if len(words) < 200 else words[:197].rsplit(" ", 1)[0] + " …"


def arranged(app: Any, name: str, template: str, context: dict[str, Any], _: Any) -> None:
    """Show the menu without the pages below its entries; put styles where no search marks words."""
    styles = re.findall("<style>.*?</style>", context.get("body", ""), re.DOTALL)
    for style in styles:
        context["body"] = context["body"].replace(style, "")
    if name.startswith("tutorial/") and (lesson := LESSON.match(name)):
        place = f'<p class="place">Tutorial, page {lesson[1]} of 8</p>\n<h1>'
        context["body"] = context["body"].replace("<h1>", place, 1)
    if 'class="play"' in context.get("body", ""):
        styles += re.findall("<style>.*?</style>", PLAY, re.DOTALL)
        context["body"] += "\n".join(re.findall("<script.*?</script>", PLAY, re.DOTALL))
    if words := described(context.get("body", "")):
        styles.append(f'<meta name="description" content="{escape(words)}">')
    page = Path(app.srcdir, f"{name}.md")
    if page in notebooks.PAGES:
        context["body"] = context["body"].replace("</h1>", NOTEBOOK.format(page.stem), 1)
    context["metatags"] = "".join([context.get("metatags", ""), *styles])
    if "toctree" in context:
        tree = context["toctree"](collapse=True, titles_only=True, maxdepth=1, includehidden=True)
        context["furo_navigation_tree"] = get_navigation_tree(tree)


def bars_are_bars(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep |x| in a formula from being read as markup."""
    for i, line in enumerate(lines):
        parts = line.split("``")
        parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
        lines[i] = "``".join(parts)


def labelled(app: Any, error: Exception | None) -> None:
    """Name what is nameless, for screen readers; let long names be broken; write the notebooks."""
    if error is None:
        notebooks.write(Path(app.outdir, "tutorial"))
    for page in Path(app.outdir).rglob("*.html"):
        text = page.read_text("utf-8").replace("<title>refimpl</title>", f"<title>{TITLE}</title>")
        for nameless, name in NAMES.items():
            text = text.replace(f"{nameless}>", f"{nameless} {name}>")
        text = text.replace('<th class="head"><p></p></th>', '<td class="head"></td>')
        text = DOTTED.sub(lambda name: re.sub(r"([._])(?=\w{3})", r"\1<wbr>", name[0]), text)
        page.write_text(text, "utf-8")


def setup(app: Any) -> None:
    """What Sphinx calls."""
    app.add_html_math_renderer("mathml", (inline_formula, None), (formula, None))
    app.add_node(nodes.image, override=True, html=(inlined, depart_image))
    app.connect("html-page-context", arranged, priority=900)  # after the theme
    app.connect("build-finished", labelled)
    app.connect("source-read", linked)
    app.connect("autodoc-process-docstring", bars_are_bars)

"""The site in a real browser: it fits, it loads nothing from elsewhere, and keys are enough.

It takes the `docs` and `browser` groups and Chromium. REFIMPL_AXE names axe.min.js of the npm
package axe-core, which checks the site and the report for what keeps people out.
"""

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from examples import ROOT
from report_files import EVERYTHING

from refimpl.plot.report_page import report

playwright = pytest.importorskip("playwright.sync_api")
for package in ("furo", "myst_parser", "sphinx_copybutton", "latex2mathml"):
    pytest.importorskip(package)
pytestmark = pytest.mark.browser

WIDTHS, SCHEMES = (390, 1280, 1536), ("light", "dark")
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
NAMES = [
    str(page.relative_to(ROOT / "docs").with_suffix(""))
    for page in sorted((ROOT / "docs").rglob("*.md"))
    if page.name != "contents.md"
]
SIX = ("index", "explanation/method", "how-to/prune", "reference/cli")
SIX += ("tutorial/8-the-verdict", "tutorial/2-drift")
AXE = os.environ.get("REFIMPL_AXE")
BOXES = "[...document.querySelectorAll('article pre, .table-wrapper, .formula, p:has(> .picture)')]"
needs_axe = pytest.mark.skipif(
    not AXE, reason="REFIMPL_AXE names no axe.min.js (npm: axe-core)"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = (os.environ.get("REFIMPL_CHROMIUM"), *map(shutil.which, PROGRAMS))
    path = next((one for one in found if one), None)
    with playwright.sync_playwright() as engine:
        chromium = engine.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Quiet(SimpleHTTPRequestHandler):
    """A server of files that does not log."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "sphinx", "-q", "-W", ROOT / "docs", folder]
    subprocess.run(build, check=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def opened(browser: Any, site: str) -> Iterator[Any]:
    """Opens a page of the site; nothing may be loaded from elsewhere, and nothing may fail."""
    contexts, asked, said = [], [], []

    def opening(name: str, width: int = 1600, **options: Any) -> Any:
        contexts.append(
            browser.new_context(viewport={"width": width, "height": 900}, **options)
        )
        page = contexts[-1].new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"{site}/{name}.html")
        return page

    yield opening
    for context in contexts:
        context.close()
    assert [url for url in asked if not url.startswith((site, "data:"))] == []
    assert said == []


def walk(page: Any, names: list[str] = NAMES) -> Iterator[str]:
    root = page.url.removesuffix("index.html")
    for name in names:
        page.goto(f"{root}{name}.html")
        yield name


@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_fits(width: int, opened: Any) -> None:
    """From 1280 pixels on, nothing scrolls sideways; on a phone, the keys scroll what does."""
    page, cut = opened("index", width), {}
    for name in walk(page):
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        wide = f"{BOXES}.filter((x) => x.scrollWidth > x.clientWidth)"
        assert page.evaluate(f"{wide}.every((x) => x.tabIndex === 0)"), name
        cut[name] = page.evaluate(f"{wide}.map((x) => x.textContent.slice(0, 60))")
    assert width < 1000 or {name: boxes for name, boxes in cut.items() if boxes} == {}


def violations(page: Any) -> list[str]:
    page.evaluate(Path(str(AXE)).read_text("utf-8"))
    found = page.evaluate("axe.run()")["violations"]
    return [f"{x['id']}: {node['html'][:120]}" for x in found for node in x["nodes"]]


@needs_axe
@pytest.mark.parametrize("name", SIX)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_nothing_on_a_page(
    width: int, scheme: str, name: str, opened: Any
) -> None:
    assert violations(opened(name, width, color_scheme=scheme)) == []


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", [390, 1440])
def test_the_report_opens_and_fits(
    width: int, scheme: str, browser: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "page.html").write_text(
        report([files[name] for name in EVERYTHING]), "utf-8"
    )
    size = {"width": width, "height": 900}
    context = browser.new_context(
        viewport=size, color_scheme=scheme, bypass_csp=bool(AXE)
    )
    page, said = context.new_page(), list[str]()
    page.on("console", lambda message: said.append(message.text))
    page.on("request", lambda request: said.append(request.url))
    page.goto((tmp_path / "page.html").as_uri())
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert [x for x in said if not x.startswith("data:")] == [page.url]
    assert not AXE or violations(page) == []
    context.close()


@pytest.mark.parametrize("width", [390, 1440])
def test_both_figures_answer_to_keys_and_say_what_they_show(
    width: int, opened: Any
) -> None:
    page = opened("play", width, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    said, price = page.locator("#travel output"), page.locator("#price output")
    assert (
        "the state is 4.38 times as long and the error 2.82 times. The drift is 0.70 of what "
        in (said.inner_text())
    )
    page.locator("#travel [name=from]").focus()
    page.keyboard.press("ArrowRight")
    page.select_option("#travel [name=model]", index=1)
    assert said.inner_text().startswith("Block 1 of 30 is perturbed. After block 29")
    page.click("#travel button")
    page.wait_for_function("document.querySelector('#travel [name=to]').value == 29")
    assert "more than the budget of 50 %. Pay less." in price.inner_text()
    page.locator("#price [name=t]").focus()
    for _ in range(200):
        if "the budget is met" in price.inner_text():
            break
        page.keyboard.press("ArrowLeft")
    assert page.locator("#price svg text", has_text="block 0: 30 %").count() == 1
    page.select_option("#price [name=model]", index=3)
    for svg, words in (("#travel svg", said), ("#price svg", price)):
        assert page.locator(svg).get_attribute("aria-label") == words.inner_text()
        box = page.locator(svg).bounding_box()
        for text in page.locator(f"{svg} text").all():  # no label is cut off
            inner = text.bounding_box()
            assert box["x"] <= inner["x"] + 1
            assert inner["x"] + inner["width"] <= box["x"] + box["width"] + 1


@pytest.mark.parametrize(("width", "paper"), [(390, "A4"), (1440, "Letter")])
def test_the_cheat_sheet_has_seven_pictures_on_one_sheet(
    width: int, paper: str, opened: Any
) -> None:
    page = opened("tutorial/cheat-sheet", width)
    pictures = page.locator("tr:has(math) .picture").all()
    assert len(pictures) == 7
    for picture in pictures:
        box = picture.bounding_box()
        assert box["x"] + box["width"] <= width
        for label in picture.locator("text").all():
            inner = label.bounding_box()
            assert box["x"] <= inner["x"] + 1
            assert inner["x"] + inner["width"] <= box["x"] + box["width"] + 1
    assert len(re.findall(rb"/Type\s*/Page\b", page.pdf(format=paper))) == 1


@pytest.mark.parametrize("name", ["index", "tutorial/2-drift", "tutorial/7-divergence"])
def test_a_page_has_its_figure_with_scripts_and_without(name: str, opened: Any) -> None:
    page = opened(name, 800)
    assert page.locator(".play output").count() == 1
    page = opened(name, 800, java_script_enabled=False)
    assert page.locator(".play svg text").count() > 8
    assert page.locator(".play output").count() == 0

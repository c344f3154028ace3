"""The report in a real browser: it opens, it fits, and it can be read and printed.

It takes playwright, and Chromium: that of the system, or the one that REFIMPL_CHROMIUM names.
"""

import os
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import FIXTURES
from program import ran
from report_files import EVERYTHING, deeper, edited, one_block

from refimpl.report.page import report

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.browser

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
WIDTHS, SCHEMES = (400, 900, 1600), ("light", "dark")
SMALLEST = 9  # pixels of a text's height
PAGES = ("everything", "deep", "one block", "seven blocks", "explained")
LUMINANCE = """
const luminance = (color) => {
  const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map(Number).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const contrast = (a, b) => {
  const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
};
"""


@pytest.fixture(scope="module")
def pages(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")

    def block(i: int) -> dict[str, Any]:
        return {
            "coefficient": 0.5 + 0.08 * i,
            "drift": [0.01 * (0.9 + 0.01 * i) ** k for k in range(30 - i)],
            "alignment": [1 - 1e-4 * (1 + i) * (1 + k) for k in range(30 - i)],
        }

    made = {
        "everything": [files[name] for name in EVERYTHING],
        "deep": [edited(files["none.json"], folder / "deep.json", lambda d: deeper(d, 30, block))],
        "one block": [edited(files["none.json"], folder / "one.json", one_block)],
        "seven blocks": [files["gemma3.json"]],
    }
    for name, paths in made.items():
        (folder / f"{name}.html").write_text(report(paths), "utf-8")
    ran("explain", FIXTURES / "toy", "--html", folder / "explained.html")
    return {name: folder / f"{name}.html" for name in PAGES}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = (os.environ.get("REFIMPL_CHROMIUM"), *map(shutil.which, PROGRAMS))
    path = next((one for one in found if one), None)
    with playwright.sync_playwright() as engine:
        chromium = engine.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class View:
    """A page that is open, and everything it complained of or asked for."""

    def __init__(self, browser: Any, path: Path, width: int = 1600, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, *_: object) -> None:
        self.context.close()
        assert self.said == []
        assert len([url for url in self.asked if not url.startswith("data:")]) == 1, self.asked


def opened(page: Any, ident: str) -> Any:
    figure = page.locator(f'figure[id="{ident}"]')
    figure.locator("summary").click()
    return figure


def tip(page: Any) -> str:
    text: str = page.locator("#tip").inner_text()
    return text


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_it_opens_and_fits(
    width: int, scheme: str, name: str, browser: Any, pages: dict[str, Path]
) -> None:
    with View(browser, pages[name], width, color_scheme=scheme) as page:
        for summary in page.locator("summary").all():
            summary.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        small = page.evaluate(
            """(least) => [...document.querySelectorAll('svg text')]
            .filter((t) => t.checkVisibility())
            .map((t) => [t.textContent, parseFloat(getComputedStyle(t).fontSize)
              * t.getScreenCTM().a]).filter(([, size]) => size < least)""",
            SMALLEST,
        )
        assert small == []


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", WIDTHS)
def test_no_text_of_a_picture_covers_another_or_leaves_it(
    width: int, name: str, browser: Any, pages: dict[str, Path]
) -> None:
    with View(browser, pages[name], width) as page:
        bad = page.evaluate(
            """() => [...document.querySelectorAll('svg')].flatMap((svg) => {
              const all = [...svg.querySelectorAll('text')]
                .filter((t) => t.checkVisibility())
                .map((t) => [t.textContent, t.getBoundingClientRect()]);
              const frame = svg.getBoundingClientRect(), found = [];
              all.forEach(([text, a], i) => {
                if (a.left < frame.left - 1 || a.right > frame.right + 1) found.push([text, 'out']);
                for (const [other, b] of all.slice(i + 1)) {
                  const w = Math.min(a.right, b.right) - Math.max(a.left, b.left);
                  const h = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
                  if (w > 1 && h > 4) found.push([svg.closest('figure').id, text, other]);
                }
              });
              return found;
            })"""
        )
        assert bad == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_contrast(scheme: str, browser: Any, pages: dict[str, Path]) -> None:
    with View(browser, pages["everything"], color_scheme=scheme) as page:
        found = page.evaluate(
            "() => {"
            + LUMINANCE
            + """
            const behind = (e) => {
              for (; e; e = e.parentElement) {
                const color = getComputedStyle(e).backgroundColor;
                if (!color.endsWith(', 0)')) return color;
              }
            };
            const words = [...document.querySelectorAll('p, h1, h2, h3, dt, dd, a, summary, th')];
            const drawn = [...document.querySelectorAll('svg text')];
            const lines = [...document.querySelectorAll('svg .line')];
            return {
              text: Math.min(
                ...words.map((e) => contrast(getComputedStyle(e).color, behind(e))),
                ...drawn.map((e) => contrast(getComputedStyle(e).fill, behind(e)))),
              line: Math.min(...lines.map((e) => contrast(getComputedStyle(e).stroke, behind(e)))),
            };
            }"""
        )
        assert found["text"] >= 4.5
        assert found["line"] >= 3


@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_can_be_read_without_colour(scheme: str, browser: Any, pages: dict[str, Path]) -> None:
    with View(browser, pages["deep"], color_scheme=scheme) as page:
        ramp = page.evaluate(
            "() => {"
            + LUMINANCE
            + """
            const style = getComputedStyle(document.documentElement);
            const rgb = (hex) => hex.match(/\\w\\w/g).map((v) => parseInt(v, 16)).join(' ');
            return [...'012345678'].map((i) => luminance(rgb(style.getPropertyValue(`--s${i}`))));
            }"""
        )
        steps = [b - a for a, b in pairwise(ramp)]
        assert all(step < 0 for step in steps) if scheme == "light" else all(s > 0 for s in steps)
        dashes = page.evaluate(
            """() => [...document.querySelectorAll('figure[id="s0-0-drift"] .line')]
            .map((line) => getComputedStyle(line).strokeDasharray)"""
        )
        assert all(a != b for a, b in pairwise(dashes))  # neighbours differ
        shapes = page.locator("figure[id='s0-0-r'] .dot").evaluate_all(
            "(all) => all.map((e) => [e.getAttribute('class'), e.getAttribute('d').slice(-20)])"
        )
        each = {tuple(pair) for pair in shapes}  # a shape per side of 1
        assert len(each) == len({side for side, _ in each}) == len({x for _, x in each}) >= 2


def test_printed_it_is_light_and_holds_every_picture(browser: Any, pages: dict[str, Path]) -> None:
    with View(browser, pages["everything"], color_scheme="dark") as page:
        page.emulate_media(media="print", color_scheme="dark")
        ink, paper = page.evaluate(
            """() => [getComputedStyle(document.body).color,
                      getComputedStyle(document.querySelector('.card')).backgroundColor]"""
        )
        assert (ink, paper) == ("rgb(21, 25, 31)", "rgb(255, 255, 255)")
        assert page.locator("svg").count() == page.locator("svg:visible").count() > 10
        assert page.locator("nav:visible, figure details:visible").count() == 0
        facts = page.locator("article.card dl")
        assert facts.count() == page.locator("article.card dl:visible").count() > 3
        assert page.pdf().startswith(b"%PDF")


def test_without_scripts_everything_is_there(browser: Any, pages: dict[str, Path]) -> None:
    with View(browser, pages["everything"], java_script_enabled=False) as page:
        figure = opened(page, "s0-0-r")
        assert figure.locator("tbody tr:visible").count() == 4
        assert page.locator("button, input").count() == 0
        assert figure.locator("svg > title").count() == 1

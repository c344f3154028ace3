"""A page of HTML as a tree of elements; every element must be closed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "input", "br", "hr", "img"}


@dataclass
class Element:
    tag: str
    attributes: Mapping[str, str]
    inside: list["Element"] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def every(self) -> list["Element"]:
        return [self, *(element for child in self.inside for element in child.every())]

    def all(self, tag: str) -> list["Element"]:
        return [element for element in self.every() if element.tag == tag]

    def text(self) -> str:
        return "".join(self.texts) + "".join(child.text() for child in self.inside)

    def rows(self, which: int = 0) -> tuple[list[str], list[list[str]]]:
        """Headings and texts of a table in this element."""
        head, *body = [
            [cell.text() for cell in row.all("th") + row.all("td")]
            for row in self.all("table")[which].all("tr")
        ]
        return head, body


class Page(HTMLParser):
    """A page; `root` holds all its elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]
        self.feed(text)
        self.close()
        assert len(self.open) == 1, self.open[-1].tag

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"<{tag}> has {names}"
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].inside.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag, tag

    def handle_data(self, data: str) -> None:
        self.open[-1].texts.append(data)

    def all(self, tag: str) -> list[Element]:
        return self.root.all(tag)

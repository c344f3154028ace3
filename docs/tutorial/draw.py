"""The pictures of the tutorial: a few functions that write small SVG files.

They have no background, and colours that are readable on a white page and on a dark one.
"""

from html import escape
from math import floor, log10
from pathlib import Path

COLOURS = ("#2b7bba", "#d1652a", "#2e9e6b", "#a55fc0", "#b08a1e", "#c94f7c", "#5b8f9c", "#8a7262")
GREY, WIDTH, HEIGHT, LEFT, TOP = "#808080", 560, 300, 56, 34


class Picture:
    """Shapes by their coordinates in points, from the top left corner."""

    def __init__(self, title, width=WIDTH, height=HEIGHT):
        self.size, self.parts = (width, height), [f"<title>{escape(title)}</title>"]

    def path(self, points, colour=GREY, width=1.5, arrow=False, dash=""):
        """A line through points, which may end in an arrow."""
        more = f' marker-end="url(#{colour[1:]})"' if arrow else ""
        more += f' stroke-dasharray="{dash}"' if dash else ""
        way = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        line = f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="{width}"'
        self.parts.append(f"{line}{more}/>")

    def box(self, x, y, width, height, colour=GREY, fill="none"):
        """A rectangle."""
        size = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        self.parts.append(f'<rect {size} rx="4" stroke="{colour}" fill="{fill}"/>')

    def text(self, x, y, words, colour=GREY, anchor="middle"):
        """Words."""
        place = f'x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}"'
        self.parts.append(f"<text {place}>{escape(words)}</text>")

    def save(self, path):
        """Write the picture to a file."""
        width, height = self.size
        heads = "".join(
            f'<marker id="{x[1:]}" orient="auto" markerWidth="8" markerHeight="8" refX="7" '
            f'refY="4"><path d="M0 0L8 4L0 8z" fill="{x}"/></marker>'
            for x in (GREY, *COLOURS)
        )
        Path(path).write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" font-family="sans-serif" font-size="13">\n'
            f"<defs>{heads}</defs>\n" + "\n".join(self.parts) + "\n</svg>\n",
            encoding="utf-8",
        )


def ticks(low, high):
    """Four to eight round numbers between two."""
    step = next(
        x * 10.0**e for e in range(-6, 9) for x in (1, 2, 5) if (high - low) / (x * 10.0**e) <= 7
    )
    first = -(-low // step)
    return [step * (first + i) for i in range(9) if step * (first + i) <= high + step / 1e6]


def axes(title, x, y, x_range, y_range, names=None, heights=None):
    """A picture with axes, and the functions that say where a value is."""
    picture = Picture(title)
    right, bottom = WIDTH - 110, HEIGHT - 44

    def at(a, b):
        across = LEFT + (a - x_range[0]) / (x_range[1] - x_range[0]) * (right - LEFT)
        return across, bottom - (b - y_range[0]) / (y_range[1] - y_range[0]) * (bottom - TOP)

    for value in heights or ticks(*y_range):
        height = at(x_range[0], value)[1]
        picture.path([(LEFT, height), (right, height)], width=0.3)
        words = heights[value] if heights else f"{value:g}"
        picture.text(LEFT - 6, height + 4, words, anchor="end")
    for value in names or ticks(*x_range):
        place = at(value, y_range[0])[0]
        picture.text(place, bottom + 18, names[value] if names else f"{value:g}")
    picture.path([(LEFT, bottom), (right, bottom)])
    picture.text((LEFT + right) / 2, bottom + 36, x)
    picture.text(6, 18, y, anchor="start")
    return picture, at


def lines(path, title, x, y, series, log=False):
    """A line per series, by its name: pairs of numbers. The names stand at the right ends."""
    if log:
        series = {name: [(a, log10(b)) for a, b in line] for name, line in series.items()}
    xs, ys = zip(*(point for line in series.values() for point in line), strict=True)
    low, high = (floor(min(ys)), max(ys)) if log else (min(0, *ys), max(ys))
    decades = {k: f"{10.0**k:g}" for k in range(low, floor(high) + 1)} if log else None
    picture, at = axes(title, x, y, (min(xs), max(xs)), (low, high), heights=decades)
    last, heights = HEIGHT - 44 - 15 * (len(series) - 1), {}
    for height, name in sorted((at(*line[-1])[1], name) for name, line in series.items()):
        heights[name] = min(max(height, *(h + 15 for h in heights.values()), 0), last)
        last += 15
    for colour, (name, line) in zip(COLOURS, series.items(), strict=False):
        picture.path([at(*point) for point in line], colour, 2)
        picture.text(WIDTH - 102, heights[name] + 4, name, colour, "start")
    picture.save(path)


def bars(path, title, x, y, groups):
    """Groups of bars: a number per place for each name."""
    count = max(map(len, groups.values()))
    values = [value for group in groups.values() for value in group]
    low, high = min(0.0, *values), max(0.0, *values)
    names = {i: str(i) for i in range(count)}
    picture, at = axes(title, x, y, (-0.5, count - 0.5), (low, high), names)
    wide = 0.8 / len(groups)
    for n, (colour, (name, group)) in enumerate(zip(COLOURS, groups.items(), strict=False)):
        for i, value in enumerate(group):
            left, top = at(i - 0.4 + n * wide, max(value, 0))
            right, bottom = at(i - 0.4 + (n + 1) * wide, min(value, 0))
            picture.box(left, top, right - left, bottom - top, colour, colour)
        picture.text(WIDTH - 102, TOP + 16 * n + 10, name, colour, "start")
    picture.save(path)


def block(path, title, branches):
    """The stream as an arrow, and what each branch reads from it, computes and adds to it."""
    picture, step = Picture(title, height=190), 250
    picture.path([(20, 40), (WIDTH - 14, 40)], width=2.5, arrow=True)
    picture.text(20, 26, "stream before", anchor="start")
    picture.text(WIDTH - 14, 26, "stream after", anchor="end")
    for n, (colour, boxes) in enumerate(zip(COLOURS, branches, strict=False)):
        left, right = 50 + step * n, 50 + step * n + 196
        picture.path([(left, 40), (left, 150)], colour)
        picture.path([(right, 150), (right, 52)], colour, arrow=True)
        picture.text(right + 12, 62, "+", colour)
        wide = (right - left) / len(boxes)
        for i, words in enumerate(boxes):
            picture.box(left + i * wide + 6, 130, wide - 12, 40, colour)
            picture.text(left + (i + 0.5) * wide, 155, words, colour)
        picture.path([(left, 150), (left + 6, 150)], colour)
        picture.path([(right - 6, 150), (right, 150)], colour)
    picture.save(path)

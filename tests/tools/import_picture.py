"""The picture of imports: `PYTHONPATH=.:tests python tests/tools/import_picture.py` writes it.

Packages on one line do not import each other. An arrow leads down to a package that is imported;
it is left out where a longer way leads there, too.
"""

from pathlib import Path

from test_structure import MODULES, STAGES, all_imports, stage

PICTURE = Path(__file__).parents[2] / "docs" / "explanation" / "imports.svg"
FILES = {"__init__", "__main__", "api", "arguments", "errors", "records", "version"}  # no packages
ROW, HEIGHT, WIDTH, LETTER, GAP, ASIDE = 54, 34, 760, 8.2, 36, 60  # pixels
TIP = (
    '<marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" '
    'orient="auto"><path d="M0 0L8 4L0 8z" fill="#888"/></marker>'
)


def arrows(packages: list[str]) -> list[tuple[str, str]]:
    """Imports between packages, which are in their order, without those that follow from others."""
    direct: dict[str, set[str]] = {name: set() for name in packages}
    for module in MODULES:
        ours = (name for name in all_imports(module) if name.startswith("refimpl."))
        direct.get(stage(module), set()).update(map(stage, ours))
    reach: dict[str, set[str]] = {}
    for name in packages:
        direct[name] &= reach.keys()
        reach[name] = direct[name].union(*(reach[below] for below in direct[name]))
    return [
        (name, below)
        for name in packages
        for below in sorted(direct[name])
        if not any(below in reach[other] for other in direct[name])
    ]


def picture() -> str:
    """The picture, as SVG."""
    rows = [row for row in (sorted(names - FILES) for names in STAGES) if row]
    boxes: dict[str, tuple[float, int, float]] = {}  # left, top, width
    for i, row in enumerate(reversed(rows)):
        widths = [LETTER * len(name) + 16 for name in row]
        x = (WIDTH - sum(widths) - GAP * (len(row) - 1)) / 2
        x += (ASIDE, -ASIDE)[i % 2]  # arrows over several rows pass beside the boxes between
        for name, width in zip(row, widths, strict=True):
            boxes[name] = x, i * ROW + 10, width
            x += width + GAP
    size = f'viewBox="0 0 {WIDTH} {len(rows) * ROW}" font-family="monospace" font-size="13"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} text-anchor="middle">', TIP]
    for above, below in arrows([name for row in rows for name in row]):
        (x1, y1, w1), (x2, y2, w2) = boxes[above], boxes[below]
        a, b, start = x1 + w1 / 2, x2 + w2 / 2, y1 + HEIGHT
        line = f"M{a:.0f} {start}L{b:.0f} {y2}"
        parts.append(f'<path d="{line}" stroke="#888" marker-end="url(#tip)"/>')
    for name, (x, y, width) in boxes.items():
        frame = f'x="{x:.0f}" y="{y}" width="{width:.0f}" height="{HEIGHT}" rx="5"'
        parts.append(f'<rect {frame} fill="#e6edf5" stroke="#567"/>')
        parts.append(f'<text x="{x + width / 2:.0f}" y="{y + 22}" fill="#123">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(picture(), "utf-8")

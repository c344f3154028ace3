"""The picture of a block in docs/results/: `python tests/tools/block_picture.py`.

As in a viewer, every node is a box; constants, weights and other inputs stand in the boxes that
read them. Nodes are laid out in layers, each below what it reads.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import onnx
from onnx import NodeProto, numpy_helper

from refimpl import read_model
from refimpl.onnx.recording.graph_weights import copied, graph_weights
from refimpl.onnx.recording.model_graph import Recording, model_graph

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "results" / "onnx-block.svg"
MODEL = "llama"
PANELS = (  # a title, and the arrays after the last of which the panel ends
    ("norm, projections, heads, rotation", ("q_rope", "k_rope", "v")),
    ("attention", ("resid_mid",)),
    ("MLP", ("resid_post",)),
)
WIDTH, GAP, LINE, BAND, BETWEEN = 112, 8, 13, 17, 22  # of boxes, pixels
THIN = 10  # of a line that passes a layer
COLOURS = {
    "MatMul": "#1f4e79", "Add": "#5b5b5b", "Sub": "#5b5b5b", "Mul": "#5b5b5b", "Div": "#5b5b5b",
    "Slice": "#7a5195", "Concat": "#7a5195", "Gather": "#7a5195", "Reshape": "#7a5195",
    "Transpose": "#7a5195",
}  # fmt: skip
OTHER = "#8a3b12"  # reductions and functions
SWEEPS = 40


def block_function() -> onnx.FunctionProto:
    """The function of the block, as it is exported."""
    model = read_model(ROOT / "fixtures" / MODEL)
    enter = copied(graph_weights(model, "float32"), None)
    (function,) = model_graph(Recording(model, "float32", enter)).model().functions
    return function


def constant_text(node: NodeProto) -> str:
    """The numbers of a constant."""
    value = numpy_helper.to_array(node.attribute[0].t)
    end = value.size == 1 and value.dtype.kind == "i" and value.item() > 1 << 40
    return "to the end" if end else f"{value.tolist()}" if value.ndim else f"{value.item():.6g}"


def lines_of(node: NodeProto, made: Iterable[str], constants: Mapping[str, str]) -> list[str]:
    """What stands in a box: inputs that no box makes."""
    return [constants.get(name, name) for name in node.input if name not in made]


class Panel:
    """Some nodes of the block, in layers.

    Args:
        nodes: In their order, without constants.
        before: Arrays that are made before this panel, which get boxes at the top.
        constants: Texts of constants by name.
    """

    def __init__(
        self, nodes: Sequence[NodeProto], before: Iterable[str], constants: Mapping[str, str]
    ) -> None:
        makers = {node.output[0]: node for node in nodes}
        read = [name for node in nodes for name in node.input]
        self.tops = [name for name in before if name in read]
        sources = {*makers, *self.tops}
        self.labels = {name: (name, [], "") for name in self.tops} | {
            name: (node.op_type, lines_of(node, sources, constants), name)
            for name, node in makers.items()
        }
        self.edges = [(i, name) for name, n in makers.items() for i in n.input if i in sources]
        layer = dict.fromkeys(self.tops, 0)
        for name, node in makers.items():
            layer[name] = 1 + max((layer[i] for i in node.input if i in sources), default=-1)
        for a in sources:  # what reads nothing stands just above what reads it
            if a in makers and not any(b == a for _, b in self.edges):
                layer[a] = min(layer[b] for i, b in self.edges if i == a) - 1
        self.layers: list[list[str]] = [[] for _ in range(1 + max(layer.values()))]
        for name in (*self.tops, *makers):
            self.layers[layer[name]].append(name)
        self.paths = [self._path(a, b, layer) for a, b in self.edges]
        self._order()
        self._place()

    def _path(self, a: str, b: str, layer: Mapping[str, int]) -> list[str]:
        """An edge as points, one per layer."""
        between = [f"{a} {b} {k}" for k in range(layer[a] + 1, layer[b])]
        for k, name in enumerate(between, layer[a] + 1):
            self.layers[k].append(name)
        return [a, *between, b]

    def _neighbours(self, up: bool) -> dict[str, list[str]]:
        """Points by the points that they are joined to, above or below."""
        found: dict[str, list[str]] = {}
        for path in self.paths:
            for a, b in pairwise(path):
                found.setdefault(b if up else a, []).append(a if up else b)
        return found

    def _order(self) -> None:
        """Put every point near the mean of those it is joined to."""
        for sweep in range(SWEEPS):
            up = sweep % 2 == 0
            joined, place = self._neighbours(up), {}
            for layer in self.layers if up else reversed(self.layers):
                key = {}
                for i, name in enumerate(layer):
                    known = [place[n] for n in joined.get(name, []) if n in place]
                    key[name] = fmean(known or [(i + 0.5) / len(layer)])
                layer.sort(key=key.__getitem__)
                place |= {name: (i + 0.5) / len(layer) for i, name in enumerate(layer)}

    def size(self, name: str) -> tuple[float, float]:
        """Width and height of a box, or of a point on a line."""
        if name not in self.labels:
            return THIN, 0
        _, lines, output = self.labels[name]
        count = len(lines) + named(output)
        return WIDTH, BAND + LINE * count + (4 if count else 2)

    def _place(self) -> None:
        """Give every point a place: order and distance kept, lines as straight as they go."""
        joined = [self._neighbours(True), self._neighbours(False)]
        self.x = {n: float(i * (WIDTH + GAP)) for layer in self.layers for i, n in enumerate(layer)}
        for sweep in range(SWEEPS * 4):
            for layer in self.layers if sweep % 2 == 0 else reversed(self.layers):
                wanted = []
                for name in layer:
                    near = joined[sweep % 2].get(name) or joined[1 - sweep % 2].get(name, [name])
                    wanted.append(fmean(self.x[n] for n in near))
                self._spread(layer, wanted)
        left = min(self.x[n] - self.size(n)[0] / 2 for n in self.x)
        self.x = {name: value - left for name, value in self.x.items()}
        self.width = max(self.x[n] + self.size(n)[0] / 2 for n in self.x)
        self.y, self.deep, y = {}, {}, 0.0
        for layer in self.layers:
            height = max(self.size(name)[1] for name in layer)
            self.y |= dict.fromkeys(layer, y)
            self.deep |= dict.fromkeys(layer, height)
            y += height + BETWEEN
        self.height = y - BETWEEN

    def _spread(self, layer: Sequence[str], wanted: Sequence[float]) -> None:
        """Move points of a layer apart, about the places that they want."""
        blocks: list[tuple[list[float], list[float]]] = []  # wants less the offset; offsets
        before, offset = None, 0.0
        for name, want in zip(layer, wanted, strict=True):
            if before is not None:
                offset += (self.size(before)[0] + self.size(name)[0]) / 2 + GAP
            blocks.append(([want - offset], [offset]))
            while len(blocks) > 1 and fmean(blocks[-2][0]) >= fmean(blocks[-1][0]):
                wants, offsets = blocks.pop()
                blocks[-1] = (blocks[-1][0] + wants, blocks[-1][1] + offsets)
            before = name
        places = [fmean(wants) + at for wants, offsets in blocks for at in offsets]
        self.x |= dict(zip(layer, places, strict=True))

    def drawn(self, left: float, top: float) -> str:
        """The panel as SVG, with its corner at a place."""
        parts = [self._line(path, left, top) for path in self.paths]
        parts += [self._box(name, left + self.x[name], top + self.y[name]) for name in self.labels]
        return "\n".join(parts)

    def _line(self, path: Sequence[str], left: float, top: float) -> str:
        """An edge: straight through the layers it passes, curved between them."""
        x, y = left + self.x[path[0]], top + self.y[path[0]] + self.size(path[0])[1]
        text = f"M{x:.1f},{y:.1f}"
        for name in path[1:]:
            x1, y1 = left + self.x[name], top + self.y[name]
            bend = (y1 - y) / 2
            text += f" C{x:.1f},{y + bend:.1f} {x1:.1f},{y1 - bend:.1f} {x1:.1f},{y1:.1f}"
            x, y = x1, y1
            if name not in self.labels:
                y += self.deep[name]
                text += f" V{y:.1f}"
        return f'<path d="{text}" class="edge"/>'

    def _box(self, name: str, x: float, y: float) -> str:
        """A node."""
        title, lines, output = self.labels[name]
        height, left = self.size(name)[1], x - WIDTH / 2
        if name in self.tops:
            box = rectangle(left, y, height, 'rx="9" class="input"')
            return box + text(x, y + 13, "name", title)
        colour = COLOURS.get(title, OTHER)
        parts = [rectangle(left, y, height, 'class="box"')]
        parts += [rectangle(left, y, BAND, f'fill="{colour}"'), text(x, y + 12.5, "op", title)]
        shown = [("value", line) for line in lines]
        shown += [("name", output)] if named(output) else []
        for i, (style, line) in enumerate(shown):
            parts.append(text(x, y + BAND + LINE * (i + 1) - 1, style, line))
        return "".join(parts)


def rectangle(x: float, y: float, height: float, more: str) -> str:
    """A box, or a part of it."""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{WIDTH}" height="{height}" {more}/>'


def text(x: float, y: float, style: str, words: str) -> str:
    """Words in a box."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}">{escape(words)}</text>'


def named(output: str) -> bool:
    """Whether an array has a name of ours; others are an operator and a number."""
    return bool(output) and not output[0].isupper()


def picture() -> str:
    """The whole picture as SVG."""
    function = block_function()
    constants = {n.output[0]: constant_text(n) for n in function.node if n.op_type == "Constant"}
    nodes = [node for node in function.node if node.op_type != "Constant"]
    panels, before, start = [], ["x"], 0
    for title, ends in PANELS:
        stop = 1 + max(i for i, node in enumerate(nodes) if node.output[0] in ends)
        panels.append((title, Panel(nodes[start:stop], before, constants)))
        before += [node.output[0] for node in nodes[start:stop]]
        start = stop
    assert start == len(nodes)
    margin, caption = 16, 26
    (first, below) = panels[0][1], [panel for _, panel in panels[1:]]
    gap = 48
    width = max(first.width, sum(p.width for p in below) + gap * (len(below) - 1)) + 2 * margin
    top = margin + 40
    second = top + caption + first.height + 30
    height = second + caption + max(p.height for p in below) + margin
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}">',
        "<style>text{font-family:Helvetica,Arial,sans-serif;font-size:11px;text-anchor:middle}"
        ".op{fill:#fff;font-weight:bold}.value{fill:#444}.name{fill:#0b6e3b;font-weight:bold}"
        ".title{text-anchor:start;font-size:14px;font-weight:bold;fill:#222}"
        ".box{fill:#fff;stroke:#888}.input{fill:#e7f3ec;stroke:#0b6e3b}"
        ".edge{fill:none;stroke:#777;stroke-width:1.2}</style>",
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#fafafa"/>',
        f'<text x="{margin}" y="{margin + 14}" class="title">function refimpl.{function.name} of '
        f"fixtures/{MODEL}: {len(nodes)} nodes; green: arrays with our names</text>",
    ]
    left = (width - first.width) / 2
    parts.append(f'<text x="{margin}" y="{top + 12}" class="title">{panels[0][0]}</text>')
    parts.append(first.drawn(left, top + caption))
    left = float(margin)
    for title, panel in panels[1:]:
        parts.append(f'<text x="{left:.0f}" y="{second + 12:.0f}" class="title">{title}</text>')
        parts.append(panel.drawn(left, second + caption))
        left += panel.width + gap
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(picture(), "utf-8")

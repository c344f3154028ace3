"""The paper's figures from a `scores.json`: `python docs/results/figures.py scores.json NAME`.

Writes NAME-drift-ETA.svg for two eta, and NAME-sweep.svg, beside this file. They are the pictures
of `refimpl report`, each with the page's stylesheet in it.
"""

import sys
from importlib.resources import files
from pathlib import Path

from refimpl.report.absorption import sweep_figure
from refimpl.report.drift import drift_figure
from refimpl.report.inputs import read_inputs

HERE = Path(__file__).parent
ETAS = (0.01, 1.0)


def standalone(picture: str) -> str:
    """A picture that needs no page."""
    style = files("refimpl.report").joinpath("page.css").read_text("utf-8")
    start, rest = picture.split(">", 1)
    start = start.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    ground = '<rect width="100%" height="100%" style="fill: var(--card)"/>'
    return (
        f"{start}>\n<style>\n{style}svg {{ font-family: sans-serif; }}\n</style>\n{ground}{rest}\n"
    )


def main() -> None:
    """Write the pictures of one file."""
    path, name = Path(sys.argv[1]), sys.argv[2]
    (scored,) = read_inputs([path]).scored
    for found in (x for x in scored.scores.sweep if x.eta in ETAS):
        picture = drift_figure("drift", found).svg
        target = HERE / f"{name}-drift-{found.eta:g}.svg"
        target.write_text(standalone(picture), "utf-8")
    picture = sweep_figure("sweep", scored.scores).svg
    (HERE / f"{name}-sweep.svg").write_text(standalone(picture), "utf-8")


if __name__ == "__main__":
    main()

"""The paper's figures from a `scores.json`: `python docs/results/figures.py scores.json NAME`.

Writes NAME-drift-ETA.svg for two eta, and NAME-sweep.svg, beside this file. They are the pictures
of `refimpl report`, each with its title and the styles that it needs.
"""

import sys
from pathlib import Path

from refimpl.report.figure import ReportFigure, picture, picture_styles
from refimpl.report.inputs import ScoresInput, of_kind, read_inputs
from refimpl.report.pictures import drift_figure, sweep_figure

HERE = Path(__file__).parent
ETAS = (0.01, 1.0)


def main() -> None:
    """Write the pictures of one file."""
    path, name = Path(sys.argv[1]), sys.argv[2]
    (scored,) = of_kind(ScoresInput, read_inputs([path]))
    for found in (x for x in scored.scores.sweep if x.eta in ETAS):
        target = HERE / f"{name}-drift-{found.eta:g}.svg"
        write(target, drift_figure("drift", found))
    write(HERE / f"{name}-sweep.svg", sweep_figure("sweep", scored.scores))


def write(target: Path, figure: ReportFigure) -> None:
    """Write a picture."""
    target.write_text(picture(figure, picture_styles()) + "\n", "utf-8")


if __name__ == "__main__":
    main()

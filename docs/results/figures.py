"""Draw the figures of the docs: `python docs/results/figures.py`.

The scores were made with the commands in docs/gallery.md and docs/results/paper-figures.md.
"""

from pathlib import Path

from refimpl import plot
from refimpl.plot.inputs import panels, read_results

HERE = Path(__file__).parent
STUDY = HERE.parent / "study"
FIGURES = {  # the figure of each file, and which file it is drawn from
    HERE / "smollm2-divergence.svg": ("divergence", HERE / "smollm2.json"),
    HERE / "smollm2-allocation.svg": ("allocation", HERE / "smollm2.json"),
    HERE / "smollm2-drift.svg": ("drift", HERE / "smollm2-noise.json"),
    HERE / "smollm2-coefficients.svg": ("coefficients", HERE / "smollm2-noise.json"),
    **{
        STUDY / f"{name}.svg": ("comparison", STUDY / name) for name in ("smollm2", "gemma", "qwen")
    },
}


def main() -> None:
    """Write all figures."""
    for target, (name, source) in FIGURES.items():
        plot.save(panels(read_results([source]), name)[-1].draw(), target)


if __name__ == "__main__":
    main()

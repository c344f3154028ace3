r"""Draw the figures of the docs: `python docs/results/figures.py`.

smollm2.json has the numbers of two `scores.json` in five digits: values, and below them their
standard errors. They are of

refimpl score real/SmolLM2-135M-Instruct --text real/text/sotu-1901-1979.txt --samples 4 \
  --seq-len 128 --sparsity 0.6 -o scores.json
refimpl score real/SmolLM2-135M-Instruct --text real/text/sotu-1901-1979.txt --samples 4 \
  --seq-len 256 --perturbation gaussian --eta 1e-4,0.01,0.1,1 -o noise.json
"""

import json
from pathlib import Path
from typing import Any

from refimpl import plot
from refimpl.bench.cells import BENCH, read_bench
from refimpl.plot.style import title

HERE = Path(__file__).parent
STUDY = HERE.parent / "study"


def main() -> None:
    """Write all figures."""
    pruned, noise = json.loads((HERE / "smollm2.json").read_text("utf-8")).values()
    bars = "bars: standard errors over samples"
    allocated = {"uniform": pruned["uniform"], "divergence": pruned["allocated"]}
    write("divergence", plot.divergence({"": pruned["divergence"]}), [*pruned["facts"], bars])
    write("allocation", plot.allocation(allocated), [*pruned["facts"], bars])
    write("coefficients", plot.coefficients(noise["r"]), [*noise["facts"], bars])
    plot.save(plot.comparison(read_bench(STUDY / "smollm2" / BENCH)), STUDY / "smollm2.svg")


def write(name: str, ax: Any, facts: list[str]) -> None:
    """Write a figure of SmolLM2, and below its title what it was measured on."""
    title(ax, ax.get_title(loc="left"), facts)
    plot.save(ax, HERE / f"smollm2-{name}.svg")


if __name__ == "__main__":
    main()

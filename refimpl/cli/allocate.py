"""`refimpl allocate`: another allocation from scores that were measured before."""

from pathlib import Path
from typing import Annotated

import typer

from refimpl.cli import options as opt
from refimpl.cli.terminal import style
from refimpl.jobs.allocate import allocate
from refimpl.jobs.document import document, read_scores
from refimpl.jobs.output import checked_output, write_json
from refimpl.method.correction import MAX_CORRECTION, STRENGTH
from refimpl.show.table import table


def command(
    scores: Annotated[Path, typer.Argument(help="A file that refimpl score -o wrote.")],
    base: opt.Base = "uniform",
    base_option: opt.BaseOption = None,
    sparsity: opt.Sparsity = 0.7,
    correct: opt.Correct = None,
    strength: opt.Strength = STRENGTH,
    max_correction: opt.MaxCorrection = MAX_CORRECTION,
    correction_scale: opt.CorrectionScale = "raw",
    lo: opt.Lo = 0.0,
    hi: opt.Hi = 1.0,
    compat: opt.Compat = "exact",
    as_json: opt.Json = False,
    output: opt.Output = None,
) -> None:
    """Make an allocation from scores, without running the model again."""
    wanted = opt.request(
        base, base_option, sparsity, correct, strength, max_correction, correction_scale, lo, hi,
        compat,
    )  # fmt: skip
    checked_output(output, {"the scores": scores})
    found = read_scores(scores)
    allocations = tuple(allocate(found, wanted, which) for which in range(len(found.sweep)))
    result = document(found, allocations)
    if output is not None:
        write_json(output, result)
    opt.show(result if as_json else table(found, allocations, style()))

"""`refimpl allocate`: another allocation from scores that were measured before."""

from pathlib import Path
from typing import Annotated

import typer

from refimpl.allocation.request import Request
from refimpl.allocation.scores_json import read_scores
from refimpl.cli import options as opt
from refimpl.cli.groups import with_groups
from refimpl.cli.terminal import deliver
from refimpl.storage.files import checked_output


@with_groups
def command(
    scores: Annotated[
        Path,
        typer.Argument(
            metavar="SCORES", readable=False, help="A file that refimpl score -o wrote."
        ),
    ],
    *,
    wanted: Request,
    as_json: opt.Json = False,
    output: opt.Output = None,
) -> None:
    """Make another allocation from scores, without running the model again."""
    checked_output(output, {"SCORES": scores, "--base": opt.base_file(wanted)})
    deliver(read_scores(scores), wanted, as_json, output)

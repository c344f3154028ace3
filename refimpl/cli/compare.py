"""`refimpl compare`: several runs in one table."""

from pathlib import Path
from typing import Annotated

from refimpl.cli import options as opt
from refimpl.cli.terminal import deliver
from refimpl.errors import RefimplError


def command(
    files: Annotated[
        list[Path],
        opt.argument(
            "FILE",
            "Files that refimpl score, allocate or eval wrote with -o, and folders of pruned "
            "models (or their pruning.json), in any order.",
        ),
    ],
    *,
    as_csv: Annotated[bool, opt.flag("--csv", "Print CSV with all digits.")] = False,
    as_json: Annotated[bool, opt.flag("--json", "Print JSON with all digits.")] = False,
) -> None:
    """Compare several runs in one table: a row per run, a column per measure.

    A pruning and the evaluations of models that were pruned in the same way share a row.
    """
    from refimpl.report.inputs import read_inputs  # not for --help
    from refimpl.report.runs import run_rows, runs_csv, runs_table

    if as_csv and as_json:
        raise RefimplError("--csv with --json", "one form of output", "omit --csv or --json")
    rows = run_rows(read_inputs(files))
    deliver({"runs": rows}, runs_csv(rows) if as_csv else runs_table(rows), as_json)

"""`refimpl report` and `refimpl compare`: runs on a page, or in a table."""

from pathlib import Path
from typing import Annotated

from refimpl.cli import options as opt
from refimpl.cli.terminal import deliver, say
from refimpl.errors import RefimplError, printable
from refimpl.storage.files import write_text

Runs = Annotated[
    list[Path],
    opt.argument(
        "FILE",
        "Files that refimpl score, allocate or eval wrote with -o, and folders of pruned "
        "models (or their pruning.json), in any order.",
    ),
]


@opt.with_groups
def command(
    files: Runs,
    *,
    output: Annotated[
        Path,
        opt.output("FILE", "The page, which appears whole or not at all."),
        opt.OutputKind.FILE,
    ] = Path("report.html"),
    figures: Annotated[
        Path | None,
        opt.option("Also write every picture (SVG) and its numbers (CSV) to a new folder.", "DIR"),
        opt.OutputKind.FOLDER,
    ] = None,
) -> None:
    """Write a page with pictures and tables of scores, prunings and evaluations.

    The page is one HTML file that loads nothing from the network. On it, a button below each
    picture saves it as SVG or PNG, and its numbers as CSV.
    """
    from refimpl.report.inputs import read_inputs  # not for --help
    from refimpl.report.page import page, sections
    from refimpl.report.standalone import write_figures

    inputs = read_inputs(files).named
    text = page(inputs)
    if figures is not None:
        count = write_figures(figures, list(sections(inputs, len(text))))
        say(printable(f"written: {figures} ({count} files)") + "\n")
    write_text(output, text)
    say(printable(f"written: {output} ({len(text.encode()):,} bytes)") + "\n")


@opt.with_groups
def compare_command(
    files: Runs,
    *,
    as_csv: Annotated[bool, opt.flag("Print CSV with all digits.", None, "--csv")] = False,
    as_json: Annotated[bool, opt.flag("Print JSON with all digits.", None, "--json")] = False,
) -> None:
    """Compare several runs in one table: a row per run, a column per measure.

    A pruning and the evaluations of the model that it wrote share a row: their files record a
    digest of its weights. An evaluation by an older version, without a digest, has its own row.
    """
    from refimpl.report.inputs import read_inputs  # not for --help
    from refimpl.report.runs import run_rows, runs_csv, runs_table

    if as_csv and as_json:
        raise RefimplError("--csv with --json", "one form of output", "omit --csv or --json")
    rows = run_rows(read_inputs(files))
    deliver({"runs": rows}, runs_csv(rows) if as_csv else runs_table(rows), as_json)

"""The real command line, run inside this process: `run("score", model)`."""

import re
import sys
from dataclasses import dataclass
from io import BytesIO, TextIOWrapper
from typing import Any
from unittest.mock import patch

from refimpl.cli.main import main


@dataclass(frozen=True)
class Result:
    """What a run of the program left: its exit code and both streams."""

    code: int
    out: str
    err: str


class Terminal(TextIOWrapper):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def run(
    *words: object, encoding: str = "utf-8", terminal: bool = False, err_terminal: bool = False
) -> Result:
    """Run `refimpl` with these words, stdout in this encoding; terminals only where asked for."""
    out = (Terminal if terminal else TextIOWrapper)(BytesIO(), encoding)
    err = (Terminal if err_terminal else TextIOWrapper)(BytesIO(), "utf-8", "backslashreplace")
    argv = ["refimpl", *(str(word) for word in words)]
    code: object = None
    with patch.multiple(sys, argv=argv, stdout=out, stderr=err):
        try:
            main()
        except SystemExit as left:
            code = left.code
    assert code is None or isinstance(code, int)
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode(stream.encoding))  # type: ignore[attr-defined]
    return Result(code or 0, *texts)


def ran(*words: object, quiet: bool = True, **options: Any) -> str:
    """Run `refimpl`, check that it succeeds (and, if quiet, prints nothing to stderr)."""
    result = run(*words, **options)
    assert result.code == 0, result.err
    assert not (quiet and result.err), result.err
    return result.out


def refusal(result: Result) -> str:
    """Check that a run was refused with one error of three parts, and nothing else; returns it."""
    assert (result.code, result.out) == (2, ""), result
    assert re.fullmatch(r"error: .+\nexpected: .+\nnext: .+\n", result.err, re.DOTALL), result.err
    assert len(re.findall("^(error|expected|next): ", result.err, re.MULTILINE)) == 3, result.err
    assert "Traceback" not in result.err
    return result.err


def refused(*words: object) -> str:
    """Run `refimpl`, check that it refuses as it refuses everything; returns the message."""
    return refusal(run(*words))

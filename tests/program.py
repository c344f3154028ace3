"""The real command line, run inside this process: `run("score", model)`.

Two things are done once, as they do not depend on the words: the parser of a command, and the
tokens of a text. Runs in processes of their own (processes.py, docs) do both each time.
"""

import re
import sys
from dataclasses import dataclass
from functools import cache, partial
from io import BytesIO, TextIOWrapper
from typing import Any, ClassVar
from unittest.mock import patch

import typer.main

import refimpl.cli.main
from refimpl import RefimplError
from refimpl.cli.main import main
from refimpl.running.isolation import Isolated


@dataclass(frozen=True)
class Result:
    """What a run of the program left: its exit code and both streams."""

    code: int
    out: str
    err: str


class RememberedLibrary:
    """The process of a tokenizer, which starts once per file and encodes every text once.

    A file that is not known to work gets a process of its own at once, as in the program.
    """

    answers: ClassVar[dict[Any, Any]] = {}

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._start = cache(partial(Isolated, *arguments, **options))
        limits = {name: x for name, x in options.items() if name != "name"}
        self._key = arguments, *limits.items()
        if self._key not in self.answers:
            self._start()
            self.answers[self._key] = {}

    def call(self, *request: Any) -> Any:
        answers = self.answers[self._key]
        if request not in answers:
            answers[request] = self._start().call(*request)
        return answers[request]


class Terminal(TextIOWrapper):
    def isatty(self) -> bool:
        return True


remembering = cache(cache)  # a function of which each call is computed once


def run(
    *words: object,
    encoding: str = "utf-8",
    terminal: bool = False,
    err_terminal: bool = False,
) -> Result:
    """Run `refimpl` with these words, stdout in this encoding; terminals only where asked for."""
    out = (Terminal if terminal else TextIOWrapper)(BytesIO(), encoding)
    err = (Terminal if err_terminal else TextIOWrapper)(
        BytesIO(), "utf-8", "backslashreplace"
    )
    argv = ["refimpl", *(str(word) for word in words)]
    code: object = None
    with (
        patch.multiple(sys, argv=argv, stdout=out, stderr=err),
        patch("refimpl.loading.text.Isolated", RememberedLibrary),
        patch("refimpl.cli.main.program", remembering(refimpl.cli.main.program)),
        patch("typer.main.get_command", remembering(typer.main.get_command)),
    ):
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
    assert re.fullmatch(
        r"error: .+\nexpected: .+\nnext: .+\n", result.err, re.DOTALL
    ), result.err
    assert len(re.findall("^(error|expected|next): ", result.err, re.MULTILINE)) == 3, (
        result.err
    )
    assert "Traceback" not in result.err
    return result.err


def refused(*words: object) -> str:
    """Run `refimpl`, check that it refuses as it refuses everything; returns the message."""
    return refusal(run(*words))


def suggested(error: RefimplError, option: str) -> list[int]:
    """The values of an option in the next step of an error."""
    return [int(n) for n in re.findall(rf"--{option} (\d+)", error.remedy)]

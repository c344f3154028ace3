"""The one error a user sees: what was wrong, what was expected, what to do next; and Ctrl-C."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

MOST_LINES = 20  # lines of details, or names of a list
LONGEST = 1000  # characters of a line


def printable(text: object) -> str:
    """A foreign text on one line: what could move a cursor or forge a line is escaped."""
    return "".join(x if x.isprintable() else ascii(x)[1:-1] for x in str(text))


def shortened(text: object) -> str:
    """A foreign text on one line of bounded length: a long one without its middle."""
    line, half = printable(text), LONGEST // 2 - 3
    return line if len(line) <= LONGEST else f"{line[:half]} ... {line[-half:]}"


def first_few(texts: Sequence[str]) -> list[str]:
    """The texts; of more than `MOST_LINES`, the first ones and the number of the others."""
    if len(texts) <= MOST_LINES:
        return [*texts]
    return [*texts[: MOST_LINES - 1], f"and {len(texts) - MOST_LINES + 1:,} more"]


def listed(names: Sequence[str]) -> str:
    """Names in a sentence, as many as `first_few` shows."""
    return ", ".join(first_few(names))


class RefimplError(ValueError):
    """Input that cannot be used; the command line prints it and exits with 2.

    Args:
        problem: What was wrong, naming the thing (file, tensor, option, number).
        expected: What would have been right.
        remedy: What to do next, as an instruction.
        details: The single problems, a line each under the problem; the first ones.

    Each line is cut to `LONGEST` characters, but not the remedy, which may be a command.
    """

    def __init__(
        self,
        problem: str,
        expected: str = "",
        remedy: str = "",
        details: Sequence[str] = (),
    ) -> None:
        lines = [shortened(problem), *map(shortened, first_few(details))]
        self.problem, self.expected = "\n  ".join(lines), shortened(expected)
        self.remedy = printable(remedy)
        super().__init__(lines[0], self.expected, self.remedy, lines[1:])

    def __str__(self) -> str:
        parts = {"": self.problem, "expected: ": self.expected, "next: ": self.remedy}
        return "\n".join(f"{what}{text}" for what, text in parts.items() if text)


def need(extra: str, *libraries: str, otherwise: str = "") -> None:
    """Refuse to continue if a library of an extra of refimpl is not installed."""
    if missing := [name for name in libraries if find_spec(name) is None]:
        raise RefimplError(
            f"{' and '.join(missing)}: not installed",
            f"refimpl with its extra [{extra}]",
            f"pip install 'refimpl[{extra}]'{otherwise}",
        )


class Interrupted(Exception):
    """Ctrl-C, with what is kept, and the next command."""

    def __init__(self, outcome: str, remedy: str = "repeat the command") -> None:
        super().__init__(
            f"interrupted: {printable(outcome)}\nnext: {printable(remedy)}"
        )


@contextmanager
def reading(
    path: Path | str, expected: str = "a file that can be read"
) -> Iterator[None]:
    """Turn any `OSError` inside into the error for a file or folder that cannot be read."""
    try:
        yield
    except OSError as error:
        problem = f"{path}: cannot be read ({error.strerror or error})"
        raise RefimplError(
            problem, expected, "check the path and its permissions"
        ) from error

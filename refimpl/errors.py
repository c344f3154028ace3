"""The one error a user sees: what was wrong, what was expected, what to do next."""

from pathlib import Path


class RefimplError(ValueError):
    """Input that cannot be used; the command line prints it and exits with 2.

    Args:
        problem: What was wrong, naming the thing (file, tensor, option, number).
        expected: What would have been right.
        remedy: What to do next, as an instruction.
    """

    def __init__(self, problem: str, expected: str = "", remedy: str = "") -> None:
        self.problem, self.expected, self.remedy = problem, expected, remedy
        lines = [problem]
        if expected:
            lines.append(f"expected: {expected}")
        if remedy:
            lines.append(f"next: {remedy}")
        super().__init__("\n".join(lines))


def unreadable(path: Path | str, error: OSError, expected: str) -> RefimplError:
    """The error for a file or folder that the system does not let us read."""
    return RefimplError(
        f"{path}: cannot be read ({error.strerror or error})",
        expected,
        "check the path and its permissions",
    )

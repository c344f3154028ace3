"""What a reader of Python pays: tokens, tokens a line, and signs of packing."""

import ast
import tokenize
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

WIDE = 80  # columns, from which on a line is wide
LAYOUT = {tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
NOTHING = {tokenize.NL, tokenize.ENCODING, tokenize.ENDMARKER, tokenize.COMMENT}


@dataclass(frozen=True)
class Weight:
    """Counts of a file, or of several: comments and docstrings are not counted."""

    tokens: int = 0
    code_lines: int = 0
    wide_lines: int = 0
    pairs: int = 0  # statements that assign several values to several names
    longest: int = 0  # lines of the longest file, all of them

    @property
    def density(self) -> float:
        """Tokens of a code line."""
        return self.tokens / max(self.code_lines, 1)

    @property
    def wide(self) -> float:
        """Share of the code lines that are wide."""
        return self.wide_lines / max(self.code_lines, 1)

    def __add__(self, other: "Weight") -> "Weight":
        return Weight(
            tokens=self.tokens + other.tokens,
            code_lines=self.code_lines + other.code_lines,
            wide_lines=self.wide_lines + other.wide_lines,
            pairs=self.pairs + other.pairs,
            longest=max(self.longest, other.longest),
        )


def weight_of(path: Path) -> Weight:
    """The counts of one file."""
    text = path.read_text("utf-8")
    lines = text.splitlines()
    tokens = 0
    code = set[int]()
    begins_statement = True
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type in LAYOUT:
                begins_statement = True
            elif token.type not in NOTHING:
                is_docstring = begins_statement and token.string[:5].count('"""') > 0
                begins_statement = False
                if not is_docstring:
                    tokens += 1
                    code.update(range(token.start[0], token.end[0] + 1))
    pairs = [node for node in ast.walk(ast.parse(text)) if assigns_a_pair(node)]
    return Weight(
        tokens=tokens,
        code_lines=len(code),
        wide_lines=sum(len(lines[number - 1]) >= WIDE for number in code),
        pairs=len(pairs),
        longest=len(lines),
    )


def assigns_a_pair(node: ast.AST) -> bool:
    """Whether a statement assigns a tuple of values to a tuple of names."""
    if not isinstance(node, ast.Assign):
        return False
    return isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple)


def sum_of(paths: Iterable[Path]) -> Weight:
    """The counts of several files."""
    return sum(map(weight_of, paths), Weight())

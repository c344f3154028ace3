"""The header of a table: labels with their facts; and what was measured, on what, and how."""

import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from textwrap import wrap

from refimpl.allocation.allocate import Allocation
from refimpl.allocation.request import Request
from refimpl.allocation.scores import Scores
from refimpl.errors import printable
from refimpl.loading.samples import TokenFacts
from refimpl.method.correction import MAX_CORRECTION, STRENGTH

NARROWEST, WIDTH, LABEL = 40, 100, 12  # columns of a line, and of the label before its facts
CHANGED = "lo", "hi", "max_correction", "correction_scale", "compat"  # shown if not as usual


def fits_terminal() -> bool:
    """Whether stdout has a width: that of a terminal, or COLUMNS."""
    return "COLUMNS" in os.environ or sys.stdout.isatty()


def terminal_width() -> int:
    """Columns of a line: what COLUMNS or the terminal says, at most `WIDTH`, at least 40."""
    if fits_terminal():
        return max(NARROWEST, min(shutil.get_terminal_size((WIDTH, 24)).columns, WIDTH))
    return WIDTH


def fitting(line: str) -> list[str]:
    """Pieces of a line that fit the terminal, with whole words; a command stays on one line."""
    if not fits_terminal() or re.match(r"\w+: +refimpl ", line):
        return [line]
    width = terminal_width()
    return wrap(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def counted(number: int, thing: str) -> str:
    """A number of things: "1 block", "2 blocks"."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def joined(lines: Iterable[str]) -> str:
    """The text of some lines; what is foreign in a line cannot make another one."""
    return "\n".join(map(printable, lines)) + "\n"


def wrapped(facts: Mapping[str, Sequence[str]]) -> list[str]:
    """Labels and their facts on lines that fit the terminal, broken between facts."""
    lines, width = [], terminal_width() - LABEL
    for label, texts in facts.items():
        shown = [printable(text) for text in texts]
        glued = ", ".join(
            text.replace(" ", "\N{NO-BREAK SPACE}") if len(text) < width else text for text in shown
        )
        broken = wrap(glued, width, break_long_words=False, break_on_hyphens=False)
        for i, line in enumerate(broken):
            text = line.replace("\N{NO-BREAK SPACE}", " ")
            lines.append(f"{'' if i else label:<{LABEL}}{text}")
    return lines


def page(*parts: Mapping[str, Sequence[str]] | Iterable[str]) -> str:
    """Parts with an empty line between them: labels and facts, or lines, which fit the terminal."""
    texts = [wrapped(part) if isinstance(part, Mapping) else [*part] for part in parts]
    return joined(line for text in texts if text for line in ("", *text)).removeprefix("\n")


def header(scores: Scores, allocations: tuple[Allocation, ...]) -> dict[str, list[str]]:
    """What was measured, on what, and the request for the allocation; without usual settings."""
    made, usual = allocations[0], Request()
    request, options = made.request, made.request.options
    facts = [f"sparsity {request.sparsity:g}", f"base {request.record.name}"]
    facts += [
        f"{name} {x:g}" if isinstance(x, float) else f"{name} {x}" for name, x in options.items()
    ]
    facts.append(f"correction {request.correct or 'none'}")
    if request.measured:
        facts += ["strength measured", *_growth(made)]
    elif request.correct is not None:
        facts.append(f"strength {request.fixed_strength:g}")
    values = {name: getattr(request, name) for name in CHANGED}
    facts += [f"{name} {x}" for name, x in values.items() if x != getattr(usual, name)]
    weights = f"{made.total_weights:,} prunable weights"
    return {
        "model": [*model_facts(scores.model, scores.family, scores.num_blocks), weights],
        "tokens": token_facts(scores.tokens),
        "allocation": facts,
    }


def model_facts(name: str, family: str, num_blocks: int) -> list[str]:
    """Which model it is."""
    return [name, f"family {family}", counted(num_blocks, "block")]


def token_facts(tokens: TokenFacts) -> list[str]:
    """Where tokens came from."""
    shape = f"{tokens.samples} x {tokens.seq_len}"
    return [shape, *tokens.source.split(", "), f"sha256 {tokens.sha256[:12]}"]


def _growth(allocation: Allocation) -> list[str]:
    """How the errors grow that an allocation of measured strength is made of."""
    grows = allocation.growth
    assert grows is not None  # the strength is measured
    probed, fits = int(grows.probed.sum()), int((grows.probed & grows.fits).sum())
    if not fits:
        return [f"no error grows as exp(kappa s): strength {STRENGTH}, at most {MAX_CORRECTION}"]
    word = "probed block" if grows.fits.ndim == 1 else "probed linear"
    odd = [f"{fits} of {counted(probed, word)} fit"] if fits < probed else []
    return [f"kappa {grows.common_rate:.3g}", *odd]

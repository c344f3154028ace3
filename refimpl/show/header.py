"""The header of a table: labels with their facts; and what was measured, on what, and how."""

import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from textwrap import wrap

import numpy as np

from refimpl.allocation.allocate import Allocation
from refimpl.allocation.plan import Noise, Probes
from refimpl.allocation.request import Request
from refimpl.allocation.scores import Scores
from refimpl.errors import printable
from refimpl.loading.samples import TokenFacts
from refimpl.method.correction import MAX_CORRECTION, STRENGTH
from refimpl.model.config import Linears, linear_sizes
from refimpl.running.file_system import MIB
from refimpl.running.provenance import Run

NARROWEST, WIDTH, LABEL = 40, 100, 12  # columns of a line, and of the label before its facts
SOME = 8  # units that do not fit are named, of more


def fits_terminal() -> bool:
    """Whether stdout has a width: that of a terminal, or COLUMNS."""
    return "COLUMNS" in os.environ or sys.stdout.isatty()


def terminal_width() -> int:
    """Columns of a line: what COLUMNS or the terminal says, at most `WIDTH`, at least 40."""
    if fits_terminal():
        return max(NARROWEST, min(shutil.get_terminal_size((WIDTH, 24)).columns, WIDTH))
    return WIDTH


def fitting(line: str, width: int | None = None) -> list[str]:
    """Pieces of a line that fit the terminal; words stay whole, and a command stays one command."""
    if width is None and not fits_terminal():
        return [line]
    if re.match(r"\w+: refimpl ", line):
        return command_lines(line, width)
    width = width or terminal_width()
    return wrap(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def command_lines(text: str, width: int | None = None) -> list[str]:
    """A command, with a label before it, on lines that fit; a shell reads them as one."""
    if width is None and not fits_terminal():
        return [text]
    lines = [""]
    for word in re.findall(r"'[^']*'\S*|\S+\s*", text):
        if lines[-1] and len(lines[-1] + word.rstrip()) > (width or terminal_width()) - 2:
            lines.append("  ")
        lines[-1] += word if word.endswith(" ") else f"{word} "
    return [line + "\\" for line in lines[:-1]] + [lines[-1].rstrip()]


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


def header(scores: Scores, allocations: tuple[Allocation, ...]) -> list[str]:
    """What was measured, on what, and how: lines with each label once, its facts beside it."""
    request = allocations[0].request
    facts = {
        "model": [
            *model_facts(scores.model, scores.family, scores.num_blocks),
            f"{allocations[0].total_weights:,} prunable weights",
        ],
        "tokens": token_facts(scores.tokens),
        "perturbed": _perturbed(scores),
        "base": [
            *_base(request.record.name, request.options, request.sparsity),
            *_unusual(request, "lo hi", f"limits {request.lo:g} to {request.hi:g}"),
            *_unusual(request, "compat", f"compat {request.compat}"),
        ],
        "correction": _correction(allocations, scores.linears),
    }
    return wrapped(facts)


def model_facts(name: str, family: str, num_blocks: int) -> list[str]:
    """Which model it is."""
    return [name, f"family {family}", counted(num_blocks, "block")]


def token_facts(tokens: TokenFacts) -> list[str]:
    """Where tokens came from."""
    shape = f"{tokens.samples} x {tokens.seq_len}"
    return [shape, *tokens.source.split(", "), f"sha256 {tokens.sha256[:12]}"]


def run_facts(run: Run, *more: str) -> list[str]:
    """How long a run took (followed by other facts), and what it ran on."""
    peak = "unknown" if run.peak_memory is None else f"{run.peak_memory / MIB:,.0f} MiB"
    return [
        f"{run.seconds:.1f} s",
        *more,
        f"peak memory {peak} (resident, mapped pages included)",
        f"{run.memory / MIB:,.6g} MiB for states",
        counted(run.threads, "thread"),
        run.dtype,
        *(f"{name} {version}" for name, version in run.versions.items()),
    ]


def _perturbed(scores: Scores) -> list[str]:
    """How states were perturbed, and how the perturbation was followed."""
    plan, at = scores.plan, scores.pruned_at
    if isinstance(plan, Probes) and at is not None:
        first, *options = _base(at.base, at.options, at.sparsity)
        pruner = plan.pruner_options
        facts = [f"pruning by {pruner.record.title} as base {first}", *options]
        facts += [f"{name} {value:g}" for name, value in pruner.options.items()]
        if plan.delta is not None:
            facts.append(f"probes of {plan.units} at {plan.delta:g} less and more")
        if (perturbed := scores.measured_samples) < scores.tokens.samples:
            facts.append(f"on the first {counted(perturbed, 'sample')}")
    elif isinstance(plan, Noise):
        facts = [
            "gaussian noise",
            "eta " + ", ".join(f"{eta:g}" for eta in plan.etas),
            *([] if plan.noise_norm == "exact" else [f"noise norm {plan.noise_norm}"]),
            counted(plan.draws, "draw"),
            f"seed {plan.seed}",
            f"sink {plan.sink}",
        ]
    return facts


def _base(base: str, options: Mapping[str, float | str], sparsity: float) -> list[str]:
    """A base allocation, its options, and the target."""
    words = [f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in options.items()]
    return [base, *words, f"sparsity {sparsity:g}"]


def _unusual(request: Request, names: str, fact: str) -> list[str]:
    """A fact about fields of a request, if one of them has another value than by default."""
    usual = Request()
    changed = any(getattr(request, x) != getattr(usual, x) for x in names.split())
    return [fact] if changed else []


def _correction(allocations: tuple[Allocation, ...], linears: Linears) -> list[str]:
    """The correction, and how many blocks are at its clip, per eta."""
    request = allocations[0].request
    if request.correct is None:
        return ["none"]
    if request.measured:
        return [f"{request.correct}, strength measured", *_growth(allocations[0], linears)]
    facts = [
        request.correct,
        f"strength {request.fixed_strength:g}",
        *_unusual(request, "max_correction", f"at most {request.max_correction:g}"),
        *_unusual(request, "correction_scale", f"scale {request.correction_scale}"),
    ]
    if (request.strength, request.max_correction) == (STRENGTH, MAX_CORRECTION):
        facts.append("provisional defaults")
    return facts


def _growth(allocation: Allocation, linears: Linears) -> list[str]:
    """How the errors grow that an allocation of measured strength is made of."""
    grows, names = allocation.growth, np.array([str(i) for i in range(len(linears))])
    assert grows is not None  # the strength is measured
    exists, word = np.ones(grows.fits.shape, np.bool_), "block"
    if grows.fits.ndim == 2:
        exists, word = linear_sizes(linears) > 0, "linear"
        names = np.array([f"{i}.{name}" for i, block in enumerate(linears) for name in block])
    probed, odd = int(grows.probed.sum()), names[(grows.probed & ~grows.fits)[exists]].tolist()
    if len(odd) == probed:
        return [f"no error grows as exp(kappa s): strength {STRENGTH}, at most {MAX_CORRECTION}"]
    facts = [f"kappa {grows.common_rate:.3g}"]
    if odd:
        facts.append(f"{probed - len(odd)} of {counted(probed, f'probed {word}')} fit")
    if odd:
        some = [*odd[:SOME], *([f"and {len(odd) - SOME} more"] if len(odd) > SOME else [])]
        facts.append(f"{word} {' '.join(some)} with the kappa of the others")
    return facts

"""Random configurations around a family's tiny model, and the smallest on which a program fails.

What one shape hides shows in another: a window that is longer than the text, a single expert, one
token. The strict reader decides which configurations there are.
"""

import json
import shlex
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from refimpl.arguments import AtLeastOne, AtLeastZero, Checked, common_option
from refimpl.errors import RefimplError, reading
from refimpl.loading.checkpoint import read_model, roles
from refimpl.loading.config_json import read_config
from refimpl.loading.config_keys import IRRELEVANT
from refimpl.loading.files.safetensors_file import write_arrays
from refimpl.oracle.candidates import checked_file
from refimpl.oracle.case import forward_case
from refimpl.oracle.case_folders import FIXTURES, family_model
from refimpl.oracle.check import Verdict
from refimpl.running.outputs import check_folder, whole
from refimpl.show.oracle import verdict_lines

BOUNDARIES = [False, True, *range(1, 10), 12, 33]
FuzzCase = Mapping[str, Any]
"""Numbers of samples and tokens, and changed keys of the tiny model's `config.json`."""


@dataclass(frozen=True)
class Fuzzing(Checked):
    """Cases of a family, whose configurations, weights and tokens are drawn by a seed."""

    family: str = common_option(..., "The family, such as mixtral.", "NAME")
    cases: AtLeastOne = common_option(100, "Number of cases.", "N")
    seed: AtLeastZero = common_option(
        0, "Seed of the configurations, weights and tokens.", "N"
    )
    only: tuple[str, ...] = common_option((), "As for refimpl check.", "PATTERN")

    @cached_property
    def tiny(self) -> dict[str, Any]:
        """The `config.json` of the tiny model."""
        folder = family_model(self.family)
        if folder is None:
            known = "a family of which the package has a tiny model, such as mixtral"
            raise RefimplError(
                f"--family {self.family}: no such family", known, "check the name"
            )
        tiny = read_model(folder).config_file
        new = {key: 0 if key.endswith("_token_id") else x for key, x in tiny.items()}
        return new | {"dtype": "float32"}

    @cached_property
    def sizes(self) -> dict[str, list[int]]:
        """Numbers of blocks, if the family has a key for it, and of samples and tokens."""
        key = read_config(self.tiny).family.spelling("num_hidden_layers")
        blocks = {key: [1, 2, 3, self.tiny[key]]} if key in self.tiny else {}
        return {**blocks, "samples": [1, 2, 3], "tokens": [1, 2, 3, 5, 8, 9, 17, 40]}

    def entries(self, case: FuzzCase) -> dict[str, Any]:
        """The `config.json` of a case, whose lists of a value per block fit its blocks."""
        blocks, *_ = self.sizes
        every, n = (
            {key: case.get(key, x) for key, x in self.tiny.items()},
            self.tiny.get(blocks),
        )
        cut = {
            k: x[: case[blocks]]
            for k, x in every.items()
            if isinstance(x, list) and len(x) == n
        }
        return every | cut

    def shapes(self, case: FuzzCase) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors of a case's model; none if no model has this configuration."""
        with suppress(RefimplError):
            facts = read_config(self.entries(case))
            if facts.config.max_position_embeddings >= case["tokens"]:
                every = roles(facts, facts.family.bases[0])
                return {role.tensor: role.shape for _, role in every}
        return {}

    def drawn(self) -> Iterator[FuzzCase]:
        """Cases with boundary values, or those of other tiny models, in place of at most six."""
        rng = np.random.default_rng(self.seed)
        keys = sorted(self.tiny.keys() - self.sizes.keys() - IRRELEVANT)
        others = [
            json.loads(x.read_text("utf-8"))
            for x in sorted(FIXTURES.glob("*/config.json"))
        ]
        while True:
            case: FuzzCase = {
                name: int(rng.choice(sizes)) for name, sizes in self.sizes.items()
            }
            if not self.shapes(case):
                continue
            for key in rng.permutation(keys)[: rng.integers(7)].tolist():
                old, values = self.tiny[key], [x[key] for x in others if key in x]
                if isinstance(old, float):
                    values += [old / 10, 10 * old]
                elif isinstance(old, int):
                    values += BOUNDARIES
                rng.shuffle(values)
                changed = ({**case, key: x} for x in values if x != old)
                case = next(filter(self.shapes, changed), case)
            yield case

    def smallest(self, case: FuzzCase, fails: Callable[[FuzzCase], bool]) -> FuzzCase:
        """A case that still fails, with fewer changed keys, then blocks, samples and tokens."""
        for key in [key for key in case if key not in self.sizes]:
            less = {other: x for other, x in case.items() if other != key}
            case = less if fails(less) else case
        for name in self.sizes:
            case = next(
                filter(fails, ({**case, name: n} for n in range(1, case[name]))), case
            )
        return case

    def write(self, case: FuzzCase, folder: Path) -> None:
        """Write a case and its model into a folder."""
        rng, model = np.random.default_rng(self.seed), folder / "model"
        model.mkdir(parents=True)
        # Norms about 1; a bias of 0, or a norm of 1, would hide that it is left out.
        arrays = {
            name: (rng.normal(size=shape) * 0.2 + ("norm" in name)).astype(np.float32)
            for name, shape in self.shapes(case).items()
        }
        write_arrays(model / "model.safetensors", arrays)
        (model / "config.json").write_text(
            json.dumps(self.entries(case), indent=1), "utf-8"
        )
        forward_case(model, folder / "case", case["samples"], case["tokens"], self.seed)

    def judged(
        self, words: list[str], case: FuzzCase, folder: Path
    ) -> tuple[Verdict, Iterable[str]]:
        """The verdict on what a program writes for a case in a new folder, and why.

        Args:
            words: The program's command, in which {case} and {out} stand for files.
            case: The case.
            folder: For the case, its model and what the program writes.

        Returns:
            The verdict; lines with the command and what is wrong, worked out when they are read.
        """
        self.write(case, folder)
        read, out = folder / "case", folder / "actual.safetensors"
        command = [
            x.replace("{case}", str(read)).replace("{out}", str(out)) for x in words
        ]
        with reading(words[0], "a program that can be run"):
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace"
            )
        again = f"again: {shlex.join(command)}"
        if done.returncode or not out.exists():
            return "fail", [
                again,
                f"exit code {done.returncode}",
                *done.stderr.splitlines()[-3:],
            ]
        report = checked_file(read, out, self.only)
        return report.verdict, chain([again], verdict_lines(report, str(out)))


def fuzz(
    words: list[str], plan: Fuzzing, output: Path, say: Callable[[str], None]
) -> Verdict:
    """Run a program on cases of a family; the first that fails is kept, as small as possible.

    `say` prints a line for each case, and for the smallest one its changed keys, the command that
    repeats it, and what is wrong.

    Raises:
        RefimplError: A family, steps or a program that do not exist, or an output that does.
    """
    check_folder(output, {}, None)
    worst: Verdict = "pass"

    def verdict_on(case: FuzzCase) -> Verdict:
        with TemporaryDirectory(prefix="refimpl-") as folder:
            return plan.judged(words, case, Path(folder))[0]

    for number, case in enumerate(islice(plan.drawn(), plan.cases)):
        verdict = verdict_on(case)
        say(f"case {number}: {verdict}")
        if verdict == "fail":
            least = plan.smallest(
                case, lambda x: bool(plan.shapes(x)) and verdict_on(x) == "fail"
            )
            with whole(output) as new:
                why = [
                    x.replace(str(new), str(output))
                    for x in plan.judged(words, least, new)[1]
                ]
            for line in (f"the smallest, in {output}: {json.dumps(least)}", *why):
                say(line)
            return "fail"
        worst = worst if verdict == "pass" else verdict
    if worst == "not judged":
        say(
            "write the steps that are missing, or name those that you write with --only"
        )
    return worst

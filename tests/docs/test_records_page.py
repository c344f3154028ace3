"""The examples of records work from a package of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import DOCS

LONGEST = 30  # lines of an example


COMMANDS = {
    "add-a-base": ("peaks", "--pruner magnitude --allocation peaks"),
    "add-a-pruner": ("shares", "--pruner shares --allocation uniform"),
}


@pytest.mark.parametrize("page", COMMANDS)
def test_the_examples_of_records_run_from_a_package_of_their_own(
    page: str, tmp_path: Path
) -> None:
    text = (DOCS / "how-to" / f"{page}.md").read_text("utf-8")
    (example, *_), (entry,) = (
        re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)
        for kind in ("python", "text")
    )
    name, words = COMMANDS[page]
    record = example.split('if __name__ == "__main__":')[0]
    assert len(example.splitlines()) <= LONGEST
    (tmp_path / f"{name}.py").write_text(record)
    facts = tmp_path / f"{name}-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    )
    group, value = re.findall(r'entry-points\."(.*?)"\]\n(.*)', entry)[0]
    (facts / "entry_points.txt").write_text(
        f"[{group}]\n{value.replace(chr(34), '')}\n"
    )
    command = f"prune fixtures/llama -o {tmp_path}/out --sparsity 0.5 {words} --json"
    options = "--samples 2 --seq-len 16" if page == "add-a-pruner" else ""
    ran = subprocess.run(
        [sys.executable, "-m", "refimpl", *command.split(), *options.split()],
        cwd=DOCS.parent,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{DOCS.parent}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert name in ran.stdout

"""What every test runs under: loud floating-point errors, and enough examples per property."""

import compileall
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parent
HERE = ROOT / "tests"
FIXTURES = ROOT / "fixtures"
MADE = (
    "REFIMPL_MADE_CASES"  # names the folder of cases that a run makes: tests/gates.py
)
sys.path += [str(HERE), str(HERE / "tools")]
sys.path += sorted(
    {str(path.parent) for path in HERE.glob("*/test_*.py")}
)  # shared helpers
pytest_plugins = ["examples"]  # README.md, docs/ and docstrings

for name, examples_of_a_property in (
    ("refimpl", 50),
    ("thorough", 1000),
):  # --hypothesis-profile
    settings.register_profile(
        name,
        max_examples=examples_of_a_property,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
settings.load_profile("refimpl")
os.environ.pop("COLUMNS", None)  # the width of a table
# Children whose files may not grow, as on a full disk, would leave halves of compiled modules:
# CPython 3.11 does not notice a short write. This process may write until it runs a test.
sys.dont_write_bytecode = False  # of a worker, which inherits the next line
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # for tests that open graphs without refimpl

# What another kernel of BLAS may change, by folder of tests/, refimpl/ and docs/. Every folder of
# tests/ is in one of the two (tests/test_structure.py); a new one belongs in the first if its tests
# compare numbers that matrix products made.
NUMERICAL = {
    "bases",
    "evaluation",
    "explanation",
    "method",
    "model",
    "oracle",
    "pruners",
    "scoring",
}
NOT_NUMERICAL = {
    "allocation": "projects numbers that are given",
    "bench": "equal bits of the same products, and tables of numbers that are given",
    "cli": "options, messages and exit codes",
    "convert": "weights as they are stored",
    "docs": "the form of pages; all pages themselves take minutes",
    "fuzz": "refusals",
    "loading": "weights as they are stored",
    "onnx": "products of onnxruntime, within the gates of the forward",
    "pruning": "decisions of pruners/, written to files",
    "plot": "figures of numbers that are given",
    "running": "equal bits of the same products, files, answers of child processes",
    "show": "tables of numbers that are given",
    "testing": "verdicts of oracle/, in a plugin",
    "tutorial": "pages on a trained model take minutes",
    # Files of numerical folders
    "explanation/test_explain.py": "words, and numbers that scoring/ and method/ test",
    "oracle/test_case_commands.py": "options, messages and exit codes",
    "oracle/test_family_cases.py": "a case of each family, whose numbers model/ and pruning/ test",
    "oracle/test_oracle.py": "verdicts, which test_verdicts.py compares under three kernels",
    "oracle/test_oracle_corrupt.py": "refusals",
    "oracle/test_oracle_graphs.py": "products of onnxruntime",
    "oracle/test_sample_project.py": "edits of a file",
}
LONG_PAGES = re.compile(  # the first ones of the course, and of commands those without many, remain
    "docs/(tutorial/([2-7]-|many-families|export-and-check|pico)"
    "|how-to/(check|debug-a-divergence|explain|export|prune|report))"
)


def pytest_configure(config: pytest.Config) -> None:
    """Before the workers of -n start, compile what children import, and share out the cores.

    Each worker has one thread of BLAS, as the workers fill the cores, and its own cores: a command
    on the default number of threads has as many as are its worker's.
    """
    # No file of a test outlives a crash of the machine; that all are synced is tested by calls.
    pytest.MonkeyPatch().setattr(os, "fsync", lambda handle: None)
    if not hasattr(config, "workerinput"):
        os.environ[MADE] = made = mkdtemp(prefix="refimpl-cases-")
        config.add_cleanup(lambda: rmtree(made, ignore_errors=True))
        for folder in (ROOT / "refimpl", HERE):
            compileall.compile_dir(folder, quiet=2)
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    elif hasattr(os, "sched_setaffinity"):
        number, count = (
            int(config.workerinput["workerid"][2:]),
            config.workerinput["workercount"],
        )
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[number::count] or {cores[number % len(cores)]})


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Leave out the tests of a tier that -m does not name; mark those of numerical folders."""
    lines = [line.partition(": ") for line in config.getini("markers")]
    tiers = {name for name, _, text in lines if text.startswith("a tier, ")}
    left_out = tiers - set(re.findall(r"\w+", config.option.markexpr))
    run, others = [], []
    for item in items:
        path = item.path.relative_to(ROOT)
        if LONG_PAGES.match(path.as_posix()):
            item.add_marker("thorough")
        marks = {mark.name for mark in item.iter_markers()} & tiers
        file = "/".join(path.parts[1:])
        if (
            NUMERICAL & set(path.parts[1:-1][:1])
            and file not in NOT_NUMERICAL
            and not marks
        ):
            item.add_marker("numerical")
        (others if marks & left_out else run).append(item)
    config.hook.pytest_deselected(items=others)
    items[:] = run


def pytest_collection_finish() -> None:
    """Keep the modules that pytest rewrote for the next run, and write no more of them."""
    sys.dont_write_bytecode = True


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def few_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A diagnosis tries mistakes that have a name, and no other expressions for two seconds."""
    monkeypatch.setattr("refimpl.oracle.diagnosis.TIME_LIMIT", 0.0)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Real files of every kind for a report; tests change copies of them only."""
    from report_files import report_files

    return report_files(tmp_path_factory.mktemp("report"))


@pytest.fixture(autouse=True)
def loud_arithmetic() -> Iterator[None]:
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        yield


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the files of properties, which every example overwrites."""
    return tmp_path_factory.getbasetemp()

"""pytest's plugin, in small test suites of other projects; and the core cases that travel."""

import json
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
from candidates import (
    CASES,
    Arrays,
    computed,
    needs_torch,
    read_cases_once,
    single,
    write_arrays,
    write_project,
)
from conftest import FIXTURES
from gates import case_of
from safetensors.numpy import load_file
from tables import cases

import refimpl
from refimpl.loading.families import FAMILIES
from refimpl.oracle.case import forward_case, read_case
from refimpl.oracle.case_folders import CORE, core_cases, family_model
from refimpl.testing.plugin import CaseFixture

pytest_plugins = ["pytester"]

ROOT = FIXTURES.parent
PAGE = ROOT / "docs/how-to/oracle-in-ci.md"
PLUGIN = "refimpl.testing.plugin"
TEST = """
import pytest
from pathlib import Path
from runpy import run_path

{marker}
def test_ours(refimpl_case):
    refimpl_case.check(Path("{folder}") / f"{{refimpl_case.name}}.safetensors")
"""


def without(name: str, step: str) -> Arrays:
    return {k: v for k, v in computed(name).items() if k != step}


class Suite:
    """Another project's tests, run in this process, and a candidate's arrays for each core case."""

    def __init__(self, pytester: pytest.Pytester, folder: Path) -> None:
        self.pytester, self.folder = pytester, folder

    def write(self, name: str, arrays: Arrays) -> None:
        write_arrays(self.folder / f"{name}.safetensors", arrays)

    def run(
        self, marker: str = "", *words: str | Path, **outcomes: int
    ) -> pytest.RunResult:
        """Run a test with a marker and options; check its outcomes, if given."""
        mark = f"@pytest.mark.refimpl({marker})" if marker else ""
        self.pytester.makepyfile(test_ours=TEST.format(marker=mark, folder=self.folder))
        strict = ("--strict-markers", "-W", "error", "-p", "no:cacheprovider", "-rA")
        result = self.pytester.runpytest_inprocess(
            *plugin_words(), *strict, *map(str, words)
        )
        if outcomes:
            result.assert_outcomes(**outcomes)
        return result


@pytest.fixture
def suite(
    pytester: pytest.Pytester,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Suite:
    """Its runs share the cases, and so their tolerances."""
    read_cases_once(monkeypatch)
    right = Suite(pytester, tmp_path_factory.mktemp("ours"))
    for name in CORE:
        right.write(name, computed(name))
    return right


def plugin_words() -> tuple[str, ...]:
    """Options that load the plugin where it is not installed."""
    installed = any(point.value == PLUGIN for point in entry_points(group="pytest11"))
    return () if installed else ("-p", PLUGIN)


def run_module(
    folder: Path, words: tuple[str, ...], environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run `python -m` in a folder, with this checkout of refimpl."""
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(ROOT), **environment},
    )


def test_the_package_registers_it() -> None:
    facts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert facts["project"]["entry-points"]["pytest11"] == {"refimpl": PLUGIN}


def test_the_wheel_carries_the_core_cases_and_a_model_of_each_family() -> None:
    """Of `fixtures/`, what the patterns name: every file of a core case; at most 9 MB in all."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"][
        "hatch"
    ]["build"]
    kept, left_out = (
        {
            file
            for x in build[key]
            for file in ROOT.glob(x[1:])
            if x.startswith("/fixtures")
        }
        for key in ("include", "exclude")
    )
    files = {
        file for path in kept for file in (path.rglob("*") if path.is_dir() else [path])
    }
    carried = {file.resolve() for file in files if not left_out & {*file.parents}}
    for case in core_cases():
        model = read_case(case.path).model
        assert carried >= {
            *case.path.iterdir(),
            *(file.path.resolve() for file in model.files),
        }
    for folder in {family_model(family) for family in FAMILIES}:
        assert folder is not None
        assert carried >= {folder / "config.json", *folder.glob("model*.safetensors")}
    assert sum(file.stat().st_size for file in carried) <= 9e6
    assert len({case.facts.family for case in core_cases()}) >= 2


def test_a_run_that_does_not_use_it_imports_next_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text(
        "import sys\n"
        "def test_other():\n"
        "    heavy = {'numpy', 'safetensors', 'ml_dtypes', 'typer', 'refimpl.oracle.check'}\n"
        f"    assert '{PLUGIN}' in sys.modules\n"
        "    assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()\n"
    )
    words = ("pytest", "-q", "-p", PLUGIN, "-p", "no:cacheprovider")
    done = run_module(tmp_path, words, {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_public_names_are_there_on_first_use() -> None:
    code = (
        "import sys, refimpl; assert 'numpy' not in sys.modules; "
        "from refimpl import *; assert callable(score); assert refimpl.__version__; "
        "assert not hasattr(refimpl, 'nothing'); assert not hasattr(refimpl, '__wrapped__')"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, check=True)
    assert {name for name in refimpl.__all__ if not hasattr(refimpl, name)} == set()


def test_a_right_candidate_passes_every_core_case(suite: Suite) -> None:
    result = suite.run(passed=len(CORE))
    result.stdout.fnmatch_lines(
        [f"PASSED test_ours.py::test_ours[[]{name}[]]" for name in CORE]
    )


def test_a_wrong_candidate_fails_at_its_step(suite: Suite) -> None:
    step = "blocks.1.v"
    suite.write(
        "opt", computed("opt") | {step: computed("opt")[step] * np.float32(1.001)}
    )
    result = suite.run("steps=['blocks.*']", passed=len(CORE) - 1, failed=1)
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            f"*AssertionError: opt diverges, first at {step}",
            f"*divergent, first at {step}: *allowed*",
            "*your numbers equal refimpl's to * if they are multiplied by 1.001",
            f"*again: refimpl check *opt *opt.safetensors --only '{step}'",
            "FAILED *test_ours[[]opt[]] - AssertionError: opt diverges, first a*",
        ]
    )
    assert (
        "testing/plugin.py" not in result.stdout.str()
    )  # the traceback ends in the reader's test


def test_a_missing_step_fails(suite: Suite) -> None:
    suite.write("opt", without("opt", "blocks.1.v"))
    result = suite.run("families=['opt']", failed=1)
    result.stdout.fnmatch_lines(
        ["*AssertionError: opt is not judged in some steps", "*missing: blocks.1.v*"]
    )
    suite.run("families=['opt'], steps=['blocks.0.*', 'logits']", passed=1)


@pytest.mark.parametrize(("marker", "words"), cases("testing", "markers"))
def test_a_marker_without_effect_is_an_error(
    suite: Suite, marker: str, words: str
) -> None:
    result = suite.run(marker)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    text = result.stdout.str()
    assert words in text
    assert "next: " in text
    assert "Traceback" not in text
    assert "plugin.py" not in text


def added(folder: Path, name: str) -> None:
    """A case of one's own: a folder in `cases/`."""
    case = shutil.copytree(CASES / "opt", folder / "cases" / name)
    facts = json.loads((case / "case.json").read_text("utf-8"))
    (case / "case.json").write_text(
        json.dumps(facts | {"model": str(FIXTURES / "opt")})
    )


def test_adding_a_case_is_adding_a_folder(suite: Suite, tmp_path: Path) -> None:
    for name in ("mine", "other"):
        added(tmp_path, name)
        suite.write(name, computed("opt"))
    cases, ours = tmp_path / "cases", "families=['opt'], steps=['logits']"
    mine = f"--refimpl-cases={cases / 'mine'}"
    suite.run("families=['llama', 'opt'], steps=['logits']", mine, passed=3)
    suite.run(ours, f"--refimpl-cases={cases}", passed=3)
    suite.write("mine", without("opt", "logits"))
    suite.run(ours, f"--refimpl-cases={cases}", passed=2, failed=1)


def test_a_file_of_settings_names_cases_too(suite: Suite, tmp_path: Path) -> None:
    """With a space, pytest would take the folder for tests, and look for its settings there."""
    added(tmp_path, "mine")
    suite.write("mine", computed("opt"))
    suite.pytester.makeini("[pytest]\nrefimpl_cases = elsewhere/cases\n")
    (suite.pytester.path / "elsewhere").symlink_to(tmp_path)
    result = suite.run("families=['opt'], steps=['embed']", passed=2)
    assert f"rootdir: {suite.pytester.path}" in result.stdout.str()
    apart = suite.run("", "--refimpl-cases", tmp_path / "cases")
    assert apart.ret == pytest.ExitCode.USAGE_ERROR
    assert "write --refimpl-cases=DIR" in apart.stderr.str()


def test_fixtures_of_a_session_or_a_module_may_use_it(suite: Suite) -> None:
    """What is computed once for a case serves the tests of all modules."""
    suite.pytester.makeconftest(
        "import pytest\ncomputed = []\n"
        "@pytest.fixture(scope='session')\n"
        "def ours(refimpl_case):\n    computed.append(refimpl_case.name)\n    return computed\n"
        "@pytest.fixture(scope='module')\n"
        "def shapes(refimpl_case):\n    return refimpl_case.inputs['token_ids'].shape\n"
    )
    test = (
        "def test(ours, shapes):\n    assert len(ours) == len(set(ours)) and shapes\n"
    )
    suite.pytester.makepyfile(test_a=test, test_b=test)
    suite.run(passed=3 * len(CORE))


def test_forwards_alone_are_asked_for_by_family(suite: Suite) -> None:
    for family in ("bloom", "gpt_oss"):
        case = forward_case(family, suite.pytester.path / family)
        suite.write(family, single(read_case(case.path)))
    asked = "families=['opt', 'bloom', 'gpt_oss', 'kimi_k2'], steps=['embed', 'logits']"
    result = suite.run(asked, passed=3)  # of the last there is no model
    assert "test_ours[gpt_oss]" in result.stdout.str()


@pytest.mark.parametrize("what", ["none", "empty", "no case", "torn", "old"])
def test_a_bad_folder_ends_the_run(suite: Suite, tmp_path: Path, what: str) -> None:
    added(tmp_path, "mine")
    cases = tmp_path / "cases"
    facts = cases / "mine" / "case.json"
    if what == "none":
        cases = tmp_path / "nowhere"
    elif what == "empty":
        shutil.rmtree(cases / "mine")
    elif what == "no case":
        added(tmp_path, "other")  # what is left of a case is not passed over
        facts.unlink()
    else:
        facts.write_text(facts.read_text()[:500] if what == "torn" else '{"schema": 0}')
    result = suite.run("", f"--refimpl-cases={cases}")
    text = result.stderr.str()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert text.startswith("ERROR: --refimpl-cases: ")
    assert "next: " in text
    assert len(text.strip().splitlines()) == 3


def test_a_case_that_was_changed_is_refused(suite: Suite, tmp_path: Path) -> None:
    added(tmp_path, "mine")
    facts = tmp_path / "cases/mine/case.json"
    facts.write_text(facts.read_text().replace('"spec": ', '"spec": 9'))
    result = suite.run(
        "families=['opt']", f"--refimpl-cases={tmp_path / 'cases'}", passed=1, errors=1
    )
    result.stdout.fnmatch_lines(["*expected: spec*"])
    assert "Traceback" not in result.stdout.str()


def opt_fixture(folder: Path, *patterns: str) -> CaseFixture:
    opt = next(case for case in core_cases() if case.name == "opt")
    return CaseFixture(opt, patterns, lambda: folder)


def test_the_fixture_describes_the_case(tmp_path: Path) -> None:
    case = opt_fixture(tmp_path, "embed", "blocks.1.*")
    assert (case.name, case.family, case.folder.name) == ("opt", "opt", "opt")
    assert (case.model / "config.json").is_file()
    assert case.steps[:2] == ("embed", "blocks.1.resid_pre")
    assert case.inputs["noise"].shape[1:3] == case.inputs["token_ids"].shape
    assert case.recipe.sparsity == 0.7
    assert case.expected.keys() == case_of("opt").expected.keys()
    assert case.check(computed("opt")).verdict == "pass"


def test_diverged_arrays_are_kept_for_the_command(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="first at logits") as caught:
        opt_fixture(tmp_path, "*").check(
            {**computed("opt"), "logits": -computed("opt")["logits"]}
        )
    words = re.search(r"refimpl check (\S+) (\S+) --only 'logits'", str(caught.value))
    assert words is not None
    assert Path(words[1]) == CASES.resolve() / "opt"
    assert load_file(words[2]).keys() == computed("opt").keys()


def block(language: str) -> str:
    """The first fenced block of the page in a language."""
    fenced = re.search(
        rf"^```{language}\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S
    )
    assert fenced is not None
    return fenced[1]


def recipe(folder: Path, code: int) -> str:
    """Run the page's command in a folder with a candidate."""
    install, test = re.findall(r"^- run: (.*)$", block("yaml"), re.M)
    assert install.split() == ["pip", "install", '"$REFIMPL"', "pytest"]
    words = (*test.split(), *plugin_words())
    done = run_module(folder, words, {"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"})
    assert done.returncode == code, done.stdout
    return done.stdout


@pytest.mark.thorough
def test_the_recipe_of_the_page_is_what_runs(tmp_path: Path) -> None:
    """A wrong candidate prints the lines of the page, in that order; CI runs a right one, too."""
    text = (ROOT / "tests/own_candidate.py").read_text("utf-8")
    line = 'token_ids = case.inputs["token_ids"]'
    assert text.count(line) == 1
    (tmp_path / "candidate.py").write_text(
        text.replace(line, f"{line}[:, ::-1]"), "utf-8"
    )
    shown = [
        line.replace("[", "[[]").replace("...", "*")
        for line in block("text").splitlines()
    ]
    pytest.LineMatcher(recipe(tmp_path, 1).splitlines()).fnmatch_lines(shown)


def test_a_program_is_run_on_each_case_without_a_test(
    pytester: pytest.Pytester,
) -> None:
    """One that writes the forward alone, right and wrong; the action's script names the step."""
    candidate = pytester.makepyfile(
        candidate="import sys\nfrom safetensors.numpy import load_file, save_file\n"
        "arrays = load_file(f'{sys.argv[1]}/expected.safetensors')\n"
        "forward = ('embed', 'blocks', 'final_norm', 'logits')\n"
        "save_file({k: x * SCALE for k, x in arrays.items() if k.split('.')[0] in forward}, "
        "sys.argv[3])\n"
    )
    text = candidate.read_text("utf-8")
    words = (*plugin_words(), "-p", "no:cacheprovider", "--refimpl=candidate.py")
    for scale, outcomes in (("1.0", {"passed": 3}), ("1.01", {"failed": 3})):
        candidate.write_text(text.replace("SCALE", scale), "utf-8")
        result = pytester.runpytest_inprocess(*words, f"--refimpl-report={scale}.json")
        result.assert_outcomes(**outcomes)
    result.stdout.fnmatch_lines(
        ["FAILED candidate.py::llama - *llama diverges, first at embed"]
    )
    candidate.write_text("", "utf-8")
    silent = pytester.runpytest_inprocess(*words).stdout.str()
    assert ("cannot be read" in silent, "another exception" in silent) == (True, False)
    (report, *_) = json.loads((pytester.path / "1.0.json").read_text())
    assert (report["verdict"], "dense.perplexity" in report["not_covered"]) == (
        "pass",
        True,
    )
    action = (
        (ROOT / ".ci/action.yml").read_text("utf-8").replace("check.json", "1.01.json")
    )
    script = textwrap.dedent(
        action.partition("<<'END'\n")[2].partition("        END")[0]
    )
    said = subprocess.check_output(
        [sys.executable, "-c", script], cwd=pytester.path, text=True
    )
    assert said.startswith("::error title=refimpl, llama::embed: your numbers equal")


@needs_torch
def test_the_recipe_on_the_sample_project(tmp_path: Path) -> None:
    write_project(tmp_path / "right")
    recipe(tmp_path / "right", 0)
    write_project(tmp_path / "wrong", (" + eps) * scale", ") * scale"))
    assert "llama diverges, first at blocks.0.attn_norm" in recipe(
        tmp_path / "wrong", 1
    )

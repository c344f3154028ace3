"""How refimpl is laid out: imports, names, sizes of files and folders; read with `ast`."""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pages
import pytest
from conftest import NOT_NUMERICAL, NUMERICAL
from weight import Weight, weight_of

from refimpl.bases.base import Base, bases
from refimpl.loading.families import FAMILIES, LINEAGES
from refimpl.pruners.pruner import Pruner, pruners

ROOT = Path(__file__).parent.parent
STAGES = (
    {"errors", "version"},
    {"arguments"},
    {"records"},
    {"model"},
    {"running"},
    {"loading"},
    {"pruners"},
    {"method"},
    {"bases"},
    {"convert"},
    {"allocation"},
    {"pruning"},
    {"scoring"},
    {"evaluation", "explanation"},
    {"oracle"},
    {"onnx"},
    {"show"},
    {"bench"},
    {"plot"},
    {"testing"},
    {"cli"},
    {"api"},
    {"__init__", "__main__"},
)
RANK = {name: rank for rank, names in enumerate(STAGES) for name in names}
FILES_OF_A_FOLDER = 15


class Limits(NamedTuple):
    """What a reader pays at most: of a tree, its packages and its files."""

    tokens: int
    pairs: int
    files: int
    longest: int  # lines of a file
    density: float  # tokens of a code line, in every package
    density_of_a_file: float  # in files of more than 40 code lines
    wide: float  # share of the code lines of 80 columns or more


LIMITS = {  # not today's size: they stay what they are if the code falls below them
    "refimpl": Limits(
        tokens=125_000,
        pairs=40,
        files=160,
        longest=500,
        density=7.5,
        density_of_a_file=8.5,
        wide=0.06,
    ),
    "tests": Limits(
        tokens=170_000,
        pairs=60,
        files=160,
        longest=600,
        density=8.0,
        density_of_a_file=9.0,
        wide=0.08,
    ),
}
PACKAGE_TOKENS = {  # of packages, of those that belong together, and of modules at the top
    "loading": 23_000,
    "oracle testing": 20_000,
    "model": 16_000,
    "scoring allocation": 11_000,
    "cli": 6_500,
    "pruning pruners bases": 13_000,
    "onnx": 7_000,
    "convert": 6_000,
    "show": 5_000,
    "explanation": 3_500,
    "plot bench": 5_500,
    "running": 3_500,
    "method evaluation": 6_000,
    "": 2_500,
}
NOT_YET = {  # packages that are above a limit
    *("refimpl/" + name for names in PACKAGE_TOKENS for name in names.split()),
    "refimpl",
    "tests",
    *(f"tests/{path.name}" for path in (ROOT / "tests").iterdir() if path.is_dir()),
}
PURE = ("refimpl.pruners.",)  # what needs NumPy only
FORWARD = ("embed", "mlp", "mixture", "block", "head")
PARTS_OF_THE_FORWARD = "refimpl.model.mixers"  # in files of their own, and below it


def name_of(path: Path) -> str:
    """Dotted name of a module of the package."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(
        ".__init__"
    )


MODULES = {name_of(path): path for path in sorted((ROOT / "refimpl").rglob("*.py"))}


PACKAGES = Counter(name_of(path.parent / "__init__.py") for path in MODULES.values())


@cache
def parsed(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text("utf-8"))


def imports(module: str, nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Dotted names of the modules that some statements import."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module


def all_imports(module: str) -> set[str]:
    """What a module imports, anywhere in it."""
    return set(imports(module, ast.walk(parsed(module))))


def first_imports(module: str) -> set[str]:
    """What a module imports while it is imported itself: not in its functions."""

    def statements(body: list[ast.stmt]) -> Iterator[ast.AST]:
        for node in body:
            yield node
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for inner in ("body", "orelse", "finalbody"):
                    yield from statements(getattr(node, inner, []))
                for handler in getattr(node, "handlers", []):
                    yield from statements(handler.body)

    return set(imports(module, statements(parsed(module).body)))


def stage(module: str) -> str:
    """The folder (or the module at the top) that a module belongs to."""
    return [*module.split("."), "__init__"][1]


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    here = stage(module)
    for other in all_imports(module):
        if other.split(".")[0] == "refimpl":
            assert stage(other) == here or RANK[stage(other)] < RANK[here], (
                f"{module} -> {other}"
            )


@pytest.mark.parametrize(
    "package",
    [name for name in PACKAGES if name.count(".") > 1 and name != PARTS_OF_THE_FORWARD],
)
def test_a_sub_package_imports_nothing_of_the_package_around_it(package: str) -> None:
    outer = package.rpartition(".")[0]
    inside, around = (
        {module for module in MODULES if f"{module}.".startswith(f"{folder}.")}
        for folder in (package, outer)
    )
    around -= inside
    mutual = {
        f"{module} -> {other}"
        for module in inside
        for other in all_imports(module) & around
    }
    assert not mutual


def test_every_module_belongs_to_a_stage() -> None:
    assert {stage(module) for module in MODULES} == set(RANK)


def test_no_cycle() -> None:
    ours = {module: first_imports(module) & MODULES.keys() for module in MODULES}
    TopologicalSorter(ours).prepare()  # raises CycleError, which names the cycle


def test_the_forward_never_imports_the_families() -> None:
    known = all_imports("refimpl.model.forward")
    assert not {module for module in known if "famil" in module or "hub" in module}, (
        known
    )


@pytest.mark.parametrize("module", [m for m in MODULES if f"{m}.".startswith(PURE)])
def test_pruners_need_numpy_only(module: str) -> None:
    allowed = {"numpy", "refimpl.errors", "refimpl.arguments", "refimpl.records"} | {
        m for m in MODULES if m.startswith("refimpl.pruners")
    }
    outside = {
        other
        for other in all_imports(module)
        if other.split(".")[0] not in sys.stdlib_module_names
        and not other.startswith("numpy.")
    }
    assert outside <= allowed


def printed(code: str) -> str:
    """What some code prints, in a process of its own."""
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


def test_no_public_name_is_that_of_a_module() -> None:
    names = printed("import refimpl.api; print(*refimpl.api.__all__)").split()
    assert {"score", "explain", "prune"} <= set(names)
    assert [
        name for name in names if f"refimpl.{name}" in MODULES
    ] == []  # which would hide it


def test_the_library_loads_nothing_it_does_not_need() -> None:
    heavy = (
        "onnx",
        "onnxruntime",
        "tokenizers",
        "typer",
        "click",
        "rich",
        "scipy",
        "torch",
    )
    code = "import sys, refimpl; refimpl.read_model('fixtures/llama')"
    heavy += ("huggingface_hub", "matplotlib")
    assert printed(f"{code}; print([m for m in {heavy} if m in sys.modules])") == "[]\n"


def test_an_oracle_in_another_project_needs_no_onnx() -> None:
    code = "import refimpl.testing.plugin, refimpl.cli.oracle; print('onnx' in sys.modules)"
    assert (
        printed(f"import sys; sys.modules['onnxruntime'] = None; {code}") == "False\n"
    )


def test_folders_have_few_modules() -> None:
    assert {name: n for name, n in PACKAGES.items() if n > FILES_OF_A_FOLDER} == {}


@cache
def weights(tree: str) -> dict[Path, Weight]:
    """What each file of a tree weighs."""
    return {path: weight_of(path) for path in sorted((ROOT / tree).rglob("*.py"))}


def weights_by_package(tree: str) -> dict[str, Weight]:
    """What each package of a tree weighs; the files at its top are one of the tree's name."""
    packages = dict[str, Weight]()
    for path, weight in weights(tree).items():
        inside = path.relative_to(ROOT / tree).parts[:-1]
        package = "/".join((tree, *inside[:1]))
        packages[package] = packages.get(package, Weight()) + weight
    return packages


@pytest.mark.parametrize("tree", LIMITS)
def test_packages_are_written_out(tree: str) -> None:
    limits = LIMITS[tree]
    for package, weight in weights_by_package(tree).items():
        if package not in NOT_YET:
            assert weight.density <= limits.density, package
            assert weight.wide <= limits.wide, package


@pytest.mark.parametrize("tree", LIMITS)
def test_files_are_written_out(tree: str) -> None:
    limits = LIMITS[tree]
    for path, weight in weights(tree).items():
        inside = path.relative_to(ROOT / tree).parts[:-1]
        if "/".join((tree, *inside[:1])) not in NOT_YET:
            assert weight.longest <= limits.longest, path
            if weight.code_lines > 40:
                assert weight.density <= limits.density_of_a_file, path


def test_every_package_has_a_budget() -> None:
    names = {name for packages in PACKAGE_TOKENS for name in packages.split()}
    assert names == {stage(module) for module in PACKAGES} - {"__init__"}


@pytest.mark.parametrize("packages", PACKAGE_TOKENS)
def test_packages_fit_into_their_budgets(packages: str) -> None:
    names = [f"refimpl/{name}" for name in packages.split()] or ["refimpl"]
    if not NOT_YET.intersection(names):
        found = weights_by_package("refimpl")
        assert sum(found[name].tokens for name in names) <= PACKAGE_TOKENS[packages]


@pytest.mark.parametrize("tree", LIMITS)
def test_a_tree_fits_into_its_budget(tree: str) -> None:
    limits = LIMITS[tree]
    files = weights(tree)
    whole = sum(files.values(), Weight())
    assert len(files) <= limits.files + (1 if tree in NOT_YET else 0) * 10
    if not any(name.split("/")[0] == tree for name in NOT_YET):
        assert whole.tokens <= limits.tokens
        assert whole.pairs <= limits.pairs


@pytest.mark.parametrize("tree", [*LIMITS, "fixtures", "docs"])
def test_the_formatter_skips_nothing(tree: str) -> None:
    marks = re.compile("# fmt: " + "(skip|off)")
    paths = (ROOT / tree).rglob("*.py")
    assert [path for path in paths if marks.search(path.read_text("utf-8"))] == []


def test_fixtures_fit_into_a_checkout_that_anyone_can_hold() -> None:
    """In blocks of a disk, as `du -sm fixtures` counts."""
    found = [x for x in (ROOT / "fixtures").rglob("*") if "__pycache__" not in x.parts]
    blocks = sum(
        1 if x.is_dir() else -(-x.stat().st_size // 4096) for x in [*found, ROOT]
    )
    assert blocks * 4096 <= 20 << 20


# A package or a file and the function it exists for, and words of the field, share a name.
SHARED = {"allocation", "bases", "block", "convert", "main", "model", "pruners"}


def public_names(module: str) -> set[str]:
    """What a module is called and defines, without private names and type variables."""
    of_people = stage(module) in (
        "cli",
        "show",
    )  # whose files are called as what they show
    names = set() if of_people else {module.rpartition(".")[2]}
    for node in parsed(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            made = ast.unparse(node.value) if node.value else ""
            if not made.startswith(("TypeVar(", "ParamSpec(")):
                names |= {
                    x.id
                    for y in targets
                    for x in ast.walk(y)
                    if isinstance(x, ast.Name)
                }
    return {name for name in names if not name.startswith("_")}


def test_no_public_name_has_two_meanings() -> None:
    homes: dict[str, list[str]] = {}
    for module in MODULES:
        for name in public_names(module):
            homes.setdefault(name, []).append(module)
    assert {"Model", "Tokens", "score", "FAMILIES"} <= homes.keys()
    twice = {name: found for name, found in homes.items() if found[1:]}
    assert {name: found for name, found in twice.items() if name not in SHARED} == {}


def test_every_file_of_families_is_listed() -> None:
    folder = name_of(ROOT / "refimpl" / "loading" / "families" / "__init__.py")
    files = {name for name in MODULES if name.startswith(f"{folder}.")} - {
        f"{folder}.family"
    }
    assert {module.__name__ for module in LINEAGES} == files


def test_the_forward_names_no_family() -> None:
    words = {
        word
        for name in FAMILIES
        for word in (name, name.split("_")[0], name.rstrip("23"))
    }
    any_word = re.compile(rf"(?<![a-z])({'|'.join(words | {'neox'})})(?![a-z])")
    source = MODULES["refimpl.model.forward"].read_text("utf-8")
    functions = {
        node.name: ast.get_source_segment(source, node) or ""
        for node in parsed("refimpl.model.forward").body
        if isinstance(node, ast.FunctionDef)
    }
    for function in FORWARD:
        assert any_word.findall(functions[function].lower()) == [], function
    for module in MODULES:
        if module.startswith(
            PARTS_OF_THE_FORWARD
        ):  # a source may name the model that it is from
            code = re.sub(r'"""(.|\n)*?"""', "", MODULES[module].read_text("utf-8"))
            assert any_word.findall(code.lower()) == [], module


def test_every_folder_of_tests_is_numerical_or_not() -> None:
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert not NUMERICAL & NOT_NUMERICAL.keys()
    assert folders <= NUMERICAL | NOT_NUMERICAL.keys()
    assert all((ROOT / "tests" / name).exists() for name in NOT_NUMERICAL)


MAY_NAME = {  # modules that may hold the name of a base or a pruner as a string
    **dict.fromkeys(
        ("loading.text", "loading.samples"), "random ids, not random pruning"
    ),
    "plot.style": "each has its colour and marker in every figure",
    **{
        f"oracle.{module}": "the steps of a case are named after bases and pruners"
        for module in ("recipe", "check", "steps", "dense_steps", "measures", "truth")
    },
}


def strings(module: str) -> Iterator[str]:
    nodes = ast.walk(parsed(module))
    yield from (
        x.value
        for x in nodes
        if isinstance(x, ast.Constant) and isinstance(x.value, str)
    )


def test_only_its_own_module_names_a_base_or_a_pruner() -> None:
    records: tuple[Base | Pruner, ...] = (*bases().values(), *pruners().values())
    homes = {record.name: pages.module_of(record) for record in records}
    assert len(homes) == len(records)
    named = {
        (module, name)
        for module in MODULES
        for name in homes.keys() & set(strings(module))
        if module != homes[name]
    }
    allowed = {f"refimpl.{module}" for module in MAY_NAME}
    assert {pair for pair in named if pair[0] not in allowed} == set()
    assert (
        allowed == {module for module, _ in named} & allowed
    )  # no exception is left over

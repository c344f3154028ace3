"""Who opens, removes, replaces and resolves: two tables of a page, compared with the code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import FIXTURES

PACKAGE = FIXTURES.parent / "refimpl"
PAGE = FIXTURES.parent / "docs" / "explanation" / "safety.md"
CHANGES = {  # with what is asked of the disk; every one of `os`, `shutil` and `Path`
    "unlink", "rmtree", "rmdir", "removedirs", "remove", "rename", "renames", "chmod", "touch",
    "truncate", "symlink", "symlink_to", "hardlink_to", "resolve", "realpath", "readlink",
    "mkdtemp", "mkstemp", "TemporaryDirectory", "NamedTemporaryFile", "save_file", "os.link",
    "os.replace", "shutil.move", "onnx.save",
}  # fmt: skip
READS = {
    "read_bytes", "read_text", "mmap", "memmap", "open_memmap", "fromfile", "loadtxt", "genfromtxt",
    "safe_open", "load_file", "from_file", "from_pretrained", "InferenceSession", "copyfile",
    "ReferenceEvaluator", "copytree", "copy2", "load_external_data_for_model",
    "load_external_data_for_tensor", "shutil.copy", "filecmp.cmp", "np.load", "onnx.load",
    "json.load", "pickle.load",
}  # fmt: skip
HAVE_OPEN = {"settings", "files", "_files", "pruned", "Settings", "replace"}  # our classes


def calls(path: Path) -> Iterator[tuple[str, str, ast.Call]]:
    """What a module calls, or passes on: the function that does, the name, and the call."""

    def inside(node: ast.AST, owner: str) -> Iterator[tuple[str, str, ast.Call]]:
        for child in ast.iter_child_nodes(node):
            named = isinstance(child, ast.FunctionDef | ast.ClassDef)
            own = f"{owner}.{child.name}".lstrip(".") if named else owner
            if isinstance(child, ast.Call):
                for called in (child.func, *child.args):
                    if isinstance(called, ast.Name | ast.Attribute):
                        yield own, ast.unparse(called), child
            yield from inside(child, own)

    yield from inside(ast.parse(path.read_text("utf-8")), "")


def opens(name: str, call: ast.Call) -> str:
    """Whether a call opens a file to "read" or to "write"; else "no"."""
    if name.rpartition(".")[2] != "open":
        return "no"
    arguments = call.args
    if isinstance(call.func, ast.Attribute) and name != "os.open":
        receiver = ast.unparse(call.func.value).partition("(")[0]
        if receiver.rpartition(".")[2] in HAVE_OPEN:
            return "no"
        arguments = [call.func.value, *call.args]
    mode = arguments[1] if len(arguments) > 1 else None
    text = str(mode.value) if isinstance(mode, ast.Constant) else "r"
    return "write" if set("wxa+") & set(text) else "read"


def changes(name: str, call: ast.Call) -> bool:
    """Whether a call writes or removes a file, changes its name or rights, or follows a link."""
    last = name.rpartition(".")[2]
    if last == "replace":  # of a path: texts take two arguments, dataclasses none after the dot
        return "." in name and name == ast.unparse(call.func) and len(call.args) == 1
    if last in ("write_text", "write_bytes"):  # of a path: our own function has no dot
        return "." in name
    return last in CHANGES or name in CHANGES or opens(name, call) == "write"


def reads(name: str, call: ast.Call) -> bool:
    return name.rpartition(".")[2] in READS or name in READS or opens(name, call) == "read"


def functions(which: object) -> set[str]:
    """The functions of the package that make such calls."""
    return {
        f"{path.relative_to(PACKAGE)} {owner}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for owner, name, call in calls(path)
        if which(name, call)  # type: ignore[operator]
    }


def listed(heading: str) -> set[str]:
    """The functions in the table under a heading of the page, each row with its reason."""
    section = PAGE.read_text("utf-8").split(f"\n### {heading}\n")[1].split("\n#")[0]
    found = set[str]()
    for file, names, reason in re.findall(
        r"^\| `([\w/]+\.py)`: (`[^|]+`) \| (.+) \|$", section, re.MULTILINE
    ):
        assert len(reason) > 20
        found |= {f"{file} {name}" for name in re.findall(r"`([\w.]+)`", names)}
    return found


@pytest.mark.parametrize(
    ("heading", "which"),
    [("What writes, removes, replaces or follows links", changes), ("What opens files", reads)],
)
def test_the_page_lists_every_place(heading: str, which: object) -> None:
    assert functions(which) == listed(heading)

"""onnxruntime sends telemetry, and keeps files for it at home."""

import subprocess
from pathlib import Path

import pytest
from conftest import FIXTURES
from processes import ENV, PROGRAM
from program import ran

LLAMA = FIXTURES / "llama"
COMMANDS: dict[str, tuple[object, ...]] = {
    "export": ("export", LLAMA, "-o", "written.onnx"),
    "validate": ("validate", LLAMA, "--seq-len", 5, "--threads", 1),
    "validate a graph": ("validate", LLAMA, "--graph", "graph.onnx", "--threads", 1),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_file_appears_at_home(name: str, tmp_path: Path) -> None:
    """Files are looked for here; docs/explanation/safety.md has what a tracer saw."""
    work, home = tmp_path / "work", tmp_path / "home"
    work.mkdir()
    home.mkdir()
    ran("export", LLAMA, "-o", work / "graph.onnx")
    env = {
        key: value for key, value in ENV.items() if not key.startswith(("XDG_", "ORT_"))
    }
    command = [*PROGRAM, *map(str, COMMANDS[name])]
    subprocess.run(command, cwd=work, env=env | {"HOME": str(home)}, check=True)
    assert [*home.rglob("*")] == []

"""An arrow down may be imported, up and sideways may not; read from the source."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
from conftest import ROOT

MAY_IMPORT = {
    "sandbox": {"sandbox"},
    "models": {"models"},
    "rollouts": {"rollouts", "models", "sandbox"},
    "jaxrl": {"jaxrl", "rollouts", "models", "sandbox"},
    "configs": {"configs", "jaxrl"},
}
FILES = [path for room in MAY_IMPORT for path in sorted((ROOT / room).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(str(node.module).split(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
    room = path.relative_to(ROOT).parts[0]
    assert imported(path) & MAY_IMPORT.keys() <= MAY_IMPORT[room]


@pytest.mark.parametrize("path", sorted((ROOT / "sandbox").rglob("*.py")), ids=lambda p: p.name)
def test_the_sandbox_needs_the_standard_library_only(path):
    assert imported(path) <= set(sys.stdlib_module_names) | {"sandbox", "ray"}


def test_there_are_files():
    assert len(FILES) > 25

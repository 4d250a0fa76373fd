"""Prints the test files of what has changed against main, nearest first, for `make check`.

Changed are the files that differ from where this branch left main, those that are not committed included; on main
itself, from the last commit. A test file belongs to a changed module if it imports it, or imports a module that does.
The nearest come first: the changed tests themselves, importers in the folder that mirrors the module, other importers,
the rest of that folder, importers of importers. They are taken while their time, in tests/seconds.json, fits BUDGET_S.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUDGET_S = 200  # of one core
UNKNOWN_S = 20.0  # for a file that tests/seconds.json does not have


def git(*arguments: str) -> list[str]:
    """The lines that git prints; none where it fails."""
    result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return result.stdout.splitlines() if result.returncode == 0 else []


def changed_paths() -> set[str]:
    base = git("merge-base", "HEAD", "main") or git("merge-base", "HEAD", "origin/main") or ["HEAD"]
    return {*git("diff", "--name-only", base[0]), *git("ls-files", "--others", "--exclude-standard")}


def module_of(path: str) -> str:
    """The name by which others import a file: files in tests/ by their own, as tests/ has no packages."""
    parts = Path(path).with_suffix("").parts
    if parts[0] == "tests":
        return parts[-1]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imported(path: Path) -> set[str]:
    """Names of modules, and of what is taken from them, which may be modules too; functions' imports included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def importers(paths: Iterable[str]) -> dict[str, set[str]]:
    """For each module, the files that import it."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        for name in imported(ROOT / path):
            found[name].add(path)
    return found


def mirror_of(path: str) -> str:
    """The folder of tests/ for a file of our packages, or "" where none mirrors it."""
    parts = [part for part in Path(path).parts[:-1] if part != "jaxrl"]
    while parts and not (ROOT / "tests" / Path(*parts)).is_dir():
        parts.pop()
    return str(Path("tests", *parts)) if parts and parts[0] != "tests" else ""


def ranks(changed: set[str], paths: set[str]) -> dict[str, int]:
    """How near each test file is to what has changed, from 0; files with no part in it are left out."""
    by_module, found = importers(paths), {}

    def add(files: Iterable[str], rank: int) -> None:
        for file in files:
            if Path(file).name.startswith("test_"):
                found[file] = min(rank, found.get(file, rank))

    for path in changed:
        mirror = mirror_of(path)
        beside = {file for file in paths if mirror and str(Path(file).parent) == mirror}
        direct = by_module[module_of(path)] if path.endswith(".py") and path != "tests/conftest.py" else set()
        add({path} & paths, 0)
        add(direct & beside, 1)
        add(direct, 2)
        add(beside, 3)
        for file in direct - {path}:
            add(by_module[module_of(file)], 4)
    return found


def our_files() -> set[str]:
    """The modules of our packages and tests, but not the programs in hostile/, some of which cannot be parsed."""
    paths = {path for path in git("ls-files", "-co", "--exclude-standard", "*.py") if (ROOT / path).exists()}
    ours = {path for path in paths if Path(path).parts[0] in ("jaxrl", "models", "rollouts", "sandbox", "tests")}
    return {path for path in ours if "hostile" not in Path(path).parts}


def main() -> int:
    seconds = json.loads((ROOT / "tests" / "seconds.json").read_text())
    found = ranks(changed_paths(), our_files())
    taken, left, spent = [], [], 0.0
    for file in sorted(found, key=lambda file: (found[file], seconds.get(file, UNKNOWN_S), file)):
        cost = seconds.get(file, UNKNOWN_S)
        if not taken or spent + cost <= BUDGET_S:
            taken, spent = [*taken, file], spent + cost
        else:
            left.append(file)
    print(*taken, sep="\n")
    print(f"{len(taken)} test files, {spent:.0f} s of one core; left to make test: {len(left)}", *left, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

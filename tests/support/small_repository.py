"""A repository of one small module with an issue, the commit that solved it, and its row."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

WRONG = "def square(a):\n    return a * a\n\n\ndef triangle(a, h):\n    return a * h\n"
RIGHT = WRONG.replace("return a * h", "return a * h / 2")
TEST = "from shapes.area import {}\n\n\ndef test_square():\n    assert square(3) == 9\n"
HIDDEN = "\n\ndef test_triangle():\n    assert triangle(3, 5) == 7.5\n"
SECRET = "7.5"  # in no file but the hidden tests
# The same as a plain program, which starts faster than pytest.
TAP = "import sys\nsys.path.insert(0, '.')\nfrom shapes import area\n\n\ndef check(name, right):\n"
TAP += "    print('ok' if right else 'not ok', '-', name)\n    return right\n\n\n"
TAP_TEST = TAP + "right = [check('square', area.square(3) == 9)]\nsys.exit(not all(right))\n"
TAP_HIDDEN = TAP_TEST.replace("== 9)]", f"== 9), check('triangle', area.triangle(3, 5) == {SECRET})]")
BEFORE = {
    "shapes/__init__.py": "", "shapes/area.py": WRONG, "README": "Areas of shapes.\n", "checks.py": TAP_TEST,
    "tests/test_area.py": TEST.format("square"),
}  # fmt: skip
AFTER = {
    "shapes/area.py": RIGHT,
    "checks.py": TAP_HIDDEN,
    "tests/test_area.py": TEST.format("square, triangle") + HIDDEN,
}
EDIT = """```python
### shapes/area.py
<<<<<<< SEARCH
    return a * h
=======
    return a * h{}
>>>>>>> REPLACE
```"""


class Git:
    """A repository in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self("init", "-q", "-b", "main")

    def __call__(self, *arguments: str) -> str:
        environment = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
        done = subprocess.run(command, cwd=self.folder, check=True, capture_output=True, text=True, env=environment)
        return done.stdout

    def commit(self, message: str, files: dict[str, str]) -> str:
        """The commit's id."""
        for path, content in files.items():
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / path).write_text(content)
        self("add", "-A")
        self("commit", "-qm", message)
        return self("rev-parse", "HEAD").strip()


def make_clone(clones: Path) -> dict[str, Any]:
    """Writes the clone o__shapes; the row of its issue, whose tests are pytest's."""
    git = Git(clones / "o__shapes")
    base = git.commit("Shapes", BEFORE)
    fixed = git.commit("Mend triangle", AFTER)
    git.commit("Later", {"README": "Areas of more shapes.\n"})
    diff = lambda *paths: git("diff", base, fixed, "--", *paths)  # noqa: E731
    return {
        "instance_id": "o__shapes-1", "repo": "o/shapes", "base_commit": base, "created_at": "2024-01-01T00:00:00Z",
        "problem_statement": "triangle(a, h) is twice as large as it should be.",
        "patch": diff("shapes"), "test_patch": diff("tests", "checks.py"),
        "FAIL_TO_PASS": ["tests/test_area.py::test_triangle"], "PASS_TO_PASS": ["tests/test_area.py::test_square"],
        "log_parser": "parse_log_pytest", "test_cmd": "python -m pytest -rA -q -p no:cacheprovider tests/test_area.py",
    }  # fmt: skip


AS_TAP = {"FAIL_TO_PASS": ["triangle"], "PASS_TO_PASS": ["square"], "log_parser": "parse_log_tap",
          "test_cmd": "python checks.py"}  # fmt: skip


def write_rows(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)

"""Tasks as SWE-bench gives them: rows of a file or of the hub, or folders of the official task repository."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from jaxrl.tasks.rows import DataError, Row, expanded, read_rows

# Of these repositories only failures are in the logs: a test that is not there has passed.
FAIL_ONLY = frozenset({
    "chartjs/Chart.js", "processing/p5.js", "markedjs/marked", "bpmn-io/bpmn-js", "openlayers/openlayers",
    "eslint/eslint",
})  # fmt: skip
_COMMANDS = re.compile(r">>>>> Start Test Output'?\n(.*?)\n[^\n]*>>>>> End Test Output", re.DOTALL)


class Instance(NamedTuple):
    """One task."""

    id: str
    repo: str  # OWNER/NAME
    base_commit: str
    problem_statement: str
    patch: str  # the one that solved it
    test_patch: str  # brings the tests
    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...]
    fail_only: bool
    log_parser: str
    test_commands: tuple[str, ...]  # one after the other, each through a shell
    images: tuple[str, ...] = ()  # addresses of the images, or names of their files where the row has them
    visible_commands: tuple[str, ...] = ()  # of tests that a model may see; (): see `visible`

    @property
    def number(self) -> int:
        """Of the issue or pull request, the end of the id."""
        found = re.search(r"(\d+)$", self.id)
        return int(found[1]) if found else 0


def read_instances(path: str) -> list[Instance]:
    """The tasks of a file, a hub data set, or a folder with a folder for each task.

    Raises DataError for a row that lacks something, with its place, and for an id that comes twice.
    """
    return read_instance_rows(instance_rows(path))


def instance_rows(path: str, split: str = "test") -> list[Row]:
    """The rows of a file, a hub data set, or a folder with a folder for each task."""
    folder = expanded(path)
    return list(_folders(folder)) if folder.is_dir() else read_rows(path, split)


def read_instance_rows(rows: Sequence[Row]) -> list[Instance]:
    """The tasks of rows; see `read_instances`."""
    instances: dict[str, Instance] = {}
    for row in rows:
        instance = _instance(row)
        if instance.id in instances:
            raise DataError(f"{row.where}: instance_id {instance.id!r} comes twice")
        instances[instance.id] = instance
    return list(instances.values())


def _instance(row: Row) -> Instance:
    repo = row.text("repo")
    kind = row.optional_text("eval_type") or ("fail_only" if repo in FAIL_ONLY else "pass_and_fail")
    if kind not in ("fail_only", "pass_and_fail"):
        raise DataError(f"{row.where}: eval_type must be fail_only or pass_and_fail, is {kind!r}")
    name = row.name("instance_id")
    commit = row.text("base_commit")
    if "/" in name or not re.fullmatch(r"[^/\s]+/[^/\s]+", repo) or commit.startswith("-"):
        raise DataError(f"{row.where}: instance_id must not have a slash, repo be OWNER/NAME, base_commit a commit")
    must_pass, must_stay = _names(row, "FAIL_TO_PASS"), _names(row, "PASS_TO_PASS")
    if not must_pass and not must_stay:
        raise DataError(f"{row.where}: FAIL_TO_PASS and PASS_TO_PASS are empty: any patch would resolve it")
    assets = row.part("image_assets").fields if row.fields.get("image_assets") else {}
    return Instance(
        id=name,
        repo=repo,
        base_commit=commit,
        problem_statement=row.text("problem_statement"),
        patch=row.text("patch"),
        test_patch=row.text("test_patch"),
        fail_to_pass=must_pass,
        pass_to_pass=must_stay,
        fail_only=kind == "fail_only",
        log_parser=row.optional_text("log_parser") or f"parse_log_{_short(repo)}",
        test_commands=_commands(row),
        images=tuple(row.optional_texts("images") or assets.get("problem_statement") or ()),
        visible_commands=_split(row.optional_text("visible_cmd")),
    )


def _names(row: Row, field: str) -> tuple[str, ...]:
    """A list of test names, or JSON text of one."""
    value = row.get(field)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise DataError(f"{row.where}: {field} must be a list of test names")
    return tuple(value)


def _commands(row: Row) -> tuple[str, ...]:
    """`test_cmd` (several joined by " ; "), or what stands between the markers of an eval script."""
    if row.fields.get("test_cmd"):
        return _split(row.text("test_cmd"))
    script = row.optional_text("eval_script")
    found = _COMMANDS.search(script)
    if not found:
        raise DataError(f"{row.where}: row has neither test_cmd nor an eval_script with test output markers")
    return tuple(line.strip() for line in found[1].splitlines() if line.strip())


def _split(commands: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in commands.split(" ; ") if part.strip())


def _short(repo: str) -> str:
    """marked of markedjs/marked, as the official parsers are named."""
    name = repo.split("/")[-1].lower()
    return {"prism": "prismjs", "chart.js": "chart_js", "p5.js": "p5js"}.get(name, name.replace("-", "_"))


def _folders(folder: Path) -> Iterator[Row]:
    """task.yaml, tests.json, problem_statement.md, gold.patch, test.patch and eval.sh of each task's folder."""
    found = sorted(folder.glob("**/task.yaml"))
    if not found:
        raise DataError(f"{folder} has no task.yaml in it")
    for file in found:
        place = file.parent
        try:
            fields: dict[str, Any] = yaml.safe_load(file.read_text())
            fields |= json.loads((place / "tests.json").read_text())
            texts = {"problem_statement": "problem_statement.md", "patch": "gold.patch", "test_patch": "test.patch"}
            fields |= {name: (place / text).read_bytes().decode() for name, text in texts.items()}  # keeps CRLF
            fields |= {"eval_script": (place / "eval.sh").read_text()} if (place / "eval.sh").exists() else {}
        except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
            raise DataError(f"{place}: not a task's folder: {error}") from None
        yield Row(str(place), fields)


def read_predictions(path: str) -> dict[str, str]:
    """Patches by instance id: {"instance_id", "model_patch"} a line (null: none), as in the official harness."""
    patches: dict[str, str] = {}
    for row in read_rows(path):
        name = row.name("instance_id")
        if name in patches:
            raise DataError(f"{row.where}: instance_id {name!r} comes twice")
        patches[name] = row.optional_text("model_patch")
    return patches

"""Runs a patch: the repository at its commit in a working tree of the sandbox, the patch, the tests, their grade."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from jaxrl.files import write_beside
from jaxrl.tasks.repositories.grade import Grade, grade
from jaxrl.tasks.repositories.packages import package_set
from jaxrl.tasks.repositories.rows import Instance
from sandbox.checkout import Checkout, CheckoutError, Ran
from sandbox.layers import LEAST

APPLY_S = 60.0
PYTHON = "parse_log_pytest"  # the tests of such a repository run with the packages of this Python
# git's own reading first, then without generated pages, then GNU patch's, which forgives more.
APPLY = (
    ("git", "apply", "--verbose", "../{}"),
    ("git", "apply", "--verbose", "--exclude=docs/*", "../{}"),
    ("patch", "--batch", "--fuzz=5", "-p1", "-i", "../{}"),
)


class Repositories:
    """Clones, and folders with their files at a commit, made once each.

    Args:
        clones: has the clones, as OWNER__NAME, NAME or OWNER/NAME, bare or not.
        cache: where files of a commit are kept.
    """

    def __init__(self, clones: Path, cache: Path):
        self._clones, self._cache = clones, cache

    def clone(self, repo: str) -> Path | None:
        """The git folder of OWNER/NAME; None if it is not there."""
        owner, name = repo.split("/")
        for place in (f"{owner}__{name}", name, repo, f"{name}.git", f"{owner}__{name}.git"):
            for folder in (self._clones / place / ".git", self._clones / place):
                if (folder / "HEAD").is_file():
                    return folder
        return None

    def files(self, instance: Instance) -> Path:
        """A folder with the files of the instance's commit. Raises OSError where the clone does not have it."""
        folder = self._cache / instance.repo.replace("/", "__") / instance.base_commit
        if folder.is_dir():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
            tree = Path(beside) / "tree"
            tree.mkdir()
            # Not git archive, which leaves out what .gitattributes says, often the tests.
            git = ["git", f"--git-dir={self.clone(instance.repo)}", f"--work-tree={tree}"]
            environment = os.environ | {"GIT_INDEX_FILE": str(Path(beside) / "index")}
            for step in (["read-tree", instance.base_commit], ["checkout-index", "--all", "--force"]):
                done = subprocess.run([*git, *step], capture_output=True, text=True, env=environment, cwd=tree)
                if done.returncode:
                    raise OSError(f"{instance.repo} at {instance.base_commit}: {done.stderr.strip()[-200:]}")
            try:
                tree.rename(folder)
            except OSError:  # another thread was faster
                if not folder.is_dir():
                    raise
        return folder


def attempt(
    instance: Instance,
    patch: str,
    repositories: Repositories,
    modules: Path,
    *,
    wall_s: float = 300.0,
    least: str = LEAST,
    log: Path | None = None,
) -> Grade:
    """The grade of a patch, which may be empty.

    Not judged, with the reason: a repository that is not there, packages that are not installed, a runner without
    which nothing can be said. `log` gets what the tests printed.

    Args:
        modules: has the installed package sets (jaxrl/tasks/repositories/packages.py).
        wall_s: of each test command.
    """
    if repositories.clone(instance.repo) is None:
        return Grade("not_judged", reason=f"there is no clone of {instance.repo}")
    installed: dict[str, str] = {}
    if instance.log_parser != PYTHON:
        packages = package_set(instance)
        if packages is None:
            return Grade("not_judged", reason=f"no list of packages for {instance.repo}")
        if not (modules / packages / "node_modules").is_dir():
            return Grade("not_judged", reason=f"{packages} is not installed (python -m jaxrl.swebench install)")
        if shutil.which("node") is None:
            return Grade("not_judged", reason="there is no node on this machine")
        installed["node_modules"] = str(modules / packages / "node_modules")
    try:
        with Checkout(str(repositories.files(instance)), installed, least=least) as checkout:
            return _judge(checkout, instance, patch, repositories.files(instance), wall_s, log)
    except (CheckoutError, OSError) as error:  # of the machine, or a commit that the clone lacks
        return Grade("not_judged", reason=str(error))


def _judge(checkout: Checkout, instance: Instance, patch: str, files: Path, wall_s: float, log: Path | None) -> Grade:
    if patch.strip() and (failed := apply(checkout, patch, "model.patch")):
        return Grade("unresolved", reason=f"the patch does not apply: {failed}")
    failed = restore(checkout, files, touched(instance.test_patch))
    failed = failed or apply(checkout, instance.test_patch, "test.patch")
    if failed:  # a patch that puts something in the tests' way is to blame
        reason = f"the tests' patch does not apply: {failed}"
        return Grade("unresolved" if patch.strip() else "not_judged", reason=reason)
    ran = [checkout.run(["sh", "-c", command], wall_s) for command in instance.test_commands]
    if log is not None:
        write_beside(log, "".join(f"$ {c}\n{r.output}\n" for c, r in zip(instance.test_commands, ran)))
    return _graded(instance, ran)


def _graded(instance: Instance, ran: Sequence[Ran]) -> Grade:
    if late := next((r for r in ran if r.status != "finished"), None):
        return Grade("not_found", reason=f"the tests were ended: {late.status}")
    codes = [r.exit_code for r in ran if r.exit_code]
    return grade(instance, [r.output for r in ran], codes[0] if codes else 0)


def apply(checkout: Checkout, patch: str, name: str) -> str:
    """Applies a patch, in ways that forgive more and more; why the first one failed, or "".

    git apply changes nothing where it fails. GNU patch is tried dry first.
    """
    checkout.write(name, patch if patch.endswith("\n") else patch + "\n")
    first = ""
    for command in APPLY:
        command = [part.format(name) for part in command]
        if command[0] == "patch" and checkout.run([*command, "--dry-run"], APPLY_S).exit_code != 0:
            continue
        ran = checkout.run(command, APPLY_S)
        if ran.exit_code == 0:
            return ""
        first = first or next((line for line in ran.output.splitlines() if line.startswith("error")), ran.output[-200:])
    return first.strip() or "it ended without saying why"


def touched(patch: str) -> list[str]:
    """The files that a patch adds, changes or deletes."""
    pairs = re.findall(r"^diff --git a/(.*?) b/(.*)$", patch, re.M)
    quoted = re.findall(r'^diff --git "a/(.*?)" "b/(.*)"$', patch, re.M)
    pairs += [(_unquoted(a), _unquoted(b)) for a, b in quoted]
    return sorted({path for pair in pairs for path in pair})


def _unquoted(path: str) -> str:
    """A path as git quotes it, with bytes as octal numbers."""
    octal = re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), path.encode())
    return octal.replace(b'\\"', b'"').replace(b"\\\\", b"\\").decode("utf-8", "surrogateescape")


def restore(checkout: Checkout, files: Path, paths: Sequence[str]) -> str:
    """Puts the tests back as they were, whatever stands in their place; says what fails, or ""."""
    for path in paths:
        script = 'rm -rf -- "$1"'
        mode = "644"
        if (files / path).is_file():
            checkout.write("file", (files / path).read_bytes())
            mode = f"{(files / path).stat().st_mode & 0o777:o}"
            script += ' && mkdir -p -- "$(dirname -- "$1")" && cp ../file "$1" && chmod "$2" "$1"'
        if checkout.run(["sh", "-c", script, "sh", path, mode], APPLY_S).exit_code:
            return f"{path} cannot be put back"
    return ""

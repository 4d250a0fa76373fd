"""Runs a patch: the repository at its commit in a working tree of the sandbox, the patch, the tests, their grade."""

from __future__ import annotations

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
            archive = Path(beside) / "files.tar"
            git = ["git", f"--git-dir={self.clone(instance.repo)}", "archive", f"--output={archive}"]
            done = subprocess.run([*git, instance.base_commit], capture_output=True, text=True)
            if done.returncode:
                raise OSError(f"{instance.repo} has no commit {instance.base_commit}: {done.stderr.strip()[-200:]}")
            tree = Path(beside) / "tree"
            shutil.unpack_archive(archive, tree, filter="tar")
            tree.rename(folder)
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
    except CheckoutError as error:  # of the machine: the next try may do better
        return Grade("not_judged", reason=str(error))


def _judge(checkout: Checkout, instance: Instance, patch: str, files: Path, wall_s: float, log: Path | None) -> Grade:
    if patch.strip() and (failed := apply(checkout, patch, "model.patch")):
        return Grade("unresolved", reason=f"the patch does not apply: {failed}")
    restore(checkout, files, touched(instance.test_patch))
    if failed := apply(checkout, instance.test_patch, "test.patch"):
        return Grade("not_judged", reason=f"the test patch does not apply: {failed}")
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
    return first.strip()


def touched(patch: str) -> list[str]:
    """The files that a patch adds, changes or deletes."""
    paths = re.findall(r"^diff --git a/(.*?) b/(.*)$", patch, re.M)
    paths += re.findall(r'^diff --git "a/(.*?)" "b/(.*)"$', patch, re.M)
    return sorted({path for pair in paths for path in pair})


def restore(checkout: Checkout, files: Path, paths: Sequence[str]) -> None:
    """The tests as they were before the patch, whatever it did to them."""
    for path in paths:
        if (files / path).is_file():
            checkout.write("file", (files / path).read_bytes())
            checkout.run(["sh", "-c", 'mkdir -p "$(dirname "$1")" && cp ../file "$1"', "sh", path], APPLY_S)
        else:
            checkout.run(["rm", "-rf", "--", path], APPLY_S)

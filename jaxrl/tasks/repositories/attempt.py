"""Runs a patch: the repository at its commit in a working tree of the sandbox, the patch, the tests, their grade."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxrl.files import write_beside
from jaxrl.tasks.repositories.commands import without_hidden
from jaxrl.tasks.repositories.grade import Grade, grade
from jaxrl.tasks.repositories.logs import PARSERS
from jaxrl.tasks.repositories.packages import package_set
from jaxrl.tasks.repositories.rows import Instance
from rollouts.unified import read_patch
from sandbox.checkout import Checkout, CheckoutError, Ran
from sandbox.layers import LEAST

APPLY_S = 60.0
OF_PYTHON = ("parse_log_pytest", "parse_log_tap")  # such tests run with this Python and its packages
# git's own reading first, then without generated pages, then GNU patch's, which forgives more.
APPLY = (
    ("git", "apply", "--verbose"),
    ("git", "apply", "--verbose", "--exclude=docs/*"),
    ("patch", "--batch", "--fuzz=5", "-p1"),
)


@dataclass(frozen=True)
class Repositories:
    """Clones, and folders with their files at a commit, made once each.

    Args:
        clones: has the clones, as OWNER__NAME, NAME or OWNER/NAME, bare or not.
        cache: where files of a commit are kept.
    """

    clones: Path
    cache: Path

    def clone(self, repo: str) -> Path | None:
        """The git folder of OWNER/NAME; None if it is not there."""
        owner, name = repo.split("/")
        for place in (f"{owner}__{name}", name, repo, f"{name}.git", f"{owner}__{name}.git"):
            for folder in (self.clones / place / ".git", self.clones / place):
                if (folder / "HEAD").is_file():
                    return folder
        return None

    def files(self, repo: str, commit: str) -> Path:
        """A folder with the files of a commit, without git's. Raises OSError where the clone does not have it."""
        folder = self.cache / repo.replace("/", "__") / commit
        if folder.is_dir():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
            tree = Path(beside) / "tree"
            tree.mkdir()
            # Not git archive, which leaves out what .gitattributes says, often the tests.
            git = ["git", f"--git-dir={self.clone(repo)}", f"--work-tree={tree}"]
            environment = os.environ | {"GIT_INDEX_FILE": str(Path(beside) / "index")}
            for step in (["read-tree", commit], ["checkout-index", "--all", "--force"]):
                done = subprocess.run([*git, *step], capture_output=True, text=True, env=environment, cwd=tree)
                if done.returncode:
                    raise OSError(f"{repo} at {commit}: {done.stderr.strip()[-200:]}")
            try:
                tree.rename(folder)
            except OSError:  # another thread was faster
                if not folder.is_dir():
                    raise
        return folder


def packages_of(instance: Instance, repositories: Repositories, modules: Path) -> dict[str, str]:
    """The folders of packages that its tests need, by their names in the tree.

    Raises OSError, with the reason, for what cannot be judged here: a repository that is not there, packages that are
    not installed, a runner without which nothing can be said.

    Args:
        modules: has the installed package sets (jaxrl/tasks/repositories/packages.py).
    """
    if repositories.clone(instance.repo) is None:
        raise OSError(f"no clone was found of {instance.repo}")
    if instance.log_parser not in PARSERS:
        raise OSError(f"log parser {instance.log_parser} is not known")
    if instance.log_parser in OF_PYTHON:
        return {}
    packages = package_set(instance)
    if packages is None:
        raise OSError(f"no list of packages for {instance.repo}")
    if not (modules / packages / "node_modules").is_dir():
        raise OSError(f"{packages} is not installed (python -m jaxrl.swebench install)")
    if shutil.which("node") is None:
        raise OSError("Node is not installed")
    return {"node_modules": str(modules / packages / "node_modules")}


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
    """The grade of a patch, which may be empty; not judged, with the reason, where it cannot be.

    Args:
        wall_s: of each test command.
        log: gets what the tests printed.
    """
    try:
        packages = packages_of(instance, repositories, modules)
        files = repositories.files(instance.repo, instance.base_commit)
        with Checkout(str(files), packages, least=least) as checkout:
            return judge_patch(checkout, instance, patch, files, wall_s, log)
    except (CheckoutError, OSError) as error:  # of the machine, or a commit that the clone lacks
        return Grade("not_judged", reason=str(error))


def judge_patch(
    checkout: Checkout, instance: Instance, patch: str, files: Path, wall_s: float = 300.0, log: Path | None = None
) -> Grade:
    """The grade of a patch, in a fresh checkout of `files`. Raises CheckoutError where that fails."""
    ran = run_patch(checkout, instance, patch, files, wall_s)
    if isinstance(ran, Grade):
        return ran
    if log is not None:
        write_beside(log, "".join(f"$ {c}\n{r.output}\n" for c, r in zip(instance.test_commands, ran)))
    return graded(instance, ran)


def run_patch(
    checkout: Checkout, instance: Instance, patch: str, files: Path, wall_s: float = 300.0
) -> list[Ran] | Grade:
    """What the test commands do with a patch; the grade of one that does not apply, or keeps the tests from it."""
    if patch.strip() and (failed := apply(checkout, patch)):
        return Grade("unresolved", reason=f"the patch does not apply: {failed}")
    failed = restore(checkout, files, touched(instance.test_patch))
    failed = failed or apply(checkout, instance.test_patch)
    if failed:  # a patch that puts something in the tests' way is to blame
        reason = f"the tests' patch does not apply: {failed}"
        return Grade("unresolved" if patch.strip() else "not_judged", reason=reason)
    return [checkout.run(["sh", "-c", command], wall_s) for command in instance.test_commands]


def visible(instance: Instance) -> tuple[str, ...]:
    """Commands for the tests that are in the tree before the tests' patch, which may be seen.

    They are the row's own, or the test commands without what the patch adds: files that are new, names of tests in
    those that it changes, and choices by name. Raises PatchError for a tests' patch that is not one.
    """
    if instance.visible_commands:
        return instance.visible_commands
    changed = read_patch(instance.test_patch)
    new, old = {file.new for file in changed if not file.old}, {file.old for file in changed}
    seen = (without_hidden(command, new, old) for command in instance.test_commands)
    return tuple(command for command in seen if command)


def graded(instance: Instance, ran: Sequence[Ran]) -> Grade:
    """The grade of what the test commands did."""
    if late := next((r for r in ran if r.status != "finished"), None):
        return Grade("not_found", reason=f"the tests were ended: {late.status}")
    codes = [r.exit_code for r in ran if r.exit_code]
    return grade(instance, [r.output for r in ran], codes[0] if codes else 0)


def apply(checkout: Checkout, patch: str) -> str:
    """Applies a patch, in ways that forgive more and more; why the first one failed, or "".

    git apply changes nothing where it fails. GNU patch is tried dry first.
    """
    text, first = patch if patch.endswith("\n") else patch + "\n", ""
    for command in APPLY:
        if command[0] == "patch" and checkout.run([*command, "--dry-run"], APPLY_S, stdin=text).exit_code != 0:
            continue
        ran = checkout.run(command, APPLY_S, stdin=text)
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
    top = files.resolve()
    for path in paths:
        place, content, more = top / path, b"", []
        script = 'rm -rf -- "$1"'
        if place.parent.resolve() != place.parent:  # a link in the commit may lead anywhere
            return f"{path} is in a folder that is a link"
        if place.is_symlink():
            script, more = f'{script} && mkdir -p -- "$(dirname -- "$1")" && ln -s -- "$2" "$1"', [os.readlink(place)]
        elif place.is_file():
            content, more = place.read_bytes(), [f"{place.stat().st_mode & 0o777:o}"]
            script += ' && mkdir -p -- "$(dirname -- "$1")" && cat > "$1" && chmod "$2" "$1"'
        if checkout.run(["sh", "-c", script, "sh", path, *more], APPLY_S, stdin=content).exit_code:
            return f"{path} cannot be put back"
    return ""

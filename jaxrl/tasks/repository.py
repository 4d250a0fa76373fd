"""Solve issues in repositories, judged by their tests: rows of SWE-bench's form (arXiv 2310.06770, 2410.03859).

The submission is a patch: environment `repository` makes it of what an agent edits; of a plain answer it is that of its
search/replace blocks (rollouts/blocks.py). A patch resolves its issue when all tests of FAIL_TO_PASS and PASS_TO_PASS
pass in a fresh tree, with the tests' own files put back (jaxrl/tasks/repositories). `python -m jaxrl.swe_data --run`
makes rows of the history of a Python repository.
"""

from __future__ import annotations

import asyncio
import dataclasses
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from annotated_types import Gt, Lt

from jaxrl.config.rules import AboveZero, NonNegative
from jaxrl.config.task import DataSettings
from jaxrl.errors import UserError
from jaxrl.tasks import Task
from jaxrl.tasks.repositories.attempt import Repositories, judge_patch, packages_of, visible
from jaxrl.tasks.repositories.grade import Grade
from jaxrl.tasks.repositories.rows import Instance, instance_rows, read_instance_rows
from jaxrl.tasks.rows import DataError, Row, expanded
from jaxrl.tasks.swe.history import read_files
from jaxrl.tasks.swe.parts import split_rows
from jaxrl.tasks.swe.reward import reward_of_patches
from rollouts.blocks import BLOCK, Edit, FormatError, apply_edits, edits_between, write_edit
from rollouts.environments.repository import OPEN_LINES, TREE, RefusedError, Tree, decides_tests, edited, inside, window
from rollouts.episode import Group, Problem, Reward, Submission
from rollouts.services import Services
from rollouts.unified import FileChange, PatchError, apply_patch, as_git, read_patch, write_patch
from sandbox.checkout import CheckoutError
from sandbox.layers import IsolationError
from sandbox.verdict import Verdict

LONGEST_DIFF = 8_000  # characters of a diff that are compared
LONGEST_FILE = 1 << 20  # bytes of a file that is edited
LINES_BEFORE = 10  # of the first change of a file, in demonstrations


@dataclass
class Settings(DataSettings):
    """Issues of repositories."""

    repositories: str = ""  # folder of clones, OWNER__NAME or NAME, bare or not
    modules: str = "~/.cache/jaxrl/swebench/modules"  # npm packages: python -m jaxrl.swebench install
    cache: str = "~/.cache/jaxrl/swebench/files"  # files of commits
    images: str = ""  # folder of the issues' images; "": they are not here
    test_s: AboveZero = 300.0  # of each command that judges
    similarity: NonNegative = 0.0  # weight of the patch's similarity to the one that was made, beside 1 for resolved
    held_out: Literal["time", "repository"] = "time"  # the newest rows, or whole repositories
    held_out_share: Annotated[float, Gt(0), Lt(1)] = 0.1  # of rows, or of repositories

    def check(self, where: str = "task") -> None:
        """Raises UserError for a setting that does nothing beside the others."""
        default = {f.name: f.default for f in fields(self)}
        for name in ("held_out", "held_out_share") if self.held_out_path else ():
            if getattr(self, name) != default[name]:
                value = getattr(self, name)
                raise UserError(f"{where}.{name} = {value!r} has no effect with {where}.held_out_path; leave it out")


def make_task(settings: Settings, seed: int) -> Task:
    """The task. Raises DataError where a path is missing or no problem is left."""
    if not settings.path or not settings.repositories:
        raise DataError("task repository needs task.path (rows of SWE-bench's form) and task.repositories (clones)")
    rejected: Counter[str] = Counter()
    rows = instance_rows(settings.path, settings.split)
    if settings.held_out_path:
        parts = rows, instance_rows(settings.held_out_path, settings.split)
    else:
        parts = split_rows(rows, settings.held_out, settings.held_out_share)
    train, held_out = (_problems(part, settings, rejected) for part in parts)
    if not train and not held_out:
        counts = ", ".join(f"{reason}: {count}" for reason, count in rejected.items())
        raise DataError(f"{settings.path}: no problem is left ({counts})")
    train = train[: settings.train_problems]
    shown = (dataclasses.replace(p, demonstration=demonstration(p)) for p in train[: settings.demonstrations])
    return Task(
        name="repository",
        train=train,
        held_out=held_out[: settings.held_out_problems],
        judge=partial(judge, settings=settings),
        demonstrations=[p for p in shown if p.demonstration],
        rejected=dict(rejected),
        metrics=metrics,
        headline="resolved",
        answers=True,
        slices=lambda problem: {"repository": problem.answer.instance.repo},
        well_formed=lambda problem, submission: bool(patch_of(problem, submission)),
    )


# --- what a patch is worth


async def judge(problem: Problem, submission: Submission, services: Services, settings: Settings) -> Reward:
    """1 if the patch resolves the issue, and settings.similarity times its likeness to the one that was made.

    An empty patch is worth 0 and is not run, as is one that cannot be read or changes how the tests run. Where nothing
    can be judged the verdict is a sandbox_error.
    """
    source: Source = problem.answer
    patch = await asyncio.to_thread(patch_of, problem, submission)
    applied = plain_patch(patch, source.instance.patch)
    if not applied:
        return Reward(0.0, False, {"resolved": 0.0}, answer=None)
    try:
        files = await asyncio.to_thread(source.files)
        async with services.trees.open(files, source.packages) as tree:
            grade = await tree.call(judge_patch, source.instance, applied, Path(files), settings.test_s)
    except (CheckoutError, IsolationError, OSError) as error:
        grade = Grade("not_judged", reason=str(error))
    parts = {"resolved": float(grade.resolved)}
    if settings.similarity:
        alike = await asyncio.to_thread(reward_of_patches, source.instance.patch, patch, LONGEST_DIFF)
        parts["similarity"] = settings.similarity * alike
    failed = Verdict("sandbox_error", stderr=grade.reason) if grade.outcome == "not_judged" else None
    return Reward(sum(parts.values()), grade.resolved, parts, failed, answer=patch)


def plain_patch(patch: str, made: str) -> str:
    """What is applied of a model's patch: what was read of it, written anew, so that nothing else can hide in it.

    "" where it is not a patch, changes nothing, or bends the tests (see `bends_tests`).
    """
    try:
        changes = read_patch(patch)
        return "" if bends_tests(changes, made) else as_git(changes)
    except PatchError:
        return ""


def bends_tests(changed: Sequence[FileChange], made: str) -> bool:
    """Whether a patch changes files that decide how the tests run, which the change that was made leaves alone.

    Those are the environment's PROTECTED ones, and new modules that hide Python's own.
    """
    try:
        allowed = {path for file in read_patch(made) for path in (file.old, file.new)}
    except PatchError:
        allowed = set()
    paths = {path for file in changed for path in (file.old, file.new) if path} - allowed
    added = {file.new for file in changed if file.new.endswith(".py") and not file.old} - allowed
    hiding = {path.split("/")[0].removesuffix(".py") for path in added} - {"test"}
    return any(map(decides_tests, paths)) or not hiding.isdisjoint(sys.stdlib_module_names)


def patch_of(problem: Problem, submission: Submission) -> str:
    """The patch that was submitted.

    Of a plain answer it is that of its blocks, "" where they do not fit the files, else the diff in it.
    """
    if isinstance(submission.state, str):
        return submission.state
    edits = [Edit(*found.groups()) for found in BLOCK.finditer(submission.text)]
    if not edits:
        _, diff, rest = submission.text.partition("diff --git ")
        return f"{diff}{rest}".partition("\n```")[0] + "\n" if diff else ""
    try:
        edits = [edit._replace(path=inside(edit.path)) for edit in edits]
        files = problem.answer.files.texts([edit.path for edit in edits])
        return write_patch(files, apply_edits(files, edits))
    except (FormatError, RefusedError, OSError):
        return ""


def metrics(group: Group) -> dict[str, float]:
    """Shares of the episodes: resolved; edited: with a patch at all; submitted: ended by the model."""
    n = len(group.episodes)
    return {
        "resolved": sum(e.reward.solved for e in group.episodes) / n,
        "edited": sum(bool(patch_of(group.problem, e.submitted).strip()) for e in group.episodes) / n,
        "submitted": sum(e.status == "finished" for e in group.episodes) / n,
    }


# --- problems


@dataclass(frozen=True)
class Snapshot:
    """The files of a commit; called, their folder. Raises OSError where the clone does not have it."""

    repositories: Repositories
    repo: str
    commit: str

    def __call__(self) -> str:
        return str(self.repositories.files(self.repo, self.commit))

    def texts(self, paths: Sequence[str]) -> dict[str, str]:
        """Those of the paths that are files, read from the clone. Raises OSError for one that is not text in UTF-8."""
        clone = self.repositories.clone(self.repo)
        if clone is None:
            raise OSError(f"no clone was found of {self.repo}")
        try:
            found = read_files(clone, self.commit, paths, LONGEST_FILE)
            return {path: data.decode() for path, data in found.items() if data is not None}
        except (UserError, UnicodeDecodeError) as error:
            raise OSError(f"{self.repo} at {self.commit}: {error}") from None


class Source(NamedTuple):
    """What judges a problem. None of it is shown."""

    instance: Instance
    files: Snapshot
    packages: dict[str, str]


def _problems(rows: Sequence[Row], settings: Settings, rejected: Counter[str]) -> list[Problem]:
    """The problems of rows; those that cannot be judged on this machine are counted by reason."""
    repositories = Repositories(expanded(settings.repositories), expanded(settings.cache))
    modules = expanded(settings.modules).absolute()
    found = []
    for instance in read_instance_rows(rows):
        try:
            packages = packages_of(instance, repositories, modules)
            found.append(problem_of(Source(instance, Snapshot(repositories, *instance[1:3]), packages), settings))
        except (OSError, PatchError) as error:
            rejected[str(error)] += 1
    return found


def problem_of(source: Source, settings: Settings) -> Problem:
    """The problem of an instance. Raises PatchError for a tests' patch that is not one."""
    instance, files, packages = source
    names = [image.rpartition("/")[2] for image in instance.images]
    images: dict[str, str | None] = dict.fromkeys(names)
    if settings.images:
        paths = {name: expanded(settings.images) / name for name in names}
        images |= {name: str(path) for name, path in paths.items() if path.is_file()}
    issue = instance.problem_statement.replace("\r\n", "\n").strip()
    tree = Tree(files, packages, visible(instance), images)
    return Problem(instance.id, ({"role": "user", "content": issue},), answer=source, meta={TREE: tree})


def demonstration(problem: Problem) -> tuple[dict[str, str], ...] | None:
    """The right change as an agent makes it: it opens the files, edits them, and submits.

    None for a change that blocks cannot express, such as one that deletes a file.
    """
    source: Source = problem.answer
    try:
        paths = [file.old for file in read_patch(source.instance.patch) if file.old]
        files = source.files.texts(paths)
        new = {path: text for path, text in apply_patch(files, source.instance.patch).items() if text is not None}
        edits = edits_between(files, new)
    except (PatchError, FormatError, OSError):
        return None
    if not edits or len(new) < len({*paths, *new}):
        return None
    turns = []
    for path in paths:
        place = files[path].find(next(e.search for e in edits if e.path == path))
        line = max(files[path].count("\n", 0, place) - LINES_BEFORE, 1)
        turns += [f"open {shlex.quote(path)} {line}", window(path, files[path], line, OPEN_LINES)]
    turns += ["\n\n".join(map(write_edit, edits)), edited(files, new), "submit"]
    return tuple({"role": ("assistant", "user")[i % 2], "content": text} for i, text in enumerate(turns))

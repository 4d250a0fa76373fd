"""Edit the files of a repository so that an issue is solved: SWE-RL (arXiv 2502.18449).

The answer is a thought and search/replace blocks (rollouts/blocks.py). The reward is how similar its change is to
the one that was made (jaxrl/tasks/swe/reward.py), -1 for an answer that is not in the format or does not fit the files.
Nothing is run: a nearly right change is worth nearly 1, so that `solved` counts exact changes alone.

Problems are rows of task.path (`python -m jaxrl.swe_data` makes them of any git history), or files of small functions
with mistakes put in, whose issue says what the function must do.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Ge, Gt, Le, Lt

from jaxrl.config.rules import Positive, Share
from jaxrl.config.task import DataSettings
from jaxrl.errors import UserError
from jaxrl.tasks import Task, functions
from jaxrl.tasks.corruption import IN_PLACE, WITH_NUMBERS, corrupt
from jaxrl.tasks.rows import DataError, Row, read_rows
from jaxrl.tasks.sampling import Generated
from jaxrl.tasks.swe.agentless import normal_patch, tree_text
from jaxrl.tasks.swe.parts import HELD_OUT_SEED, split_rows
from jaxrl.tasks.swe.reward import WRONG_FORMAT, changes, similarity
from rollouts.blocks import Edit, Files, FormatError, apply_edits, edits_between, read_answer, write_answer
from rollouts.environments.localize import FILES, REQUEST, show_files
from rollouts.episode import Group, Problem, Reward, Submission
from rollouts.services import Services
from rollouts.unified import PatchError, apply_patch

THINK = (
    "Think first, between <think> and </think>. Then give the edits, between <solution> and </solution>. Use each of "
    "these four tags once."
)
BLOCKS = """Solve the issue by editing the files. Write each edit as a block of this form:

```python
### path/of/the/file.py
<<<<<<< SEARCH
lines of the file, as they are, with their indentation
=======
lines to put in their place
>>>>>>> REPLACE
```

The lines to search for must be in the file. They are replaced wherever they occur, so take enough of them to be found \
once. Give as many blocks as needed; they are applied in order. To make a new file, search for one empty line."""
NAME_FILES = "Which files have to be changed to solve the issue? Answer with at most {n} paths, one a line."
NAMES = ("alpha", "beta", "gamma", "delta", "kappa", "omega", "sigma", "theta")  # of generated files, and functions
KINDS = {"ADDL": "missing", "DELL": "extra", "REPL": "wrong", "REPW": "misspelt"}  # lines, by what repairs them
STRANGERS, DONORS, DRAWS = 64, 4, 40
CORPUS_PROBLEMS = 600
_ASKED = re.compile(r"Write f\((\w)\) of a \w+: (.*)\.")


@dataclass
class Settings(DataSettings):
    """Files, an issue, and the change that was made; without `path` small ones are made up."""

    shown: Literal["files", "paths"] = "files"  # in the prompt; paths: a tree, for environment localize
    max_files: Positive = 5  # with shown = "paths": to be named at most; the same in rollout.environment
    explain: bool = True  # the prompt says how to answer
    # Characters of a diff: rows with a longer one are rejected, the rest of an answer's longer one never matches.
    longest_diff: Positive = 8_000
    # with path
    context_characters: Positive = 60_000  # of all files; changed ones that do not fit are rejected, others left out
    held_out: Literal["time", "repository"] = "time"  # the newest rows, or whole repositories
    held_out_share: Annotated[float, Gt(0), Lt(1)] = 0.1  # of rows, or of repositories
    # without path
    files: Annotated[int, Ge(1), Le(len(NAMES))] = 2  # of a problem; one of them is wrong
    families: tuple[Literal["list", "text", "number"], ...] = ("list", "text", "number")  # of functions
    max_difficulty: Annotated[int, Ge(2), Le(functions.MAX_DIFFICULTY)] = 4  # steps of a function at most
    most_mistakes: Annotated[int, Ge(1), Le(8)] = 1
    careless_demonstrations: Share = 0.0  # share whose edit is in the right place, and wrong

    def check(self, where: str = "task") -> None:
        """Raises UserError for a setting that does nothing beside the others."""
        needs_path = ("context_characters", "held_out", "held_out_share", "held_out_path", "split")
        needs_none = ("files", "families", "max_difficulty", "most_mistakes", "careless_demonstrations")
        default = {f.name: f.default for f in fields(self)}
        idle = dict.fromkeys(() if self.path else needs_path, f"without {where}.path")
        idle |= dict.fromkeys(needs_none if self.path else (), f"with {where}.path")
        idle |= {"max_files": f"with {where}.shown = 'files'"} if self.shown == "files" else {}
        if self.held_out_path:
            idle |= dict.fromkeys(("held_out", "held_out_share"), f"with {where}.held_out_path")
        for name, why in idle.items():
            if getattr(self, name) != default[name]:
                raise UserError(f"{where}.{name} = {getattr(self, name)!r} has no effect {why}; leave it out")


def make_task(settings: Settings, seed: int) -> Task:
    """The task. Raises DataError, with the counts by reason, where no problem is left."""
    rejected: Counter[str] = Counter()
    if settings.path:
        train, held_out = _of_rows(settings, rejected)
        shown: Sequence[Problem] = [p for p in train if p.demonstration][: settings.demonstrations]
    else:
        train, held_out, shown = _made_up(settings, seed)
    return Task(
        name="swe_rl",
        train=train,
        held_out=held_out,
        judge=lambda problem, submission, services: judge(problem, submission, services, settings),
        demonstrations=shown,
        corpus=None if settings.path else lambda: _corpus(settings),
        rejected=dict(rejected),
        metrics=metrics,
        headline="exact",
        slices=lambda problem: {"kind": problem.meta["kind"]},
        answers=True,
        well_formed=lambda problem, submission: applied(problem, submission.text) is not None,
    )


# --- what an answer is worth


def applied(problem: Problem, text: str) -> dict[str, str] | None:
    """The new contents of the files that an answer edits; None for -1."""
    try:
        return apply_edits(problem.meta[FILES], read_answer(text)[1])
    except FormatError:
        return None


async def judge(problem: Problem, submission: Submission, services: Services, settings: Settings) -> Reward:
    """The similarity of the changes, or -1. Solved: the same lines in all files."""
    files, new = problem.meta[FILES], applied(problem, submission.text)
    if new is None:
        return Reward(WRONG_FORMAT, False, {"similarity": 0.0, "format": WRONG_FORMAT})
    predicted, oracle = await asyncio.to_thread(changes, files, new), changes(files, problem.answer)
    value = await asyncio.to_thread(similarity, predicted, oracle, settings.longest_diff)
    answer = await asyncio.to_thread(normal_patch, files, new) or None
    return Reward(value, predicted == oracle, {"similarity": value, "format": 0.0}, answer=answer)


def metrics(group: Group) -> dict[str, float]:
    """Shares of the episodes, and their mean similarity, in which an answer that does not apply counts 0.

    exact: the same change; applies: the format is right and the searches are found; localized, where the model names
    files: all that have to be changed are among them.
    """
    episodes, n = group.episodes, len(group.episodes)
    parts = [e.reward.parts for e in episodes]
    named = [e.submission.state for e in episodes if e.submission and e.submission.state is not None]
    found = {
        "exact": sum(e.reward.solved for e in episodes) / n,
        "applies": sum(p.get("format") == 0.0 for p in parts) / n,
        "similarity": sum(p.get("similarity", 0.0) for p in parts) / n,
    }
    needed = {*(group.problem.answer or ())} & {*group.problem.meta.get(FILES, ())}
    return found | ({"localized": sum(needed <= {*paths} for paths in named) / n} if named else {})


# --- a problem


def problem_of(
    name: str, issue: str, files: Files, oracle: Files, settings: Settings, demonstration: str | None, **meta: Any
) -> Problem:
    """The problem of an issue. The files are in the order of their paths, which says nothing about what to change."""
    files = {path: files[path] for path in sorted(files)}
    request = f"{BLOCKS}\n\n{THINK}" if settings.explain else ""
    if settings.shown == "files":
        asked, shown = f"{issue}\n\n{show_files(files, request)}", demonstration
    else:
        asked = f"{issue}\n\n{tree_text(files)}"
        asked += f"\n\n{NAME_FILES.format(n=settings.max_files)}" if settings.explain else ""
        shown = _in_two_turns(files, oracle, request, demonstration)
    return Problem(
        name,
        ({"role": "user", "content": asked},),
        answer=dict(oracle),
        demonstration=shown,
        meta={FILES: files, REQUEST: request, **meta},
    )


def _in_two_turns(
    files: Files, oracle: Files, request: str, demonstration: str | None
) -> tuple[dict[str, str], ...] | None:
    """A demonstration that names the files first."""
    paths = [path for path in oracle if path in files]
    if demonstration is None:
        return None
    seen = show_files({path: files[path] for path in paths}, request)
    said = ("assistant", "\n".join(paths)), ("user", seen), ("assistant", demonstration)
    return tuple({"role": role, "content": content} for role, content in said)


# --- rows


def _of_rows(settings: Settings, rejected: Counter[str]) -> tuple[list[Problem], list[Problem]]:
    """Problems for training, and held out."""
    rows = read_rows(settings.path, settings.split)
    if settings.held_out_path:
        parts = rows, read_rows(settings.held_out_path, settings.split)
    else:
        parts = split_rows(rows, settings.held_out, settings.held_out_share)
    train, held_out = ([p for row in part if (p := row_problem(row, settings, rejected))] for part in parts)
    if not train and not held_out:
        counts = ", ".join(f"{reason}: {count}" for reason, count in rejected.items())
        raise DataError(f"{settings.path}: no problem is left ({counts})")
    return train[: settings.train_problems], held_out[: settings.held_out_problems]


def row_problem(row: Row, settings: Settings, rejected: Counter[str]) -> Problem | None:
    """The problem of a row, or None, counted by reason. Raises DataError for a row of another schema."""
    files, oracle = _contents(row.part("files")), _oracle(row)
    if oracle is None:
        rejected["patch does not apply, or deletes a file"] += 1
        return None
    diffs = changes(files, oracle)
    needed = {path: files[path] for path in diffs if path in files}
    left = settings.context_characters - sum(map(len, needed.values()))
    if not diffs:
        rejected["nothing is changed"] += 1
    elif left < 0:
        rejected["changed files longer than task.context_characters"] += 1
    elif sum(map(len, diffs.values())) > settings.longest_diff:
        rejected["diff longer than task.longest_diff"] += 1
    else:
        shown = dict(needed)
        for path in sorted(files.keys() - needed.keys()):
            if len(files[path]) <= left:
                shown[path], left = files[path], left - len(files[path])
            else:
                rejected["unchanged file left out: it does not fit task.context_characters"] += 1
        return _row_problem(row, shown, {path: oracle[path] for path in diffs}, settings)
    return None


def _row_problem(row: Row, files: Files, oracle: Files, settings: Settings) -> Problem:
    try:
        edits = edits_between(files, oracle)
    except FormatError:
        demonstration = None
    else:
        demonstration = write_answer(f"The change is in {', '.join(oracle)}.", edits)
    issue = row.text("problem_statement", "issue").replace("\r\n", "\n").strip()
    kind = row.optional_text("repository", "repo") or "rows"
    return problem_of(row.name("instance_id", "id"), issue, files, oracle, settings, demonstration, kind=kind)


def _contents(row: Row) -> dict[str, str]:
    """Files by path, with line feeds alone."""
    return {path: row.text(path).replace("\r\n", "\n") for path in row.fields}


def _oracle(row: Row) -> dict[str, str] | None:
    """The new contents, of the row's oracle or of its patch; None where the patch does not apply."""
    if row.fields.get("oracle") is not None:
        return _contents(row.part("oracle"))
    files = {path: row.part("files").text(path) for path in row.part("files").fields}
    try:
        new = apply_patch(files, row.text("oracle", "patch"))
    except PatchError:
        return None
    kept = {path: text.replace("\r\n", "\n") for path, text in new.items() if text is not None}
    return kept if len(kept) == len(new) else None


# --- made up


def _made_up(settings: Settings, seed: int) -> tuple[Sequence[Problem], list[Problem], Sequence[Problem]]:
    """Problems for training, held out, and demonstrations."""
    functions_ = _functions(settings, seed)
    trained, tested = source_of(functions_.train), source_of(functions_.held_out)

    def problems(source: Source, part: str, key: int, size: int, shown: bool = False) -> Generated:
        return Generated(size, lambda i: made_up(source, i, f"swe_rl/{part}/{i}", f"{part} {key} {i}", settings, shown))

    train = problems(trained, "train", seed, settings.train_problems)
    held_out = problems(tested, "held_out", HELD_OUT_SEED, settings.held_out_problems)
    shown = problems(trained, "demonstration", seed, settings.demonstrations, shown=True)
    return train, [*held_out], shown


def _functions(settings: Settings, seed: int) -> Task:
    chosen = functions.Settings(
        families=settings.families,
        max_difficulty=settings.max_difficulty,
        held_out_problems=max(settings.held_out_problems, STRANGERS),
    )
    return functions.make_task(chosen, seed)


class Source(NamedTuple):
    """Problems of task functions, and some of them from which other files and foreign lines come."""

    problems: Sequence[Problem]
    strangers: Sequence[Problem]


def source_of(problems: Sequence[Problem]) -> Source:
    """Strangers are made once: making a function and its tests takes longer than all else."""
    return Source(problems, [problems[i] for i in range(min(STRANGERS, len(problems)))])


def made_up(source: Source, index: int, name: str, key: str, settings: Settings, shown: bool = False) -> Problem:
    """A problem with function number `index` of the source in one file, with mistakes, and right ones in the others."""
    rng = random.Random(key)
    names = rng.sample(NAMES, settings.files)
    others = rng.sample(source.strangers, settings.files - 1)
    files = {f"{n}.py": program_of(p, n) for n, p in zip(names[1:], others)}
    problem, path = source.problems[index % len(source.problems)], f"{names[0]}.py"
    right = tuple(program_of(problem, names[0]).split("\n"))
    donors = [line for p in rng.sample(source.strangers, DONORS) for line in program_of(p, "").split("\n")[1:]]
    mistakes = rng.randint(1, settings.most_mistakes)
    broken = next(c for _ in range(DRAWS) if (c := corrupt(right, mistakes, donors, rng, WITH_NUMBERS)).lines != right)
    files[path] = "\n".join(broken.lines)
    oracle = {path: "\n".join(right)}
    edits = edits_between(files, oracle)
    if shown and rng.random() < settings.careless_demonstrations:
        edits = [careless(edits[0], donors, rng), *edits[1:]]
    kinds = [KINDS[command.kind] for command in broken.repairs]
    kind = kinds[0] if len(kinds) == 1 else f"{len(kinds)}_mistakes"
    thought = f"{path}: {kind} line." if len(kinds) == 1 else f"{path}: {len(kinds)} mistakes."
    variable, asked = _ASKED.fullmatch(problem.messages[-1]["content"]).groups()  # type: ignore[union-attr]
    issue = f"{names[0]}({variable}) must {asked}."
    return problem_of(name, issue, files, oracle, settings, write_answer(thought, edits), kind=kind)


def program_of(problem: Problem, name: str) -> str:
    """The program of a problem of task functions, as a function of this name."""
    return str(problem.demonstration).replace("def f(", f"def {name}(", 1)


def careless(edit: Edit, donors: Sequence[str], rng: random.Random) -> Edit:
    """The edit with a mistake in what it puts in; it still changes something."""
    lines = tuple(edit.replace.split("\n"))
    for _ in range(DRAWS):
        wrong = "\n".join(corrupt(lines, 1, donors, rng, IN_PLACE).lines)
        if wrong not in (edit.search, edit.replace):
            return edit._replace(replace=wrong)
    return edit


def _corpus(settings: Settings) -> Iterable[str]:
    """The same for every seed, so that runs with different seeds have the same tokenizer."""
    source = source_of(_functions(settings, 0).train)
    for i in range(CORPUS_PROBLEMS):
        problem = made_up(source, i, f"corpus/{i}", f"corpus {i}", settings)
        answer = problem.demonstration or ""
        said = ({"role": "assistant", "content": answer},) if isinstance(answer, str) else answer
        for message in (*problem.messages, *said):
            yield f"{message['role']}\n{message['content']}"

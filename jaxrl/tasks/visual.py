"""Issues that only a picture explains: tiny programs that draw with characters, one of whose values is wrong.

The issue says "see image 1"; the image has what the program draws and what it should draw. Without it the value cannot
be known, so that an agent who does not look is right by chance (SWE-bench Multimodal in small, arXiv 2410.03859). For
the environment `repository`.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass
from typing import NamedTuple

from jaxrl.config.task import TaskSettings
from jaxrl.tasks import Task
from jaxrl.tasks.rows import DataError
from jaxrl.tasks.sampling import Generated
from rollouts.blocks import BLOCK, Edit, FormatError, apply_edits, write_edit
from rollouts.environments.repository import TREE, Tree, edited, image
from rollouts.episode import Problem, Reward, Submission
from rollouts.services import Services
from rollouts.unified import PatchError, apply_patch
from sandbox.verdict import CallTest, Program

FILE, IMAGE = "draw.py", "screenshot.txt"
HELD_OUT_SHARE = 8  # one pair of a wrong and a right value, and one wrong program, in this many
HELD_OUT_SEED = 20_000_003
MARKS = tuple("#*o+x@%=~&$v")
WORDS = ("cat", "dog", "sun", "map", "tea", "red", "box", "key", "sea", "owl", "ink", "jam", "elm", "fog", "gem", "hat")
_PROGRAM = """MARK = {mark!r}
WIDTH = {width}
TITLE = {title!r}


def draw():
    bar = " ".join([MARK] * WIDTH)
    return TITLE + "\\n" + bar
"""


class Drawing(NamedTuple):
    """The values of a program."""

    mark: str
    width: int
    title: str

    @property
    def program(self) -> str:
        return _PROGRAM.format(**self._asdict())

    @property
    def picture(self) -> str:
        return f"{self.title}\n{' '.join([self.mark] * self.width)}"


VALUES: dict[str, tuple] = {"mark": MARKS, "width": tuple(range(2, 10)), "title": WORDS}


@dataclass
class Settings(TaskSettings):
    """Drawings with a wrong value."""

    images: bool = True  # False: the issue has none (an ablation)


def make_task(settings: Settings, seed: int) -> Task:
    train = Generated(settings.train_problems, lambda i: generate(f"train {seed} {i}", False, settings.images))
    return Task(
        name="visual",
        train=train,
        held_out=held_out_problems(settings.held_out_problems, settings.images),
        judge=judge,
        demonstrations=Generated(
            settings.demonstrations, lambda i: generate(f"demonstration {seed} {i}", False, settings.images)
        ),
        corpus=lambda: (text_of(generate(f"corpus {i}", False, settings.images)) for i in range(400)),
        headline="resolved",
        metrics=lambda group: {"resolved": sum(e.reward.solved for e in group.episodes) / len(group.episodes)},
        slices=lambda problem: {"wrong": problem.meta["wrong"]},
        well_formed=lambda problem, submission: bool(changed(problem.meta[TREE], submission)),
    )


def generate(name: str, for_held_out: bool, images: bool = True) -> Problem:
    """A drawing with one wrong value."""
    rng = random.Random(name)
    while True:
        right = Drawing(*(rng.choice(values) for values in VALUES.values()))
        wrong_value = rng.choice([*VALUES])
        wrong = right._replace(**{wrong_value: rng.choice(VALUES[wrong_value])})
        pair = f"{wrong_value} {getattr(wrong, wrong_value)} {getattr(right, wrong_value)}"
        chosen = [zlib.crc32(text.encode()) % HELD_OUT_SHARE == 0 for text in (pair, wrong.program)]
        if wrong != right and chosen == [for_held_out] * 2:
            return problem_of(name, wrong, right, wrong_value, images)


def problem_of(name: str, wrong: Drawing, right: Drawing, wrong_value: str, images: bool) -> Problem:
    shown = f"it is:\n{wrong.picture}\nit should be:\n{right.picture}\n"
    tree = Tree({FILE: wrong.program}, images={IMAGE: shown.encode()} if images else {})
    issue = f"{FILE} draws it wrong, see image 1.\n\n{wrong.program}"
    return Problem(
        id=f"visual/{name.replace(' ', '/')}",
        messages=({"role": "user", "content": issue},),
        tests=(CallTest("draw", (), right.picture),),
        demonstration=demonstration(tree, wrong, right, wrong_value),
        meta={TREE: tree, "wrong": wrong_value},
    )


def demonstration(tree: Tree, wrong: Drawing, right: Drawing, wrong_value: str) -> tuple[dict[str, str], ...]:
    """Look, edit the line of the value, submit. Without an image the edit is a guess that turns out right."""
    old, new = (f"{wrong_value.upper()} = {getattr(values, wrong_value)!r}" for values in (wrong, right))
    block = write_edit(Edit(FILE, old, new))
    files = {FILE: wrong.program}
    diff = edited(files, apply_edits(files, [Edit(FILE, old, new)]))
    said = [("image 1", image(tree.images, 1))] if tree.images else []
    said.append((block, diff))
    turns = [turn for answer, output in said for turn in (("assistant", answer), ("user", output))]
    return tuple({"role": role, "content": content} for role, content in [*turns, ("assistant", "submit")])


def held_out_problems(count: int, images: bool) -> list[Problem]:
    """Different problems, of pairs of values that training never has. Raises DataError where there are not as many."""
    problems: dict[str, Problem] = {}
    for number in range(HELD_OUT_SEED, HELD_OUT_SEED + 100 * count):
        problem = generate(f"held_out {number}", True, images)
        problems.setdefault(problem.messages[0]["content"] + str(problem.tests), problem)
        if len(problems) == count:
            return list(problems.values())
    raise DataError(f"task.held_out_problems = {count} must be at most {len(problems)}: there are not more")


def text_of(problem: Problem) -> str:
    """All texts of a problem, for a tokenizer."""
    assert isinstance(problem.demonstration, tuple)
    return "\n".join([problem.messages[0]["content"], *(turn["content"] for turn in problem.demonstration)])


async def judge(problem: Problem, submission: Submission, services: Services) -> Reward:
    """1 if the program draws what it should after the submitted change; 0 for one that is empty or does not fit."""
    assert services.pool is not None
    if not (program := changed(problem.meta[TREE], submission)):
        return Reward(0.0, False, {"resolved": 0.0})
    verdict = await services.pool.run_async(Program(program, problem.tests))
    return Reward(float(verdict.passed), verdict.passed, {"resolved": float(verdict.passed)}, verdict)


def changed(tree: Tree, submission: Submission) -> str | None:
    """The program after the submitted patch, or after the blocks of a plain answer; None where they do not fit."""
    assert isinstance(tree.files, dict)
    try:
        if isinstance(submission.state, str):
            return apply_patch(tree.files, submission.state).get(FILE)
        return apply_edits(tree.files, [Edit(*found.groups()) for found in BLOCK.finditer(submission.text)]).get(FILE)
    except (PatchError, FormatError):
        return None

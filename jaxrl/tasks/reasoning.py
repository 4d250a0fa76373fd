"""144 kinds of questions with checkable answers, by which a model learns when to compute.

R1-Code-Interpreter, arXiv 2505.21668.

Three suites: `gym`, 84 data sets of reasoning-gym 0.1.25 (pip install 'jaxrl[reasoning]'; its graders run in the
sandbox, with time limits, since some of them evaluate what they grade); `bbh`, the 27 files of BIG-Bench Hard in
task.path, which are never trained on unless `train_on_bbh`; `native`, our 33 generators (jaxrl/tasks/native). Which
kinds are held out whole (37 of them) is ours: the paper's list was not published where we could find it.

The answer is what the last <<<...>>> or \\boxed{...} holds. Held-out problems are other questions of the kinds that are
trained on, questions of the held-out kinds, or both, and are reported apart (slices `held_out`, `suite`, `kind`).
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import random
import re
import threading
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from jaxrl.config.rules import Share, nearest
from jaxrl.config.task import TaskSettings
from jaxrl.errors import UserError
from jaxrl.tasks import Task, native
from jaxrl.tasks.native.question import Question, is_right, same
from jaxrl.tasks.rows import DataError, expanded
from jaxrl.tasks.sampling import Generated
from rollouts.episode import Problem, Reward, Submission
from rollouts.services import Services
from sandbox.layers import LEAST
from sandbox.session import Session, Sessions
from sandbox.verdict import Limits, Verdict


def _names(text: str) -> list[str]:
    return text.split()


GYM = _names("""
ab acre advanced_geometry aiw base_conversion basic_arithmetic bf binary_alternation binary_matrix bitwise_arithmetic
caesar_cipher calendar_arithmetic chain_sum circuit_logic coin_flip color_cube_rotation complex_arithmetic count_bits
count_primes countdown course_schedule cryptarithm decimal_arithmetic decimal_chain_sum dice family_relationships
figlet_font fraction_simplification game_of_life gcd group_anagrams gsm_symbolic isomorphic_strings kakurasu
knights_knaves largest_island lcm leg_counting letter_counting letter_jumble list_functions mahjong_puzzle
manipulate_matrix maze mini_sudoku n_queens needle_haystack number_filtering number_format number_sequence
number_sorting palindrome_generation path_star polynomial_equations polynomial_multiplication pool_matrix
power_function prime_factorization products puzzle24 quantum_lock ransom_note rotate_matrix rotten_oranges
self_reference sentence_reordering shortest_path simple_equations simple_geometry simple_integration sokoban
spell_backward spiral_matrix string_insertion string_manipulation string_splitting string_synthesis sudoku survo
syllogism time_intervals word_ladder word_sequence_reversal word_sorting
""")
BBH = _names("""
boolean_expressions causal_judgement date_understanding disambiguation_qa dyck_languages formal_fallacies
geometric_shapes hyperbaton logical_deduction_five_objects logical_deduction_seven_objects
logical_deduction_three_objects movie_recommendation multistep_arithmetic_two navigate object_counting
penguins_in_a_table reasoning_about_colored_objects ruin_names salient_translation_error_detection snarks
sports_understanding temporal_sequences tracking_shuffled_objects_five_objects tracking_shuffled_objects_seven_objects
tracking_shuffled_objects_three_objects web_of_lies word_sorting
""")
# The 37 kinds with the lowest crc32 of their name.
HELD_OUT_KINDS = frozenset(
    _names("""
bbh/boolean_expressions bbh/dyck_languages bbh/hyperbaton bbh/logical_deduction_five_objects
bbh/logical_deduction_seven_objects bbh/movie_recommendation bbh/navigate bbh/salient_translation_error_detection
bbh/temporal_sequences bbh/tracking_shuffled_objects_seven_objects gym/chain_sum gym/countdown gym/course_schedule
gym/decimal_arithmetic gym/gcd gym/gsm_symbolic gym/manipulate_matrix gym/number_sequence gym/pool_matrix gym/products
gym/puzzle24 gym/rotten_oranges gym/sentence_reordering gym/spell_backward gym/spiral_matrix gym/string_splitting
gym/string_synthesis gym/sudoku gym/word_sequence_reversal gym/word_sorting native/box_lift native/box_net
native/light_out native/mahjong native/number_grid native/pattern_counting native/synthesis_decomposition
""")
)
ANOTHER, DRAWS = 1_000_003, 200  # to the next question of a kind, where one is held out; how often
RIGHT = 0.99  # graders of reasoning-gym give nonsense small scores
HELD_OUT_SEED = 50_000_017  # the same held-out problems for every run
GRADER_LIMITS = Limits(wall_s=10.0, cpu_s=8.0, memory_mb=2048, output_kb=4)
GENERATOR_LIMITS = Limits(wall_s=60.0, cpu_s=30.0, output_kb=512)
LONGEST_ANSWER = 4000  # characters that a grader gets
CORPUS_PROBLEMS = 600
FORMS = {"<<<>>>": "<<<{}>>>", "boxed": "\\boxed{{{}}}"}


@dataclass
class Settings(TaskSettings):
    """Questions with checkable answers."""

    suites: tuple[Literal["gym", "bbh", "native"], ...] = ("native",)
    kinds: tuple[str, ...] = ()  # SUITE/NAME, to train on and test on these alone; (): all of the suites
    held_out: Literal["both", "questions", "kinds"] = "both"  # of kinds trained on, of held-out kinds, or half and half
    path: str = ""  # folder of BIG-Bench Hard's JSON files
    train_on_bbh: bool = False  # its authors ask that it is not
    answer_form: Literal["<<<>>>", "boxed"] = "<<<>>>"
    partial: bool = False  # graders' scores below 1 are rewards, too
    code_demonstrations: Share = 0.5  # share of demonstrations that compute, of kinds that have code
    least_isolation: str = LEAST  # of graders, as sandbox.least

    def check(self, where: str = "task") -> None:
        """Raises UserError for kinds that do not exist, and for settings that contradict each other."""
        every = [kind for suite in ("gym", "bbh", "native") for kind in kinds_of(suite)]
        for kind in self.kinds:
            if kind not in every:
                raise UserError(f"{where}.kinds: {kind!r} does not exist{nearest(kind, every)}")
        if not self.suites and not self.kinds:
            raise UserError(f"{where}.suites = () must name at least one of: gym, bbh, native")
        if not self.path and any(kind.startswith("bbh/") for kind in self.chosen()):
            raise UserError(f"{where}.suites with 'bbh' needs {where}.path, the folder of BIG-Bench Hard's JSON files")

    def chosen(self) -> list[str]:
        """All kinds of these settings."""
        return [*self.kinds] or [kind for suite in self.suites for kind in kinds_of(suite)]


def kinds_of(suite: str) -> list[str]:
    """SUITE/NAME of each."""
    names = {"gym": GYM, "bbh": BBH, "native": native.KINDS}[suite]
    return [f"{suite}/{name}" for name in names]


def make_task(settings: Settings, seed: int) -> Task:
    """The task. Raises UserError where there is nothing to train on or to test on, DataError for missing files."""
    chosen = settings.chosen()
    trained = [k for k in chosen if (settings.kinds or k not in HELD_OUT_KINDS) and _may_train(k, settings)]
    new = [k for k in chosen if k not in trained] if settings.held_out != "questions" else []
    again = trained if settings.held_out != "kinds" else []
    if not new and not again:
        raise UserError(f"task.held_out = {settings.held_out!r}: none of the kinds is held out; see task.kinds")
    parts = [("kind", new), ("question", again)]
    sizes = _halves(settings.held_out_problems, [bool(kinds) for _, kinds in parts])
    held_out = [
        problem
        for (part, kinds), size in zip(parts, sizes)
        for problem in questions(kinds, size, HELD_OUT_SEED, settings, {"held_out": part})
    ]
    shown = [kind for kind in trained if not kind.startswith("bbh/")]
    taken = frozenset(p.messages[-1]["content"] for p in held_out)
    return Task(
        name="reasoning",
        train=questions(trained, settings.train_problems if trained else 0, seed, settings, taken=taken),
        held_out=held_out,
        judge=lambda problem, submission, services: judge(problem, submission, services, settings),
        demonstrations=questions(
            shown, settings.demonstrations if shown else 0, seed + 1, settings, demonstrate=True, taken=taken
        ),
        corpus=lambda: _corpus(shown, settings),
        slices=lambda p: {"held_out": p.meta["held_out"], "suite": p.meta["suite"], "kind": p.meta["kind"]},
        answers=True,
        well_formed=lambda problem, submission: marked(submission.text, settings.answer_form) is not None,
    )


def _may_train(kind: str, settings: Settings) -> bool:
    return settings.train_on_bbh or not kind.startswith("bbh/")


def _halves(size: int, there: Sequence[bool]) -> list[int]:
    """The problems of each part: evenly, of those that are there."""
    if all(there):
        return [size // 2, size - size // 2]
    return [size if part else 0 for part in there]


def questions(
    kinds: Sequence[str], size: int, seed: int, settings: Settings, meta: dict[str, Any] | None = None,
    demonstrate: bool = False, taken: frozenset[str] = frozenset(),
) -> Generated:  # fmt: skip
    """Questions of the kinds in turn, none of which is `taken`; the same for the same seed."""

    def make(i: int) -> Problem:
        kind, number = kinds[i % len(kinds)], i // len(kinds)
        form = FORMS[settings.answer_form]
        for _ in range(DRAWS):
            question = ask(kind, number, seed, settings)
            text = f"{question.text.strip()}\nGive the final answer as {form.format('answer')}."
            if text not in taken:
                break
            number += ANOTHER
        else:
            raise UserError(f"task.held_out_problems leaves no question of {kind} to train on")
        suite, name = kind.split("/")
        shown = _demonstration(question, random.Random(f"shown {seed} {i}"), settings) if demonstrate else None
        return Problem(
            id=f"{kind}/{seed}/{number}",
            messages=({"role": "user", "content": text},),
            answer={"kind": kind, "number": number, "seed": seed},  # plain data: problems travel between processes
            demonstration=shown,
            meta={"suite": suite, "kind": name, "held_out": "trained", **(meta or {})},
        )

    return Generated(size, make)


def ask(kind: str, number: int, seed: int, settings: Settings) -> Question:
    """Question `number` of a kind."""
    suite, name = kind.split("/")
    if suite == "native":
        return native.KINDS[name](random.Random(f"{name} {seed} {number}"))
    if suite == "bbh":
        rows = _bbh(settings.path, name)
        row = rows[number % len(rows)]
        target = row["target"]
        letter = re.fullmatch(r"\(([A-Z])\)", target)  # of a choice, also right without its parentheses
        check = lambda text: same(text, target) or bool(letter and text.strip() == letter[1])  # noqa: E731
        return Question(row["input"], target, check)
    return Question(*gym_question(gym_entry(name, seed, number), settings.least_isolation))


def gym_entry(name: str, seed: int, number: int) -> dict[str, Any]:
    """How reasoning-gym finds a question again."""
    return {"name": name, "seed": zlib.crc32(f"{name} {seed} {number}".encode())}


def _demonstration(question: Question, rng: random.Random, settings: Settings) -> tuple[dict[str, str], ...]:
    """The answer at once; or code, what it prints, and the answer."""
    answer = {"role": "assistant", "content": FORMS[settings.answer_form].format(question.answer)}
    if not question.code or rng.random() >= settings.code_demonstrations:
        return (answer,)
    code = {"role": "assistant", "content": f"```python\n{question.code}\n```\n"}
    return code, {"role": "output", "content": f"```output\n{question.answer}\n```\n"}, answer


def _corpus(kinds: Sequence[str], settings: Settings) -> Iterable[str]:
    """The same for every seed, so that runs with different seeds have the same tokenizer."""
    for problem in questions(kinds, CORPUS_PROBLEMS if kinds else 0, 0, settings, demonstrate=True):
        for message in (*problem.messages, *(problem.demonstration or ())):
            yield f"{message['role']}\n{message['content']}"  # type: ignore[index]


def marked(text: str, form: str) -> str | None:
    """What the last marker of a text holds; None if there is none, or it does not end."""
    if form == "<<<>>>":
        found = re.findall(r"<<<(.*?)>>>(?!>)", text, re.DOTALL)
        return found[-1].strip() if found else None
    start = text.rfind("\\boxed{")
    depth = 0
    for i in range(start + len("\\boxed"), len(text)) if start >= 0 else ():
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[start + len("\\boxed{") : i].strip()
    return None


async def judge(problem: Problem, submission: Submission, services: Services, settings: Settings) -> Reward:
    """1 for a right answer, else 0, or with `partial` the grader's score."""
    given = marked(submission.text, settings.answer_form)
    if given is None:
        return Reward(0.0, False, {"solved": 0.0})
    asked = problem.answer
    suite, name = asked["kind"].split("/")
    if suite != "gym":
        score = float(is_right(ask(asked["kind"], asked["number"], asked["seed"], settings), given))
    else:
        entry = gym_entry(name, asked["seed"], asked["number"])
        graded = await grade(entry, given, settings.least_isolation)
        if graded is None:
            return Reward(0.0, False, {"solved": 0.0}, Verdict("sandbox_error"))
        score = graded
    solved = score >= RIGHT
    parts = {"solved": float(solved)} | ({"partial": score * (not solved)} if settings.partial else {})
    return Reward(sum(parts.values()), solved, parts, answer=given)


# --- reasoning-gym, in the sandbox: some graders evaluate what they grade, and some questions depend on Python's
# hashes, which are the same there in every process


_MAKE = """
import json, reasoning_gym
data = reasoning_gym.create_dataset({name!r}, size=1, seed={seed})
"""
_SHOW = _MAKE + "item = data[0]\nprint()\nprint(json.dumps([item['question'], str(item['answer'])]))"
_GRADE = _MAKE + "score = float(data.score_answer({answer!r}, data[0]))\nprint()\nprint(score)"


def gym_question(entry: dict[str, Any], least: str = LEAST) -> tuple[str, str]:
    """Question and answer of {"name", "seed"}. Raises UserError without reasoning-gym."""
    if importlib.util.find_spec("reasoning_gym") is None:
        raise UserError("task.suites with 'gym' needs reasoning-gym: pip install 'jaxrl[reasoning]'")
    session, lock = _generator(least)
    with lock:
        result = session.run(_SHOW.format(**entry), GENERATOR_LIMITS)
    if result.status != "passed":
        raise RuntimeError(f"reasoning-gym's {entry['name']} made no question: {result.status}, {result.traceback}")
    question, answer = json.loads(result.stdout.splitlines()[-1])
    return question, answer


async def grade(entry: dict[str, Any], answer: str, least: str = LEAST) -> float | None:
    """The score of an answer by reasoning-gym's grader.

    0 where that fails or takes too long; None if the sandbox fails.
    """
    session = _sessions(least).open()
    try:
        result = await session.run_async(_GRADE.format(**entry, answer=answer[:LONGEST_ANSWER]))
    finally:
        session.close()
    if result.status == "sandbox_error":
        return None
    try:
        return float(result.stdout.split()[-1]) if result.status == "passed" else 0.0
    except (ValueError, IndexError):
        return 0.0


@cache
def _sessions(least: str) -> Sessions:
    sessions = Sessions(GRADER_LIMITS, preload=("reasoning_gym",), least=least)
    atexit.register(sessions.close)
    return sessions


@cache
def _generator(least: str) -> tuple[Session, threading.Lock]:
    return _sessions(least).open(), threading.Lock()


@cache
def _bbh(path: str, name: str) -> list[dict[str, str]]:
    """The examples of a file of BIG-Bench Hard. Raises DataError where it is not one."""
    file = expanded(path) / f"{name}.json"
    try:
        rows = json.loads(Path(file).read_text())["examples"]
        return [{"input": str(row["input"]), "target": str(row["target"])} for row in rows]
    except OSError as error:
        raise DataError(f"task.path: {file} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError):
        raise DataError(f'{file} must be JSON with a list "examples" of objects with "input" and "target"') from None

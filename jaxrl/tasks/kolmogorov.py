"""Write a short program that gives a sequence of bytes: the KoLMogorov Test (arXiv 2503.13992).

The sequences are drawn with programs (jaxrl/tasks/sequences), or are pieces of a file in task.path. Programs are of the
test's small language, which is run and measured without a sandbox, or Python that leaves the list in `output`.

A program that gives the sequence earns 1 + compression * (1 - bits / bits of the literal program), so that a literal is
worth 1 and every saved bit something; another earns a little for how much of the beginning is right. Bits are those of
the task's `prior` (jaxrl/tasks/sequences/language.py); of Python, deflate's with a dictionary of common code.
"""

from __future__ import annotations

import gzip
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le

from jaxrl.config.rules import NonNegative, Share
from jaxrl.config.task import TaskSettings
from jaxrl.errors import UserError
from jaxrl.tasks import Task
from jaxrl.tasks.extract import code_block
from jaxrl.tasks.rows import DataError, expanded, read_rows
from jaxrl.tasks.sampling import Generated
from jaxrl.tasks.sequences.compressors import text_bits
from jaxrl.tasks.sequences.generate import Shape, generate
from jaxrl.tasks.sequences.language import FUNCTIONS, Line, ProgramError, bits, literal, parse, run, show
from rollouts.episode import Group, Problem, Reward, Submission
from rollouts.services import Services
from sandbox.verdict import Limits, Program, StdioTest, Verdict

PREFIXES = (16, 32, 64, 128)  # lengths whose share of right beginnings is reported
HELD_OUT_SEED = 60_000_011  # the same held-out problems for every run
HELD_OUT_PIECES = 10  # of a file, one piece in this many
CORPUS_PROBLEMS = 800
PYTHON_LIMITS = Limits(wall_s=2.0, cpu_s=2.0, memory_mb=256, output_kb=16)
PYTHON_DICTIONARY = (
    "import itertools\nfor i in range(len(x)):\n    output.append(i)\n] * 2 + list(range(1, 10)) + [x for x in\n"
    "output = ["
)
EXPLAINED = {
    "language": "Write the shortest program that gives this list of numbers. Each line calls one function; the last "
    "line is "
    "output = NAME of the line before it. Functions: " + ", ".join(FUNCTIONS) + ". Example:\nsequence_1 = "
    "range_func_up(0, 9)\n"
    "sequence_2 = reverse_list(sequence_1)\nsequence_3 = concatenate(sequence_1, sequence_2)\noutput = sequence_3\n"
    "The numbers:",
    "python": "Write the shortest Python program that leaves this list of numbers in the variable output. Answer "
    "with one fenced "
    "Python code block. The numbers:",
}  # fmt: skip


@dataclass
class Settings(TaskSettings):
    """Sequences of bytes, and programs that give them."""

    path: str = ""  # bytes (.bin, .gz or any file), or .jsonl with lists in "sequence"; "": drawn with programs
    length: Annotated[int, Ge(2), Le(256)] = 64  # of a file's pieces, and of what is drawn at most
    largest: Annotated[int, Ge(8), Le(255)] = 255  # value that is drawn
    bases: Annotated[int, Ge(1), Le(5)] = 3  # sequences that a drawn program joins, at most
    base_length: Annotated[int, Ge(3), Le(25)] = 12  # values of each, at most
    lines: Annotated[int, Ge(1), Le(64)] = 12  # of a drawn program, at most
    demonstration_lines: Annotated[int, Ge(1), Le(64)] = 12  # of a demonstrated one
    lazy_demonstrations: Share = 0.0  # share that lists the values
    program: Literal["language", "python"] = "language"
    prior: Literal["strict", "uniform"] = "strict"  # uniform: as the benchmark counts
    compression: NonNegative = 0.5  # weight of what a right program saves
    partial: NonNegative = 0.2  # of a wrong one, times the share of its beginning that is right
    explain: bool = True  # the prompt says what is asked

    def check(self, where: str = "task") -> None:
        """Raises UserError for settings that contradict each other."""
        if self.program == "python" and self.prior == "uniform":
            raise UserError(f"{where}.prior = 'uniform' must be 'strict' with {where}.program = 'python'")


def make_task(settings: Settings, seed: int) -> Task:
    """The task. Raises DataError for a file that has no piece of `length` values."""
    if settings.path:
        train, held_out = _of_file(settings)
        shown: Sequence[Problem] = ()
    else:
        held_out = drawn_held_out(settings)
        taken = frozenset(p.answer for p in held_out)
        train = Generated(settings.train_problems, lambda i: _drawn(f"train {seed} {i}", settings, taken))
        shown = Generated(settings.demonstrations, lambda i: _drawn(f"shown {seed} {i}", settings, taken, shown=True))
    return Task(
        name="kolmogorov",
        train=train,
        held_out=held_out,
        judge=lambda problem, submission, services: judge(problem, submission, services, settings),
        extract=lambda problem, text: program_in(text),
        demonstrations=shown if settings.program == "language" else (),
        corpus=lambda: _corpus(settings),
        metrics=lambda group: metrics(group, settings),
        slices=lambda problem: {"lines": problem.meta["lines"]} if "lines" in problem.meta else {},
        well_formed=lambda problem, submission: (
            _lines(submission.program or "") is not None or settings.program == "python"
        ),
    )


def problem_of(values: Sequence[int], name: str, settings: Settings, **more: object) -> Problem:
    """The problem of a sequence."""
    numbers = " ".join(map(str, values)) if settings.program == "language" else str([*values])
    asked = f"{EXPLAINED[settings.program]}\n{numbers}" if settings.explain else numbers
    return Problem(name, ({"role": "user", "content": asked},), answer=tuple(values), **more)  # type: ignore[arg-type]


def _drawn(key: str, settings: Settings, taken: frozenset[tuple[int, ...]], shown: bool = False) -> Problem:
    """A problem whose sequence is not one of `taken`, with the program that it was drawn with as its demonstration."""
    rng = random.Random(f"kolmogorov {key}")
    lines = settings.demonstration_lines if shown else settings.lines
    shape = Shape(settings.bases, 3, settings.base_length, settings.largest, settings.length, lines)
    while True:
        program, values = generate(rng, shape)
        if tuple(values) not in taken:
            break
    if (shown and rng.random() < settings.lazy_demonstrations) or bits(program) > bits(literal(values)):
        program = literal(values)
    meta = {"lines": len(program)}
    return problem_of(values, f"kolmogorov/{key.replace(' ', '/')}", settings, demonstration=show(program), meta=meta)


def drawn_held_out(settings: Settings) -> list[Problem]:
    """Different ones, the same for every run."""
    found: list[Problem] = []
    for i in range(settings.held_out_problems):
        taken = frozenset(p.answer for p in found)
        found.append(_drawn(f"held_out {HELD_OUT_SEED} {i}", settings, taken))
    return found


def _of_file(settings: Settings) -> tuple[list[Problem], list[Problem]]:
    """Pieces of the file: one in ten is held out."""
    pieces = read_sequences(settings.path, settings.length)
    problems = [problem_of(values, f"kolmogorov/{i}", settings) for i, values in enumerate(pieces)]
    held_out = problems[::HELD_OUT_PIECES][: settings.held_out_problems]
    train = [p for i, p in enumerate(problems) if i % HELD_OUT_PIECES]
    return train[: settings.train_problems], held_out


def read_sequences(path: str, length: int) -> list[list[int]]:
    """The pieces of `length` bytes of a file, or the lists of a .jsonl file. Raises DataError where there are none."""
    file = expanded(path)
    if file.name.endswith((".jsonl", ".jsonl.gz")):
        pieces = [row.values("sequence") for row in read_rows(path)]
        wrong = next((i for i, p in enumerate(pieces, 1) if not _is_bytes(p)), 0)
        if wrong:
            raise DataError(f'{path}: line {wrong}: "sequence" must be a list of 1 to 256 numbers from 0 to 255')
        return pieces
    try:
        data = file.read_bytes()
        data = gzip.decompress(data) if file.suffix == ".gz" else data
    except OSError as error:
        raise DataError(f"task.path: {path} cannot be read ({error})") from None
    pieces = [[*data[i : i + length]] for i in range(0, len(data) - length + 1, length)]
    if not pieces:
        raise DataError(f"task.path: {path} has {len(data)} bytes, fewer than task.length = {length}")
    return pieces


def _is_bytes(values: Sequence[object]) -> bool:
    return 0 < len(values) <= 256 and all(type(v) is int and 0 <= v <= 255 for v in values)


def _corpus(settings: Settings) -> Iterable[str]:
    """The same for every seed, so that runs with different seeds have the same tokenizer."""
    for i in range(0 if settings.path else CORPUS_PROBLEMS):
        problem = _drawn(f"corpus {i}", settings, frozenset())
        yield f"user\n{problem.messages[-1]['content']}"
        yield f"assistant\n{problem.demonstration}"


def program_in(text: str) -> str:
    """The program of an answer: a fenced block, or all of it, up to ###."""
    return code_block(text.split("###")[0])


def _lines(program: str) -> list[Line] | None:
    try:
        return parse(program)
    except ProgramError:
        return None


async def outcome(program: str, settings: Settings, services: Services, answer: Sequence[int]) -> tuple[list[int], str]:
    """What the program gives, [] for nothing, and why not."""
    if settings.program == "language":
        try:
            return run(parse(program)), ""
        except ProgramError as error:
            return [], str(error)
    if "open(" in program:
        return [], "open( is not allowed"
    shown = f"{program}\nprint([int(v) for v in output])"
    verdict = await services.run(Program(shown, (StdioTest("", str([*answer])),), PYTHON_LIMITS))
    return ([*answer], "") if verdict.passed else ([], verdict.status)


async def judge(problem: Problem, submission: Submission, services: Services, settings: Settings) -> Reward:
    """See the module."""
    program, values = submission.program or "", [*problem.answer]
    given, why = await outcome(program, settings, services, values)
    if why == "sandbox_error":
        return Reward(0.0, False, {"solved": 0.0}, Verdict("sandbox_error"))
    if given != values:
        parts = {"solved": 0.0, "prefix": settings.partial * _right_beginning(given, values) / len(values)}
        return Reward(sum(parts.values()), False, parts)
    saved = 1 - program_bits(program, settings) / bits(literal(values), settings.prior)
    parts = {"solved": 1.0, "compression": settings.compression * saved}
    return Reward(sum(parts.values()), True, parts, answer=program.strip())


def program_bits(program: str, settings: Settings) -> float:
    """The length of a program that runs."""
    if settings.program == "python":
        return text_bits(program, PYTHON_DICTIONARY)
    return bits(parse(program), settings.prior)


def _right_beginning(given: Sequence[int], values: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(given, values)) if a != b), min(len(given), len(values)))


def metrics(group: Group, settings: Settings) -> dict[str, float]:
    """Of a problem: bits per bit, honestly; the share of literals; how often beginnings are right.

    bits_per_bit: the program's bits where it is right, else the literal's, and one bit that says which, over those of
    the sequence. Below 1 is compression.
    """
    values, episodes = [*group.problem.answer], group.episodes
    n = len(episodes)
    plain = bits(literal(values), settings.prior)
    spent, literals, right = 0.0, 0, []
    for e in episodes:
        program = e.submitted.program or ""
        spent += 1 + (program_bits(program, settings) if e.reward.solved else plain)
        lines = _lines(program) if settings.program == "language" else None
        literals += bool(lines and len(lines) == 1 and lines[0].function == "set_list")
        given = _run_or_nothing(lines) if lines else values if e.reward.solved else []
        right.append(_right_beginning(given, values))
    found = {"bits_per_bit": spent / n / (8 * len(values)), "literals": literals / n}
    return found | {f"first_{k}": sum(r >= k for r in right) / n for k in PREFIXES if k <= len(values)}


def _run_or_nothing(lines: list[Line]) -> list[int]:
    try:
        return run(lines)
    except ProgramError:
        return []

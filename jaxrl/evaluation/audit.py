"""How good the tests of a task are: wrong programs that they let pass, problems that come twice, tests that disagree.

The wrong programs are mutants of each problem's reference program (jaxrl/tasks/mutants.py) and, if given, a model's
stored answers. A program that passes all tests is

- certainly wrong, if stronger tests of the same problem reject it (those of EvalPlus, arXiv 2305.01210, say), which the
  reference passes;
- different, if on a generated input it does not do what the reference does. Generated inputs are changed arguments of
  the tests' own calls, of their types, on which the reference returns a value; the problem may not allow all of them;
- else not told from the reference, and not counted as wrong: most of these mutants are equivalent.
"""

from __future__ import annotations

import ast
import dataclasses
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxrl.tasks.acecode import as_call
from jaxrl.tasks.behaviour import NOTHING_IS, given, mutated, normal_value, public_inputs
from jaxrl.tasks.extract import code_block, parses
from jaxrl.tasks.mutants import mutants, without_docstrings
from rollouts.episode import Problem
from rollouts.services import JudgePool
from sandbox.verdict import CallTest, Limits, Program, Verdict

INPUTS = 48  # generated for each problem that has survivors
BATCH = 256  # programs judged between two lines of progress
LIMITS = Limits(wall_s=5, cpu_s=1)  # of a program where its problem has none: many mutants never end

Show = Callable[[str, int, int], None]


@dataclass
class Survivor:
    """A program that passes all tests of a problem and is not the reference."""

    program: str
    origin: str  # mutant, sample
    rejected: bool = False  # by stronger tests
    input: str = ""  # a call on which it does something else than the reference
    gives: tuple[str, str] = ("", "")  # there: the reference and this program

    @property
    def kind(self) -> str:
        return "certainly wrong" if self.rejected else "different" if self.input else "not told apart"


@dataclass
class Audited:
    """What is known about the tests of a problem."""

    problem: Problem
    reference: str
    failure: str = ""  # why the reference does not pass
    stronger: Problem | None = None  # the same problem with stronger tests; None too if its reference fails those
    stronger_failure: str = ""  # why it does
    tried: dict[str, int] = field(default_factory=dict)  # programs by origin
    survivors: list[Survivor] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        survivors = [{"kind": s.kind} | dataclasses.asdict(s) for s in self.survivors]
        return {
            "id": self.problem.id,
            "failure": self.failure,
            "stronger_failure": self.stronger_failure,
            "tried": self.tried,
            "survivors": survivors,
        }


def audit_problems(
    problems: Sequence[Problem],
    pool: JudgePool,
    *,
    count: int = 20,
    seed: int = 0,
    stronger: Sequence[Problem] = (),
    samples: dict[str, list[str]] | None = None,
    show: Show = lambda stage, done, total: None,
) -> list[Audited]:
    """Audits the problems that have a reference program: a demonstration in text.

    Args:
        count: mutants of each, at most.
        stronger: the problems with stronger tests, by the same ids.
        samples: programs of a model, by the problem's id.
        show: gets a stage's name, how many programs it has judged, and how many there are.
    """
    by_id = {p.id: p for p in stronger}
    audited = [Audited(p, code_block(p.demonstration)) for p in problems if isinstance(p.demonstration, str)]
    _check_references(audited, by_id, pool, show)
    right = [a for a in audited if not a.failure]
    tries: list[tuple[Audited, Survivor]] = []
    for a in right:
        programs = dict.fromkeys(mutants(a.reference, random.Random(f"{seed} {a.problem.id}"), count), "mutant")
        for text in (samples or {}).get(a.problem.id, ()):
            programs.setdefault(text, "sample")
        for origin in programs.values():
            a.tried[origin] = a.tried.get(origin, 0) + 1
        tries += [(a, Survivor(text, origin)) for text, origin in programs.items()]
    verdicts = _run([program_of(a.problem, s.program) for a, s in tries], pool, show, "wrong programs")
    for (a, survivor), verdict in zip(tries, verdicts):
        if verdict.passed:
            a.survivors.append(survivor)
    _reject_by_stronger(right, pool, show)
    _tell_apart(right, pool, show)
    return audited


def program_of(problem: Problem, code: str, stop: bool = True) -> Program:
    """A program with the tests of a problem."""
    return Program(code, problem.tests, problem.meta.get("limits", LIMITS), stop_at_first_failure=stop)


def _run(programs: Sequence[Program], pool: JudgePool, show: Show, stage: str) -> list[Verdict]:
    verdicts: list[Verdict] = []
    show(stage, 0, len(programs))
    for start in range(0, len(programs), BATCH):
        verdicts += pool.run(programs[start : start + BATCH])
        show(stage, len(verdicts), len(programs))
    return verdicts


def _check_references(audited: Sequence[Audited], stronger: dict[str, Problem], pool: JudgePool, show: Show) -> None:
    verdicts = _run([program_of(a.problem, a.reference) for a in audited], pool, show, "references")
    for a, verdict in zip(audited, verdicts):
        a.failure = reason(verdict)
    more = [a for a in audited if not a.failure and a.problem.id in stronger]
    verdicts = _run([program_of(stronger[a.problem.id], a.reference) for a in more], pool, show, "stronger tests")
    for a, verdict in zip(more, verdicts):
        a.stronger = stronger[a.problem.id] if verdict.passed else None
        a.stronger_failure = reason(verdict)


def reason(verdict: Verdict) -> str:
    """Why a program does not pass; "" if it does."""
    first = verdict.first_failure
    return "" if verdict.passed else f"{verdict.status}: {first.message if first else verdict.stderr}"[:200]


def _reject_by_stronger(audited: Sequence[Audited], pool: JudgePool, show: Show) -> None:
    pairs = [(s, program_of(a.stronger, s.program)) for a in audited if a.stronger for s in a.survivors]
    verdicts = _run([program for _, program in pairs], pool, show, "survivors on stronger tests")
    for (survivor, _), verdict in zip(pairs, verdicts):
        survivor.rejected = not verdict.passed and verdict.status != "sandbox_error"


def _tell_apart(audited: Sequence[Audited], pool: JudgePool, show: Show) -> None:
    """Compares survivors with their reference on generated inputs."""
    suspects = [a for a in audited if a.survivors]
    calls = [generated_inputs(a.problem) for a in suspects]
    limits = [a.problem.meta.get("limits", LIMITS) for a in suspects]
    asked = [(a, c, limit) for a, c, limit in zip(suspects, calls, limits) if c]
    verdicts = _run([Program(a.reference, tuple(c), limit) for a, c, limit in asked], pool, show, "references' values")
    tries: list[tuple[Survivor, list[CallTest], list[list[str]]]] = []
    programs: list[Program] = []
    for (a, c, limit), verdict in zip(asked, verdicts):
        values = [(test, given(test, r)) for test, r in zip(c, verdict.tests) if r.status == "wrong_answer"]
        for survivor in a.survivors if values else ():
            tries.append((survivor, [test for test, _ in values], [value for _, value in values]))
            programs.append(Program(survivor.program, tuple(test for test, _ in values), limit))
    for (survivor, tests, wanted), verdict in zip(tries, _run(programs, pool, show, "survivors on generated inputs")):
        for test, value, result in zip(tests, wanted, verdict.tests):
            own = given(test, result)
            if own != value and verdict.status != "sandbox_error":
                arguments = [repr(a) for a in test.args] + [f"{k}={v!r}" for k, v in test.kwargs.items()]
                survivor.input = f"{test.function}({', '.join(arguments)})"[:300]
                survivor.gives = value[1][:100], (own[1] if len(own) > 1 else own[0])[:100]
                break


def generated_inputs(problem: Problem) -> list[CallTest]:
    """INPUTS calls with changed arguments of the tests' own calls; [] where the tests have none with constants."""
    shown = dataclasses.replace(problem, public_tests=(*problem.tests, *problem.public_tests))
    calls = [probe for probe in public_inputs(shown) if isinstance(probe, CallTest) and probe.args]
    rng, found = random.Random(f"audit {problem.id}"), {}
    for _ in range(4 * INPUTS if calls else 0):
        call = rng.choice(calls)
        args = call.args
        for _ in range(rng.choice((1, 1, 2, 4))):
            chosen = rng.randrange(len(args))
            args = tuple(mutated(a, rng) if i == chosen else a for i, a in enumerate(args))
        found.setdefault(repr(args), dataclasses.replace(call, args=args, expected=NOTHING_IS))
        if len(found) == INPUTS:
            break
    return list(found.values())


def duplicates(problems: Sequence[Problem]) -> dict[str, list[list[str]]]:
    """Ids of problems that ask the same, and of those whose references differ in names and layout only."""
    texts, shapes = defaultdict(list), defaultdict(list)
    for p in problems:
        asked = p.messages[-1]["content"] if p.messages else str(p.prompt)
        texts[" ".join(asked.lower().split())].append(p.id)
        if isinstance(p.demonstration, str) and (shape := shape_of(code_block(p.demonstration))):
            shapes[shape].append(p.id)
    return {
        "same text": [ids for ids in texts.values() if len(ids) > 1],
        "same reference program": [ids for ids in shapes.values() if len(ids) > 1],
    }


def shape_of(code: str) -> str:
    """A program without its names, docstrings and layout; "" for what is not Python."""
    if not parses(code):
        return ""
    tree = without_docstrings(ast.parse(code))
    own = {n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    own |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
    own |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        for attribute in ("name", "arg", "id"):
            name = getattr(node, attribute, None)
            if isinstance(name, str) and name in own:
                setattr(node, attribute, names.setdefault(name, f"v{len(names)}"))
    return ast.unparse(tree)


def contradictions(problem: Problem) -> list[str]:
    """Calls for which two tests of the problem expect different values."""
    expected: dict[str, dict[str, str]] = defaultdict(dict)  # by call and value: 1 and 1.0 agree
    for call in stated_calls(problem):
        value = repr(call.expected)
        expected[f"{call.function}{call.args!r}{call.kwargs or ''}"].setdefault(normal_value(value), value)
    return [f"{call} == {' and '.join(sorted(v.values()))}" for call, v in expected.items() if len(v) > 1]


def stated_calls(problem: Problem) -> Iterator[CallTest]:
    """Tests of the form f(constants) == constant."""
    for test in problem.tests:
        if isinstance(test, CallTest):
            yield test
        elif (code := getattr(test, "code", "")) and parses(code):
            found = (as_call(node) for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Assert))
            yield from (call for call in found if call is not None)


def summary(audited: Sequence[Audited]) -> dict[str, float]:
    """Counts over the problems with a reference that passes; see the module's text for what they mean."""
    right = [a for a in audited if not a.failure]
    counts: dict[str, float] = {"problems with a reference": len(audited)}
    counts["references that fail"] = len(audited) - len(right)
    counts["with stronger tests that the reference passes"] = sum(a.stronger is not None for a in right)
    counts["with stronger tests that the reference fails"] = sum(bool(a.stronger_failure) for a in right)
    for origin in ("mutant", "sample"):
        tried = sum(a.tried.get(origin, 0) for a in right)
        if not tried:
            continue
        own = [s for a in right for s in a.survivors if s.origin == origin]
        counts |= {f"{origin}s": tried, f"{origin}s that pass": len(own)}
        for kind in ("certainly wrong", "different", "not told apart"):
            counts[f"{origin}s that pass: {kind}"] = sum(s.kind == kind for s in own)
    wrong = [{s.kind for s in a.survivors} for a in right]
    counts["problems that let a certainly wrong program pass"] = sum("certainly wrong" in kinds for kinds in wrong)
    counts["problems that let a wrong or different one pass"] = sum(bool(kinds - {"not told apart"}) for kinds in wrong)
    return counts

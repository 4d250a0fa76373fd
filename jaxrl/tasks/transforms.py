"""Write the program that changes programs, instead of changing them (arXiv 2410.08806).

A problem shows three programs before and after one of 16 rules (jaxrl/tasks/rewriting), one of which must stay as it
is. With style "transform" the answer is a Python function of source text; the reward is the share of hidden programs
that it makes what they should be, and solved means all. With "rewrite" the model changes a program itself, which is
what transforms are compared with: a problem is one program more, the reward 0 or 1.

Small models get smaller problems, "swaps": 78 rules of one operator and one guard, and a language of one-line answers
(jaxrl/tasks/rewriting/verbs.py).

Answers run in the sandbox, and syntax trees are compared in its judge.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from jaxrl.config.rules import Count, NonNegative, Positive, Share, nearest
from jaxrl.config.task import TaskSettings
from jaxrl.errors import UserError
from jaxrl.tasks import Task
from jaxrl.tasks.extract import code_block
from jaxrl.tasks.rewriting import programs, score, swaps
from jaxrl.tasks.rewriting.programs import Pair
from jaxrl.tasks.sampling import Generated
from rollouts.episode import Group, Problem, Reward, Submission
from rollouts.services import Services
from sandbox.verdict import CallTest, Program, Verdict

PUBLIC = (2, 1)  # shown: programs that change, and that stay
ASKED = {
    "transform": "Write a Python function transform(source: str) -> str. It gets the text of a Python program and "
    "returns the text of the program changed as in these examples; it must leave alone what they leave alone. Layout "
    "and comments do not matter; use the module ast. Answer with one fenced Python code block.",
    "swaps": "Write a transform of programs in lines of swap(before, after, guards): patterns of Python text in which "
    "$a and the like are any expression; guards are name, no_call and no_constant of one of them. Example:\n"
    'swap("$a + $a", "$a * 2", name("a"))\n'
    "It must change programs as in these examples and leave alone what they leave alone.",
    "rewrite": "Change the last program as in these examples, or leave it as it is where they would. Answer with the "
    "whole program in one fenced Python code block.",
}
HELD_OUT_SEED = 70_000_027  # the same held-out problems for every run
CORPUS_PROBLEMS = 200


@dataclass
class Settings(TaskSettings):
    """Transformations of programs from examples."""

    problems: Literal["rules", "swaps"] = "rules"  # the 16 rules, or small ones that are answered in a line
    style: Literal["transform", "rewrite"] = "transform"  # write the transform, or change a program directly
    rules: tuple[str, ...] = ()  # the rules of the problems; (): all
    held_out_rules: tuple[str, ...] = ()  # rules of held-out problems alone; (): the same rules, with other programs
    neutral: Annotated[int, Ge(0), Le(6)] = 2  # pieces of a program that no rule changes, at most
    hidden: Annotated[int, Ge(1), Le(100)] = 10  # programs of the reward that change
    hidden_controls: Annotated[int, Ge(0), Le(100)] = 6  # and that must stay; for one of them, in style "rewrite"
    broken_penalty: NonNegative = 0.0  # off the reward, for each wrongly changed program that does something else
    lazy_demonstrations: Share = 0.0  # share without the guard, of swaps
    explain: bool = True  # the prompt says what is asked
    # Fewer than of other tasks: a problem has 19 programs.
    held_out_problems: Positive = 64
    demonstrations: Count = 2000

    def check(self, where: str = "task") -> None:
        """Raises UserError for rules that do not exist, and for settings that contradict each other."""
        for field, rules in (("rules", self.rules), ("held_out_rules", self.held_out_rules)):
            for rule in rules:
                if rule not in self.every():
                    raise UserError(f"{where}.{field}: {rule!r} does not exist{nearest(rule, [*self.every()])}")
        if not self.trained():
            raise UserError(f"{where}.held_out_rules leaves no rule of {where}.rules to train on")
        for field, value, setting in (("style", "rewrite", "broken_penalty"), ("problems", "swaps", "broken_penalty"),
                                      ("style", "rewrite", "lazy_demonstrations"),
                                      ("problems", "rules", "lazy_demonstrations")):  # fmt: skip
            if getattr(self, field) == value and getattr(self, setting):
                raise UserError(
                    f"{where}.{setting} = {getattr(self, setting)} must be 0 with {where}.{field} = {value!r}"
                )

    def every(self) -> Collection[str]:
        """The rules that there are."""
        return programs.RULES if self.problems == "rules" else swaps.RULES

    def trained(self) -> list[str]:
        """The rules of training problems."""
        return [rule for rule in self.rules or self.every() if rule not in self.held_out_rules]


def make_task(settings: Settings, seed: int) -> Task:
    """The task. There are no demonstrations of transforms for the 16 rules."""
    trained = settings.trained()
    held_out = [*settings.held_out_rules] or trained

    def problems(part: str, size: int, rules: list[str], key: int) -> Generated:
        return Generated(size, lambda i: draw_problem(rules[i % len(rules)], part, i, key, settings))

    return Task(
        name="transforms",
        train=problems("train", settings.train_problems, trained, seed),
        held_out=[*problems("held_out", settings.held_out_problems, held_out, HELD_OUT_SEED)],
        judge=lambda problem, submission, services: judge(problem, submission, services, settings),
        extract=lambda problem, text: extract(text, settings),
        demonstrations=problems("shown", settings.demonstrations, trained, seed) if _shows(settings) else (),
        corpus=lambda: _corpus(settings),
        metrics=lambda group: metrics(group, settings),
        headline="hidden_right" if settings.style == "transform" else "pass@1",
        slices=lambda problem: {key: problem.meta[key] for key in ("rule", "changes") if key in problem.meta},
    )


def _shows(settings: Settings) -> bool:
    return settings.style == "rewrite" or settings.problems == "swaps"


def draw_problem(rule: str, part: str, number: int, seed: int, settings: Settings) -> Problem:
    """The problem with this number of a part of the task, the same for the same seed."""
    rng = random.Random(f"transforms {part} {seed} {number}")
    draw_pairs = programs.draw_pairs if settings.problems == "rules" else swaps.draw_pairs
    public = draw_pairs(rule, *PUBLIC, rng, settings.neutral)
    name = f"transforms/{part}/{number}"
    if settings.style == "transform":
        hidden = draw_pairs(rule, settings.hidden, settings.hidden_controls, rng, settings.neutral, public)
        lazy = rng.random() < settings.lazy_demonstrations and part == "shown"
        shown = swaps.line(rule, not lazy) if settings.problems == "swaps" else None
        return _problem(name, rule, public, hidden, shown, settings)
    changes = rng.random() < settings.hidden / (settings.hidden + settings.hidden_controls)
    (pair,) = draw_pairs(rule, int(changes), int(not changes), rng, settings.neutral, public)
    return _problem(name, rule, public, [pair], _fenced(pair.after), settings)


def _problem(
    name: str, rule: str, public: list[Pair], hidden: list[Pair], shown: str | None, settings: Settings
) -> Problem:
    kind = "swaps" if settings.problems == "swaps" and settings.style == "transform" else settings.style
    asked = [ASKED[kind]] if settings.explain else []
    asked += [f"Before:\n{_fenced(p.before)}\nAfter:\n{_fenced(p.after)}" for p in public]
    meta: dict[str, Any] = {"rule": rule, "calls": {p.before: p.calls for p in hidden}}
    if settings.style == "rewrite":
        asked.append(f"Before:\n{_fenced(hidden[0].before)}\nAfter:")
        meta["changes"] = hidden[0].applies
    return Problem(
        name,
        ({"role": "user", "content": "\n\n".join(asked)},),
        tests=score.pair_tests(hidden),
        public_tests=score.pair_tests(public),
        demonstration=shown,
        meta=meta,
    )


def _fenced(program: str) -> str:
    return f"```python\n{program.rstrip()}\n```"


def _corpus(settings: Settings) -> Iterable[str]:
    """The same for every seed, so that runs with different seeds have the same tokenizer."""
    rules = settings.trained()
    for i in range(CORPUS_PROBLEMS):
        problem = draw_problem(rules[i % len(rules)], "corpus", i, 0, settings)
        yield f"user\n{problem.messages[-1]['content']}"
        yield f"assistant\n{problem.demonstration or ''}"


def extract(text: str, settings: Settings) -> str:
    """The transform in a text. Of a rewritten program it is the one that always gives that program."""
    if settings.style == "rewrite":
        return f"def {score.FUNCTION}(source):\n    return {code_block(text)!r}\n"
    if settings.problems == "swaps":
        return swaps.HEADER + code_block(text)
    return code_block(text, names=(score.FUNCTION,))


async def judge(problem: Problem, submission: Submission, services: Services, settings: Settings) -> Reward:
    """The share of the problem's tests that pass, without `broken_penalty` for each program that it breaks.

    0 for what reproduces no change: to do nothing passes the tests of programs that must stay as they are.
    """
    files = swaps.VERBS if settings.problems == "swaps" and settings.style == "transform" else {}
    verdict = await services.run(Program(submission.program or "", problem.tests, score.LIMITS, files=files))
    if verdict.status == "sandbox_error":
        return Reward(0.0, False, {}, verdict)
    changes = [r.status == "passed" for t, r in zip(_tests(problem), verdict.tests) if t.args[0] != t.expected]
    parts = {"pairs": verdict.pass_fraction if any(changes) or not changes else 0.0}
    if settings.broken_penalty:
        calls = problem.meta["calls"]
        pairs = [Pair(t.args[0], t.expected, calls.get(t.args[0], ())) for t in _tests(problem)]
        broken = await score.broken(pairs, verdict.tests, services)
        if broken is None:
            return Reward(0.0, False, {}, Verdict("sandbox_error"))
        parts["broken"] = -settings.broken_penalty * broken
    return Reward(sum(parts.values()), verdict.passed, parts, verdict)


def _tests(problem: Problem) -> list[CallTest]:
    return [t for t in problem.tests if isinstance(t, CallTest)]


def metrics(group: Group, settings: Settings) -> dict[str, float]:
    """Means over the samples of a problem.

    hidden_right: share of hidden programs that are right; what the transform crashes on is not. precision, recall,
    perfectly_precise and crashed are those of jaxrl/tasks/rewriting/score.py. Of rewritten programs, one a problem: the
    shares tp, fp, fn, tn, whose means give precision = tp / (tp + fp) and recall = tp / (tp + fn) over all problems.
    """
    tests, verdicts = _tests(group.problem), [e.reward.verdict for e in group.episodes]
    scores = [score.score_of(tests, v.tests) for v in verdicts if v and v.status != "sandbox_error"]
    count = max(len(scores), 1)
    if settings.style == "rewrite":
        return {kind: sum(getattr(s, kind) for s in scores) / count for kind in ("tp", "fp", "fn", "tn")}
    found = {
        "precision": sum(s.precision for s in scores) / count,
        "recall": sum(s.recall for s in scores) / count,
        "perfectly_precise": sum(s.perfectly_precise for s in scores) / count,
        "crashed": sum(s.crashed / len(tests) for s in scores) / count,
    }
    right = sum(v.pass_fraction for v in verdicts if v and v.status != "sandbox_error")
    return found | {"hidden_right": right / len(group.episodes)}

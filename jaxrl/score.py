"""Scores finished programs as OpenAI's human-eval and EvalPlus do, without a model and without extraction.

    python -m jaxrl.score SAMPLES --task humaneval --path HumanEval.jsonl.gz
    python -m jaxrl.score SAMPLES --task mbpp --path MbppPlus.jsonl.gz --results results.jsonl

SAMPLES is a .jsonl(.gz) file of {"task_id", "completion"} (the program is the problem's prompt and the completion) or
{"task_id", "solution"} (the program as it stands), or EvalPlus' folder TASK_ID/0.py of solutions. The data says which
tests: HumanEval's and MBPP's own, or EvalPlus' base and plus inputs, judged separately.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxrl.datafiles import DataError, Row, read_rows
from jaxrl.estimators import bootstrap_interval, pass_at_k
from jaxrl.evalplus import PLUS_LIMITS, evalplus_test, is_evalplus
from jaxrl.files import write_beside
from jaxrl.tasks import Task, mbpp
from rollouts.episode import Group, Problem
from sandbox.isolation import IsolationError
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
    return {harness_id(row.get("task_id")): make(row) for row in read_rows(path, split)}


def _plus_suites(row: Row) -> dict[str, tuple[Test, ...]]:
    prompt = row.get("prompt")
    return {"base": (evalplus_test(row, prompt, "base"),), "plus": (evalplus_test(row, prompt, "plus"),)}


def _humaneval_example(row: Row) -> Example:
    if is_evalplus(row):
        return Example(row.get("prompt"), _plus_suites(row), PLUS_LIMITS)
    # The test as it stands: what it uses beside the function (poly in HumanEval/32) is the program's, as in human-eval.
    return Example(row.get("prompt"), {"base": (CheckTest(row.get("test"), row.get("entry_point")),)}, LIMITS)


def _mbpp_example(row: Row) -> Example:
    if is_evalplus(row):
        return Example(row.get("prompt"), _plus_suites(row), PLUS_LIMITS)
    return Example("", {"base": mbpp.make_problem(row).tests}, LIMITS)


def read_samples(source: str) -> list[Row]:
    """Rows with "task_id" and "completion" or "solution". Raises DataError for a row without them."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        files = sorted(folder.glob("*/*.py"), key=lambda p: (p.parent.name, len(p.stem), p.stem))
        rows = [
            Row(str(p), {"task_id": p.parent.name.replace("_", "/"), "solution": p.read_text(encoding="utf-8")})
            for p in files
        ]
    else:
        rows = read_rows(source)
    for row in rows:
        for name in ("task_id", "solution" if "solution" in row.fields else "completion"):
            if not isinstance(row.get(name), (str, int)):
                raise DataError(f"{row.where}: {name} is a {type(row.get(name)).__name__}, must be a text")
    if not rows:
        raise DataError(f"{source}: no samples; a file has a row a line, a folder the files TASK_ID/0.py")
    return rows


def score_samples(examples: dict[str, Example], samples: Sequence[Row], pool: Pool) -> list[Scored]:
    """The outcome of each sample whose problem is among the examples, in their order."""
    known = [row for row in samples if harness_id(row.get("task_id")) in examples]
    waiting = []
    for row in known:
        example = examples[harness_id(row.get("task_id"))]
        code = row.fields["solution"] if "solution" in row.fields else example.prompt + row.get("completion")
        programs = {name: Program(code, tests, example.limits) for name, tests in example.suites.items()}
        waiting.append({name: pool.submit(program) for name, program in programs.items()})
    scored, seen = [], Counter()
    for row, futures in zip(known, waiting):
        task_id = harness_id(row.get("task_id"))
        verdicts = {name: future.result() for name, future in futures.items()}
        failed = next((v for v in verdicts.values() if not v.passed), None)
        message = failed.first_failure.message if failed and failed.first_failure else ""
        passed = {name: v.passed for name, v in verdicts.items()}
        scored.append(Scored(task_id, seen[task_id], passed, failed.status if failed else "passed", message))
        seen[task_id] += 1
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
    """
    if task.name not in TASKS or task.program is None:
        return []
    programs = [(e.problem, task.program(e.problem, e.text)) for g in groups for e in g.episodes]
    rows = {"evalplus.jsonl": [{"task_id": harness_id(p.id), "solution": code} for p, code in programs]}
    if task.name == "humaneval":
        rows["human_eval.jsonl"] = [{"task_id": p.id, "completion": _after_prompt(p, code)} for p, code in programs]
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in rows.items():
        write_beside(folder / name, "".join(json.dumps(line) + "\n" for line in lines))
    return [folder / name for name in rows]


def _after_prompt(problem: Problem, code: str) -> str:
    """What follows the prompt when it is written down before the program; the plain rest where it begins with it."""
    header = problem.meta["header"]
    return code.removeprefix(header) if code.startswith(header) else f"\n{code}"


def main(arguments: list[str]) -> int:
    """The command: pass@k, and the problems that fail; 1 with one line on stderr for data that cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m jaxrl.score", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("samples", help=".jsonl(.gz) of {task_id, completion | solution}, or a folder TASK_ID/0.py")
    parser.add_argument("--task", required=True, choices=TASKS)
    parser.add_argument("--path", required=True, help="problem data, as task.path")
    parser.add_argument("--split", default="test", help="of a hub data set")
    parser.add_argument("--results", default="", help="write each sample's outcome to this .jsonl")
    parser.add_argument("--workers", type=int, default=0, help="programs at a time; 0: one per core")
    options = parser.parse_args(arguments)
    try:
        examples, samples = read_examples(options.task, options.path, options.split), read_samples(options.samples)
        with Pool(options.workers) as pool:
            scored = score_samples(examples, samples, pool)
        if not scored:
            raise DataError(f"{options.samples}: no sample is of a problem of {options.path}")
    except (OSError, ValueError, IsolationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.results:
        write_beside(Path(options.results), "".join(json.dumps(s.to_json()) + "\n" for s in scored))
    print(f"samples of other problems, not scored: {len(samples) - len(scored)}")
    print(f"problems without a sample, not counted: {len(examples.keys() - {s.task_id for s in scored})}")
    for name, value in summary(scored).items():
        print(f"{name}  {value:.4g}")
    for s in scored:
        if not s.solved:
            suites = ", ".join(name for name, ok in s.passed.items() if not ok)
            print(f"failed  {s.task_id}  sample {s.sample}  {suites}  {s.status}  {s.message.splitlines()[:1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

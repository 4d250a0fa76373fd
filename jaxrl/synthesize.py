"""Questions with tests from code, wrong tests filtered out (AceCoder, arXiv 2502.01718).

    python -m jaxrl.synthesize --config FILE --config.synthesis.path=SEEDS --config.model.path=MODEL

The model of the config rewrites each seed, a piece of Python code, as a question with tests, and writes a reference
program for each question; tests that it fails are dropped. Writes runs_dir/NAME/candidates.jsonl and, after the filter,
questions.jsonl in the schema of AceCode-87K, which task acecode reads. The same command carries on. Another model's
reference programs: config.synthesis.reference=none here, then the candidates.jsonl as config.synthesis.path of a run
with that model. config.synthesis.writer=template needs no model. docs/reference/acecode.md has the settings.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxrl.config import Config
from jaxrl.config.command_line import read_config
from jaxrl.config.plugins import settle
from jaxrl.config.rules import check_settings
from jaxrl.errors import UserError, command
from jaxrl.evaluation.sampled import Player, judging_every_test, open_player, passed
from jaxrl.files import append_line, resume_lines, write_beside
from jaxrl.runs.environments import make_services
from jaxrl.runs.folder import open_run
from jaxrl.runs.host import prepare_process
from jaxrl.tasks import Task, acecode, load_task
from jaxrl.tasks.rows import Row, expanded, read_rows
from jaxrl.tasks.synthesis.questions import candidate, filtered, writing_task
from jaxrl.tasks.synthesis.seeds import Seed, read_seeds
from jaxrl.tasks.synthesis.template import (
    template_reference,
    template_reply,
    template_seed,
    validity,
    with_more_tests,
)
from rollouts.episode import Group, Problem
from rollouts.services import Services

QUESTIONS, REFERENCES = 7, 8  # streams of random numbers, beside those of other commands
Rows = list[dict[str, Any]]


def synthesize(config: Config) -> tuple[Path, Counter[str], dict[str, float]]:
    """The file that was written last, what was dropped, by reason, and numbers of its questions and tests.

    Raises UserError where there is nothing to make questions from, or no question is left.
    """
    settle(config)
    check_settings(config)
    s = config.synthesis
    if s.writer == "model" and not s.path:
        raise UserError("synthesis.path = '' must be seeds: a folder of .py files, or a file of rows with \"code\"")
    with open_run(config) as folder, ExitStack() as held:
        task, rejected = load_task(config.task, config.seed), Counter[str]()
        given = read_candidates(s.path, s.seeds) if s.path else []
        problems = _template_problems(config, task) if s.writer == "template" else []
        seeds = read_seeds(s.path, s.seeds, rejected) if s.path and not given else [template_seed(p) for p in problems]
        asks = s.reference == "model" or (s.writer == "model" and not given)
        player = held.enter_context(open_player(config, task, folder)) if asks else None
        if not given:
            replies = _template_replies(config, problems) if problems else _replies(player, seeds, folder, rejected)
            rows = (candidate(seed, replies[seed.id], rejected) for seed in seeds if seed.id in replies)
            given = [row for row in rows if row is not None]
        path = _write(folder / "candidates.jsonl", given, rejected)
        numbers = {"seeds": len(seeds) or len(given)} | _numbers("", given, problems)
        if s.reference != "none":
            questions = _filter(config, given, _references(config, player, problems, given, folder, rejected), rejected)
            path = _write(folder / "questions.jsonl", questions, rejected)
            numbers |= _numbers(" after the filter", questions, problems)
        write_beside(folder / "synthesis.json", json.dumps({"numbers": numbers, "dropped": rejected}, indent=2) + "\n")
        return path, rejected, numbers


def read_candidates(path: str, count: int) -> Rows:
    """The questions of a file that has some, at most `count` (0: all); [] for a file or folder of seeds."""
    if expanded(path).is_dir():
        return []
    rows = read_rows(path)
    if "test_cases" not in rows[0].fields:
        return []
    found = [
        {"id": row.name("id"), "question": row.text("question"), "test_cases": row.texts("test_cases")} for row in rows
    ]
    kept = [{"source": "", "inferences": []} | row.fields | known for row, known in zip(rows, found)]
    return kept[:count] if count else kept


def _template_problems(config: Config, task: Task) -> list[Problem]:
    """The task's first training problems, with as many right tests as a model is asked for."""
    size = min(config.synthesis.seeds or len(task.train), len(task.train))

    async def every(services: Services) -> list[Problem]:
        wanted = config.synthesis.tests
        return list(await asyncio.gather(*(with_more_tests(task.train[i], wanted, services) for i in range(size))))

    with make_services(config, task) as services:
        return asyncio.run(every(services))


def _template_replies(config: Config, problems: Sequence[Problem]) -> dict[str, str]:
    wrong = config.synthesis.wrong_tests
    rngs = (random.Random(f"{config.seed} {QUESTIONS} {p.id}") for p in problems)
    return {template_seed(p).id: template_reply(p, wrong, rng) for p, rng in zip(problems, rngs)}


def _replies(player: Player | None, seeds: Sequence[Seed], folder: Path, rejected: Counter[str]) -> dict[str, str]:
    """The model's reply to each seed; new ones are appended to replies.jsonl."""
    assert player is not None
    path, s = folder / "replies.jsonl", player.config.synthesis
    task = writing_task(seeds, s.tests)

    def row(group: Group) -> dict[str, Any]:
        return {"id": group.problem.id, "reply": group.episodes[0].submitted.text}

    known = _play(player, task, "questions", s.temperature, path, row, rejected)
    return {name: record["reply"] for name, record in known.items()}


def _references(
    config: Config,
    player: Player | None,
    sources: Sequence[Problem],
    given: Rows,
    folder: Path,
    rejected: Counter[str],
) -> dict[str, dict[str, Any]]:
    """Of each question the reference program and the tests that it passes: {"completion", "tests", "model"}.

    The prompt shows no test: a program that was fitted to a wrong test would not find it out.
    """
    settings = acecode.Settings(public_tests=0)
    made = [acecode.make_problem(Row(f"question {row['id']}", row), settings) for row in given]
    rejected.update(f"question: {problem}" for problem in made if isinstance(problem, str))
    problems = [problem for problem in made if not isinstance(problem, str)]
    task = Task("questions", problems, [], acecode.make_judge(settings), extract=acecode.extract)

    def row(group: Group) -> dict[str, Any]:
        (episode,) = group.episodes
        answer = {"completion": episode.submitted.text, "tests": passed(group.problem, episode.reward)}
        return {"id": group.problem.id} | answer | {"model": player.model if player else ""}

    if player is not None:
        return _play(player, task, "references", 0.0, folder / "references.jsonl", row, rejected)
    return _template_references(config, task, {template_seed(p).id: p for p in sources})


def _template_references(config: Config, task: Task, sources: Mapping[str, Problem]) -> dict[str, dict[str, Any]]:
    task, wrong = judging_every_test(task), config.synthesis.wrong_references

    async def one(problem: Problem, services: Services) -> dict[str, Any]:
        rng = random.Random(f"{config.seed} {REFERENCES} {problem.id}")
        text = template_reference(sources[problem.id], wrong, rng)
        reward = await task.judge(problem, task.submission(problem, text), services)
        return {"completion": text, "tests": passed(problem, reward), "model": "template"}

    async def every(services: Services) -> list[dict[str, Any]]:
        return list(await asyncio.gather(*(one(problem, services) for problem in task.train)))

    with make_services(config, task) as services:
        answers = asyncio.run(every(services))
    return {problem.id: answer for problem, answer in zip(task.train, answers)}


def _play(
    player: Player,
    task: Task,
    name: str,
    temperature: float,
    path: Path,
    row: Callable[[Group], dict[str, Any]],
    rejected: Counter[str],
) -> dict[str, dict[str, Any]]:
    """One answer to each problem of the task, by its id: those of the file, to which new ones are appended."""
    problems = [problem for problem in task.train if player.fits(problem)]
    known = {record["id"] for record in resume_lines(path)}
    if known:
        player.progress.print(f"{name}: {len(known)} are kept from an earlier try")
    done = {place for place, problem in enumerate(problems) if problem.id in known}
    seed = (player.config.seed, QUESTIONS if name == "questions" else REFERENCES)
    keep = lambda place, group: append_line(path, row(group))  # noqa: E731
    unjudged = player.play(name, task, problems, 1, temperature, seed, done, keep)
    rejected[f"{name}: prompt too long"] += len(task.train) - len(problems)
    rejected[f"{name}: not judged, another try may"] += unjudged
    return {record["id"]: record for record in resume_lines(path)}


def _filter(config: Config, given: Rows, found: Mapping[str, dict[str, Any]], rejected: Counter[str]) -> Rows:
    least, questions = config.synthesis.least_tests, []
    for row in given:
        if answer := found.get(row["id"]):
            kept = filtered(row, answer["tests"], answer["completion"], answer["model"], least, rejected)
            questions += [kept] if kept else []
    return questions


def _numbers(when: str, rows: Rows, sources: Sequence[Problem]) -> dict[str, float]:
    numbers: dict[str, float] = {f"questions{when}": len(rows)}
    numbers[f"tests of each{when}"] = sum(len(row["test_cases"]) for row in rows) / len(rows)
    return numbers | ({f"right tests{when}": validity(rows, sources)} if sources else {})


def _write(path: Path, rows: Rows, rejected: Counter[str]) -> Path:
    if not rows:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in rejected.items() if count)
        raise UserError(f"{path.stem}: no question is left ({reasons})")
    write_beside(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path


def table(rejected: Mapping[str, int], numbers: Mapping[str, float]) -> Table:
    """What was made, and what was dropped and why."""
    shown = Table("", "")
    for name, value in numbers.items():
        shown.add_row(name, f"{value:.4g}")
    shown.add_section()
    for reason, count in sorted(rejected.items()):
        if count:
            shown.add_row(f"dropped {reason}", str(count))
    return shown


@command()
def main(arguments: list[str]) -> int:
    """The command: a table, and the file; 1 with one line on stderr when no question is left."""
    config = read_config(arguments)
    prepare_process()
    path, rejected, numbers = synthesize(config)
    Console().print(table(rejected, numbers))
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

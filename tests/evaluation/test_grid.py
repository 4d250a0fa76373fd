"""Grids of prompting strategies: cells, what is counted of an episode, equal budgets, resumption."""

from __future__ import annotations

import json
import random
from difflib import SequenceMatcher
from itertools import permutations

import numpy as np
import pytest
from played import Script

from jaxrl import grid as grid_command
from jaxrl.config import Config
from jaxrl.errors import UserError
from jaxrl.evaluation import grid
from jaxrl.evaluation.grid import Cell
from rollouts.environments.feedback import Settings
from rollouts.episode import Attempt, Episode, Problem, Reward, Submission, Turn
from rollouts.strategies import INSTRUCTION, REASONING

P = Problem("p", ({"role": "user", "content": "p"},))


def test_the_papers_grid():
    options, cells, rest = grid_command.options_of(
        ["--config", "FILE", "--reasoning", "all", "--instruction", "all", "--turns", "1", "--config.seed=1"]
    )
    assert len(cells) == 9 * 7 and rest == ["--config", "FILE", "--config.seed=1"] and options.programs == 0
    assert {c.reasoning for c in cells} == {"", *REASONING} and {c.instruction for c in cells} == {"", *INSTRUCTION}
    assert {(c.feedback, c.turns, c.schedule) for c in cells} == {("", 1, "first")}


def test_cells_that_differ_in_nothing_are_one():
    prompts, more = ["--reasoning=none,tags", "--feedback=binary,failed"], ["--schedule=first,retry", "--turns=1,3"]
    _, cells, _ = grid_command.options_of([*prompts, *more, "--strategy=cot_retry"])
    assert cells == [
        Cell("", "", "", 1, "first"), Cell("tags", "", "", 1, "first"),
        Cell("", "", "binary", 3, "first"), Cell("", "", "failed", 3, "first"),
        Cell("tags", "", "binary", 3, "first"), Cell("tags", "", "failed", 3, "first"),
        Cell("tags", "", "binary", 3, "retry"), Cell("tags", "", "failed", 3, "retry"),
        Cell("naive_solution", "helper_functions", "binary", 3, "retry"),
        Cell("naive_solution", "helper_functions", "failed", 3, "retry"),
    ]  # fmt: skip
    assert len({c.name for c in cells}) == len(cells) and not any("." in c.name for c in cells)


def test_a_text_of_ones_own_is_a_prompt():
    arguments = ["--reasoning", "none", "--reasoning", "Plan first, then act.", "--instruction", "double_check, none"]
    _, cells, _ = grid_command.options_of([*arguments, "--turns", "1"])
    assert [c[:2] for c in cells] == [
        ("", "double_check"), ("", ""), ("Plan first, then act.", "double_check"), ("Plan first, then act.", ""),
    ]  # fmt: skip
    assert cells[-1].name.startswith("plan_first_then_act_") and "." not in cells[-1].name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--reasoning nothing", "--reasoning 'nothing' must be one of: all, none, self_reflection"),
        ("--feedback tests", "--feedback 'tests' must be one of: all, binary, failed, failed_and_passed, trace"),
        ("--turns 0,1", "--turns '0,1' must be whole numbers from 1"),
        ("--turns 1,x", "--turns '1,x' must be whole numbers"),
    ],
)
def test_wrong_options_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        grid_command.options_of(arguments.split())


def test_settings_that_the_grid_sets_or_ignores_are_refused():
    config = Config()
    config.rollout.environment = Settings(name="feedback", reasoning="tags", failures=1)
    with pytest.raises(UserError, match=r"rollout\.environment\.reasoning = 'tags' must not be set: the grid does"):
        grid.prepare(config)
    config.rollout.environment.reasoning = ""  # pyright: ignore[reportAttributeAccessIssue]
    own = grid.config_of(grid.prepare(config), Cell("tags", "", "trace", 2, "every")).rollout.environment
    assert own == Settings(
        name="feedback", reasoning="tags", failures=1, feedback="trace", max_turns=2, schedule="every"
    )
    config.evaluation.best_of = "public"
    with pytest.raises(UserError, match=r"evaluation\.best_of = 'public' does nothing in a grid"):
        grid.prepare(config)
    assert grid.prepare(Config()).rollout.environment.name == "feedback"


def turn(text: str, kind="") -> Turn:
    return Turn("assistant", np.zeros(len(text), np.int32), True, text=text, kind=kind)


def test_what_is_counted_of_an_episode():
    turns = [turn("12345", "text"), turn("f = 1"), turn("```python\n```", "text"), turn("f  =  1"), turn("def f(): 0")]
    programs = tuple(Submission(t.text, t.text) for t in turns if not t.kind)
    attempts = [Attempt(False, False), Attempt(False, False), Attempt(True, True)]
    made = Episode(P, np.zeros(1, np.int32), turns, Reward(1.0, True), "finished", "", attempts=attempts,
                   submissions=programs)  # fmt: skip
    found = grid.outcome(made)
    alike = SequenceMatcher(None, "f = 1", "def f():\n    0", autojunk=False).ratio()
    assert found == {
        "attempts": [[False, False], [False, False], [True, True]], "solved": True, "tokens": 5 + 5 + 13 + 7 + 10,
        "thought": 18, "thoughts": 2, "early": 1, "similar": [1.0, round(alike, 4)],
    }  # fmt: skip
    assert json.loads(json.dumps(found)) == found


def test_similarities():
    assert grid.similarity("x = 1  # one\n", "x=1") == 1 and grid.similarity("not python (", "not  python (") == 1
    assert grid.similarity("abc", "xyz") == 0
    assert grid.histogram([0.0, 0.05, 0.95, 1.0, 0.41]) == [2, 0, 0, 0, 1, 0, 0, 0, 0, 2]


def made(attempts, tokens: int, similar=()) -> dict:
    return {"attempts": attempts, "solved": attempts[-1][1], "tokens": tokens, "thought": tokens // 4, "thoughts": 1,
            "early": 0, "similar": list(similar)}  # fmt: skip


def test_equal_numbers_of_programs_are_three_samples_against_three_turns():
    """1@3 of single turns against brute force; that of three turns is one episode."""
    rng = random.Random(0)
    kinds = [[False, False], [True, False], [True, True]]
    single = {f"p{i}": [made([rng.choice(kinds)], 10) for _ in range(4)] for i in range(5)}
    multi = {f"p{i}": [made([kinds[0], kinds[0], rng.choice(kinds)], 24) for _ in range(4)] for i in range(5)}
    one, three = Cell("", "", "", 1, "first"), Cell("", "", "failed", 3, "first")
    budget = grid.budgets({one: single, three: multi})
    assert budget == (3, 30.0)  # three samples of 10 tokens cost more than one of 24
    row = grid.row(one, single, budget, 1, 200)
    drawn = [
        [next((a[1] for e in order for a in e["attempts"] if a[0]), False) for order in permutations(episodes, 3)]
        for episodes in single.values()
    ]
    assert row["at_programs"][0] == pytest.approx(np.mean([np.mean(d) for d in drawn]))
    assert row["at_tokens"][0] == pytest.approx(row["at_programs"][0])  # 30 tokens are its three samples
    assert row["at_programs"][1] <= row["at_programs"][0] <= row["at_programs"][2]
    other = grid.row(three, multi, budget, 1, 0)
    solved = np.mean([e["solved"] for es in multi.values() for e in es])
    assert other["at_programs"] == pytest.approx((solved,) * 3) and other["solved"][0] == pytest.approx(solved)
    both = np.mean([np.mean([any(e["solved"] for e in pair) for pair in permutations(es, 2)]) for es in multi.values()])
    # 30 tokens are 1.25 of its episodes; where both pass the public tests the first one is submitted
    assert solved <= other["at_tokens"][0] <= solved + 0.25 * (both - solved) + 1e-9


def test_budgets_that_the_samples_do_not_provide():
    cell = Cell("", "", "failed", 3, "first")
    results = {cell: {"p": [made([[False, False]], 10)] * 2}}
    with pytest.raises(UserError, match="--programs 2 must be at least 3, the turns of cell none-none-failed-3-first"):
        grid.budgets(results, 2)
    with pytest.raises(UserError, match=r"evaluation\.samples = 2 must be at least 3: 9 programs of 3 a sample"):
        grid.budgets(results, 9)
    with pytest.raises(UserError, match="--tokens 21 must be at most 20"):
        grid.budgets(results, 0, 21)
    assert grid.budgets(results, 6, 15) == (6, 15)


def test_the_page():
    cell = Cell("tags", "", "failed", 3, "first")
    results = {cell: {"p": [made([[False, False], [True, True]], 20, [0.97])] * 2}}
    budget = grid.budgets(results)
    rows = [grid.row(c, found, budget, 1, 50) for c, found in results.items()]
    page = grid.markdown(rows, budget, 1, "About.")
    assert "| tags | - | failed | 3 | first | 100.0% | 100.0% | 100.0% | 20 | 25% | 0.97 | 100% |" in page
    assert "| tags-none-failed-3-first | 0% | 0% | 0% | 0% | 0% | 0% | 0% | 0% | 0% | 100% |" in page
    assert "| tags-none-failed-3-first | 0.0% |" in page and "1@3 programs" in page


TINY = [
    "--config=configs/study/feedback.py", "--config.model.path=", "--config.model.shape.hidden_size=32",
    "--config.model.shape.intermediate_size=64", "--config.model.shape.num_hidden_layers=1",
    "--config.rollout.slots=16", "--config.task.held_out_problems=3", "--config.evaluation.samples=2",
    "--config.evaluation.bootstrap=20", "--config.rollout.max_new_tokens=150", "--config.rollout.max_turn_tokens=16",
    "--config.rollout.max_prompt_length=96", "--turns=1,2", "--reasoning=none", "--reasoning=Plan first.",
    "--programs=2",
]  # fmt: skip


class Parrot(Script):
    """Says the same program again and again."""

    async def sample(self, prompt, params):
        self.texts = ["def f(n): return n"]
        return await super().sample(prompt, params)


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_grid_goes_on_where_it_was_stopped(real, tmp_path, monkeypatch):
    arguments = [*TINY, f"--config.runs_dir={tmp_path}", "--config.name=g"]
    played, collect, room = [], grid_command.collect, [2]

    def counted(engine, environment, problems, samples, seed, keeper):
        if len(played) == room[0]:
            raise KeyboardInterrupt
        played.append(environment.settings)
        return collect(engine, environment, problems, samples, seed, keeper)

    monkeypatch.setattr(grid_command, "collect", counted)
    if not real:
        monkeypatch.setattr(grid_command, "make_engine", lambda config, policy, folder: Parrot(policy.tokenizer))
    assert grid_command.main(arguments)  # interrupted
    before = (tmp_path / "g" / "grid.jsonl").read_text()
    assert len(before.splitlines()) == 2 and not (tmp_path / "g" / "grid.md").exists()
    room[0] = 9
    assert grid_command.main(arguments) == 0 and len(played) == 4
    after = (tmp_path / "g" / "grid.jsonl").read_text()
    assert after.startswith(before) and len(after.splitlines()) == 4
    assert len(list((tmp_path / "g" / "samples").glob("grid-*.jsonl"))) == 4 and not list(tmp_path.rglob("*.journal"))
    page = (tmp_path / "g" / "grid.md").read_text()
    assert "| Plan first. | - | failed | 2 | first |" in page and "3 problems with 2 samples" in page
    if not real:
        assert page.count("100%") >= 2  # the same program twice: stuck
        assert "1.00 | 100% |" in page

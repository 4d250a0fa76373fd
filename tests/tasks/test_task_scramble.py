"""The scramble task: what is held out, and what a text earns."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from judging import judge

from jaxrl.config import TaskConfig
from jaxrl.tasks import load_task, scramble

CONFIG = TaskConfig(name="scramble", train_problems=3000, demonstrations=2000, held_out_problems=200)


@pytest.fixture(scope="module")
def task():
    return load_task(CONFIG, seed=0)


def letters(problem) -> str:
    return problem.messages[0]["content"].removeprefix("unscramble: ").replace(" ", "")


def test_words():
    assert 400 <= len(scramble.WORDS) == len(set(scramble.WORDS)) <= 800
    assert {len(w) for w in scramble.WORDS} == {4, 5, 6, 7, 8}
    assert all(w.isascii() and w.isalpha() and w.islower() for w in scramble.WORDS)


def test_scrambles_have_the_letters_of_the_word_but_are_no_word(task):
    for problem in [*task.train[:1000], *task.held_out]:
        assert Counter(letters(problem)) == Counter(problem.answer)
        assert letters(problem) not in scramble.WORDS
        assert problem.demonstration == " ".join(problem.answer)


def test_held_out_orders_are_never_trained_on_but_their_words_are(task):
    shown = [*task.train, *task.demonstrations]
    assert not {letters(p) for p in task.held_out} & {letters(p) for p in shown}
    assert {p.answer for p in task.held_out} <= {p.answer for p in shown}
    assert len({letters(p) for p in task.held_out}) == len(task.held_out) == 200


def test_problems_depend_on_seed_and_place_alone(task):
    again, other = load_task(CONFIG, seed=0), load_task(CONFIG, seed=1)
    assert task.train[77] == again.train[77] != other.train[77]
    assert task.held_out == other.held_out
    assert task.train[-1] == task.train[2999]


def test_the_same_problems_in_every_process():
    script = (
        "from jaxrl.config import TaskConfig; from jaxrl.tasks import load_task\n"
        "t = load_task(TaskConfig(name='scramble'), 3); print([p.id + p.messages[0]['content'] for p in t.train[:99]])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script], env={"PYTHONHASHSEED": h}, check=True, capture_output=True, text=True
        ).stdout
        for h in ("1", "2")
    }
    assert len(outputs) == 1


@pytest.mark.parametrize(
    ("answer", "text", "value", "solved"),
    [
        ("music", "m u s i c", 1.0, True),
        ("music", " Music\n", 1.0, True),
        ("heart", "e a r t h", 1.0, True),  # another word of the list with these letters
        ("horse", "h o r s e s", 0.1 + 0.2 * 5 / 6, False),
        ("horse", "s h o r e", 0.1 + 0.1 + 0.2 * 1 / 5, False),  # a word, but not of the list
        ("horse", "h o r s", 0.1 + 0.2 * 4 / 5, False),
        ("horse", "x x x x x", 0.1, False),
        ("horse", "o r s e h o r s e", 0.1, False),
        ("horse", "it is horse!", 0.0, False),
        ("horse", "", 0.0, False),
        ("earth", "h e a r t", 1.0, True),
        ("earth", "h e a t r", 0.1 + 0.1 + 0.2 * 3 / 5, False),  # places are counted against the nearest right word
    ],
)
def test_reward(task, answer: str, text: str, value: float, solved: bool):
    problem: Any = scramble.Problem("p", answer=answer)
    reward = judge(task, problem, text)
    assert reward.value == pytest.approx(value) and reward.solved == solved
    assert sum(reward.parts.values()) == pytest.approx(value)


def test_demonstrations_earn_everything(task):
    assert all(scramble.reward_of(p.answer, str(p.demonstration)).value == 1.0 for p in task.demonstrations[:200])


@pytest.mark.parametrize("field", ["train_problems", "held_out_problems"])
def test_no_problems_is_an_error(field: str):
    settings: dict[str, Any] = {"name": "scramble", field: 0}
    with pytest.raises(ValueError, match=rf"task\.{field} = 0 must be >= 1"):
        load_task(TaskConfig(**settings), 0)

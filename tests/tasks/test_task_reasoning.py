"""Kinds of questions with checkable answers: right answers are right, nonsense is not, and the parts are apart."""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import subprocess
import sys
import zlib

import pytest
from conftest import ROOT
from judging import judge_all

from jaxrl.errors import UserError
from jaxrl.tasks import native, reasoning
from jaxrl.tasks.native.question import is_right, same
from jaxrl.tasks.rows import DataError

NATIVE = native.KINDS
NONSENSE = ("", "nonsense", "[]", "0, 0", "(1", "9" * 3000, "(" * 500, "None", "[[[]]]", "A->", "1e999")


# --- our generators


def test_there_are_144_kinds_of_which_37_are_held_out():
    every = [kind for suite in ("gym", "bbh", "native") for kind in reasoning.kinds_of(suite)]
    assert [len(reasoning.kinds_of(s)) for s in ("gym", "bbh", "native")] == [84, 27, 33]
    assert len(set(every)) == 144 and len(reasoning.HELD_OUT_KINDS) == 37
    assert set(sorted(every, key=lambda kind: zlib.crc32(kind.encode()))[:37]) == reasoning.HELD_OUT_KINDS


@pytest.mark.parametrize("name", NATIVE)
def test_a_kinds_own_answers_are_right(name):
    texts = set()
    for seed in range(40):
        question, again = (NATIVE[name](random.Random(seed)) for _ in range(2))
        assert question[:2] == again[:2]
        assert is_right(question, question.answer) and is_right(question, f"  {question.answer} ")
        wrong = [n for n in NONSENSE if is_right(question, n) and not (n == "[]" and question.answer == "[]")]
        assert wrong == []
        texts.add(question.text)
        if question.code:
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(question.code, {})
            assert out.getvalue().strip() == question.answer
    assert len(texts) > 30


def test_what_is_the_same():
    assert same(" [1,2] ", "[1, 2]") and same("(1, 2)", "[1, 2]") and same("'yes'", "yes") and same("2.0", "2")
    assert not same("yes", "no") and not same("[1, 2]", "[2, 1]") and not same("", "0")


CHECKED = {  # a seed's question has other right answers, and wrong ones that look right
    "game24": (lambda q: q.answer + " = 24", lambda q: "24"),
    "path_plan": (lambda q: ", ".join(q.answer), lambda q: q.answer[::-1] + "UUUUUUUUU"),
    "eight_queens": (lambda q: q.answer.replace(" ", ""), lambda q: "[0, 1, 2, 3, 4, 5, 6, 7]"),
    "light_out": (lambda q: q.answer.replace("(", "[").replace(")", "]"), lambda q: "[(0, 0), (0, 0)]"),
    "blocks_world": (lambda q: q.answer + ",", lambda q: ""),
    "linear_arrangement": (lambda q: q.answer.replace(", ", ","), lambda q: q.answer[::-1]),
    "sudoku": (lambda q: q.answer.replace(" ", "\n"), lambda q: "1234 1234 1234 1234"),
    "number_grid": (lambda q: q.answer.replace(" ", ""), lambda q: q.answer.replace("1", "2")),
    "combinatorial_calculation": (lambda q: q.answer.replace(" ", ""), lambda q: f"({q.answer})"),
    "box_lift": (lambda q: q.answer.replace(" ", ""), lambda q: "[[[0, [0]], [1, [0]]]]"),
    "box_net": (lambda q: q.answer.lower(), lambda q: q.answer + "UD"),
}


@pytest.mark.parametrize("name", CHECKED)
def test_checkers_take_what_is_right_and_nothing_else(name):
    other, wrong = CHECKED[name]
    for seed in range(20):
        question = NATIVE[name](random.Random(seed))
        assert is_right(question, other(question)), question
        assert not is_right(question, wrong(question)), question


def test_moves_of_2048_and_reversi():
    from jaxrl.tasks.native.games import _merged, _moved, _turned

    assert _merged([2, 2, 4, 0]) == [4, 4, 0, 0] and _merged([2, 2, 2, 2]) == [4, 4, 0, 0]
    assert _moved([[2, 0], [2, 4]], "down") == [[0, 0], [4, 4]] and _moved([[0, 2], [2, 2]], "right") == [
        [0, 2],
        [0, 4],
    ]
    board = [list(row) for row in (".WB", "W..", "B..")]
    assert sorted(_turned(board, 0, 0)) == [(0, 1), (1, 0)]


# --- the task


def asked(problem, settings=reasoning.Settings()):
    return reasoning.ask(**problem.answer, settings=settings)


def ask(task, count):
    return [task.train[i] for i in range(count)]


def test_parts_are_apart_by_kind_and_by_question(pool):
    task = reasoning.make_task(reasoning.Settings(held_out_problems=80), 0)
    kinds = {"kind": set(), "question": set(), "trained": {p.meta["kind"] for p in ask(task, 60)}}
    for p in task.held_out:
        kinds[p.meta["held_out"]].add(p.meta["kind"])
    assert len(kinds["trained"]) == 26 and kinds["kind"] == {
        k.split("/")[1] for k in reasoning.HELD_OUT_KINDS if "native" in k
    }
    assert kinds["question"] <= kinds["trained"] and not kinds["kind"] & kinds["trained"]
    trained_on = {p.messages[0]["content"] for p in ask(task, 400)}
    assert not [p for p in task.held_out if p.messages[0]["content"] in trained_on]
    right = judge_all(task, task.held_out, [f"So <<<{asked(p).answer}>>>." for p in task.held_out], pool)
    assert all(r.solved for r in right)
    wrong = judge_all(task, task.held_out, [f"So {asked(p).answer}." for p in task.held_out], pool)
    assert not any(r.solved for r in wrong) and task.slices(task.held_out[0]).keys() == {"held_out", "suite", "kind"}


@pytest.mark.parametrize(
    ("text", "form", "answer"),
    [
        ("<<<1>>> no, <<< 2 >>> it is", "<<<>>>", "2"),
        ("<<<1", "<<<>>>", None),
        ("\\boxed{1} then \\boxed{\\frac{1}{2}}.", "boxed", "\\frac{1}{2}"),
        ("\\boxed{1", "boxed", None),
        ("1", "boxed", None),
        ("<<<a\nb>>>", "<<<>>>", "a\nb"),
    ],
)
def test_the_last_marker_counts(text, form, answer):
    assert reasoning.marked(text, form) == answer


def test_demonstrations_end_with_the_answer():
    task = reasoning.make_task(reasoning.Settings(kinds=("native/number_multiply",), held_out="questions"), 0)
    shown = [task.demonstrations[i].demonstration for i in range(40)]
    assert {len(s) for s in shown} == {1, 3}
    for s, p in zip(shown, (task.demonstrations[i] for i in range(40))):
        assert s[-1]["content"] == f"<<<{asked(p).answer}>>>"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kinds": ("native/game42",)}, "task.kinds: 'native/game42' does not exist; did you mean native/game24"),
        ({"suites": ()}, r"task.suites = \(\) must name at least one of: gym, bbh, native"),
        ({"suites": ("bbh",)}, "task.suites with 'bbh' needs task.path"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(UserError, match=message):
        reasoning.Settings(**settings).check()


def test_nothing_held_out_is_an_error():
    with pytest.raises(UserError, match="none of the kinds is held out"):
        reasoning.make_task(reasoning.Settings(kinds=("native/game24",), held_out="kinds"), 0)


# --- BIG-Bench Hard


def test_big_bench_hard_is_not_trained_on(data, pool):
    settings = reasoning.Settings(suites=("bbh",), path=str(data / "bbh/bbh"), held_out_problems=54)
    task = reasoning.make_task(settings, 0)
    assert len(task.train) == 0 and len(task.held_out) == 54 and len({p.meta["kind"] for p in task.held_out}) == 27
    answers = [
        re.sub(r"^\(([A-Z])\)$", r"\1", asked(p, settings).answer) for p in task.held_out
    ]  # a choice's letter will do
    right = judge_all(task, task.held_out, [f"<<<{a}>>>" for a in answers], pool)
    assert all(r.solved for r in right)
    settings.train_on_bbh = True
    assert len({p.meta["kind"] for p in ask(reasoning.make_task(settings, 0), 17)}) == 17


def test_a_file_that_is_not_there_is_named(tmp_path):
    settings = reasoning.Settings(suites=("bbh",), path=str(tmp_path))
    with pytest.raises(DataError, match=r"boolean_expressions\.json cannot be read"):
        reasoning.make_task(settings, 0)
    (tmp_path / "boolean_expressions.json").write_text("[]")
    with pytest.raises(DataError, match='must be JSON with a list "examples"'):
        reasoning.make_task(settings, 0)


# --- reasoning-gym


def test_graders_of_reasoning_gym(pool):
    pytest.importorskip("reasoning_gym")
    kinds = ("gym/lcm", "gym/prime_factorization", "gym/spell_backward", "gym/countdown")
    task = reasoning.make_task(reasoning.Settings(kinds=kinds, held_out="questions", held_out_problems=8), 0)
    answers = [f"<<<{asked(p).answer}>>>" for p in task.held_out]
    assert all(r.solved for r in judge_all(task, task.held_out, answers, pool))
    wrong = judge_all(task, task.held_out, ["<<<nonsense>>>"] * 8, pool)
    assert [r.value for r in wrong] == [0.0] * 8  # also where the grader raises, or gives a little for anything


def test_questions_are_the_same_in_every_process():
    """word_ladder and others depend on Python's hash seed, which differs between processes."""
    reasoning_gym = pytest.importorskip("reasoning_gym")
    program = "from jaxrl.tasks.reasoning import gym_question as q\n"
    program += "print([q({'name': n, 'seed': 3}) for n in ('word_ladder', 'polynomial_multiplication', 'lcm')])"
    outputs = set()
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", program]
        outputs.add(
            subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=ROOT).stdout
        )
    (output,) = outputs
    question = reasoning_gym.create_dataset("lcm", size=1, seed=3)[0]["question"]
    assert repr(question) in output


@pytest.mark.slow
def test_every_data_set_of_reasoning_gym_takes_its_own_answers(pool):
    pytest.importorskip("reasoning_gym")
    settings = reasoning.Settings(suites=("gym",), held_out="both", held_out_problems=168)
    task = reasoning.make_task(settings, 0)
    answers = [f"<<<{asked(p).answer}>>>" for p in task.held_out]
    right = judge_all(task, task.held_out, answers, pool)
    missed = {p.meta["kind"] for p, r in zip(task.held_out, right) if not r.solved}
    assert missed == set()
    wrong = judge_all(task, task.held_out, ["<<<nonsense>>>"] * len(task.held_out), pool)
    assert {p.meta["kind"] for p, r in zip(task.held_out, wrong) if r.solved} == set()

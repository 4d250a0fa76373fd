"""Task transforms: problems, rewards, metrics, and the command that scores a transform."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re

import pytest
from judging import judge, judge_all

from jaxrl import transforms as transforms_command
from jaxrl.errors import UserError
from jaxrl.tasks import load_task, transforms
from jaxrl.tasks.rewriting.programs import RULES
from rollouts.episode import Episode, Group, Reward
from rollouts.services import Services
from sandbox.verdict import CallTest, Verdict

SMALL = {"train_problems": 16, "held_out_problems": 2, "demonstrations": 4}
STRENGTH = '''import ast

class Rewriter(ast.NodeTransformer):
    def visit_BinOp(self, node):
        self.generic_visit(node)
        if isinstance(node.left, ast.Name) and isinstance(node.right, ast.Constant) and type(node.right.value) is int:
            if node.right.value == 2 and isinstance(node.op, ast.Pow):
                return ast.BinOp(node.left, ast.Mult(), node.left)
            if node.right.value == 2 and isinstance(node.op, ast.Mult):
                return ast.BinOp(node.left, ast.Add(), node.left)
        return node

def transform(source):
    return ast.unparse(ast.fix_missing_locations(Rewriter().visit(ast.parse(source))))
'''  # fmt: skip


def made(**settings):
    return load_task(transforms.Settings(**{**SMALL, **settings}), 0)


def test_problems_show_three_pairs_and_hide_sixteen():
    task = made()
    problem = task.train[5]
    (message,) = problem.messages
    assert message["content"].count("Before:") == message["content"].count("After:") == 3
    assert len(problem.tests) == 16 and len(problem.public_tests) == 3
    tests = [t for t in problem.tests if isinstance(t, CallTest)]
    assert sum(t.args[0] == t.expected for t in tests) == 6
    assert not any(t.args[0] in message["content"] for t in tests)
    few = made(hidden=1, hidden_controls=0)
    assert {p.meta["rule"] for p in few.train} == set(RULES)


def test_rules_that_training_does_not_see():
    task = made(held_out_rules=("strength", "hoisted"), hidden=1, hidden_controls=0)
    assert {p.meta["rule"] for p in task.held_out} == {"strength", "hoisted"}
    assert not {p.meta["rule"] for p in task.train} & {"strength", "hoisted"}
    with pytest.raises(UserError, match=r"task\.rules: 'strenght' does not exist; did you mean strength\?"):
        made(rules=("strenght",))
    with pytest.raises(UserError, match="held_out_rules leaves no rule"):
        made(rules=("strength",), held_out_rules=("strength",))


def test_the_reward_is_the_share_of_hidden_pairs(pool):
    task = made(rules=("strength",))
    problem = task.train[0]
    fenced = f"Some words.\n```python\n{STRENGTH}```"
    identity = "```python\ndef transform(source):\n    return source\n```"
    crash = "```python\ndef transform(source):\n    return source.nothing\n```"
    right, same, crashed = judge_all(task, [problem] * 3, [fenced, identity, crash], pool)
    assert right == Reward(1.0, True, {"pairs": 1.0}, right.verdict)
    assert same.value == 0 and same.verdict.pass_fraction == 6 / 16 and crashed.value == 0  # no change, no reward
    episodes = [Episode(problem, None, [], r, "finished", "") for r in (right, same, crashed)]  # pyright: ignore[reportArgumentType]
    assert task.metrics is not None
    found = task.metrics(Group(problem, episodes))
    assert found == pytest.approx({
        "hidden_right": (1 + 6 / 16) / 3, "precision": 1, "recall": 1 / 3, "perfectly_precise": 1, "crashed": 1 / 3
    })  # fmt: skip


def test_a_transform_that_knows_the_public_pairs_alone(pool):
    """It passes all that it can see, and none of the hidden programs that change."""
    task = made(rules=("nested_if",))
    problem = task.train[0]
    public = {t.args[0]: t.expected for t in problem.public_tests if isinstance(t, CallTest)}
    text = f"```python\nKNOWN = {public!r}\ndef transform(source):\n    return KNOWN.get(source, source)\n```"
    seen = judge(task, _public(problem), text, pool)
    assert seen.solved and judge(task, problem, text, pool).value == 0


def _public(problem):
    return dataclasses.replace(problem, tests=problem.public_tests)


def test_broken_programs_cost_their_penalty(pool):
    task = made(rules=("strength",), broken_penalty=0.01, hidden=3, hidden_controls=2)
    harmless = "```python\ndef transform(source):\n    return source + '\\npass'\n```"
    harmful = "```python\ndef transform(source):\n    return source + '\\ndef f(*a): return 17'\n```"
    mild, bad = judge_all(task, [task.train[0]] * 2, [harmless, harmful], pool)
    assert mild.parts == {"pairs": 0, "broken": 0} and bad.parts == {"pairs": 0, "broken": pytest.approx(-0.05)}
    assert bad.value == pytest.approx(-0.05)
    seen = judge(task, _public(task.train[0]), harmful, pool)
    assert seen.value == 0  # public programs are not run


def test_rewriting_directly(pool):
    task = made(style="rewrite", rules=("literal", "strength"), train_problems=40)
    changes = [p for p in task.train if p.meta["changes"]]
    stays = [p for p in task.train if not p.meta["changes"]]
    assert len(changes) > len(stays) > 5
    for problem, right in ((changes[0], "tp"), (stays[0], "tn")):
        (test,) = problem.tests
        assert isinstance(test, CallTest) and test.args[0] in problem.messages[0]["content"]
        texts = [problem.demonstration, f"```python\n{test.args[0]}```", "```python\nx = 1\n```"]
        assert all(isinstance(t, str) for t in texts)
        rewards = judge_all(task, [problem] * 3, [str(t) for t in texts], pool)
        assert [r.solved for r in rewards] == [True, right == "tn", False]
        assert task.metrics is not None
        kinds = []
        for reward in rewards:
            episode = Episode(problem, None, [], reward, "finished", "")  # pyright: ignore[reportArgumentType]
            found = task.metrics(Group(problem, [episode]))
            kinds += [name for name, share in found.items() if share]
        assert kinds == [right, "tn" if right == "tn" else "fn", "fp"]
    with pytest.raises(UserError, match=r"task\.broken_penalty = 1\.0 must be 0"):
        made(style="rewrite", broken_penalty=1.0)


def test_a_sandbox_that_fails_is_no_reward():
    class Fails:
        workers = 1

        async def run_async(self, program):
            return Verdict("sandbox_error")

        def run(self, programs):
            return [Verdict("sandbox_error") for _ in programs]

    task = made(rules=("strength",))
    problem = task.train[0]
    reward = asyncio.run(task.judge(problem, task.submission(problem, STRENGTH), Services(Fails())))
    assert reward.verdict is not None and reward.verdict.status == "sandbox_error" and reward.value == 0


# --- the command


def test_the_command_scores_a_file(tmp_path, capsys):
    (tmp_path / "t.py").write_text(STRENGTH)
    assert transforms_command.main([str(tmp_path / "t.py"), "--rule", "strength", "--programs", "8"]) == 0
    assert "1.000" in capsys.readouterr().out
    pairs = [
        {"before": "def f(a): return a ** 2", "after": "def f(a): return a * a", "calls": [[3]]},
        {"before": "def f(a): return a * 2", "after": "def f(a): return a * 2", "calls": [[3]]},  # ours changes it
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs))
    assert transforms_command.main([str(tmp_path / "t.py"), "--pairs", str(tmp_path / "pairs.jsonl")]) == 0
    assert "0.500" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no rows"),
        ([{"before": "x ="}], "after"),
        ([{"before": "x =", "after": "x"}], "line 1|:1.*before must be a Python program"),
        ([{"before": "x", "after": "x", "calls": [1]}], "calls must be a list of lists"),
    ],
)
def test_wrong_pairs_are_refused(tmp_path, capsys, rows, message):
    (tmp_path / "t.py").write_text(STRENGTH)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(p) + "\n" for p in rows))
    code = transforms_command.main([str(tmp_path / "t.py"), "--pairs", str(tmp_path / "pairs.jsonl")])
    assert code and re.search(message, capsys.readouterr().err)


def test_wrong_arguments_are_refused(tmp_path, capsys):
    assert transforms_command.main([str(tmp_path / "none.py"), "--rule", "strength"])
    assert "none.py cannot be read" in capsys.readouterr().err
    assert transforms_command.main([str(tmp_path / "none.py"), "--rule", "strenght"])
    assert "did you mean strength?" in capsys.readouterr().err

"""Issues in files: made-up ones, rows of data, their parts, and what answers are worth."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from judging import judge, judge_all
from played import Script, make, play

from jaxrl.errors import UserError
from jaxrl.runs.tokenizer import train_tokenizer
from jaxrl.tasks import swe_rl
from jaxrl.tasks.rows import DataError
from jaxrl.tasks.swe.reward import reward_of_answer
from rollouts.blocks import Edit, write_answer
from rollouts.engine import UnsupportedError
from rollouts.environments import localize
from rollouts.environments.dialogue import Budget
from rollouts.episode import Episode, Group, Problem, Reward, Submission
from rollouts.unified import write_patch

FILES = {"a.py": "def f(x):\n    return x\n", "lib/b.py": "y = 1\n"}
ORACLE = {"a.py": "def f(x):\n    return x + 1\n"}
EXACT = write_answer("so", [Edit("a.py", "    return x", "    return x + 1")])
NEAR = write_answer("so", [Edit("a.py", "    return x", "    return x + 2")])


def row(i: int = 0, **more) -> dict:
    made = {"instance_id": f"r{i}", "repository": f"repo{i % 3}", "date": i, "problem_statement": f"Issue {i}"}
    return made | {"files": FILES, "oracle": ORACLE} | more


def task_of(tmp_path, rows: list[dict], **settings):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return swe_rl.make_task(swe_rl.Settings(path=str(path), **settings), 0)


def episodes_of(problem: Problem, rewards: list[Reward], states=None) -> Group:
    states = states or [None] * len(rewards)
    return Group(problem, [
        Episode(problem, np.zeros(1, np.int32), [], r, "finished", "", submission=Submission("", state=s))
        for r, s in zip(rewards, states)
    ])  # fmt: skip


# --- made up


@pytest.mark.parametrize("settings", [{}, {"files": 3, "most_mistakes": 3, "families": ("list",)}, {"shown": "paths"}])
def test_made_up_problems_are_solved_by_their_demonstrations_alone(settings):
    task = swe_rl.make_task(swe_rl.Settings(held_out_problems=30, **settings), 0)
    shown = [*task.held_out, *(task.demonstrations[i] for i in range(30))]
    answers = [p.demonstration if isinstance(p.demonstration, str) else p.demonstration[-1]["content"] for p in shown]
    assert all(r.solved and r.value == 1.0 for r in judge_all(task, shown, answers))
    for problem, answer in zip(shown, answers):
        (path,) = problem.answer
        assert answer.count("<<<<<<< SEARCH") >= 1 and problem.meta["files"][path] != problem.answer[path]
        assert len(problem.meta["files"]) == settings.get("files", 2)
        assert all(text in problem.messages[0]["content"] for text in problem.meta["files"].values()) == (
            settings.get("shown") != "paths"
        )
    kinds = Counter(p.meta["kind"] for p in shown)
    assert {"missing", "extra", "wrong", "misspelt"} <= {*kinds}


def test_parts_are_apart():
    task, other = (swe_rl.make_task(swe_rl.Settings(held_out_problems=40), seed) for seed in (0, 1))
    assert task.held_out == other.held_out and task.train[3] != other.train[3]
    trained = {text for i in range(200) for text in task.train[i].answer.values()}
    bodies = {text.split("\n", 1)[1] for text in trained}
    assert not bodies & {text.split("\n", 1)[1] for p in task.held_out for text in p.answer.values()}


def test_careless_demonstrations_apply_and_are_wrong():
    task = swe_rl.make_task(swe_rl.Settings(careless_demonstrations=1.0, held_out_problems=1), 0)
    shown = [task.demonstrations[i] for i in range(30)]
    rewards = judge_all(task, shown, [str(p.demonstration) for p in shown])
    assert not any(r.solved for r in rewards) and all(0 < r.value < 1 for r in rewards)


# --- rewards and metrics


def test_the_reward_is_the_published_one_and_solved_is_exact(tmp_path):
    task = task_of(tmp_path, [row(i) for i in range(4)])
    problem = task.train[0]
    texts = [EXACT, NEAR, EXACT.replace("<think>", ""), EXACT.replace("    return x\n", "    return y\n"), EXACT + "\n"]
    rewards = judge_all(task, [problem] * 5, texts)
    assert [r.value for r in rewards] == [reward_of_answer(FILES, ORACLE, t) for t in texts]
    assert [r.solved for r in rewards] == [True, False, False, False, True] and rewards[2].value == -1.0
    assert [r.value == sum(r.parts.values()) for r in rewards] == [True] * 5
    assert [task.is_well_formed(problem, Submission(t)) for t in texts] == [True, True, False, False, True]
    found = swe_rl.metrics(episodes_of(problem, rewards))
    assert found == {"exact": 0.4, "applies": 0.6, "similarity": pytest.approx((2 + rewards[1].value) / 5)}
    named = swe_rl.metrics(episodes_of(problem, rewards[:2], [("lib/b.py", "a.py"), ("lib/b.py",)]))
    assert named["localized"] == 0.5 and task.headline == "exact"


def test_answers_vote_by_what_they_change(tmp_path):
    task = task_of(tmp_path, [row(i) for i in range(4)])
    other = write_answer("else", [Edit("a.py", "    return x", "    return (x + 1)  # one more")])
    nothing = write_answer("none", [Edit("a.py", "def f(x):", "def f(x):  # f")])
    votes = [judge(task, task.train[0], t).answer for t in (EXACT, other, NEAR, nothing)]
    assert votes[0] == votes[1] != votes[2] and votes[3] is None


def test_a_last_lines_end_does_not_matter_and_line_ends_are_line_feeds(tmp_path):
    windows = {path: text.replace("\n", "\r\n") for path, text in FILES.items()}
    new = {path: text.replace("\n", "\r\n") for path, text in ORACLE.items()}
    task = task_of(tmp_path, [row(i, files=windows, oracle=new) for i in range(3)])
    problem = task.train[0]
    assert problem.meta["files"] == FILES and judge(task, problem, EXACT).solved
    whole = write_answer("so", [Edit("a.py", FILES["a.py"], ORACLE["a.py"].rstrip("\n"))])
    assert judge(task, problem, whole).solved


def test_a_long_answer_is_compared_by_its_beginning(tmp_path):
    task = task_of(tmp_path, [row(i) for i in range(3)], longest_diff=120)
    long = write_answer("so", [Edit("a.py", "    return x", "    return x + 1\n" + "    # more\n" * 200)])
    value = judge(task, task.train[0], long).value
    assert 0 < value < 2 * 120 / 2000


# --- rows


def test_held_out_rows_are_newer_or_of_other_repositories(tmp_path):
    rows = [row(i) for i in (5, 3, 9, 1, 9, 0, 2, 4, 6, 7)]
    newest = task_of(tmp_path, rows)  # one in ten, and all of its date
    assert sorted(p.id for p in newest.held_out) == ["r9", "r9"] and len(newest.train) == 8
    apart = task_of(tmp_path, rows, held_out="repository")
    held, trained = ({p.meta["kind"] for p in part} for part in (apart.held_out, apart.train))
    assert len(held) == 1 and len(trained) == 2 and not held & trained
    with pytest.raises(DataError, match=r"task\.held_out = 'repository' leaves no row to train on"):
        task_of(tmp_path, [row(0), row(3)], held_out="repository")
    with pytest.raises(DataError, match="row has no field 'date'"):
        task_of(tmp_path, [{k: v for k, v in row(1).items() if k != "date"}])
    (tmp_path / "held_out.jsonl").write_text(json.dumps(row(77)) + "\n")
    given = task_of(tmp_path, rows, held_out_path=str(tmp_path / "held_out.jsonl"))
    assert [p.id for p in given.held_out] == ["r77"] and len(given.train) == 10


def test_what_does_not_fit_is_counted(tmp_path):
    many = FILES | {"lib/long.py": "z = 1\n" * 100}
    rows = [
        row(0, files=many),
        row(1, files={"a.py": FILES["a.py"] + "#" * 400}, oracle={"a.py": "x" + "#" * 400}),
        row(2, oracle={"a.py": FILES["a.py"]}),
        row(3, oracle=None, patch="no diff of this file: @@\n@@ -1 +1 @@\n-a\n+b\n"),
        row(4, oracle=None, patch=write_patch(FILES, ORACLE)),
        row(5, oracle={"a.py": "\n".join(map(str, range(90)))}),
        row(6),
        row(7),
    ]
    task = task_of(tmp_path, rows, context_characters=400, longest_diff=300)
    assert task.rejected == {
        "unchanged file left out: it does not fit task.context_characters": 1,
        "changed files longer than task.context_characters": 1,
        "nothing is changed": 1,
        "patch does not apply, or deletes a file": 1,
        "diff longer than task.longest_diff": 1,
    }
    assert [p.id for p in task.train] == ["r0", "r4", "r6"] and {*task.train[0].meta["files"]} == {*FILES}
    assert task.train[1].answer == ORACLE
    with pytest.raises(DataError, match=r"no problem is left \(nothing is changed: 2\)"):
        task_of(tmp_path, [row(1, oracle={}), row(2, oracle={})])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"held_out": "repository"}, r"task\.held_out = 'repository' has no effect without task\.path; leave it out"),
        ({"path": "x", "files": 3}, r"task\.files = 3 has no effect with task\.path"),
        ({"max_files": 2}, r"task\.max_files = 2 has no effect with task\.shown = 'files'"),
        (
            {"path": "x", "held_out_path": "y", "held_out_share": 0.2},
            r"task\.held_out_share = 0\.2 has no effect with task\.held_out_path",
        ),
    ],
)
def test_settings_that_do_nothing_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        swe_rl.Settings(**settings).check()


# --- files first


@pytest.fixture(scope="module")
def tokenizer():
    task = swe_rl.make_task(swe_rl.Settings(held_out_problems=1, shown="paths"), 0)
    return train_tokenizer([*task.corpus()][:200], 500)


def test_the_demonstration_is_what_the_environment_plays(tokenizer):
    """Files are named, shown as in the demonstration, and edited; what was named is in the submission."""
    task = swe_rl.make_task(swe_rl.Settings(held_out_problems=4, shown="paths"), 0)
    for problem in task.held_out:
        first, seen, last = problem.demonstration
        engine = Script(tokenizer, first["content"], last["content"])

        async def judged(problem, submission):
            return await task.judge(problem, submission, None)

        environment = make(localize, tokenizer, Budget(3000), judged)
        episode = play(environment, engine, problem)
        assert episode.reward.solved and [t.role for t in episode.turns] == ["assistant", "user", "assistant"]
        assert episode.turns[1].text == seen["content"] and episode.submission.state == tuple(problem.answer)
        assert swe_rl.metrics(Group(problem, [episode]))["localized"] == 1.0


def test_without_a_file_the_episode_ends(tokenizer):
    problem = swe_rl.make_task(swe_rl.Settings(held_out_problems=1, shown="paths"), 0).held_out[0]
    episode = play(make(localize, tokenizer, Budget(3000)), Script(tokenizer, "nowhere.py"), problem)
    assert len(episode.turns) == 1 and episode.submission.state == () and episode.status == "finished"
    with pytest.raises(UnsupportedError, match="no files to name"):
        play(make(localize, tokenizer), Script(tokenizer, "x"))


def test_files_come_in_another_order_in_each_episode(tokenizer):
    problem = Problem("p", ({"role": "user", "content": "?"},), meta={"files": {f"{n}.py": n for n in "abcdef"}})
    named = "\n".join(problem.meta["files"])
    orders = set()
    for seed in range(6):
        environment = make(localize, tokenizer, Budget(3000), max_files=4)
        episode = play(environment, Script(tokenizer, named, "done"), problem, seed)
        assert episode.submission.state == ("a.py", "b.py", "c.py", "d.py")
        orders.add(episode.turns[1].text)
    assert len(orders) > 1


@pytest.mark.parametrize(
    "text",
    ["a.py\nlib/b.py", "1. `a.py`\n2. `lib/b.py`", "- a.py\n* lib/b.py,\n- a.py", "Both:\n\n'a.py'\n\"lib/b.py\""],
)
def test_paths_in_an_answer(text):
    assert localize.named_files(text, FILES, 5) == ["a.py", "lib/b.py"]
    assert localize.named_files(text, FILES, 1) == ["a.py"]
    assert localize.named_files("see a.py there", FILES, 5) == []

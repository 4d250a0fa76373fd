"""An agent in a repository, from its first command to the verdict of tests that it has never seen."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import pickle
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from played import Script, make, play, whole
from small_repository import AS_TAP, EDIT, HIDDEN, RIGHT, SECRET, make_clone, write_rows

from jaxrl.evaluation.harnesses import write_harness_files
from jaxrl.runs.tokenizer import train_tokenizer
from jaxrl.tasks import load_task
from jaxrl.tasks import repository as task_module
from jaxrl.tasks.repositories.attempt import visible
from jaxrl.tasks.repositories.commands import without_hidden
from jaxrl.tasks.repositories.rows import read_predictions
from jaxrl.tasks.rows import DataError
from rollouts.environments import repository
from rollouts.environments.dialogue import Budget
from rollouts.episode import Group, Submission
from rollouts.services import Services
from rollouts.unified import read_patch, write_patch

GOLD = EDIT.format(" / 2")


@pytest.fixture(scope="module")
def small() -> Any:
    return train_tokenizer(
        [f"{repository.INSTRUCTION} user assistant {GOLD} {RIGHT} {HIDDEN} # (ended with 0)"] * 3, 500
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Settings of the task on a row, by its test runner."""
    folder = tmp_path_factory.mktemp("repository")
    row = make_clone(folder / "clones")
    old = row | {"instance_id": "o__shapes-0", "created_at": "2023-01-01T00:00:00Z"}

    def settings(runner: str = "tap", **change: Any) -> task_module.Settings:
        more = AS_TAP if runner == "tap" else {}
        path = write_rows(folder / f"{runner}.jsonl", old | more, row | more)
        return task_module.Settings(
            name="repository", path=path, repositories=str(folder / "clones"), cache=str(folder / "files"), **change
        )

    return settings


def episode(small, settings, *answers: str, budget: Budget = Budget(6000), **own: Any):
    """An episode with the first training problem."""
    task = load_task(settings, 0)
    services = Services()

    async def judge(problem, submission):
        return await task.judge(problem, submission, services)

    environment = make(repository, small, judge=judge, budget=budget, **own)
    return play(dataclasses.replace(environment, services=services), Script(small, *answers), task.train[0])


def outputs(played) -> list[str]:
    return [t.text for t in played.turns if not t.sampled]


def test_an_agent_that_opens_searches_edits_runs_and_submits(small, made):
    answers = [
        "Let me see.\nopen .",
        'search "a * h"',
        "open shapes/area.py 5",
        f"Half of it.\n{GOLD}",
        "run",
        "submit",
    ]
    played = episode(small, made("pytest"), *answers)
    folder, found, opened, edited, ran = outputs(played)
    assert folder.splitlines()[0] == "., 4 entries:" and "shapes/" in folder and ".git" not in folder
    assert found == "shapes/area.py:6:    return a * h"
    assert opened == "shapes/area.py, lines 5 to 6 of 6:\ndef triangle(a, h):\n    return a * h"
    assert "-    return a * h\n+    return a * h / 2" in edited
    assert "PASSED tests/test_area.py::test_square" in ran and ran.endswith("(ended with 0)")
    assert SECRET not in whole(small, played) and "test_triangle" not in whole(small, played)
    assert played.status == "finished" and played.reward.solved and played.reward.value == 1.0
    assert played.submission.state.startswith("diff --git a/shapes/area.py b/shapes/area.py\n--- a/shapes/area.py\n")
    assert [t.learned for t in played.turns] == [t.sampled for t in played.turns]
    assert all(len(t.logprobs) == len(t.tokens) for t in played.turns if t.sampled)


@pytest.mark.parametrize(
    ("answers", "status"),
    [
        ([EDIT.format(" / 3"), "submit"], "finished"),
        (["submit"], "finished"),
        ([EDIT.format(" / 2"), EDIT.format(" / 3"), "submit"], "finished"),  # the second one no longer finds `a * h`
    ],
)
def test_a_wrong_change_earns_nothing(small, made, answers, status):
    played = episode(small, made(), *answers)
    assert played.status == status and (played.reward.value, played.reward.solved) == (0.0, False)


def test_a_change_that_is_not_submitted_counts(small, made):
    played = episode(small, made(), GOLD, "run", max_turns=2)
    assert played.status == "out_of_turns" and played.reward.solved


def test_one_that_breaks_other_tests_earns_its_likeness_alone(small, made):
    wrong = GOLD.replace("    return a * h\n=", "    return a * a\n=").replace("a * h / 2", "a")
    played = episode(small, made(similarity=0.5), wrong, GOLD, "submit")
    assert not played.reward.solved and 0 < played.reward.value == played.reward.parts["similarity"] < 0.5
    assert episode(small, made(similarity=0.5), GOLD, "submit").reward.value == pytest.approx(1.5, abs=0.1)


SNOOP = """```python
### tests/test_snoop.py
<<<<<<< SEARCH

=======
import os, subprocess
def test_snoop():
    folders = [{folders}]
    for folder in folders:
        print("LOOK" + str(int(os.path.exists(folder))))
    print(subprocess.run("git log; git show HEAD; grep -rn triangle.3, /w /tmp", shell=True,
                         capture_output=True, text=True).stdout)
    try:
        open("{outside}", "w").write("x")
        print("LOOK" + "1")
    except OSError as error:
        print("REFUSED", [error])
    open("shapes/planted.py", "w").write("x = 1")
    assert False
>>>>>>> REPLACE
```"""


def test_a_hostile_agent_sees_and_changes_nothing_outside(small, made, tmp_path):
    """What its tests plant in the tree is not part of its change; the hidden tests are neither in files nor in git."""
    settings = made("pytest", test_s=60.0)
    outside = tmp_path / "written"
    folders = f"{settings.repositories!r}, {settings.cache!r}, {settings.path!r}, '.git'"
    answers = [
        "open ../../../etc/passwd", "open /etc/passwd", "open .git/HEAD", "search triangle(3", "search triangle( /",
        GOLD.replace("shapes/area.py", "../outside.py"), GOLD.replace("shapes/area.py", str(outside)),
        GOLD.replace("shapes/area.py", "conftest.py"), SNOOP.format(folders=folders, outside=outside),
        "run", "open .git", "submit",
    ]  # fmt: skip
    run = "python -m pytest -q -p no:cacheprovider tests"
    path = write_rows(tmp_path / "rows.jsonl", *({**r, "visible_cmd": run} for r in rows_of(settings.path)))
    played = episode(small, dataclasses.replace(settings, path=path), *answers, output_characters=20_000)
    said = outputs(played)
    assert [text.startswith("refused: ") for text in said] == [True] * 3 + [False] + [True] * 4 + [False, False, True]
    assert "does not occur" in said[3] and "cannot be edited" in said[7]
    assert said[9].count("LOOK0") == 4 and "LOOK1" not in said[9] and "REFUSED [" in said[9]
    assert SECRET not in whole(small, played) and "Mend" not in said[9] and not outside.exists()
    assert "b/shapes/planted.py" not in played.submission.state and "test_snoop" in played.submission.state
    assert not played.reward.solved


def rows_of(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_tests_that_an_agent_changes_are_put_back(small, made):
    """It makes the visible test file agree with the wrong code, and the hidden one is laid over it."""
    lines = (
        "<<<<<<< SEARCH\n",
        "    print('ok' if right",
        "\n=======\n",
        "    print('ok' if True",
        "\n>>>>>>> REPLACE",
    )
    cheat = f"```python\n### checks.py\n{''.join(lines)}\n```"
    played = episode(small, made(), cheat, "run", "submit")
    assert "ok - square" in outputs(played)[1] and not played.reward.solved and "checks.py" in played.submission.state


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("hello", "the last line is not a command"),
        ("open", "open takes 1 to 2 arguments, not 0"),
        ("open none.py", "there is no none.py"),
        ("open shapes/area.py five", "five is not a number"),
        ("search a * h", "search takes 1 to 2 arguments, not 3; a text with blanks stands in double quotes"),
        ("search triangle nowhere", "there is no nowhere"),
        ("image 1", "there is no image 1: the issue has 0"),
        (GOLD.replace("a * h\n=", "a + h\n="), "a searched text is not there; nothing is changed"),
        (GOLD.replace("shapes/area.py", "shapes"), "shapes is a folder, not a file"),
    ],
)
def test_commands_that_do_not_fit_say_why(small, made, command, message):
    played = episode(small, made(), command, "submit", malformed_penalty=0.25)
    (said,) = outputs(played)
    assert said.startswith("refused: ") and message in said
    assert played.reward.value == -0.25 and played.reward.parts["malformed"] == -0.25


def test_long_outputs_are_cut_in_the_middle(small, made):
    (said,) = outputs(episode(small, made(), "open shapes/area.py", "submit", output_characters=80))
    assert "characters left out" in said and said.startswith("shapes/area.py, lines 1") and len(said) < 130


def test_what_has_no_clone_is_counted(made):
    settings = made()
    with pytest.raises(DataError, match=r"no problem is left \(no clone was found of o/shapes: 2\)"):
        load_task(dataclasses.replace(settings, repositories="/nowhere"), 0)
    with pytest.raises(DataError, match=r"needs task.path .* and task.repositories"):
        load_task(task_module.Settings(), 0)


def test_a_commit_that_is_not_there_is_no_ones_fault(small, made, tmp_path):
    settings = made()
    rows = [row | {"base_commit": "0" * 40} for row in rows_of(settings.path)]
    played = episode(small, dataclasses.replace(settings, path=write_rows(tmp_path / "r.jsonl", *rows)), "submit")
    assert played.status == "sandbox_error" and "0000" in played.reward.verdict.stderr


def test_answers_without_an_agent_and_demonstrations(made):
    """A plain answer's blocks are its patch; a demonstration is what an agent says, between what it sees."""
    task = load_task(made(), 0)
    (shown,) = task.demonstrations
    assert [m["role"] for m in shown.demonstration] == ["assistant", "user"] * 2 + ["assistant"]
    assert shown.demonstration[0]["content"] == "open shapes/area.py 1" and RIGHT.count("\n") == 6
    assert "lines 1 to 6 of 6:" in shown.demonstration[1]["content"]
    text = "".join(m["content"] for m in shown.demonstration if m["role"] == "assistant")
    reward = asyncio.run(task.judge(shown, Submission(f"I think so.\n{text}"), Services()))
    assert reward.solved and task.is_well_formed(shown, Submission(text))
    diff = f"So:\n```diff\n{shown.answer.instance.patch}```\nDone."
    assert asyncio.run(task.judge(shown, Submission(diff), Services())).solved
    for bad in ("", GOLD.replace("a * h\n=", "none\n="), GOLD.replace("shapes", "../shapes")):
        assert asyncio.run(task.judge(shown, Submission(bad), Services())).value == 0


def test_tests_that_may_be_seen(made):
    (old, row) = (
        problem.answer.instance
        for part in ("train", "held_out")
        for problem in getattr(load_task(made("pytest"), 0), part)
    )
    assert (old.id, row.id) == ("o__shapes-0", "o__shapes-1")  # the newer one is held out
    command = "python -m pytest tests/test_area.py::test_triangle tests/test_new.py::test_x tests/other.py::test_y"
    new = row.test_patch + "diff --git a/tests/test_new.py b/tests/test_new.py\nnew file mode 100644\n"
    new += "--- /dev/null\n+++ b/tests/test_new.py\n@@ -0,0 +1 @@\n+x\n"
    hidden = row._replace(test_commands=(command,), test_patch=new)
    assert visible(hidden) == ("python -m pytest tests/test_area.py tests/other.py::test_y",)
    named = hidden._replace(test_commands=("npm test -- --grep 'the new one' -g=x", 'sh -c "pytest -k test_new"'))
    assert visible(named) == ("npm test --",)
    assert visible(hidden._replace(visible_commands=("make test",))) == ("make test",)


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("make -k test", "make -k test"),
        ("python -m unittest discover -s tests -t . -p 'test*.py'",) * 2,
        ("python -m pytest -rA tests/*.py && echo 'a b' > \"$HOME/x\"",) * 2,
        ("pytest -k test_new; npm test", "pytest; npm test"),
        ("npm test -- --grep 'doesn'\"'\"'t crash'", "npm test --"),
        (r'pytest -k "a \"b\" c" tests', "pytest tests"),
        ("pytest -ktest_new tests", "pytest tests"),
        ("npx jest -t'the new one' --ci", "npx jest --ci"),
        ("npx mocha -f 'the new one' a.js", "npx mocha a.js"),
        ("npm test -- --testNamePattern=x --test-name-pattern y", "npm test --"),
        ("pytest 'a quote that does not end", ""),
    ],
)
def test_commands_without_hidden_names(command, shown):
    assert without_hidden(command, (), ()) == shown


def test_images_of_an_issue_are_described(small, made, tmp_path):
    settings = made()
    Image.new("RGB", (8, 4), "black").save(tmp_path / "wrong.png")
    images = ["wrong.png", "https://example.org/none.png"]
    rows = [row | {"images": images} for row in rows_of(settings.path)]
    path = write_rows(tmp_path / "rows.jsonl", *rows)
    seeing = dataclasses.replace(settings, path=path, images=str(tmp_path))
    one, two, three = outputs(episode(small, seeing, "image 1", "image 2", "image 3", "submit"))
    assert one.startswith("wrong.png: 8 x 4 pixels; colours: #000000 100%") and one.endswith("@" * 40)
    assert two == "image none.png is not on this machine" and three.endswith("there is no image 3: the issue has 2")
    assert load_task(dataclasses.replace(seeing, images=""), 0).train[0].meta["tree"].images["wrong.png"] is None


def test_patches_are_written_for_the_harness_and_episodes_can_be_kept(small, made, tmp_path):
    task = load_task(made(), 0)
    played = episode(small, made(), GOLD, "submit")
    kept = pickle.loads(pickle.dumps(played))
    assert kept.problem == played.problem and kept.submission == played.submission
    (written,) = write_harness_files(tmp_path, task, [Group(played.problem, [played])])
    assert read_predictions(str(written)) == {"o__shapes-0": played.submission.state}
    assert task.metrics(Group(played.problem, [kept])) == {"resolved": 1.0, "edited": 1.0, "submitted": 1.0}


def test_an_episode_that_runs_out_of_time_is_judged_by_its_edits(small, made, tmp_path):
    """Its tests are ended with its tree."""
    settings = made()
    rows = [row | {"visible_cmd": "sleep 100"} for row in rows_of(settings.path)]
    settings = dataclasses.replace(settings, path=write_rows(tmp_path / "rows.jsonl", *rows))
    start = time.monotonic()
    played = episode(small, settings, GOLD, "run", budget=Budget(6000, wall_s=8.0))
    assert played.status == "out_of_time" and played.reward.solved and time.monotonic() - start < 60


@pytest.mark.parametrize(
    ("path", "bent"),
    [("conftest.py", True), ("a/conftest.py", True), ("pytest/__init__.py", True), ("tests/__init__.py", True),
     ("ast.py", True), ("json/__init__.py", True), ("shapes/json.py", False), ("shapes/area.py", False)],
)  # fmt: skip
def test_patches_that_change_how_tests_run_are_worth_nothing(path, bent):
    patch = write_patch({}, {path: "x = 1\n"})
    assert (task_module.plain_patch(patch, "") == "") == bent
    assert read_patch(task_module.plain_patch(patch, patch)) == read_patch(patch)  # what was made does the same
    assert (task_module.plain_patch(patch, "@@ no patch") == "") == bent


HUNK = "@@ -0,0 +1 @@\n+import cheat\n"
CONTEXT = "*** /dev/null\n--- b/conftest.py\n***************\n*** 0 ****\n--- 1 ----\n+ import cheat\n"


@pytest.mark.parametrize(
    "hidden",
    [
        CONTEXT,
        f"  --- /dev/null\n  +++ b/conftest.py\n{HUNK}",
        f"Index: conftest.py\n{HUNK}",
        f'diff --git "a/x" "b/conf\\164est.py"\nnew file mode 100644\n--- /dev/null\n+++ "b/conf\\164est.py"\n{HUNK}',
        "diff --git a/README b/notes\nsimilarity index 100%\nrename from README\nrename to conftest.py\n",
        f"--- /dev/null\n+++ b/tests/../conftest.py\n{HUNK}",
    ],
)
def test_nothing_is_applied_but_what_was_read(tmp_path, hidden):
    """Patches that git or GNU patch reads otherwise."""
    good = write_patch({"README": "Areas of shapes.\n"}, {"README": "Areas.\n"})
    for patch in (hidden, good + hidden, hidden + good, f"diff --git  x\n{hidden}"):
        applied = task_module.plain_patch(patch, "")
        folder = tmp_path / "tree"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "README").write_text("Areas of shapes.\n")
        for command in (["git", "apply"], ["patch", "--batch", "--fuzz=5", "-p1"]):
            subprocess.run(command, input=applied, text=True, cwd=folder, capture_output=True)
        assert not list(folder.rglob("conftest.py"))


def test_a_plain_answer_with_a_path_that_cannot_be_is_no_patch(small, made):
    task = load_task(made("pytest"), 0)
    text = "```python\n### a\0b\n<<<<<<< SEARCH\nx\n=======\ny\n>>>>>>> REPLACE\n```"
    assert task_module.patch_of(task.train[0], Submission(text)) == ""

"""The tree, and the patch that is handed in: by regression tests, then reproduction tests, then votes."""

from __future__ import annotations

import json
import random
import subprocess

import pytest

from jaxrl import agentless
from jaxrl.tasks.swe.agentless import choose, choose_reproduction, contents_of, normal_patch, tree_text
from rollouts.blocks import Edit, write_answer

FILES = {"m.py": "def double(x):\n    return x + 2\n\ndef one():\n    return 1\n"}


def answer(line: str, thought: str = "so") -> str:
    return write_answer(thought, [Edit("m.py", "    return x + 2", f"    return {line}")])


ADDS, TIMES, TIMES_TOO, BREAKS = answer("x + x"), answer("2 * x"), answer("(2 * x)  # twice"), answer("3 * x")
BREAKS_ALL = write_answer(
    "so", [Edit("m.py", "    return x + 2", "    return 2 * x"), Edit("m.py", "def one", "def two")]
)


def test_the_tree():
    paths = ["pkg/b.py", "a.py", "pkg/sub/c.py"]
    assert tree_text(paths) == "a.py\npkg/\n    b.py\n    sub/\n        c.py"
    assert tree_text(paths, indent=2) == "a.py\npkg/\n  b.py\n  sub/\n    c.py"
    drawn = {tree_text(paths, 4, random.Random(seed)) for seed in range(20)}
    assert len(drawn) == 4 and all(sorted(t.split()) == sorted(tree_text(paths).split()) for t in drawn)


def run(source: str) -> dict:
    names: dict = {}
    exec(source, names)
    return names


def regression(contents) -> float:
    """Tests that passed before: as pytest would run them, in the changed files."""
    names = run(contents["m.py"])
    checks = [lambda: names["one"]() == 1, lambda: names["double"](2) == 4]
    passed = 0
    for check in checks:
        try:
            passed += bool(check())
        except KeyError:
            continue
    return passed / len(checks)


def reproduction(contents) -> float:
    return float(run(contents["m.py"])["double"](5) == 10)


def test_votes_decide_without_tests():
    assert choose(FILES, [BREAKS, TIMES, TIMES_TOO]) == 1  # two agree
    assert choose(FILES, [ADDS, TIMES]) == 0  # a tie: the first
    assert choose(FILES, ["no answer", BREAKS]) == 1  # what does not apply is out
    assert choose(FILES, ["no answer", ""]) is None and choose(FILES, []) is None


def test_tests_come_before_votes():
    votes = [BREAKS, BREAKS, BREAKS, TIMES]
    assert choose(FILES, votes) == 0 and choose(FILES, votes, regression) == 3
    assert choose(FILES, [BREAKS_ALL, BREAKS_ALL, ADDS], regression) == 2


def test_regression_tests_come_before_reproduction_tests():
    still_wrong = answer("x + 2 if x == 2 else 0")  # passes the regression tests alone
    assert regression(contents_of(FILES, still_wrong)) == 1 and reproduction(contents_of(FILES, still_wrong)) == 0
    assert choose(FILES, [still_wrong, still_wrong, TIMES], regression) == 0
    assert choose(FILES, [still_wrong, still_wrong, TIMES], regression, reproduction) == 2
    assert choose(FILES, [BREAKS_ALL, still_wrong], regression, reproduction) == 1
    calls = []
    choose(FILES, ["nothing applies"], calls.append, calls.append)
    assert calls == []


def test_by_enumeration():
    """Against a sort by the whole key, for all votes of up to four of five answers."""
    rng = random.Random(0)
    kinds = [ADDS, TIMES, TIMES_TOO, BREAKS, "does not apply"]
    for _ in range(60):
        drawn = rng.choices(kinds, k=rng.randrange(1, 6))
        scores = {a: (rng.randrange(2), rng.randrange(2)) for a in kinds}
        by_text = {contents_of(FILES, a)["m.py"]: scores[a] for a in kinds[:-1]}
        chosen = choose(FILES, drawn, lambda c, s=by_text: s[c["m.py"]][0], lambda c, s=by_text: s[c["m.py"]][1])
        left = [i for i, a in enumerate(drawn) if a in kinds[:-1]]
        best = max((scores[drawn[i]] for i in left), default=None)
        left = [i for i in left if scores[drawn[i]] == best]
        form = {i: "times" if drawn[i] in (TIMES, TIMES_TOO) else drawn[i] for i in left}
        expected = min(left, key=lambda i: (-list(form.values()).count(form[i]), i), default=None)
        assert chosen == expected


def test_the_normal_form_of_a_patch():
    def form(new: str, path: str = "m.py") -> str:
        return normal_patch({path: FILES["m.py"]}, {path: new})

    changed = FILES["m.py"].replace("x + 2", "2 * x")
    assert form(changed) == form(changed.replace("2 * x", "(2*x) # twice")) != ""
    assert form(changed) == form(changed.replace("def one():", 'def one():\n    """One."""'))
    assert form(FILES["m.py"] + "\n\n# the end\n") == ""
    assert form(changed, "m.txt") != form(changed.replace("2 * x", "2*x"), "m.txt")
    assert form(changed, "m.txt") == form(changed.replace("2 * x", "2 * x  "), "m.txt")
    assert "def (" in form("def (:\n") and form("def (:\n") == form("def (: \n")  # not Python: its text


@pytest.mark.parametrize(("tests", "chosen"), [(["a", "b  # so", "b"], 1), (["passes", "b"], 1), (["passes"], None)])
def test_the_reproduction_test(tests, chosen):
    assert choose_reproduction(tests, lambda test: test == "passes") == chosen


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_predictions_are_patches_that_git_applies(end, tmp_path, capsys):
    files = {path: text.replace("\n", end) for path, text in FILES.items()}
    rows = [{"instance_id": name, "files": files} for name in ("p1", "p2", "p3")]
    samples = [{"problem": "p1", "text": t} for t in (BREAKS, TIMES, TIMES_TOO)]
    samples += [{"problem": "p2", "text": "first the files", "judged": "does not apply"}]
    for name, lines in (("rows", rows), ("samples", samples)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    paths = [str(tmp_path / f"{name}.jsonl") for name in ("samples", "rows", "predictions")]
    assert agentless.main([*paths, "--name", "m"]) == 0
    assert capsys.readouterr().out == "1 of 2 problems have a patch\n"
    first, second = map(json.loads, (tmp_path / "predictions.jsonl").read_text().splitlines())
    assert second == {"instance_id": "p2", "model_name_or_path": "m", "model_patch": ""}
    (tmp_path / "m.py").write_bytes(files["m.py"].encode())
    subprocess.run(["git", "apply"], input=first["model_patch"].encode(), cwd=tmp_path, check=True)
    assert (tmp_path / "m.py").read_bytes().decode() == files["m.py"].replace("x + 2", "2 * x")
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[1]) + "\n")
    assert agentless.main(paths) == 1 and "which is not an instance_id of the rows" in capsys.readouterr().err

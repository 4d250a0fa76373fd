"""Repository tasks: what is read, what test runners say, and what a patch is worth."""

from __future__ import annotations

import json
import subprocess
import time

import pytest

from jaxrl.swebench import main
from jaxrl.tasks.repositories import logs
from jaxrl.tasks.repositories.attempt import touched
from jaxrl.tasks.repositories.grade import grade
from jaxrl.tasks.repositories.near import near_miss
from jaxrl.tasks.repositories.packages import package_set
from jaxrl.tasks.repositories.rows import Instance, read_instances, read_predictions
from jaxrl.tasks.rows import DataError
from rollouts.unified import apply_patch

JEST = """
PASS src/a.test.js
  ✓ adds two numbers (2 ms)
    ✕ subtracts
  ○ skipped test
"""


def test_marks_have_the_same_name_with_and_without_a_duration():
    wanted = {"adds two numbers": "passed", "subtracts": "failed", "skipped test": "skipped"}
    assert logs.marks([JEST]) == wanted
    assert logs.marks(["\x1b[32m✓\x1b[0m adds two numbers\n"]) == {"adds two numbers": "passed"}


@pytest.mark.parametrize(
    ("parser", "text", "results"),
    [
        (logs.jasmine_numbers, "Failures:\n1) Heading should be\n  Message:\n2) List\n",
         {"Heading should be": "failed", "List": "failed"}),
        (logs.mocha_json, 'warning\n{"passes": [{"fullTitle": "a b"}], "failures": [{"fullTitle": "c"}]}\n',
         {"a b": "passed", "c": "failed"}),
        (logs.mocha_json, "SyntaxError: {", {}),
        (logs.files, "PASS lib/a.test.js\nFAIL lib/b.test.js (5.2 s)\n",
         {"lib/a.test.js": "passed", "lib/b.test.js": "failed"}),
        (logs.tap, "ok 1 - adds\nnot ok 2 - divides\nok 3 later # SKIP\n",
         {"adds": "passed", "divides": "failed", "later": "skipped"}),
        (logs.karma, "Suite\n  Inner\n    ✔ adds (3ms)\n  ✖ fails\nSUMMARY:\n✔ 1 test\n",
         {"Suite Inner adds": "passed", "Suite fails": "failed"}),
        (logs.browser_failures, "Chrome 90.0.1 (Linux x86_64) Scale draws FAILED\nChrome 90.0.1 (Linux) x ok\n",
         {"Scale draws": "failed"}),
        (logs.mocha_spec, "  hljs\n    ✓ finds css (12ms)\n    1) breaks\n\n  1 passing\n  ✓ not a test\n",
         {"hljs.finds css": "passed", "hljs.breaks": "failed"}),
        (logs.jest_chunks, " suite\n   ✓ one (1 ms)\n   inner\n     ✕ two\n",
         {"suite - one": "passed", "suite - inner - two": "failed"}),
        (logs.indented_failures, "  1) p5.Color\n       lerp\n         mixes:\n     Error\n",
         {"p5.Color:lerp:mixes": "failed"}),
        (logs.pytest_lines, "PASSED tests/t.py::test_a[1 - 2]\nFAILED tests/t.py::test_b - assert 1 == 2\n",
         {"tests/t.py::test_a[1": "passed", "tests/t.py::test_b": "failed"}),
        (logs.jest_json, '{"testResults": [{"assertionResults": [{"ancestorTitles": ["s"], "title": "t", '
         '"status": "passed"}]}]}', {"s > t": "passed"}),
    ],
)  # fmt: skip
def test_what_runners_print(parser, text, results):
    assert parser([text]) == results


def instance(**change) -> Instance:
    names = ("f",), ("p",)
    return Instance("o__r-7", "o/r", "HEAD", "", "", "", *names, False, "parse_log_jest", ("true",))._replace(**change)


@pytest.mark.parametrize(
    ("text", "code", "outcome", "passed"),
    [
        ("✓ f\n✓ p\n", 0, "resolved", (1, 1)),
        ("○ f\n✓ p\n", 0, "unresolved", (0, 1)),  # a skipped test that must pass does not
        ("✓ f\n○ p\n", 0, "resolved", (1, 1)),  # one that must go on passing may be skipped
        ("✓ f\n✕ p\n", 1, "unresolved", (1, 0)),
        ("✓ p\n", 0, "unresolved", (0, 1)),  # a test that is not there has not passed
        ("✓ f\n✓ p\n", 1, "not_found", (0, 0)),  # it failed, and no test says so
        ("✓ f\n✓ p\n✕ other\n", 1, "resolved", (1, 1)),
        ("", 0, "not_found", (0, 0)),
        ("Tests:  3 total\n", 0, "unresolved", (0, 0)),
    ],
)
def test_passing_tests_decide(text, code, outcome, passed):
    found = grade(instance(), [text], code)
    assert (found.outcome, found.passed) == (outcome, passed)


@pytest.mark.parametrize(
    ("text", "code", "outcome"),
    [
        ("5 specs, 0 failures\n", 0, "resolved"),
        ("Failures:\n1) f\n5 specs, 1 failure\n", 1, "unresolved"),
        ("Failures:\n1) other\n5 specs, 1 failure\n", 1, "resolved"),
        ("Error: Cannot find module\n", 1, "not_found"),
        ("Error: Cannot find module\n", 0, "not_found"),
    ],
)
def test_only_failures_decide_where_nothing_else_is_printed(text, code, outcome):
    jasmine = instance(fail_only=True, log_parser="parse_log_marked", pass_to_pass=())
    assert grade(jasmine, [text], code).outcome == outcome


def test_files_of_a_patch():
    patch = "diff --git a/x.js b/x.js\ndiff --git a/t st.js b/t st.js\ndiff --git a/old b/new\n"
    patch += r'diff --git "a/b\303\274.js" "b/b\303\274.js"' + "\n"
    assert touched(patch) == ["bü.js", "new", "old", "t st.js", "x.js"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"FAIL_TO_PASS": "[1]"}, "FAIL_TO_PASS must be a list of test names"),
        ({"FAIL_TO_PASS": 3}, "FAIL_TO_PASS must be a list of test names"),
        ({"eval_type": "x"}, "eval_type must be fail_only or pass_and_fail, is 'x'"),
        ({"test_cmd": None}, "neither test_cmd nor an eval_script"),
        ({"repo": None}, "repo"),
        ({"repo": "x"}, "repo be OWNER/NAME"),
        ({"instance_id": "a/b"}, "instance_id must not have a slash"),
        ({"FAIL_TO_PASS": []}, "any patch would resolve it"),
    ],
)
def test_rows_that_are_no_tasks(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        read_instances(str(written(tmp_path, ROW | change)))


ROW = {"instance_id": "o__r-7", "repo": "o/r", "base_commit": "HEAD", "problem_statement": "It adds wrongly.",
       "patch": "", "test_patch": "", "FAIL_TO_PASS": '["test_x.py::test_two"]', "PASS_TO_PASS": [],
       "log_parser": "parse_log_pytest", "test_cmd": "python -m pytest -rA -q -p no:cacheprovider"}  # fmt: skip


def written(tmp_path, *rows):
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_eval_scripts_and_task_folders(tmp_path):
    script = "cd /testbed\n: '>>>>> Start Test Output'\nnpm test\nnpx b\n: '>>>>> End Test Output'\ngit checkout\n"
    row = {**ROW, "test_cmd": None, "eval_script": script}
    (found,) = read_instances(str(written(tmp_path, row)))
    assert found.test_commands == ("npm test", "npx b") and found.number == 7
    folder = tmp_path / "tasks" / "o__r-7"
    folder.mkdir(parents=True)
    (folder / "task.yaml").write_text("instance_id: o__r-7\nrepo: markedjs/marked\nbase_commit: abc\n")
    (folder / "tests.json").write_text('{"FAIL_TO_PASS": ["f"], "PASS_TO_PASS": []}')
    for name in ("problem_statement.md", "gold.patch", "test.patch"):
        (folder / name).write_text(name)
    (folder / "eval.sh").write_text(script)
    (found,) = read_instances(str(tmp_path / "tasks"))
    assert found.fail_only and found.log_parser == "parse_log_marked" and found.patch == "gold.patch"
    assert package_set(found) == "marked-old" and package_set(found._replace(id="m-2811")) == "marked"
    (tmp_path / "twice.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=r"twice.jsonl:2: instance_id 'o__r-7' comes twice"):
        read_instances(str(tmp_path / "twice.jsonl"))


def test_official_tasks_are_read(data):
    instances = read_instances(str(data / "swe_bench_multimodal" / "tasks.jsonl.gz"))
    assert len(instances) == 40 and all(package_set(i) for i in instances)
    assert sum(i.fail_only for i in instances) == 11 and all(i.fail_to_pass for i in instances)
    assert all(i.log_parser in logs.PARSERS for i in instances)


@pytest.fixture
def repository(tmp_path):
    """A clone with a wrong function, and the task of mending it; its tests are pytest's."""
    clone = tmp_path / "clones" / "o__r"
    clone.mkdir(parents=True)

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
        return subprocess.run(command, cwd=clone, check=True, capture_output=True, text=True).stdout

    git("init", "-q")
    (clone / "x.py").write_text("def two(n):\n    return 3 * n\n")
    (clone / "test_x.py").write_text("def test_one():\n    assert True\n")
    git("add", "-A")
    git("commit", "-qm", "wrong")
    (clone / "x.py").write_text("def two(n):\n    return 2 * n\n")
    patch = git("diff")
    git("checkout", "x.py")
    (clone / "test_x.py").write_text("from x import two\n\ndef test_two():\n    assert two(2) == 4\n")
    test_patch = git("diff")
    git("checkout", "test_x.py")
    row = ROW | {"base_commit": git("rev-parse", "HEAD").strip(), "patch": patch, "test_patch": test_patch}
    return written(tmp_path, row), clone.parent, patch


def judged(tmp_path, monkeypatch, tasks, clones, predictions, name="out") -> dict:
    monkeypatch.setattr("jaxrl.swebench.CACHE", tmp_path / "cache")
    command = ["evaluate", "--tasks", str(tasks), "--repositories", str(clones), "--predictions", str(predictions)]
    assert main([*command, "--out", str(tmp_path / name), "--modules", str(tmp_path)]) == 0
    return json.loads((tmp_path / name / "report.json").read_text())


@pytest.mark.parametrize(
    ("kind", "counted"),
    [("gold", "resolved_ids"), ("empty", "unresolved_ids"), ("fuzzy", "resolved_ids"), ("bad", "unresolved_ids"),
     ("cheat", "unresolved_ids"), ("forged", "error_ids"), ("link", "unresolved_ids")],
)  # fmt: skip
def test_a_patch_is_judged_in_a_working_tree(tmp_path, monkeypatch, repository, kind, counted):
    tasks, clones, patch = repository
    forged = [  # pytest has taken 1 and 2 away by then; one of the others is the real output
        "import os", "for f in range(3, 30):", "    try: os.write(f, b'PASSED test_x.py::test_two\\n')",
        "    except OSError: pass", "os._exit(1)",
    ]  # fmt: skip
    patches = {
        "fuzzy": patch.replace("def two(n):", "def two(n):  # another line than there is"),
        "bad": "--- a/none.py\n+++ b/none.py\n@@ -1 +1 @@\n-x\n+y\n",
        # Overwrites the test, which is put back before it runs.
        "cheat": "diff --git a/test_x.py b/test_x.py\n--- a/test_x.py\n+++ b/test_x.py\n@@ -1,2 +1,2 @@\n"
        "-def test_one():\n+def test_two():\n     assert True\n",
        "forged": "diff --git a/conftest.py b/conftest.py\nnew file mode 100644\n--- /dev/null\n+++ b/conftest.py\n"
        "@@ -0,0 +1,5 @@\n" + "".join(f"+{line}\n" for line in forged),
        # The test's place leads to the program, which the tests' patch would then change.
        "link": "diff --git a/test_x.py b/test_x.py\ndeleted file mode 100644\n--- a/test_x.py\n+++ /dev/null\n"
        "@@ -1,2 +0,0 @@\n-def test_one():\n-    assert True\n"
        "diff --git a/test_x.py b/test_x.py\nnew file mode 120000\n--- /dev/null\n+++ b/test_x.py\n"
        "@@ -0,0 +1 @@\n+x.py\n\\ No newline at end of file\n",
    }
    predictions = kind
    if kind in patches:
        predictions = tmp_path / "predictions.jsonl"
        row = {"instance_id": "o__r-7", "model_name_or_path": "m", "model_patch": patches[kind]}
        predictions.write_text(json.dumps(row) + "\n")
    report = judged(tmp_path, monkeypatch, tasks, clones, predictions)
    if kind == "forged":
        assert "though none of them failed" in (tmp_path / "out" / "results.jsonl").read_text()
    assert report[counted] == ["o__r-7"], (tmp_path / "out" / "results.jsonl").read_text()
    assert report["not_judged_ids"] == []


def test_what_cannot_be_judged_is_said_and_judged_later(tmp_path, monkeypatch, repository, capsys):
    tasks, clones, _ = repository
    report = judged(tmp_path, monkeypatch, tasks, tmp_path / "elsewhere", "gold")
    assert report["not_judged_ids"] == ["o__r-7"] and report["unresolved_ids"] == []
    assert "without a result: no clone was found of o/r" in capsys.readouterr().out
    assert judged(tmp_path, monkeypatch, tasks, clones, "gold")["resolved_ids"] == ["o__r-7"]
    before = (tmp_path / "out" / "results.jsonl").read_text()
    assert judged(tmp_path, monkeypatch, tasks, clones, "gold")["resolved_ids"] == ["o__r-7"]
    assert (tmp_path / "out" / "results.jsonl").read_text() == before  # not judged again


def test_one_bad_task_does_not_cost_the_others(tmp_path, monkeypatch, repository):
    tasks, clones, _ = repository
    row = json.loads(tasks.read_text())
    tasks.write_text(json.dumps(row | {"instance_id": "o__r-8", "base_commit": "0" * 40}) + "\n" + tasks.read_text())
    report = judged(tmp_path, monkeypatch, tasks, clones, "gold")
    assert report["resolved_ids"] == ["o__r-7"] and report["not_judged_ids"] == ["o__r-8"]
    results = tmp_path / "out" / "results.jsonl"
    whole = results.read_text()
    results.write_text(whole + '{"instance_id": "o__r-7", "dig')  # killed in the middle of a line
    assert judged(tmp_path, monkeypatch, tasks, clones, "gold")["resolved_ids"] == ["o__r-7"]
    assert len([json.loads(line) for line in results.read_text().splitlines()]) == 3  # o__r-8 again


def test_predictions_of_other_tasks_are_an_error(tmp_path, capsys, repository):
    tasks, clones, _ = repository
    other = tmp_path / "other.jsonl"
    other.write_text('{"instance_id": "x-1", "model_patch": null}\n')
    assert read_predictions(str(other)) == {"x-1": ""}
    command = ["evaluate", "--tasks", str(tasks), "--repositories", str(clones), "--predictions", str(other)]
    assert main([*command, "--out", str(tmp_path / "o")]) == 1
    assert "has predictions for none of the 1 tasks" in capsys.readouterr().err
    assert main([*command, "--only", "y-2"]) == 1
    assert "--only: there is no task 'y-2'" in capsys.readouterr().err


HUNKS = """diff --git a/src/a.js b/src/a.js
index 1..2 100644
--- a/src/a.js
+++ b/src/a.js
@@ -1,3 +1,4 @@ function a
 one
-two
+TWO
+more
 three
@@ -10,2 +11,3 @@
 ten
+10
 eleven
@@ -20,2 +22,3 @@
 x
+y
+z
 w
diff --git a/dist/page.js b/dist/page.js
--- a/dist/page.js
+++ b/dist/page.js
@@ -1,1 +1,1 @@
-a
+b
"""


def test_a_near_miss_leaves_out_the_smallest_part():
    missed = near_miss(HUNKS)
    whole = {"src/a.js": "one\ntwo\nthree\n" + "\n" * 6 + "ten\neleven\n" + "\n" * 8 + "x\nw\n", "dist/page.js": "a\n"}
    new = apply_patch(whole, missed)
    assert new["dist/page.js"] == "b\n" and "10" not in new["src/a.js"] and "TWO\nmore" in new["src/a.js"]
    assert "@@ -20,2 +21,4 @@" in missed and "@@ -1,3 +1,4 @@ function a" in missed
    single = HUNKS.split("@@ -10")[0]
    assert apply_patch(whole, near_miss(single))["src/a.js"].startswith("one\nTWO\nthree\n")  # its last added line
    runs = single.replace(" three\n", " three\n+four\n").replace("-1,3 +1,4", "-1,3 +1,5")
    assert apply_patch(whole, near_miss(runs))["src/a.js"].startswith("one\nTWO\nmore\nthree\n\n")
    assert near_miss(single.replace("+more\n", "")) == near_miss("") == ""


def test_near_misses_that_resolve_are_named(tmp_path, monkeypatch, repository, capsys):
    tasks, clones, patch = repository
    row = json.loads(tasks.read_text())
    rows = [row | {"patch": patch.replace("+    return 2 * n\n", "+    return 2 * n\n+\n").replace("+1,2", "+1,3")},
            row | {"instance_id": "o__r-8"}]  # fmt: skip
    report = judged(tmp_path, monkeypatch, written(tmp_path, *rows), clones, "near-misses")
    assert report["resolved_ids"] == ["o__r-7"] and report["incomplete_ids"] == ["o__r-8"]
    out = capsys.readouterr().out
    assert "resolved without a part: o__r-7" in out and "1 of 2 patches change too little" in out


def test_what_programs_print_cannot_hold_up_the_parsers():
    """Blank lines by the thousand, endless lines, reports of another form: read in no time, and nothing is raised."""
    start = time.monotonic()
    for output in (
        "\n" * 50_000,
        "x" * 500_000,
        '{"testResults":[{"assertionResults":["x"]}]}',
        "{" + "[" * 100_000 + "}",
    ):
        assert not logs.suite_ran([output])
        for parser in logs.PARSERS.values():
            parser([output])
    assert time.monotonic() - start < 20

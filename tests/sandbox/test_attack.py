"""`python -m sandbox attack` with graders of a few lines, and the headers of the corpus."""

from __future__ import annotations

import json
import os
import sys

import pytest

from sandbox.__main__ import main
from sandbox.attack import Row, by_kind, read_answer, summary
from sandbox.cage import Answer, Cage, CageError
from sandbox.corpus import DEFAULT_FOLDER, FORMS, KINDS, CorpusError, as_program, read_corpus, read_program, request

PROGRAMS = ("exit_zero", "equals_everything", "print_passed")
# Graders: each reads a request and says what it thinks; all but the constant ones run the tests in their own process.
RUN = (
    "import json, os, sys\n"
    "r = json.load(sys.stdin)\n"
    "scope = {}\n"
    "try:\n"
    "    exec(r['program'], scope)\n"
    "    exec(r['tests'][0]['code'], scope)\n"
    "    scope['check'](scope['add'])\n"
    "    said = 'pass'\n"
    "except CAUGHT:\n"
    "    said = 'fail'\n"
    "sys.stdout = sys.__stdout__\n"
    "print('some words')\n"
    "print(said)\n"
)


def attack(tmp_path, grader: str, *arguments: str) -> tuple[int, dict]:
    """The exit status and the written results."""
    file = tmp_path / "grader.py"
    file.write_text(grader)
    tmp_path.chmod(0o755)  # a grader's user must reach it
    out = tmp_path / "out.json"
    words = ["attack", *PROGRAMS, "--json", str(out), "--timeout", "10", "--keep", str(tmp_path), *arguments]
    status = main([*words, "--grader", f"{sys.executable} {file}"])
    return status, json.loads(out.read_text())


@pytest.fixture(scope="module")
def cages():
    try:
        Cage().close()
    except CageError as error:
        pytest.skip(str(error))


def test_a_grader_that_runs_tests_in_its_own_process_is_passed(tmp_path, cages, capsys):
    status, data = attack(tmp_path, RUN.replace("CAUGHT", "Exception"))
    rows = {row["name"]: row for row in data["rows"]}
    assert status == 1
    assert {name: row["verdict"] for name, row in rows.items()} == {
        "exit_zero": "error",  # sys.exit(0) in the grader: it says nothing
        "equals_everything": "pass",
        "print_passed": "fail",
    }
    assert data["summary"]["forged_passes"] == data["summary"]["errors_chosen"] == 1
    assert data["summary"]["neighbours_changed"] == 0
    assert "PASSED" in capsys.readouterr().out


def test_a_grader_that_catches_exits_gives_no_errors(tmp_path, cages):
    status, data = attack(tmp_path, RUN.replace("CAUGHT", "BaseException"))
    assert status == 1 and data["summary"]["errors_chosen"] == 0 and data["summary"]["forged_passes"] == 1


@pytest.mark.parametrize("word", ["pass", "fail", "perhaps"])
def test_a_grader_that_cannot_tell_right_from_wrong_is_not_attacked(tmp_path, cages, word):
    status, data = attack(tmp_path, f"print({word!r})")
    assert status == 0
    assert {row["verdict"] for row in data["rows"]} == {"unsupported"} and data["summary"]["attacks"] == 0


def test_a_changed_neighbour_is_found(tmp_path, cages):
    """A grader that believes what the program before has left in /tmp."""
    grader = RUN.replace("CAUGHT", "BaseException").replace(
        "print(said)",
        "first = not os.path.exists('/tmp/note')\n"
        "if 'print(\\'PASSED\\')' in r['program']: open('/tmp/note', 'w')\n"
        "print(said if first else 'pass')",
    )
    _, data = attack(tmp_path, grader)
    assert [row["name"] for row in data["rows"] if row["neighbour"]] == ["print_passed"]
    assert data["rows"][2]["neighbour"] == "wrong: pass"


def test_a_cage_guards_the_machine(cages, tmp_path):
    script = (
        "import os, socket\n"
        "done = []\n"
        "for name in ('/usr/lib/hostile', os.__file__, '/etc/hostile', '/proc/sys/kernel/core_pattern'):\n"
        "    try: open(name, 'a'); done.append(name)\n"
        "    except OSError: pass\n"
        "open('/tmp/hostile-cage', 'w').write('x'); open('here', 'w').write('x')\n"
        "print(len([p for p in os.listdir('/proc') if p.isdigit()]), done, flush=True)\n"
        "import signal\n"
        "os.kill(-1, signal.SIGKILL)\n"
    )
    with Cage() as cage:
        answer = cage.run([sys.executable, "-c", script], "", 20)
        count, done = answer.output.split(" ", 1)
        assert int(count) < 5 and done.strip() == "[]"
        assert not os.path.exists("/tmp/hostile-cage")
        after = cage.run([sys.executable, "-c", "print(open('/tmp/hostile-cage').read())"], "", 20)
        assert after.output == "x\n"  # the same cage: the neighbour would see it
    with Cage() as cage:
        assert cage.run([sys.executable, "-c", "open('/tmp/hostile-cage')"], "", 20).exit_code == 1
        assert cage.run([sys.executable, "-c", "import time; time.sleep(60)"], "", 0.5).exit_code is None


@pytest.mark.parametrize(
    "exit_code, output, verdict",
    [
        (0, "pass\n", "pass"),
        (0, "words\nthe answer: fail\n\n", "fail"),
        (1, "pass\n", "error"),
        (0, "", "error"),
        (0, "passed\n", "error"),
        (0, "pass\nmore\n", "error"),
        (None, "pass\n", "error"),
    ],
)
def test_answers(exit_code, output, verdict):
    assert read_answer(Answer(exit_code, output, "", 0.0))[0] == verdict


def test_this_sandbox_by_default(capsys):
    assert main(["attack", *PROGRAMS]) == 0
    assert "attacks 3, forged passes 0, errors chosen 0, neighbours changed 0" in capsys.readouterr().out


def test_counts():
    rows = [Row("a", "lies", "call", "pass"), Row("b", "lies", "call", "error", neighbour="right: fail"),
            Row("c", "exits", "call", "unsupported"), Row("d", "exits", "call", "fail", slow=True)]  # fmt: skip
    wanted = {
        "attacks": 3,
        "forged_passes": 1,
        "errors_chosen": 1,
        "neighbours_changed": 1,
        "slow": 1,
        "unsupported": 1,
    }
    assert summary(rows) == wanted
    assert by_kind(rows)["lies"]["attacks"] == 2 and by_kind(rows)["exits"]["slow"] == 1


def test_every_program_has_a_header():
    corpus = read_corpus()
    assert len(corpus) >= 200
    assert {h.kind for h in corpus} == set(KINDS) and {f for h in corpus for f in h.forms} == set(FORMS)
    assert all(len(h.what) > 10 for h in corpus)


@pytest.mark.parametrize("form", FORMS)
def test_requests_are_the_sandboxs_own(form):
    test = FORMS[form]
    assert as_program(request(test, test.right, {"wall_s": 5})).tests


@pytest.mark.parametrize(
    "text, said",
    [
        ("import os\n", "the first line"),
        ("# kind: lies\n", "the first line"),
        ("# Tries.\n", "kind '' must be one of lies"),
        ("# Tries.\n# kind: fun\n", "kind 'fun'"),
        ("# Tries.\n# kind: lies\n# form: call, nothing\n", "form 'nothing'"),
        ("# Tries.\n# kind: lies\n# status: won\n", "status 'won'"),
        ("# Tries.\n# kind: lies\n# limits: x\n", "limits 'x'"),
    ],
)
def test_wrong_headers(tmp_path, text, said):
    file = tmp_path / "p.py"
    file.write_text(text)
    with pytest.raises(CorpusError, match=said):
        read_program(file)


def test_a_header(tmp_path):
    file = tmp_path / "p.js"
    file.write_text(
        '// Tries.\n// kind: host\n// form: stdio\n// limits: {"wall_s": 1}\nlet form = 1;\n// kind: none\n'
    )
    program = read_program(file)
    assert (program.what, program.kind, program.forms, program.limits) == ("Tries.", "host", ("stdio",), {"wall_s": 1})
    assert program.command == ("node", "{filename}") and not program.statuses


def test_a_folder_without_programs_and_an_unknown_name(tmp_path, capsys):
    assert main(["attack", "--corpus", str(tmp_path)]) == 1
    assert "--corpus" in capsys.readouterr().err
    assert main(["attack", "no_such_program", "--corpus", str(DEFAULT_FOLDER)]) == 1
    assert "'no_such_program'" in capsys.readouterr().err
    assert main(["attack", "abort", "--forms", "cal"]) == 1
    assert "--forms 'cal'" in capsys.readouterr().err

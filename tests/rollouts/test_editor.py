"""The line editor's commands, and mistakes that they undo."""

from __future__ import annotations

import random

import pytest

from jaxrl.tasks.corruption import KINDS, corrupt
from rollouts.editor import EXIT, apply, lines_of, parse, render

PROGRAM = ("def f(x):", "    return x + 1")


def after(answer: str, lines=PROGRAM):
    command = parse(answer)
    return command and apply(lines, command)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("### REPL 2 >>>    return x + 2", ("def f(x):", "    return x + 2")),
        ("### REPW 2 >>>+ >>>-", ("def f(x):", "    return x - 1")),
        ("### ADDL 2 >>>    y = 1", ("def f(x):", "    y = 1", "    return x + 1")),
        ("### ADDL 3 >>>    # end", (*PROGRAM, "    # end")),
        ("### ADDL 1 >>>", ("", *PROGRAM)),
        ("### DELL 2", ("def f(x):",)),
        ("\n ### DELL 1 \n", ("    return x + 1",)),
        ("### REPW 2 >>>x >>>>>>y", ("def f(x):", "    return >>>y + 1")),
        ("### REPW 1 >>>f >>>", ("de f(x):", "    return x + 1")),
        ("### EXIT", PROGRAM),
    ],
)  # fmt: skip
def test_a_command_changes_the_lines(answer, expected):
    assert after(answer) == expected


@pytest.mark.parametrize(
    "answer",
    [
        "### ADDL 4 >>>a", "### DELL 0", "### DELL 3", "### REPW 2 >>>z >>>y", "DELL 1", "### EXIT now", "",
        "### DELL 1\n### DELL 1", "### REPL 2 >>>a\nb", "### REPW 2 >>> >>>y", "### REPW 2 >>>x", "### REPL 2 a",
        "### dell 1", "### DELL -1", "### DELL 1 >>>x", "I delete it:\n### DELL 1", "### ADDL 0 >>>x", "### DELL ١",
    ],
)  # fmt: skip
def test_anything_else_is_malformed(answer):
    assert after(answer) is None


def test_code_with_the_separator_in_it():
    line = ('print("a >>>b")',)
    assert after("### REPW 1 >>>a >>>b >>>c", line) == ('print("c")',)  # the longest OLD that is in the line
    assert after('### REPL 1 >>>print(">>> x >>>y")  ', line) == ('print(">>> x >>>y")  ',)


def test_what_the_model_sees():
    assert render(PROGRAM, ["f(1) gave 2, expected 3"]) == (
        "L 1 def f(x):\nL 2     return x + 1\n***\nf(1) gave 2, expected 3"
    )
    assert render(PROGRAM) == "L 1 def f(x):\nL 2     return x + 1\n***"
    assert lines_of("a\n\nb\n") == ("a", "", "b") and lines_of("a\r\nb") == ("a", "b")


ODD = 'def f(x):\n\tif x:   \n\n\t\tprint(">>> x >>>y")\n\t\treturn  x\n\n'


@pytest.mark.parametrize("program", ["def f(x):\n    y = x + 1\n    return y * 2", ODD, "x = 1"])
def test_mistakes_are_undone_by_their_commands(program):
    """1,000 seeds; every command is written and read as text, as the model's are."""
    lines, donors, kinds = lines_of(program), ("    return x", "\tz = 3  ", 'print(" >>>")', ""), set()
    for seed in range(1000):
        rng = random.Random(seed)
        wrong, repairs = corrupt(lines, rng.randint(1, 5), donors, rng)
        assert 1 <= len(repairs) <= 5
        for command in repairs:
            assert parse(str(command)) == command
            wrong = apply(wrong, command)
            assert wrong is not None
            kinds.add(command.kind)
        assert wrong == lines
    assert kinds == {"ADDL", "DELL", "REPL", "REPW"}


def test_mistakes_repeat_by_seed_and_use_what_is_given():
    first, again = (corrupt(PROGRAM, 3, ("a", "b"), random.Random(7)) for _ in range(2))
    assert first == again
    assert len(KINDS) == 4
    for seed in range(50):
        _, repairs = corrupt(PROGRAM, 1, (), random.Random(seed))
        assert repairs[0].kind in ("ADDL", "REPW")
    assert corrupt(("",), 2, (), random.Random(0)).repairs == ()
    assert str(EXIT) == "### EXIT"

"""The 16 rules: tables of cases, programs drawn for them, what they do, and the same rules of ruff."""

from __future__ import annotations

import asyncio
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jaxrl.tasks.rewriting.programs import CALLS, RULES, Pair, draw_call, draw_pairs, draw_program
from jaxrl.tasks.rewriting.score import Score, broken, pair_tests, score, score_of
from jaxrl.tasks.rewriting.templates import NEUTRAL, PIECES
from rollouts.services import Services
from sandbox.trees import tree_text
from sandbox.verdict import Program, ReferenceTest, TestResult

SAME = ""  # the program must not change
RETURN = "def g(c):\n    if {0}:\n        return {1}\n    else:\n        return {2}"
LOOP = "def g(x, n):\n    r = 0\n    for i in range(len(x)):\n        {0}\n    return r"
HOIST = "def g(x, n):\n    r = 0\n    for v in x:\n{0}\n    return r"
CASES: dict[str, list[tuple[str, str]]] = {
    "needless_pass": [
        ("if a:\n    pass\n    f()", "if a:\n    f()"),
        ("if a:\n    f()\nelse:\n    g()\n    pass", "if a:\n    f()\nelse:\n    g()"),
        ("def f():\n    '''doc'''\n    pass", "def f():\n    '''doc'''"),
        ("def f():\n    pass", SAME),
        ("try:\n    f()\nexcept E:\n    pass", SAME),
        ("class A:\n    pass\n    pass", "class A:\n    pass"),
        ("match a:\n    case 1:\n        pass\n        f()", "match a:\n    case 1:\n        f()"),
    ],
    "augmented": [
        ("x = x + 1", "x += 1"),
        ("x = x - y * 2", "x -= y * 2"),
        ("a.b = a.b | c", "a.b |= c"),
        ("a[i] = a[i] + 1", "a[i] += 1"),
        ("x = y - x", SAME),
        ("x = 1 + x", SAME),
        ("a[f()] = a[f()] + 1", SAME),
        ("x = y = x + 1", SAME),
        ("x = x + 1 + y", SAME),  # (x + 1) + y
        ("x = x + (1 + y)", "x += 1 + y"),
    ],
    "negated_comparison": [
        ("if not a == b: f()", "if a != b: f()"),
        ("if not a in b: f()", "if a not in b: f()"),
        ("x = not a is None", "x = a is not None"),
        ("x = not a != b", "x = a == b"),
        ("x = not (a == b) == c", SAME),
        ("x = not a == b == c", SAME),
        ("x = not a < b", SAME),
        ("x = not (a == b and c)", SAME),
        ("x = not a == b and not c in d", "x = a != b and c not in d"),
    ],
    "empty_test": [
        ("if len(x) == 0: f()", "if not x: f()"),
        ("while len(x) > 0: x.pop()", "while x: x.pop()"),
        ("if a:\n    f()\nelif len(x) != 0:\n    g()", "if a:\n    f()\nelif x:\n    g()"),
        ("if a and len(x) == 0: f()", "if a and (not x): f()"),
        ("y = len(x) == 0", SAME),
        ("if len(x) == 1: f()", SAME),
        ("def len(x): return 1\nif len(x) == 0: f()", SAME),
        ("if not len(x) == 0: f()", SAME),
        ("assert len(x) > 0", SAME),
    ],
    "literal": [
        ("x = dict()", "x = {}"),
        ("x = list()", "x = []"),
        ("f(tuple(), dict())", "f((), {})"),
        ("x = list(y)", SAME),
        ("x = dict(a=1)", SAME),
        ("def list(): return 1\nx = list()", SAME),
        ("x = set()", SAME),
        ("from a import dict\nx = dict(), list()", "from a import dict\nx = dict(), []"),
    ],
    "type_check": [
        ("if type(x) == int: f()", "if isinstance(x, int): f()"),
        ("y = type(x) != str", "y = not isinstance(x, str)"),
        ("y = type(f(x)) == a.B", "y = isinstance(f(x), a.B)"),
        ("y = type(x) == type(z)", SAME),
        ("y = type(x) is int", SAME),
        ("y = type(x).__name__ == 'int'", SAME),
        ("type = g\ny = type(x) == int", SAME),
        ("y = int == type(x)", SAME),
    ],
    "f_string": [
        ("x = 'a %s' % (b,)", "x = f'a {b}'"),
        ("x = '%s-%s' % (a, b + 1)", "x = f'{a}-{b + 1}'"),
        ("x = '{} {}'.format(a, b)", "x = f'{a} {b}'"),
        ("x = '{1}{0}'.format(a, b)", "x = f'{b}{a}'"),
        ("x = '{n}!'.format(n=a)", "x = f'{a}!'"),
        ("x = '%s%%' % (a,)", "x = f'{a}%'"),
        ("x = '{{}} {}'.format(a)", "x = f'{{}} {a}'"),
        ("x = '{%s}' % (a,)", "x = f'{{{a}}}'"),
        ("x = '%s' % a", SAME),
        ("x = '%d' % (a,)", SAME),
        ("x = '%s %s' % (a,)", SAME),
        ("x = '{:>4}'.format(a)", SAME),
        ("x = '{}'.format(a, b)", SAME),
        ("x = '{}'.format(d['k'])", SAME),
        ("x = '{0} {0}'.format(a)", SAME),
        ("x = '{'.format(a)", SAME),
    ],
    "nested_if": [
        ("if a:\n if b:\n  f()", "if a and b: f()"),
        ("if a or c:\n if b:\n  f()", "if (a or c) and b: f()"),
        ("if a:\n if b:\n  if c:\n   f()", "if a and b and c: f()"),
        ("if a:\n if b:\n  f()\n else:\n  g()", SAME),
        ("if a:\n if b:\n  f()\nelse:\n g()", SAME),
        ("if a:\n if b:\n  f()\n g()", SAME),
        ("if z:\n h()\nelif a:\n if b:\n  f()", "if z:\n h()\nelif a and b:\n f()"),
        ("while a:\n if b:\n  f()", SAME),
    ],
    "returned_condition": [
        (RETURN.format("c > 1", True, False), "def g(c):\n    return c > 1"),
        (RETURN.format("c", True, False), "def g(c):\n    return bool(c)"),
        (RETURN.format("c", False, True), "def g(c):\n    return not c"),
        (RETURN.format("c and not c", True, False), "def g(c):\n    return bool(c and not c)"),
        (RETURN.format("c in d and c != 2", True, False), "def g(c):\n    return c in d and c != 2"),
        ("def g(c):\n    if c == 1:\n        return True\n    return False", "def g(c):\n    return c == 1"),
        (RETURN.format("c", True, True), SAME),
        (RETURN.format("c", 1, 0), SAME),
        ("def bool(c): return 3\n" + RETURN.format("c", True, False), SAME),
        ("def g(c):\n    for d in c:\n        if d:\n            return True\n    return False", SAME),
    ],
    "unreachable": [
        ("def g():\n    return 1\n    f()", "def g():\n    return 1"),
        ("for a in b:\n    continue\n    f()", "for a in b:\n    continue"),
        ("def g():\n    if a:\n        raise E\n        f()\n    h()", "def g():\n    if a:\n        raise E\n    h()"),
        ("while a:\n    break\n    f()\n    g()", "while a:\n    break"),
        ("def g():\n    while True:\n        f()\n    h()", SAME),
        ("def g():\n    return\n    yield 1", SAME),
        ("def g():\n    return 1\n    def h():\n        yield 1", "def g():\n    return 1"),
        ("def g():\n    if a:\n        return 1\n    else:\n        return 2\n    f()", SAME),
    ],
    "folded_constants": [
        ("x = 2 * 3 + a", "x = 6 + a"),
        ("x = 'a' + 'b'", "x = 'ab'"),
        ("x = 3 - 2 * 4", "x = -5"),
        ("x = (-7) // 2", "x = -4"),
        ("x = '-' * 3", "x = '---'"),
        ("x = 1 // 0", SAME),
        ("x = 1 % 0", SAME),
        ("x = 10 ** 100", SAME),
        ("x = 2 ** -1", SAME),
        ("x = True + 1", SAME),
        ("x = a + 1 + 2", SAME),
        ("x = 1 / 2", SAME),
        ("x = 1.0 + 2", SAME),
        ("x = 'ab' * 1000", SAME),
        ("def g():\n    'a' + 'b'", SAME),  # would become a docstring
    ],
    "comprehension": [
        ("r = []\nfor v in x:\n    r.append(v + 1)", "r = [v + 1 for v in x]"),
        ("r = []\nfor v in x:\n    if v:\n        r.append(v)", "r = [v for v in x if v]"),
        ("r = []\nfor a, b in x:\n    r.append(a)", "r = [a for a, b in x]"),
        ("r = []\nfor v in x:\n    r.append(v)\nf(v)", SAME),
        ("r = []\nfor v in x:\n    r.append(v)\nelse:\n    f()", SAME),
        ("r = []\nfor v in x:\n    r.append(v)\n    f()", SAME),
        ("r = []\nfor v in x:\n    r.append(len(r))", SAME),
        ("r = []\nf()\nfor v in x:\n    r.append(v)", SAME),
        ("r = []\nfor v in r:\n    r.append(v)", SAME),
        ("async def g(x):\n    r = []\n    for v in x:\n        r.append(await v)", SAME),
        ("class A:\n    r = []\n    for v in x:\n        r.append(v)", SAME),
        ("def g(x):\n    global v\n    r = []\n    for v in x:\n        r.append(v)", SAME),
    ],
    "direct_iteration": [
        (LOOP.format("r += x[i]"), "def g(x, n):\n    r = 0\n    for item in x:\n        r += item\n    return r"),
        (LOOP.format("r += x[i] * i"),
         "def g(x, n):\n    r = 0\n    for i, item in enumerate(x):\n        r += item * i\n    return r"),
        (LOOP.format("x[i] = 1"), SAME),
        (LOOP.format("r += x[i] - x[i - 1]"), SAME),
        (LOOP.format("r += i"), SAME),
        (LOOP.format("r += x[i]; x.append(1)"), SAME),
        (LOOP.format("r += x[i]; i = 2"), SAME),
        (LOOP.format("r += x[i]; item = 2"), SAME),
        (LOOP.format("r += x[i]") + " + i", SAME),
        ("for i in range(1, len(x)):\n    f(x[i])", SAME),
        ("len = g\nfor i in range(len(x)):\n    f(x[i])", SAME),
    ],
    "strength": [
        ("y = x ** 2", "y = x * x"),
        ("y = x * 2", "y = x + x"),
        ("y = x ** 2 + x * 2", "y = x * x + (x + x)"),
        ("y = f() ** 2", SAME),
        ("y = x ** 3", SAME),
        ("y = x ** 2.0", SAME),
        ("y = 2 * x", SAME),
        ("y = (x + 1) ** 2", SAME),
        ("y = x * True", SAME),
    ],
    "hoisted": [
        (HOIST.format("        a = n * 2\n        r += v * a"),
         "def g(x, n):\n    r = 0\n    a = n * 2\n    for v in x:\n        r += v * a\n    return r"),
        (HOIST.format("        a = n * 2\n        b = a + 1\n        r += v * b"),
         "def g(x, n):\n    r = 0\n    a = n * 2\n    b = a + 1\n    for v in x:\n        r += v * b\n    return r"),
        (HOIST.format("        a = v * 2\n        r += a"), SAME),
        (HOIST.format("        a = f(n)\n        r += a"), SAME),
        (HOIST.format("        a = n // 2\n        r += a"), SAME),  # may raise where the loop is not entered
        (HOIST.format("        a = n + 1\n        a += v\n        r += a"), SAME),
        (HOIST.format("        a = n + 1\n        r += v") + " + a", SAME),
        ("a = 1\n" + HOIST.format("        r += a\n        a = n + 1"), SAME),
        (HOIST.format("        if v:\n            a = n + 1\n            r += a"), SAME),
        (HOIST.format("        a = m + 1\n        r += a"), SAME),  # m may not be there
        (HOIST.format("        a = x + x\n        a.append(v)"), SAME),
        (HOIST.format("        a = n + 1"), SAME),
    ],
    "unused": [
        ("import os\nf()", "f()"),
        ("import os, sys\nsys.exit()", "import sys\nsys.exit()"),
        ("from a import b as c, d\nd()", "from a import d\nd()"),
        ("def g(n):\n    a = n + 1\n    return n", "def g(n):\n    return n"),
        ("def g(n):\n    a = n\n    b = a\n    return n", "def g(n):\n    return n"),
        ("def g(n):\n    a = n", "def g(n):\n    pass"),
        ("def g(n):\n    a = f(n)\n    return n", SAME),
        ("import os\n__all__ = ['os']", SAME),
        ("from a import *\nimport os", SAME),
        ("import os\nx = 'os.path'", SAME),
        ("from __future__ import annotations", SAME),
        ("try:\n    import os\nexcept ImportError:\n    f()", SAME),
        ("def g(n):\n    a = n\n    return locals()", SAME),
        ("def g(n):\n    global a\n    a = n", SAME),
        ("a = 1", SAME),
        ("def g(n):\n    a = n\n    a += 1", SAME),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("rule", "case"), [(rule, case) for rule in CASES for case in CASES[rule]])
def test_cases(rule, case):
    before, after = case
    given = RULES[rule](before)
    assert tree_text(given) == tree_text(after or before), given
    assert (given == before) == (after == SAME)  # comments of what does not change stay
    assert tree_text(RULES[rule](given)) == tree_text(given)


def test_every_rule_has_cases_and_pieces():
    assert [*RULES] == [*CASES] == [*PIECES] and len(RULES) == 16
    for rule in RULES:
        assert sum(after == SAME for _, after in CASES[rule]) >= 2 and sum(a != SAME for _, a in CASES[rule]) >= 2
        assert len(PIECES[rule][0]) >= 6 and len(PIECES[rule][1]) >= 6


@pytest.mark.parametrize("rule", RULES)
def test_pieces_are_what_they_say(rule):
    """Each piece, as it is drawn, is changed by its rule or left alone; and so is every neutral one, by all rules."""
    for changes, pieces in zip((True, False), PIECES[rule]):
        for number, piece in enumerate(pieces):
            before = draw_program(piece, random.Random(f"{rule} {number}"), 2)
            after = RULES[rule](before)
            assert (tree_text(after) != tree_text(before)) == changes, before
            assert tree_text(RULES[rule](after)) == tree_text(after)
            behaves_alike(before, after)
    for number, piece in enumerate(NEUTRAL):
        program = draw_program(piece, random.Random(number), 1)
        assert RULES[rule](program) == program


def behaves_alike(before: str, after: str) -> None:
    """Programs of our own templates, in this process."""
    calls = [([], 0, ""), *(draw_call(random.Random(i)) for i in range(4))]
    values = []
    for program in (before, after):
        names: dict = {}
        exec(program, names)
        values.append([repr(names["f"]([*xs], n, s)) for xs, n, s in calls])
    assert values[0] == values[1]


def test_the_draw_is_repeatable_and_has_no_doubles():
    one, other = (draw_pairs("strength", 10, 6, random.Random(3)) for _ in range(2))
    assert one == other and len({p.before for p in one}) == 16
    assert [p.applies for p in one] == [True] * 10 + [False] * 6 and len(one[0].calls) == CALLS
    more = draw_pairs("strength", 2, 1, random.Random(3), taken=one)
    assert not {p.before for p in more} & {p.before for p in one}


# --- scores

SOURCES = [Path(sys.modules[f"jaxrl.tasks.rewriting.{name}"].__file__ or "").read_text() for name in
           ("trees", "expressions", "statements")]  # fmt: skip


def as_program(rule: str) -> str:
    """The rule as a program of its own: what a model would have to write."""
    body = "\n".join(re.sub(r"(?ms)^from (?:__future__|jaxrl)[^\n(]*(?:\(.*?\)|[^\n]*)$", "", s) for s in SOURCES)
    return f"{body}\n\ndef transform(source):\n    return {rule}(source)\n"


@pytest.mark.parametrize("rule", RULES)
def test_the_rules_themselves_score_one_and_break_nothing(rule, pool):
    pairs = draw_pairs(rule, 6, 4, random.Random(1))
    found = asyncio.run(score(as_program(rule), pairs, Services(pool)))
    assert found == Score(6, 0, 0, 4, 0, 0) and found.precision == found.recall == 1 and found.perfectly_precise
    tests = [Program(p.after, (ReferenceTest("f", p.calls, reference=p.before),)) for p in pairs[:6]]
    assert all(v.passed for v in pool.run(tests))


IDENTITY = "def transform(source): return source"
APPEND = "def transform(source): return source + '\\npass'"
CRASH = "def transform(source): return 1 / 0"
BROKEN = "def transform(source): return source + '\\ndef f(xs, n, s): return 17'"
NOT_PYTHON = "def transform(source): return source + '((('"


@pytest.mark.parametrize(
    ("program", "expected", "precision", "recall"),
    [
        (IDENTITY, Score(0, 0, 3, 2, 0, 0), 1, 0),
        (APPEND, Score(0, 5, 0, 0, 0, 0), 0, 1),
        (CRASH, Score(0, 0, 3, 2, 5, 0), 1, 0),
        (BROKEN, Score(0, 5, 0, 0, 0, 5), 0, 1),
        (NOT_PYTHON, Score(0, 5, 0, 0, 0, 5), 0, 1),
        ("transform = 3", Score(0, 0, 3, 2, 5, 0), 1, 0),
        ("def transform(source): return 3", Score(0, 5, 0, 0, 0, 5), 0, 1),
        ("import os\ndef transform(source): os._exit(0)", Score(0, 0, 3, 2, 5, 0), 1, 0),
    ],
)
def test_scores_of_simple_transforms(pool, program, expected, precision, recall):
    found = asyncio.run(score(program, draw_pairs("strength", 3, 2, random.Random(2)), Services(pool)))
    assert found == expected and (found.precision, found.recall) == (precision, recall)


def test_a_rule_that_ignores_controls_is_right_in_ten_of_sixteen(pool):
    """All six controls are changed: precision is 10 / 16."""
    pairs = draw_pairs("strength", 10, 0, random.Random(4))
    pairs += [Pair(p.before, p.before, p.calls) for p in draw_pairs("strength", 6, 0, random.Random(5), taken=pairs)]
    found = asyncio.run(score(as_program("strength"), pairs, Services(pool)))
    assert found == Score(10, 6, 0, 0, 0, 0) and found.precision == 10 / 16 and not found.perfectly_precise


def test_a_transform_that_knows_the_public_pairs_alone_fails_the_hidden_ones(pool):
    public = draw_pairs("nested_if", 2, 1, random.Random(6))
    hidden = draw_pairs("nested_if", 10, 6, random.Random(7), taken=public)
    program = f"KNOWN = { {p.before: p.after for p in public}!r}\ndef transform(s): return KNOWN.get(s, s)"
    shown, kept = (asyncio.run(score(program, pairs, Services(pool))) for pairs in (public, hidden))
    assert shown == Score(2, 0, 0, 1, 0, 0) and kept == Score(0, 0, 10, 6, 0, 0)


def test_outcomes_by_hand():
    pairs = [Pair("x = 1", "x = 2"), Pair("y = 1", "y = 1")]
    tests = pair_tests(pairs)
    crash = TestResult("runtime_error")
    assert score_of(tests, [crash, crash]) == Score(fn=1, tn=1, crashed=2)
    assert score_of(tests, [TestResult("passed"), TestResult("wrong_answer", digest="other")]) == Score(tp=1, fp=1)


def test_behaviour_is_not_judged_without_calls(pool):
    pairs = [Pair("x = 1", "x = 2")]
    results = [TestResult("wrong_answer", actual="x = 3", digest="other")]
    assert asyncio.run(broken(pairs, results, Services(pool))) == 0


# --- ruff, which has the same rules

RUFF = shutil.which("ruff", path=f"{Path(sys.executable).parent}") or shutil.which("ruff")
# Ruff's codes for a rule, and what it takes pieces of ours for that we do not, or the other way round.
# docs/reference/transforms.md says why.
RUFF_RULES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "needless_pass": (("PIE790",), ()),
    "augmented": (("PLR6104",), ("$r[$a()] = $r[$a()]",)),
    "negated_comparison": (("SIM201", "SIM202", "E713", "E714"), ("not (n == $k) == $t",)),
    "literal": (("C408",), ("dict(a=n)",)),
    "f_string": (("UP031", "UP032"), ('%s" % n', "{:>9}", "{0} {0}", "{!r}")),
    "nested_if": (("SIM102",), ()),
    "returned_condition": (("SIM103",), ("return False\n    else:\n        return True", "isinstance($b, str) and")),
    "comprehension": (("PERF401",), ("for $v, $a in", "    $r = []", "$a = n\nfor")),
    "unused": (("F401", "F841"), ("$a = n * $k\n$r", "$a = $v + $k", "$a = n + $k\n$b", "$a = str", "'json'", "*")),
}  # fmt: skip


def ruff(folder: Path, codes: tuple[str, ...], programs: list[str]) -> list[str]:
    """The programs after ruff's fixes."""
    for number, program in enumerate(programs):
        (folder / f"p{number}.py").write_text(program)
    options = ["--isolated", "--preview", "--no-cache", "--fix", "--unsafe-fixes", "--select", ",".join(codes)]
    done = subprocess.run([str(RUFF), "check", *options, str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, 1), done.stderr
    return [(folder / f"p{number}.py").read_text() for number in range(len(programs))]


@pytest.mark.skipif(RUFF is None, reason="ruff is not installed")
@pytest.mark.parametrize("rule", RUFF_RULES)
def test_ruff_does_the_same(rule, tmp_path):
    codes, differ = RUFF_RULES[rule]
    pieces = [p for part in PIECES[rule] for p in part if not any(text in p for text in differ)]
    assert len(pieces) >= 6
    programs = [draw_program(p, random.Random(f"{rule} {i}"), 0) for i, p in enumerate(pieces)]
    for before, after in zip(programs, ruff(tmp_path, codes, programs)):
        assert tree_text(after) == tree_text(RULES[rule](before)), before


@pytest.mark.skipif(RUFF is None, reason="ruff is not installed")
def test_ruff_finds_the_same_types_compared(tmp_path):
    """E721, which has no fix. Comparing the types of two values, or a variable with a type in it, is one to it too."""
    values = ("== type(", "def type", "$a = type")
    pieces = [p for part in PIECES["type_check"] for p in part if not any(text in p for text in values)]
    for number, piece in enumerate(pieces):
        (tmp_path / f"p{number}.py").write_text(draw_program(piece, random.Random(number), 0))
    command = [str(RUFF), "check", "--isolated", "--no-cache", "--select", "E721", "--output-format", "concise"]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=60)
    found = {int(n) for n in re.findall(r"p(\d+)\.py:\d+:\d+: E721", done.stdout)}
    assert found == {i for i, p in enumerate(pieces) if p in PIECES["type_check"][0]}

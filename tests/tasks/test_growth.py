"""Classes of curves and of texts."""

from __future__ import annotations

import math
import random
import sys
import time
from typing import Any

import numpy as np
import pytest
from scipy.optimize import nnls

from jaxrl.tasks.growth import count, fit, names

SIZES = fit.schedule()


def fitted(curve, kind="time"):
    prepared = fit.prepared({n: [curve(n)] for n in SIZES})
    assert prepared is not None
    return fit.best(fit.fits(prepared), kind)


def test_sizes():
    assert SIZES == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1536, 2048, 2560, 3072]
    assert fit.schedule(512)[-1] == 512


CURVES = [  # values, class and coefficient by time, which BigO(Bench)'s own fit gives
    (lambda x: 3.0, "1", 0),
    (lambda x: 2 + 0.5 * math.log(x), "logn", 5000),
    (lambda x: 1 + 0.01 * x, "n", 100),
    (lambda x: 1 + 0.001 * x * math.log(x), "nlogn", 10),
    (lambda x: 1 + 1e-5 * x**2, "n^2", 0.1),
    (lambda x: 1 + 1e-8 * x**3, "n^3", 1e-4),
    (lambda x: 1 + 0.1 * math.sqrt(x), "n", 15.3029),
    (lambda x: 1 + 1e-4 * x**1.5, "n^2", 0.0193432),
    (lambda x: 1 + 0.01 * x + 0.2 * (x > 100), "n", 100),
    (lambda x: 1 + 0.01 * min(x, 100), "1", 9900),
    (lambda x: 1 + 0.01 * x + 1e-7 * x**2, "n", 102.799888),
]


@pytest.mark.parametrize(("curve", "name", "coefficient"), CURVES)
def test_the_class_of_a_curve(curve, name, coefficient):
    found = fitted(curve)
    assert found.name == name and found.coefficient == pytest.approx(coefficient, rel=1e-5)


def test_space_has_other_penalties():
    found = fitted(lambda x: 1 + 1e-4 * x**1.5, "space")
    assert found.name == "n" and found.coefficient == pytest.approx(53.962, rel=1e-5)


def test_penalized_residuals():
    prepared = fit.prepared({n: [1 + 0.01 * n] for n in SIZES})
    found = fit.fits(prepared)
    penalized = [f.residual * p for f, p in zip(found, fit.PENALTIES["time"])]
    expected = [1.87e11, 2.36e11, 3.55e11, 0, 2.28e9, 5.3e10, 3.74e16]
    assert penalized == pytest.approx(expected, rel=5e-3, abs=1e-6)
    assert found[3].at(3327 + 1) == pytest.approx(332_700)


def test_coefficients_are_those_of_scipy():
    rng = np.random.default_rng(0)
    x = np.array(SIZES, float)
    values = 1 + 0.01 * x + rng.normal(0, 1, len(x))
    found = fit.fits((x, values))
    y = values - values[0]
    for name, grow in (("logn", np.log(x)), ("nlogn", x * np.log(x)), ("n^2", x**2), ("n^3", x**3)):
        (c,), _ = nnls((grow - grow[0])[:, None], y)
        assert next(f for f in found if f.name == name).coefficient == pytest.approx(c, rel=1e-9)


def test_repeats_are_aggregated_so_that_the_curve_does_not_fall():
    rising = {n: [n, n + 5] for n in SIZES}
    assert fit.prepared(rising)[1][-1] == 3072 * fit.SCALE
    falling = rising | {1024: [1, 1100]}  # its least value is below the one before
    assert fit.prepared(falling)[1][10] == 1100 * fit.SCALE
    assert fit.prepared({1: [1], 2: [2], 4: [3]}) is None and fit.prepared({2: [1], 4: [1], 8: [1], 16: [1]}) is None
    assert fit.prepared({n: [5.0 if n == 1 else 3.0] for n in SIZES})[1][0] == 3 * fit.SCALE


# --- names


@pytest.mark.parametrize(
    "texts",
    [
        ("o(m*n)", "o(n*m)", "o(nm)", "o(mn)", "O(N x M)".replace("x", "×"), "O(a \\times b)"),
        ("o(nlogn)", "o(n*logn)", "O(n log(n))", "o(n\\log n)", "o(log(n)*n)"),
        ("o(log(n))", "o(logn)", "o(log m)"),
        ("o(n2)", "o(n*n)", "o(n^2)", "o(n**2)", "o(n²)"),
        ("o(1)", "o(42)", "O( 1 )"),
        ("o(n+m)", "o(m+n)", "o(a+b)", "o(n+m+1)"),
        ("o(n*(m+k))", "o(n*m+n*k)", "o((a+b)*c)"),
        ("o((n+m)log(n+m))", "o(n*log(n+m)+m*log(m+n))"),
        ("o(n*m^2)", "o(n^2*m)"),
    ],
)
def test_the_same_class(texts):
    forms = {names.normal_form(t) for t in texts}
    assert len(forms) == 1 and None not in forms
    assert all(names.same(a, b) for a in texts for b in texts)


@pytest.mark.parametrize(
    ("a", "b"),
    [("o(n)", "o(1)"), ("o(n*m)", "o(n^2)"), ("o(n+m)", "o(n)"), ("o(nlogn)", "o(nlogm)"), ("o(n)", "n"), ("", "")],
)
def test_different_classes(a, b):
    assert not names.same(a, b)


def test_orders():
    found = [names.order(t) for t in ("o(1)", "o(logn)", "o(n)", "o(nlogn)", "o(n*m)", "o(n^2+m)", "o(n^3)", "o(n+m)")]
    assert found == [0, 0.5, 1, 1.5, 2, 2, 3, 1]
    with pytest.raises(ValueError, match="is not a class"):
        names.order("fast")


def test_any_text_is_read_without_errors():
    rng = random.Random(0)
    for _ in range(3000):
        text = "o(" + "".join(
            rng.choices(["n", "m", "log", "(", ")", "*", "+", "^", "2", "x", " ", "**"], k=rng.randint(0, 9))
        )
        names.normal_form(text + ")")


@pytest.mark.parametrize(
    ("text", "balanced", "benchmark"),
    [
        ("It is O(n), no: O((n+m)log(n+m)).", "o((n+m)log(n+m))", "o((n+m)"),
        ("<think>O(n^2)</think> O(1)", "o(1)", "o(1)"),
        ("unknown", None, None),
        ("O(n) and O(m", "o(n)", "o(n)"),
    ],
)
def test_the_answer_in_a_text(text, balanced, benchmark):
    assert names.answer_in(text) == balanced and names.answer_in(text, "bigobench") == benchmark


# --- counting


PROGRAMS = {
    "def f(x):\n    s = 0\n    for v in x:\n        s += v\n    return s": "n",
    "def f(x):\n    return sum(1 for a in x for b in x if a == b)": "n^2",
    "import bisect\ndef f(x):\n    return bisect.bisect(x, 5)": "logn",
    "def f(x):\n    n, c = len(x), 0\n    while n > 1:\n        n, c = n // 2, c + 1\n    return c": "logn",
    "def f(x):\n    y = sorted(x)\n    return y[0]": "nlogn",
    "def f(x):\n    x.sort()\n    return x[-1]": "nlogn",
    "def f(x):\n    return -1 in x": "n",
    "def f(x):\n    return -1 in set()": "1",
    "d = {1: 2}\ndef f(x):\n    return d.get(x[0])": "1",
    "def f(x):\n    return [v for v in x if x.count(v) > 1]": "n^2",
    "def f(x):\n    x = list(x)\n    while x:\n        x.pop(0)": "n^2",
    "def f(x):\n    x = list(x)\n    while x:\n        x.pop()": "n",
    "def f(x):\n    s = ''\n    for v in x:\n        s += 'a'\n    return s": "n^2",
    "def f(x):\n    return ','.join('a' for v in x)": "n",
    "def f(x):\n    for i in range(10):\n        pass\n    return x[0]": "1",
    "def f(x):\n    return f(x[1:]) if x else 0": "n^2",
    "import heapq\ndef f(x):\n    h = []\n    for v in x:\n        heapq.heappush(h, v)\n    return h": "nlogn",
    "class A:\n    def g(self, x):\n        return max(x)\ndef f(x):\n    return A().g(x)": "n",
    "def f(x):\n    return (lambda y: y[-1])(x)": "1",
}


def counted(source: str, end: int = 512) -> str:
    names: dict = {}
    exec(count.PRELUDE, names)
    exec(count.instrumented(source), names)
    series = {}
    for m in fit.schedule(end):
        names["_Count"].total = 0
        names["f"](list(range(m)))
        series[m] = [names["_Count"].total]
    return fit.best(fit.fits(fit.prepared(series))).name


@pytest.mark.parametrize(("source", "name"), PROGRAMS.items())
def test_counts_grow_as_the_program_does(source, name):
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(5000)
    try:
        assert counted(source) == name
    finally:
        sys.setrecursionlimit(before)


def test_a_counting_program_gives_the_same_values():
    source = """
def f(x):
    "A docstring."
    total, text = 0, "a"
    for i, v in enumerate(sorted(x, reverse=True)):
        if 3 < v <= 9 and v not in (4, 5):
            total += v * 2
        text += str(v)[:1]
    return total, text, [*map(lambda v: v + 1, x)], {v: -v for v in x if v != 2}, "-".join(["a"] * 3), x[1:][::-1]
"""
    names: dict = {}
    plain: dict = {}
    exec(count.PRELUDE + count.instrumented(source), names)
    exec(source, plain)
    for x in ([5, 6, 7, 2], [1], list(range(12))):
        assert names["f"](list(x)) == plain["f"](list(x))
    names["_Count"].total, names["_Count"].limit = 0, 10
    with pytest.raises(names["_TooMuch"]):
        names["f"](list(range(100)))


@pytest.mark.parametrize(
    ("program", "found"),
    [
        ("def f(x, y): return sum(1 for a in x if a in y != 0)", "a chained in"),
        ("def f(x):\n    y = []\n    for a in x: y[0:0] = [a]\n    return y", "a slice that is assigned or deleted"),
        ("def f(x):\n    while x: del x[0]", "a slice that is assigned or deleted"),
        ("import statistics\ndef f(x): return statistics.mode(x)", "statistics"),
        ("from pickle import loads\ndef f(x): return loads(x)", "pickle"),
        ("import math\nmath.log2 = lambda n: 0\ndef f(x): return sorted(x)", "math.log2 ="),
        ("import time\nt = time.perf_counter_ns()\ntime.perf_counter_ns = lambda: t", "time"),
        ("def f(x): return exec('1')", "exec"),
        ("from heapq import heappush\ndef f(x): return [a < 3 < 4 for a in x]", ""),
    ],
)
def test_programs_that_could_work_uncounted(program, found):
    assert count.hides_work(program) == found


def test_what_the_library_does_is_counted():
    """heapq.nsmallest and functools.reduce go through all of their input."""
    for program in ("import heapq\ndef f(x): return heapq.nsmallest(len(x), x)",
                    "from functools import reduce\ndef f(x): return reduce(max, x)"):  # fmt: skip
        space: dict[str, Any] = {}
        exec(count.PRELUDE + count.instrumented(program), space)
        space["f"](list(range(100)))
        assert space["_Count"].total > 100


@pytest.mark.parametrize("text", ["O(n^3000000)", "O((n+m)^20)", "O((a+b+c+d+e+f+g)^2)", "O(n^n)"])
def test_classes_that_nobody_means_are_read_at_once(text):
    start = time.perf_counter()
    assert names.normal_form(text) is None
    assert time.perf_counter() - start < 1.0

"""The command that tells how a function's cost grows."""

from __future__ import annotations

import pytest

from jaxrl.complexity import main, read_example
from jaxrl.tasks.growth.measure import Measurement, found, request
from jaxrl.tasks.growth.names import same

FUNCTIONS = {  # with the class of time and of space
    "def f(d: list[int]):\n    return {1: 2}.get(d[0])": ("o(1)", "o(1)"),
    "import bisect\ndef f(x: list[int]):\n    return bisect.bisect(x, 5)": ("o(logn)", "o(1)"),
    "def f(x: list[int]):\n    s = 0\n    for a in x:\n        s += a\n    return s": ("o(n)", "o(1)"),
    "def f(x: list[int]):\n    return sorted(x)[0]": ("o(nlogn)", "o(n)"),
    "def f(x: list[int]):\n    return sum(1 for a in x for b in x if a == b)": ("o(n^2)", "o(1)"),
    "def f(x: list[int], y: list[int]):\n    return sum(1 for a in x for b in y)": ("o(n*m)", None),
    "def f(x: list[int], y: list[int]):\n    return sum(a for a in x) + sum(b for b in y)": ("o(n+m)", None),
    "def f(x: list[list[int]]):\n    return sum(a for r in x for a in r)": ("o(n*m)", None),
    "def f(s: str):\n    t = ''\n    for c in s:\n        t += c\n    return t": (None, "o(n)"),
}


def measured(source: str, pool, **fields):
    asked = Measurement(source, "f", read_example(source, "f", ""), end=1100, **({"operations": 100_000} | fields))
    return found(asked, pool.run([request(asked)])[0])


@pytest.mark.parametrize("source", FUNCTIONS)
def test_classes(source, pool):
    for clock, name in zip(("operations", "space"), FUNCTIONS[source]):
        result = measured(source, pool, clock=clock)
        assert name is None or same(result.growth.text, name), (clock, result.growth.text)


def test_counts_are_the_same_each_time_and_bounded(pool):
    source = "def f(x: list[int], y: int):\n    return [v for v in x if x.count(v) > y]"
    one, other = (measured(source, pool).values for _ in range(2))
    assert one == other
    few = measured(source, pool, operations=2000).values
    for values, most in ((one, 100_000), (few, 2000)):
        assert most / 8 < max(v for sized in values.values() for (v,) in sized.values()) <= most


def test_wall_time_is_measured_several_times(pool):
    result = measured("def f(x: list[int]):\n    return sorted(x)", pool, clock="time")
    assert all(len(v) == 5 and min(v) > 0 for values in result.values.values() for v in values.values())


@pytest.mark.parametrize("source", ["def f(x: int):\n    while True: pass", "def f(x: int):\n    raise ValueError"])
def test_a_function_that_never_returns_has_no_class(source, pool):
    result = measured(source, pool, operations=1000)
    assert result.growth is None and "failed on nearly all inputs" in result.error


def test_the_command(tmp_path, capsys):
    path, picture = tmp_path / "mine.py", tmp_path / "curve.png"
    path.write_text("def total(x: list[int]):\n    return [a + 1 for a in x]\n")
    arguments = [f"{path}:total", "--input", "[3, 1]", "--end", "600", "--plot", str(picture)]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "o(n)" in shown and "chosen" in shown and "operations" in shown
    assert picture.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}:total"], "--input must give an example: the annotation of x does not"),
        (["{}:missing"], "has no function 'missing'; it has: total"),
        (["{}:total", "--input", "[1"], "must be arguments as Python writes them"),
        (["{}:total", "--input", "1, 2"], "--input has 2 arguments; total takes 1"),
        (["{}:total", "--input", "None"], "nothing that can grow"),
        (["{}:total", "--space", "--clock", "time"], "exclude each other"),
        (["nowhere.py:f"], "cannot be read as Python"),
        ([], "give either"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message, tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text("def total(x):\n    return x\n")
    assert main([a.format(path) for a in arguments]) != 0
    error = capsys.readouterr().err
    assert message in error.replace("\n", " ") and len(error.strip().splitlines()) == 1

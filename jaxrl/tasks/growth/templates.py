"""Small functions whose class is known: 14 forms to read, and 8 problems to solve in a class.

Every form's class is what its loops say; a test holds the measured class against it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Form(NamedTuple):
    """A function of x, or of x and y, with places for names (x, y, a, b, s) and constants (c, d)."""

    name: str
    label: str  # class
    body: str


FORMS = (
    Form("index", "o(1)", "return {x}[0] * {c} + {d}"),
    Form("arithmetic", "o(1)", "{s} = len({x}) * {c}\nreturn {s} % {d}"),
    Form("halving", "o(logn)", "{s}, {a} = 0, len({x})\nwhile {a} > 1:\n    {a} //= 2\n    {s} += {c}\nreturn {s}"),
    Form("loop", "o(n)", "{s} = {c}\nfor {a} in {x}:\n    {s} += {a}\nreturn {s}"),
    Form("loops", "o(n)", "{s} = {c}\nfor {a} in {x}:\n    {s} += {a}\nfor {b} in {x}:\n    {s} -= {d}\nreturn {s}"),
    Form("seen", "o(n)", "{s} = set()\nfor {a} in {x}:\n    if {a} not in {s}:\n"
         "        {s}.add({a})\nreturn len({s}) + {c}"),
    Form("some", "o(n)", "{s} = {d}\nfor {a} in {x}:\n    for {b} in range({c}):\n        {s} += {b}\nreturn {s}"),
    Form("sort", "o(nlogn)", "{s} = sorted({x})\nreturn {s}[0] + {c}"),
    Form("halvings", "o(nlogn)",
         "{s} = {d}\nfor {a} in {x}:\n    {b} = len({x})\n"
         "    while {b} > 1:\n        {b} //= 2\n        {s} += {c}\nreturn {s}"),
    Form("nested", "o(n^2)",
         "{s} = {d}\nfor {a} in {x}:\n    for {b} in {x}:\n        {s} += {a} * {b}\nreturn {s}"),
    Form("triangle", "o(n^2)",
         "{s} = {c}\nfor {a} in range(len({x})):\n    for {b} in range({a}):\n        {s} += {x}[{b}]\nreturn {s}"),
    Form("product", "o(n*m)",
         "{s} = {d}\nfor {a} in {x}:\n    for {b} in {y}:\n        {s} += {a} * {b}\nreturn {s}"),
    Form("sum", "o(n+m)", "{s} = {c}\nfor {a} in {x}:\n    {s} += {a}\nfor {b} in {y}:\n    {s} -= {b}\nreturn {s}"),
    Form("member", "o(n*m)", "{s} = {c}\nfor {a} in {x}:\n    if {a} in {y}:\n        {s} += {d}\nreturn {s}"),
)  # fmt: skip
NAMES = (("x", "y", "a", "b", "s"), ("p", "q", "i", "j", "t"), ("v", "w", "e", "k", "r"), ("g", "h", "u", "z", "o"))
DISTRACTORS = ("", "{t} = {c} * {d}", "{t} = len({x}) + {c}", "for {t} in range({c}):\n    pass")
HELD_OUT_DISTRACTORS = ("{t} = [{c}, {d}]", "if {c} > {d}:\n    {t} = {c}")


def reserved(form: Form, names: int) -> bool:
    """Whether a form comes with these names in held-out problems only."""
    return (FORMS.index(form) + names) % len(NAMES) == 0


def program(rng: random.Random, held_out: bool) -> tuple[str, Form]:
    """The source of a function f, and its form."""
    pairs = [(f, i) for f in FORMS for i in range(len(NAMES)) if reserved(f, i) == held_out]
    form, names = rng.choice(pairs)
    distractor = rng.choice(HELD_OUT_DISTRACTORS if held_out else DISTRACTORS)
    return source(form, NAMES[names], rng.randint(2, 9), rng.randint(2, 9), distractor), form


def source(form: Form, names: Sequence[str], c: int, d: int, distractor: str = "") -> str:
    """The function with these names and constants, and a line that does not change its class."""
    places: dict[str, Any] = dict(zip("xyabs", names)) | {"c": c, "d": d, "t": "n"}
    body = f"{distractor}\n{form.body}" if distractor else form.body
    given = f"{names[0]}, {names[1]}" if "{y}" in form.body else names[0]
    lines = "\n".join(f"    {line}" for line in body.format(**places).split("\n"))
    return f"def f({given}):\n{lines}\n"


class Exercise(NamedTuple):
    """What f must return, and an implementation for each class."""

    name: str
    asked: str
    arguments: int
    programs: dict[str, str]  # class: body


EXERCISES = (
    Exercise("pairs", "counts the pairs of places of x with equal values", 1, {
        "o(n)": "s, d = 0, {}\nfor a in x:\n    s += d.get(a, 0)\n    d[a] = d.get(a, 0) + 1\nreturn s",
        "o(n^2)": "s = 0\nfor i in range(len(x)):\n"
                  "    for j in range(i):\n        if x[i] == x[j]:\n            s += 1\nreturn s"}),
    Exercise("twice", "tells whether x has a value twice", 1, {
        "o(n)": "return len(set(x)) < len(x)",
        "o(nlogn)": "y = sorted(x)\nreturn any(y[i] == y[i + 1] for i in range(len(y) - 1))",
        "o(n^2)": "s = False\nfor i in range(len(x)):\n"
                  "    for j in range(i):\n        if x[i] == x[j]:\n            s = True\nreturn s"}),
    Exercise("totals", "lists the sums of the first 1, 2, 3, ... values of x", 1, {
        "o(n)": "s, y = 0, []\nfor a in x:\n    s += a\n    y.append(s)\nreturn y",
        "o(n^2)": "return [sum(x[:i + 1]) for i in range(len(x))]"}),
    Exercise("turned", "lists the values of x from the last to the first", 1, {
        "o(n)": "return x[::-1]",
        "o(n^2)": "y = []\nfor a in x:\n    y = [a] + y\nreturn y"}),
    Exercise("shared", "counts the values of x that are in y", 2, {
        "o(n+m)": "d = set(y)\nreturn sum(1 for a in x if a in d)",
        "o(n*m)": "s = 0\nfor a in x:\n    if a in y:\n        s += 1\nreturn s"}),
    Exercise("spread", "gives the largest difference of two values of x", 1, {
        "o(n)": "return max(x) - min(x)",
        "o(nlogn)": "y = sorted(x)\nreturn y[-1] - y[0]",
        "o(n^2)": "return max(a - b for a in x for b in x)"}),
    Exercise("most", "tells how often the most frequent value of x is in it", 1, {
        "o(n)": "d = {}\nfor a in x:\n    d[a] = d.get(a, 0) + 1\nreturn max(d.values())",
        "o(n^2)": "return max(x.count(a) for a in x)"}),
    Exercise("order", "lists the values of x from the smallest to the largest", 1, {
        "o(nlogn)": "return sorted(x)",
        "o(n^2)": "y = list(x)\nfor i in range(len(y)):\n    for j in range(len(y) - 1):\n"
                  "        if y[j] > y[j + 1]:\n            y[j], y[j + 1] = y[j + 1], y[j]\nreturn y"}),
)  # fmt: skip


def solution(exercise: Exercise, label: str) -> str:
    """The program of an exercise in a class."""
    lines = "\n".join(f"    {line}" for line in exercise.programs[label].split("\n"))
    return f"def f({'x, y' if exercise.arguments == 2 else 'x'}):\n{lines}\n"


def right(exercise: Exercise) -> Callable[..., Any]:
    """The exercise's function: of this file, so it may run here."""
    names: dict[str, Any] = {}
    exec(solution(exercise, next(iter(exercise.programs))), names)
    return names["f"]

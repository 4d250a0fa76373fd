"""Larger inputs from an example, and the vote over their curves."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from jaxrl.tasks.growth import fit, inputs, vote
from jaxrl.tasks.growth.inputs import Series
from jaxrl.tasks.growth.names import same


def made(example, method, size, varied=((0, 0),), others=""):
    return inputs.arguments(example, Series(varied, method, others), size)


# --- expansion


def test_kinds():
    values = [
        "a",
        3,
        2.5,
        [1],
        [1.5, 2],
        ["a"],
        [True],
        [[1], [2, 3]],
        [(1, 2)],
        [["a"]],
        None,
        {1: 2},
        [],
        [1, "a"],
        True,
    ]
    kinds = ["str", "int", "float", "list[int]", "list[float]", "list[str]", "list[bool]", "list[list[int]]",
             "list[list[int]]", "list[list[str]]", "", "", "", "", ""]  # fmt: skip
    assert [inputs.kind(v) for v in values] == kinds
    assert inputs.variables(([[1]], 3, None)) == [(0, 1), (0, 2), (1, 0)]


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_methods_of_texts_and_numbers(size):
    assert made(("abc",), "copy", size) == ("abc" * size,)
    assert made(("abc",), "identity", size) == ("aaa" * size,)
    (text,) = made(("abc",), "random", size)
    assert len(text) == 3 * size and text.islower() and text.isalpha()
    assert made((7,), "copy", size) == (7 * size,) and made((2.5,), "copy", size) == (2.5 * size,)


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_methods_of_lists(size):
    assert made(([4, 1],), "copy", size) == ([4, 1] * size,)
    assert made(([4, 1],), "identity", size) == ([9998] * 2 * size,)
    (numbers,) = made(([4, 1],), "random", size)
    half = (size - 1) // 2 * 2  # before the original, which is random too
    fresh = numbers[:half] + numbers[half + 2 :]
    assert len(numbers) == 2 * size and all(1 <= v <= max(size - 1, 1) for v in fresh)
    assert all(1 <= v <= 1000 for v in numbers[half : half + 2])
    (large,) = made(([4, 1],), "random_verylarge", size)
    assert len(large) == 2 * size and all(10**6 <= v <= 10**7 for v in large)
    (words,) = made((["a", "b"],), "random", size)
    assert len(words) == 2 * size and all(3 <= len(w) <= 10 for w in words)
    assert made((["q"],), "identity", size) == (["aaaaaa"] * size,)
    assert {type(v) for v in made(([True, False],), "random", size)[0]} == {bool}


def test_lists_of_lists_grow_in_rows_columns_or_both():
    example = ([[1, 2], [3, 4, 5]],)
    lengths = lambda value: [len(row) for row in value[0]]  # noqa: E731
    for method in ("copy", "random", "identity", "random_verylarge"):
        assert lengths(made(example, method, 3, ((0, 1),))) == [2, 3] * 3
        assert lengths(made(example, method, 3, ((0, 2),))) == [6, 9]
        assert lengths(made(example, method, 3, ((0, 1), (0, 2)))) == [6, 9] * 3
    assert made(([(1, 2)],), "copy", 2, ((0, 1),)) == ([(1, 2), (1, 2)],)
    assert made(example, "copy", 3072, ((0, 1), (0, 2))) is None  # too large


def test_series_and_the_other_arguments():
    example = ([1, 2], [3], 4, "ab", "cd")
    series = inputs.series_of(example)
    alone = Counter(s.varied for s in series if len(s.varied) == 1)
    assert alone == {((0, 0),): 8, ((1, 0),): 8, ((2, 0),): 2, ((3, 0),): 6, ((4, 0),): 6}
    joint = {s.varied for s in series if len(s.varied) > 1}
    assert joint == {((3, 0), (4, 0)), ((0, 0), (1, 0)), ((0, 0), (2, 0)), ((1, 0), (2, 0)), ((2, 0), (3, 0), (4, 0))}
    large = made(example, "copy", 2, ((0, 0),), "large")
    assert large == ([1, 2] * 2, [3] * 1000, 4000, "ab" * 1000, "cd" * 1000)
    assert made(example, "copy", 2, ((0, 0),), "small")[1:] == example[1:]
    assert {s.others for s in inputs.series_of(([1],))} == {""}


def test_texts_of_numbers_grow_as_the_numbers():
    assert made(("3 4",), "copy", 2) == ("3 4 3 4",) and made(("5",), "copy", 3) == ("15",)
    assert made((["1", "2"],), "copy", 2) == (["1", "2", "1", "2"],)
    assert inputs.numbers_of("3 a") == "3 a" and inputs.numbers_of("-3") == -3


def test_inputs_are_new_and_the_same_each_time():
    example = ([3, 1], [[1, 2]], "ab")
    for series in inputs.series_of(example):
        one, other = (inputs.arguments(example, series, 4) for _ in range(2))
        assert one == other and one[0] is not example[0] and one[1][0] is not example[1][0]


# --- the vote


def class_of(cost, example, kind="time", end=3100):
    """The class of a cost that is known, as if measured without noise."""
    measured = {}
    for series in inputs.series_of(example):
        sized = ((n, inputs.arguments(example, series, n)) for n in fit.schedule(end))
        measured[series] = {n: [float(cost(*given))] for n, given in sized if given is not None}
    return vote.growth(measured, inputs.variables(example), kind)


X, Y = [3, 1], [2, 5]
COSTS = [
    (lambda x: 5, (X,), "o(1)"),
    (lambda x: math.log2(len(x)), (X,), "o(logn)"),
    (lambda x: 3 * len(x), (X,), "o(n)"),
    (lambda x: len(x) * math.log2(len(x)), (X,), "o(nlogn)"),
    (lambda x: len(x) ** 2, (X,), "o(n^2)"),
    (lambda x, y: len(x) * len(y), (X, Y), "o(n*m)"),
    (lambda x, y: len(x) + len(y), (X, Y), "o(n+m)"),
    (lambda x, y: len(x) + 0 * len(y), (X, Y), "o(n)"),
    (lambda x, y: (len(x) + len(y)) * math.log2(len(x) + len(y)), (X, Y), "o((n+m)log(n+m))"),
    (lambda x, y: len(x) * math.log2(len(y)), (X, Y), "o(n*logm)"),
    (lambda x: sum(map(len, x)), ([[1, 2], [3, 4]],), "o(n*m)"),
    (lambda x: len(x), ([[1, 2], [3, 4]],), "o(n)"),
    (lambda n, k: n * k, (3, 4), "o(n*m)"),
    (lambda s, t: len(s) + len(t), ("ab", "cd"), "o(n+m)"),
    (lambda x, y, z: len(x) * len(y) + 0 * len(z), (X, Y, X), "o(n*m)"),
    (lambda x: len(x), (X,), "o(n)"),
]


@pytest.mark.parametrize(("cost", "example", "name"), COSTS)
def test_the_class_of_a_known_cost(cost, example, name):
    assert same(class_of(cost, example).text, name), class_of(cost, example).text


def test_what_adds_little_is_constant():
    found = class_of(lambda x, y: 100 * len(x) + len(y), (X, Y))
    assert found.text == "o(n)" and found.classes == {(0, 0): "n", (1, 0): "1"}
    assert class_of(lambda x, y: 2 * len(x) + len(y), (X, Y)).text == "o(n+m)"


def test_time_elects_the_lowest_and_space_the_highest():
    fitted = lambda name, largest: vote.Candidate(  # noqa: E731
        Series(((0, 0),), name, ""), fit.Fit(name, 0.0, 1.0, lambda n: largest), largest
    )
    candidates = [fitted("n", 79.0), fitted("nlogn", 85.0), fitted("n^2", 100.0), fitted("1", 10.0)]
    assert vote.elect(candidates, "time").fit.name == "nlogn"  # n is below .8 of the most
    assert vote.elect(candidates, "space").fit.name == "n^2"
    assert vote.elect([], "time") is None


def leaf(name):
    return vote.Node((), "", fit.ORDERS[name], name)


@pytest.mark.parametrize(
    ("members", "joint", "text"),
    [
        (("1", "1"), "n", "n"),  # rule 1
        (("1", "1"), "1", "1"),  # rule 2, nothing grows
        (("n", "1"), "n", "n"),  # rule 2
        (("n", "n"), "n^2", "n*m"),
        (("n", "1"), "nlogn", "nlogn"),  # rule 2, with the logarithm that no member has
        (("n", "n"), "1", "n*m"),  # rule 3
        (("n", "n", "n"), "n^2", "n*m*k"),  # rule 4
        (("n", "1"), "n^2", "n**2"),  # rule 4, half of the joint order
        (("n", "1"), "n^3", "n**3"),  # rule 4, one variable
        (("n", "n"), "n", "n+m"),  # rule 5
        (("n^2", "n"), "n^2", "n**2+m"),
        (("n", "n"), "nlogn", "(n+m)log(n+m)"),
        (("nlogn", "n"), "nlogn", "nlogn+m"),
        (("logn", "n"), "nlogn", "logn*m"),
    ],
)
def test_the_rules_of_groups(members, joint, text):
    node = vote.combined([leaf(m) for m in members], fit.ORDERS[joint], joint)
    assert vote.written(node) == text
    assert node.order == fit.ORDERS[joint] or joint == "1" or text in ("n*m*k",)


def test_groups_may_be_members_of_groups():
    both = vote.combined([leaf("n"), leaf("n")], 1.0, "n")
    assert vote.written(vote.combined([both, leaf("n")], 0.0)) == "(n+m)*k"
    assert vote.written(vote.combined([both, leaf("n")], 2.0, "n^2")) == "(n+m)*k"

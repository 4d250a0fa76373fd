"""When an answer is right: properties of the comparison rules, and values that cross a process boundary."""

from __future__ import annotations

import collections
import contextlib
import datetime
import decimal
import fractions
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.compare import equal, matches, same_output
from sandbox.plain import FrameReader, decode, encode, frame

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers()
keys = st.booleans() | st.integers() | st.text() | st.tuples(st.integers(), st.text())
values = st.recursive(
    scalars | st.sets(keys) | st.frozensets(keys) | st.decimals(allow_nan=False) | st.fractions() | st.dates(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(keys, inner),
    max_leaves=20,
)


def same(a: object, b: object) -> bool:
    """Equal in value and in every type."""
    return repr(a) == repr(b) if not isinstance(a, (set, frozenset)) else type(a) is type(b) and a == b


@given(values)
def test_values_come_back_as_they_were(value):
    assert same(decode(json.loads(json.dumps(encode(value)))), value) or value != value or "{" in repr(value)
    assert equal(value, value)


@pytest.mark.parametrize(
    "value",
    [
        10**5000, -(2**63), collections.Counter("abca"), collections.OrderedDict(b=1, a=2), collections.deque([1, 2]),
        range(1, 9, 2), bytearray(b"x"), decimal.Decimal("1.10"), fractions.Fraction(1, 3), datetime.date(2020, 2, 29),
        datetime.timedelta(days=-1, microseconds=5), {1: {2: (3, [4, {5}])}}, "\ud800", float("inf"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_kinds_of_values(value):
    again = decode(json.loads(json.dumps(encode(value))))
    assert type(again) is type(value) and again == value


def test_iterators_arrays_and_objects():
    assert list(decode(encode(x * x for x in range(4)))) == [0, 1, 4, 9]
    assert list(decode(encode(zip("ab", [1, 2])))) == [("a", 1), ("b", 2)]
    assert encode(np.float32(0.5)) == 0.5 and encode(np.bool_(True)) is True
    assert np.array_equal(decode(encode(np.arange(6).reshape(2, 3))), np.arange(6).reshape(2, 3))
    one = decode(encode(object()))
    assert one != decode(encode(object())) and repr(one) == "<object object>"


@given(st.lists(st.integers() | st.text()), st.data())
def test_a_changed_list_is_not_the_expected_one(items, data):
    assert equal(items, items) and equal(tuple(items), items)
    assert not equal([*items, 0], items)
    assert not items or not equal(items[:-1], items)
    shuffled = data.draw(st.permutations(items))
    assert equal(shuffled, items, order="any") and equal(shuffled + shuffled, items, order="set")
    assert not items or not equal(shuffled + shuffled, items, order="any")


@given(st.floats(-1e300, 1e300), st.floats(1e-12, 1e-3))
def test_floats_within_their_tolerance(x, tolerance):
    bound = tolerance * max(1.0, abs(x))
    assert equal(x + bound / 2, x, tolerance) and equal([x - bound / 2], [x], tolerance)
    assert not math.isfinite(x + 3 * bound) or x + 3 * bound == x or not equal(x + 3 * bound, x, tolerance)


@pytest.mark.parametrize(
    ("actual", "expected", "right"),
    [
        (1, 1.0, True), (1, True, False), (True, 1, False), ("1", 1, False), (float("nan"), float("nan"), True),
        (float("inf"), float("inf"), True), (1e300, float("inf"), False), (10**400, 1.0, False), (1 + 0j, 1.0, False),
        (1.0, 1 + 0j, True), ({1, 2}, {2, 1}, True), ({1, 2}, [1, 2], False), (frozenset({1}), {1}, False),
        ({1: 2.0}, {1: 2.0 + 1e-9}, True), ({1: 2}, {1: 2, 3: 4}, False), (None, 0, False), ("", None, False),
        (b"a", "a", False), (b"a", b"a", True), ([[1], [2]], [(1,), (2,)], True), ({"a": [1]}, {"a": [2]}, False),
        (decimal.Decimal("1.0"), decimal.Decimal("1.0"), True), ((x for x in (1, 2)), [1, 2], True),
        (object(), 1, False),
    ],
)  # fmt: skip
def test_equality(actual, expected, right):
    assert equal(actual, expected, 1e-6) is right


def test_hostile_encodings_are_never_equal_and_never_slow():
    expected = encode({1, 2, 3})
    collisions = ["set", [i * (2**61 - 1) for i in range(1_000_000)]]
    assert not matches(collisions, expected)
    inner = ["frozenset", [i * (2**61 - 1) for i in range(50_000)]]
    assert not matches(["set", [inner, 1, 2]], expected)
    assert not matches(["dict", [[inner, 1]]], encode({1: 1}))
    for odd in (["set"], ["set", 3], ["list", None], ["unknown", [1]], [], ["dict", [[1]]], {"a": 1}, ["ndarray", 3]):
        with contextlib.suppress(ValueError, TypeError, KeyError, IndexError):  # for the judge: no readable value
            assert not matches(odd, expected)


@given(st.text())
def test_an_output_is_itself_and_no_prefix_of_it_is(text):
    for how in ("lines", "tokens", "exact"):
        assert same_output(text, text, how)
    words = text.split()
    assert not words or not same_output(" ".join(words[:-1]), text, "tokens")
    assert same_output(text.replace("\n", "  \n") + "\n\n", text) or "\r" in text or "\n" in text
    assert not text or not same_output(text[:-1], text, "exact")


def test_output_rules():
    assert same_output("1 \n2\n\n", "1\n2") and same_output("1\r\n2", "1\n2\n")
    assert not same_output("1\n", "1\n2") and not same_output("1\n2\n3", "1\n2")  # a correct prefix is not enough
    assert not same_output("1\n\n2", "1\n2") and same_output("1\n\n2", "1\n2", "tokens")
    assert same_output("0.3333 yes", "0.33333 yes", tolerance=1e-3) and not same_output(
        "0.33 yes", "0.34 yes", tolerance=1e-3
    )
    assert not same_output("yes", "no", tolerance=1.0) and same_output("nan", "nan", tolerance=0.1)
    assert not same_output("1", "1 ", "exact")


@given(st.lists(values, max_size=4), st.integers(1, 7))
def test_frames_in_any_pieces(sent, size):
    data = b"".join(frame(encode(v)) for v in sent)
    reader = FrameReader()
    got = [f for i in range(0, len(data), size) for f in reader.feed(data[i : i + size])]
    assert json.dumps(got) == json.dumps([encode(v) for v in sent])


@given(st.binary(max_size=200))
def test_garbage_is_a_value_error_or_nothing(data):
    with contextlib.suppress(ValueError):
        FrameReader().feed(data)

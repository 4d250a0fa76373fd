"""Many inputs against a reference: which values are right, what is kept on disk, and what a broken reference is."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox import reference
from sandbox.plain import encode
from sandbox.pool import Pool
from sandbox.verdict import Limits, Program, ReferenceTest

ADD = "def add(a, b):\n    return a + b"


def right(out: object, wanted: object, atol: float = 0.0, rule: str = "", only_rule: bool = False) -> bool:
    test = {"rule": rule, "only_rule": only_rule, "inputs": [(2, 3)], "encoded": False}
    expected = reference.expected_values(atol, [encode(wanted)], [0.0])
    return reference.is_right(test, 0, json.dumps(encode(out)), expected)


not_a_number = st.builds(float, st.just("nan"))  # each an object of its own, as from two processes
numbers = st.one_of(st.integers(-5, 5), st.floats(-5, 5), st.just(float("inf")), not_a_number)
arrays = st.recursive(numbers, lambda inner: st.lists(inner, max_size=3), max_leaves=6)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(arrays, arrays, st.sampled_from([0.0, 1e-6, 0.5]))
def test_closeness_is_numpys(out, wanted, atol):
    """EvalPlus' rule, written with NumPy."""
    if not atol and reference._is_floats(wanted):
        atol_used = 1e-6
    else:
        atol_used = atol
    expected = out == wanted
    if not expected and atol_used:
        try:
            same = type(out) is type(wanted) and (not isinstance(wanted, list) or len(out) == len(wanted))
            with np.errstate(invalid="ignore"):
                expected = same and bool(np.allclose(out, wanted, rtol=1e-7, atol=atol_used))
        except (ValueError, TypeError):
            expected = False
    assert right(out, wanted, atol) == expected


def test_the_tolerance_of_floats_stays_for_later_inputs():
    expected = reference.expected_values(0.0, [encode(v) for v in (1, [1.0, 2.0], "x", 3)], [0.0] * 4)
    assert expected.atol == [0.0, 1e-6, 1e-6, 1e-6]


def test_rules():
    assert right([1, 1], [1], rule="set(out) == set(expected)") and not right(
        [2], [1], rule="set(out) == set(expected)"
    )
    assert right(0, 9, rule="match or out == 0") and not right(1, 9, rule="match or out == 0")
    assert right(5, 9, rule="out == args[0] + args[1]", only_rule=True)
    assert not right(9.0000000001, 9.0, rule="False", only_rule=True) and right(9.0000000001, 9.0, rule="match")


def test_verdicts(pool):
    test = ReferenceTest("add", ((1, 2), ("a", "b"), ([1], [2])), ADD)
    wrong = "def add(a, b):\n    return a + b if a != 'a' else 'ba'"
    slow = "import time\ndef add(a, b):\n    time.sleep(5)\n    return a + b"
    brief = ReferenceTest("add", ((1, 2), (3, 4)), ADD, seconds=0.5)
    programs = [Program(ADD, (test,)), Program(wrong, (test,)), Program(slow, (brief,), Limits(wall_s=20))]
    passed, failed, late = pool.run(programs)
    assert passed.passed and passed.tests[0].form == "values"
    assert failed.status == "wrong_answer" and failed.tests[0].message == "add('a', 'b') gave 'ba', expected 'ab'"
    assert late.status == "timeout" and late.wall_s < 2


def test_given_values_need_no_reference(pool):
    test = ReferenceTest("add", ((1, 2), (1.5, 2.0)), expected=(3, 3.5))
    assert [v.status for v in pool.run([Program(ADD, (test,)), Program("def add(a, b): return 3", (test,))])] == [
        "passed", "wrong_answer",
    ]  # fmt: skip


def test_arguments_that_a_program_changes_are_still_what_was_asked(pool):
    test = ReferenceTest("f", (([3, 1, 2],), ([1],)), "def f(xs):\n    xs.sort()\n    return xs")
    assert pool.run([Program("def f(xs): return sorted(xs)", (test,))])[0].passed
    assert not pool.run([Program("def f(xs):\n    xs.clear()\n    return xs", (test,))])[0].passed


def test_a_broken_reference_is_the_tasks_fault(pool):
    before = pool.sandbox_errors
    for code in ("def add(a, b): return 1 / 0", "def other(): pass", "def add(:"):
        [verdict] = pool.run([Program(ADD, (ReferenceTest("add", ((1, 2),), code),))])
        assert verdict.status == "sandbox_error" and "reference does not work" in verdict.stderr
    assert pool.sandbox_errors == before + 3


def test_what_the_reference_gave_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    expected = reference.Expected(["1"], [0.5], [0.0])
    folder = reference.cache_folder()
    assert reference.load(folder, "digest") is None
    reference.store(folder, "digest", expected)
    assert reference.load(folder, "digest") == expected
    (file,) = (tmp_path / "jaxrl" / "references").iterdir()
    file.write_text(file.read_text()[:10])  # cut short by a full disk, say
    assert reference.load(folder, "digest") is None
    with Pool(1) as own:  # the judge keeps them there
        assert own.run([Program(ADD, (ReferenceTest("add", ((7, 2),), ADD),))])[0].passed
    assert len(list(file.parent.iterdir())) == 2


def test_a_test_of_the_same_content_is_the_same():
    assert ReferenceTest("f", ((1,),), "x").digest == ReferenceTest("f", ((1,),), "x").digest
    assert ReferenceTest("f", ((1,),), "x").digest != ReferenceTest("f", ((2,),), "x").digest
    with pytest.raises(ValueError):
        _ = ReferenceTest("f", ((object(),),), "x").digest

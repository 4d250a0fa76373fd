"""Tests that have become data: which calls they make of the program, and whether the answers are right.

Runs in the judge. Only here meet what a program gave and what was expected; both are plain data.
"""

from __future__ import annotations

import ast
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from sandbox import trees
from sandbox.bounded import OutOfBounds, bounded
from sandbox.compare import TooMuchWork, matches
from sandbox.evaluate import Unsupported, evaluate
from sandbox.plain import ERROR, PRINTED, VALUE, NeedsObject, decode, is_iterator, parse, to_json
from sandbox.reference import Expected, is_right, right_text
from sandbox.results import MAX_SHOWN, Result, claim, cut_middle, digest, output_limit, shown, shown_value
from sandbox.translate import Check, Translated, translate
from sandbox.verdict import Limits

# Bytes of answers that are compared here; larger ones, and those of kinds that can stand for far more than they are
# long, in a process that can be ended.
SMALL = 1 << 14
# A kind's name may also be written with JSON's escapes; honest answers have none for ASCII that can be printed.
_IMMENSE = re.compile(rb'"(range|int|Decimal|Fraction|iterator|typed)"|\\u00[2-7]')
MAX_MESSAGE = 1 << 17  # bytes of an answer that is not a value: it is read here, whatever is in it
COMPARE_S, COMPARE_MB = 1.0, 4096  # after the program's own time is over; at most as much memory
EXAMINE = "examine"  # in the place of a status: the test needs the program's objects, and so an examiner
READING_ERRORS = (KeyError, ValueError, TypeError, ArithmeticError, RecursionError, AttributeError, LookupError)


class NeedsExaminer(Exception):
    """A test does something with an object of the program's that its data cannot stand for."""


class DataTest(NamedTuple):
    """A test's calls, as sandbox/answers.py takes them, and what looks at the answers."""

    calls: list[tuple[str | int, Any, Any, bool]]
    # check(number, answers): the failure that the answer to call `number` shows, given all encoded answers so far
    check: Callable[[int, list[bytes]], Result | None]
    seconds: list[float]  # that each call may take; empty: as long as the program
    alone: bool = False  # `check` looks at one answer at a time
    trusted: bool = False  # answers are not a hostile program's
    right: Callable[[int], str] | None = None  # the text of call `number`'s value that is right as it stands
    costly: bool = False  # looking at any answer takes a process that can be ended


def data_test(test: dict[str, Any], expected: Expected | None = None) -> DataTest | None:
    """The test as data, or None for one that only an examiner or the program's own process can run."""
    if test["type"] == "call":
        call = (test["function"], test["args"], test["kwargs"], True)
        return DataTest(
            [call],
            lambda number, answers: _compare_call(test, answers[0]),
            [],
            True,
            right=lambda number: to_json(test["expected"]),
            costly=bool(test["normal"]),
        )
    if test["type"] == "reference":
        assert expected
        calls = [(test["function"], args, {}, test["encoded"]) for args in test["inputs"]]
        seconds = [max(test["seconds"], 4 * s) for s in expected.seconds]
        return DataTest(
            calls,
            lambda number, answers: _compare_reference(test, expected, number, answers),
            seconds,
            True,
            right=lambda number: right_text(test, number, expected),
        )
    if test["type"] in ("assert", "check") and test["form"] == "auto":
        translated = translate(test["code"], test.get("entry_point", ""))
        return translated and DataTest(
            [(c.function, c.args, c.kwargs, True) for c in translated.calls],
            lambda number, answers: _compare_checks(translated, number, answers),
            [],
        )
    return None


def _value(answer: bytes) -> Any:
    return parse(answer[1:])


def _compare_call(test: dict[str, Any], answer: bytes) -> Result | None:
    value = _value(answer)
    if test["normal"]:
        return trees.compare(test["function"], test["args"][:1], value, test["expected"])
    if matches(value, test["expected"], test["tolerance"], test["order"]):
        return None
    text = shown(value)
    wrong = _wrong(call_text(test["function"], test["args"], test["kwargs"]), text, shown(test["expected"]))
    return wrong | ({"digest": digest(answer[1:].decode())} if len(text) > MAX_SHOWN else {})


def _compare_reference(test: dict[str, Any], expected: Expected, number: int, answers: list[bytes]) -> Result | None:
    answer = answers[number][1:].decode()
    if is_right(test, number, answer, expected):
        return None
    call = f"{test['function']}({', '.join(cut_middle(repr(a), MAX_SHOWN) for a in test['inputs'][number])})"
    wrong, right = (shown(parse(text.encode())) for text in (answer, expected.values[number]))
    return _wrong(cut_middle(call, MAX_SHOWN), wrong, right)


def _compare_checks(translated: Translated, number: int, answers: list[bytes]) -> Result | None:
    if f"§{number}" in translated.handed_on and b'"iterator"' in answers[number]:
        return {"status": EXAMINE}
    for check in translated.checks:
        if check.after == number + 1 and (failure := _failure(check, answers, translated.reread)):
            return failure
    return None


def _failure(check: Check, answers: list[bytes], reread: frozenset[str]) -> Result | None:
    """What an assertion that does not hold shows. `reread`: the values that the test reads more than once."""

    def names() -> dict[str, Any]:
        values = {f"§{i}": decode(_value(answers[i])) for i in check.values}
        if any(is_iterator(values[name]) for name in reread & values.keys()):
            raise NeedsObject
        return check.names | values

    try:
        if evaluate(check.condition, names()):
            return None
    except RecursionError:
        raise
    except (NeedsObject, Unsupported):
        return {"status": EXAMINE}
    except Exception as error:
        source = cut_middle(ast.unparse(check.source), MAX_SHOWN)
        message = f"{type(error).__name__}: {error} (in assert {source})"
        return {"status": "runtime_error", "message": message[:500], "input": source}
    source, condition = cut_middle(ast.unparse(check.source), MAX_SHOWN), check.condition
    if isinstance(condition, ast.Compare) and len(condition.ops) == 1 and isinstance(condition.ops[0], ast.Eq):
        assert isinstance(check.source, ast.Compare)
        sides = [shown_value(evaluate(side, names())) for side in (condition.left, condition.comparators[0])]
        return _wrong(cut_middle(ast.unparse(check.source.left), MAX_SHOWN), *sides)
    return {"status": "wrong_answer", "message": f"assert {source}", "input": source}


def _wrong(call: str, actual: str, expected: str) -> Result:
    message = f"{call} gave {actual}, expected {expected}"
    return {"status": "wrong_answer", "message": message, "input": call, "expected": expected, "actual": actual}


def call_text(function: str, args: list[Any], kwargs: dict[str, Any]) -> str:
    """A call with encoded arguments, for people."""
    parts = [*map(shown, args), *(f"{k}={shown(v)}" for k, v in kwargs.items())]
    return cut_middle(f"{function}({', '.join(parts)})", MAX_SHOWN)


def _is_costly(answer: bytes) -> bool:
    return len(answer) > SMALL or bool(_IMMENSE.search(answer))


class Progress:
    """What the answers of a program have decided so far. Answers come in the order of the calls."""

    def __init__(self, tests: list[DataTest], stop: bool, limits: Limits, deadline: float):
        self.tests, self.stop, self.limits, self.deadline = tests, stop, limits, deadline
        self.results: list[Result] = []
        self.answers: list[bytes] = []  # to the calls of the test that is being decided
        self.failed: Result | None = None  # the program, before its tests
        self.loaded = self.over_limit = self.costly = False
        self.taken, self.at_most = 0, 3 + 2 * sum(len(t.calls) for t in tests)  # answers; each call has two at most
        self.to_skip = 0  # answers of a test that has failed, which the program cannot know of
        self.since = time.monotonic()  # when the present call began, as far as is known

    @property
    def decided(self) -> bool:
        """Whether nothing that is still to come can change the verdict."""
        stopped = self.stop and any(r["status"] != "passed" for r in self.results)
        return self.failed is not None or stopped or self.over_limit or len(self.results) == len(self.tests)

    def late(self) -> bool:
        """Whether the present call takes longer than it may."""
        if self.decided or not self.loaded:
            return False
        seconds = self.tests[len(self.results)].seconds
        return bool(seconds) and time.monotonic() - self.since > seconds[len(self.answers)]

    def take(self, data: bytes) -> None:
        """One answer. Raises ValueError and the like for what is not an answer."""
        self.taken += 1
        kind = data[:1]
        if self.taken > self.at_most or (kind != VALUE and len(data) > MAX_MESSAGE):
            raise ValueError("more answers, or longer ones, than there can be")
        if self.decided:
            return
        self.since = time.monotonic()
        if kind == b"{":
            self._begin(parse(data))
        elif kind == PRINTED:
            self._printed(parse(data[1:]))
        elif not self.loaded:
            raise ValueError("an answer before the program has run")
        elif kind in (ERROR, VALUE) and self.to_skip:
            self.to_skip = self.to_skip - 1 if kind == VALUE else 0
        elif kind == ERROR:
            self.results.append(claim(parse(data[1:])) | {"input": self.present_call()})
            self._next()
        elif kind == VALUE:
            self.answers.append(data)
            costly = self.tests[len(self.results)].costly or _is_costly(data)
            self.costly = costly or (self.costly and len(self.answers) > 1)
            self._decide(costly)
        else:
            raise ValueError("an answer of no known kind")

    def _begin(self, message: dict[str, Any]) -> None:
        if "failed" in message:
            self.failed = claim(message["failed"])
        elif self.loaded or "loaded" not in message:
            raise ValueError("a message out of place")
        self.loaded = True
        self._next()

    def _next(self) -> None:
        """Tests without a call have passed once the program has run."""
        self.answers = []
        while len(self.results) < len(self.tests) and not self.tests[len(self.results)].calls and not self.failed:
            self.results.append({"status": "passed"})

    def _printed(self, counts: list[int]) -> None:
        if max(map(int, counts)) > self.limits.output_kb << 10:
            self.results.append(output_limit(self.limits))
            self.over_limit = True

    def _decide(self, costly: bool) -> None:
        test, number = self.tests[len(self.results)], len(self.answers) - 1
        try:
            seconds = self.deadline + COMPARE_S - time.monotonic()
            if seconds < 0:
                raise OutOfBounds("time")
            if costly and test.right and self.answers[-1] == VALUE + test.right(number).encode():
                failure = None  # found without a process of its own
            elif test.trusted or not (costly if test.alone else self.costly):
                failure = test.check(number, self.answers)
            else:
                failure = bounded(lambda: test.check(number, self.answers), seconds, COMPARE_MB)
        except (OutOfBounds, TooMuchWork):
            failure = {"status": "timeout", "message": "comparing the program's value takes too long"}
        except (RuntimeError, NeedsObject, *READING_ERRORS):
            failure = {"status": "wrong_answer", "message": "the program gave no readable value"}
        if failure and failure["status"] == EXAMINE:
            raise NeedsExaminer
        if failure or len(self.answers) == len(test.calls):
            self.results.append(failure or {"status": "passed"})
            self.to_skip = len(test.calls) - len(self.answers)
            self._next()

    def present_call(self) -> str:
        """The call that is being made, for people."""
        if not self.loaded or len(self.results) == len(self.tests):
            return ""
        test = self.tests[len(self.results)]
        function, args, kwargs, encoded = test.calls[len(self.answers)]
        if not encoded:
            return cut_middle(f"{function}({', '.join(map(repr, args))})", MAX_SHOWN)
        return call_text(str(function), args or [], kwargs)

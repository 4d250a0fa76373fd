"""Many inputs against a reference solution: what the right values are, and which values are as good.

The rules are those of EvalPlus 0.3 (arXiv 2305.01210). The reference runs once, in a jail as any program; what it gave
and how long it took is kept on disk, by the content of the test.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import math
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from sandbox.evaluate import evaluate
from sandbox.plain import NeedsObject, decode, parse

_VERSION = f"1 {sys.version_info[:2]}"  # of the format and of the Python whose values these are
RTOL, FLOATS_ATOL = 1e-7, 1e-6


class Expected(NamedTuple):
    """A test's right values, encoded as JSON, and what goes with each."""

    values: list[str]
    seconds: list[float]
    atol: list[float]


def cache_folder() -> str:
    """Where right values are kept; "" for a user without a home folder."""
    with contextlib.suppress(RuntimeError):
        return str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxrl" / "references")
    return ""


def load(folder: str, digest: str) -> Expected | None:
    """What was kept for the test of this digest."""
    if not folder:
        return None
    with contextlib.suppress(OSError, ValueError, KeyError):
        data = json.loads(_file(folder, digest).read_bytes())
        if data["version"] == _VERSION:
            return Expected(data["values"], data["seconds"], data["atol"])
    return None


def store(folder: str, digest: str, expected: Expected) -> None:
    """Keeps it for the next time, where there is a place to."""
    if not folder:
        return
    with contextlib.suppress(OSError):
        file = _file(folder, digest)
        file.parent.mkdir(0o700, parents=True, exist_ok=True)
        beside = file.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps({"version": _VERSION, **expected._asdict()}))
        os.replace(beside, file)


def _file(folder: str, digest: str) -> Path:
    return Path(folder) / f"{hashlib.sha256(f'{_VERSION} {digest}'.encode()).hexdigest()}.json"


def expected_values(atol: float, values: Iterable[Any], seconds: Iterable[float]) -> Expected:
    """From encoded right values; `atol` grows at the first that is made of floats, as EvalPlus has it."""
    kept: list[str] = []
    atols: list[float] = []
    for value in values:
        kept.append(json.dumps(value, separators=(",", ":")))
        if not atol and _is_floats(decode(value)):
            atol = FLOATS_ATOL
        atols.append(atol)
    return Expected(kept, list(seconds), atols)


def given_values(test: dict[str, Any]) -> Expected:
    """Of a test that brings its right values with it."""
    return expected_values(test["atol"], test["expected"], [0.0] * len(test["inputs"]))


def is_right(test: dict[str, Any], number: int, answer: str, expected: Expected) -> bool:
    """Whether an encoded answer to one input is right. Raises ValueError and the like for what is not a value."""
    right = expected.values[number]
    if answer == right_text(test, number, expected):
        return True  # most are, to the letter
    out, wanted, atol = decode(parse(answer.encode())), decode(parse(right.encode())), expected.atol[number]
    try:
        match = bool(out == wanted)
    except NeedsObject:  # a match of a regular expression, say
        match = False
    if test["rule"]:
        args = test["inputs"][number]
        args = list(map(decode, args)) if test["encoded"] else args
        names = {"args": args, "out": out, "expected": wanted, "match": match, "atol": atol}
        match = bool(evaluate(_rule(test["rule"]), names))
    if match or test["only_rule"] or not atol:
        return match
    if type(out) is not type(wanted) or (isinstance(wanted, (list, tuple)) and len(out) != len(wanted)):
        return False
    return _all_close(out, wanted, atol)


def right_text(test: dict[str, Any], number: int, expected: Expected) -> str:
    """The encoded value that is right as it stands; "" where there is none."""
    right = expected.values[number]
    return "" if test["rule"] or "NaN" in right else right


def _rule(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def _is_floats(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(value) and all(isinstance(i, float) for i in value)
    return isinstance(value, float)


def _all_close(out: Any, expected: Any, atol: float) -> bool:
    """As numpy.allclose has it, for nested lists and tuples of numbers; what it cannot compare is not close."""
    both_ints = isinstance(out, int) and isinstance(expected, int)  # alone, they may have any size
    try:
        depths = [0, 0] if both_ints else [len(_shape(v)) for v in (out, expected)]
    except ValueError:
        return False
    for _ in range(depths[0], depths[1]):
        out = [out]
    for _ in range(depths[1], depths[0]):
        expected = [expected]
    return _close(out, expected, atol, max(depths))


def _shape(value: Any) -> tuple[int, ...]:
    """As NumPy has it; nothing but numbers of a fixed size, in rows of one length."""
    if isinstance(value, (list, tuple)):
        inner = {_shape(i) for i in value}
        if len(inner) > 1:
            raise ValueError("rows differ in length")
        return (len(value), *(inner.pop() if inner else ()))
    if not (isinstance(value, (float, complex)) or (isinstance(value, int) and -(2**63) <= value < 2**64)):
        raise ValueError("not a number")
    return ()


def _close(out: Any, expected: Any, atol: float, depth: int) -> bool:
    """Element by element of lists `depth` deep; one of length 1 stands for as many as needed, as NumPy broadcasts."""
    if not depth:
        return out == expected or abs(out - expected) <= atol + RTOL * abs(expected) < math.inf
    count = max(len(out), len(expected)) if out and expected else 0
    if not (len(out) in (1, count) and len(expected) in (1, count)):
        return False
    out, expected = (v * count if len(v) == 1 else v for v in (out, expected))
    return all(_close(o, e, atol, depth - 1) for o, e in zip(out, expected))

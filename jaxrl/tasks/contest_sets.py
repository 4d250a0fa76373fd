"""Readers of contest problems: a function for each data set, from a row to what task contest needs of it.

| source | schema of |
| --- | --- |
| open_r1 | open-r1/verifiable-coding-problems-python |
| livecodebench | livecodebench/code_generation and code_generation_lite (arXiv 2403.07974) |
| codecontests | deepmind/code_contests (arXiv 2203.07814), also with tests as lists of {"input", "output"} |
| taco | BAAI/TACO (arXiv 2312.14852) |
| apps | codeparrot/apps (arXiv 2105.09938) |
| leetcode | newfacade/LeetCodeDataset (arXiv 2504.14655), all versions |
| deepcoder | agentica-org/DeepCoder-Preview-Dataset, all of its subsets |
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from jaxrl.tasks.contest_tests import (
    CALL,
    STDIN,
    Rejected,
    asserted_calls,
    cases_of,
    kind_of,
    short,
    tests_of,
    unpacked,
)
from jaxrl.tasks.extract import code_block, parses
from jaxrl.tasks.rows import DataError, Row
from sandbox.verdict import CallTest, Test

TEST_S, LIVECODEBENCH_S = 4.0, 6.0  # seconds of CPU of a test without a time limit: APPS', LiveCodeBench's
REFERENCES = 3  # solutions that are kept of a problem; some have hundreds
DATED = ("livecodebench", "leetcode", "taco")  # sources whose rows have a date
PYTHON3 = (3, "PYTHON3")  # CodeContests' name of the language, and its number
PYTHON2 = (1, "PYTHON")
SHOW_STDIN = "Read the input from stdin and print the answer to stdout. Answer with one Python program in a code block."
SHOW_STARTER = "Complete this code. Answer with all of it in one code block."
SHOW_FUNCTION = "Write the function {}. Answer with it in one code block."
# What LiveCodeBench's and APPS' judges put before a program: solutions count on these names.
_MODULES = (
    "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json"
)
IMPORTS = "; ".join(f"from {module} import *" for module in f"{_MODULES} builtins typing".split())
IMPORTS += f"; import {_MODULES.replace(' ', ', ')}; sys.setrecursionlimit(50000)\n"
# What a statement says that tests alone cannot judge. An image is what is left of one: its text is missing.
MARKS = {
    "image": re.compile(r"<image>|\[image\]|<img\b|!\[[^\]]*\]\(", re.IGNORECASE),
    "interactive": re.compile(r"\binteractive (?:problem|task)\b|\bflush(?:ing)? (?:the )?(?:output|stdout)\b", re.I),
    "several answers": re.compile(
        r"\b(?:print|output|find|return)\b[^.\n]{0,40}\bany\b(?: one)? of them\b"
        r"|\bif (?:there (?:are|is) )?(?:several|multiple|many|more than one)\b[^.\n]{0,60}[.,;:]?\s*"
        r"(?:you (?:can|may) )?(?:print|output|find|return)[^.\n]{0,20}\bany\b",
        re.IGNORECASE,
    ),
}
ANY_ORDER = re.compile(
    r"\b(?:return|answers?|output)\b[^.\n]{0,60}\bin \**any\**(?: \**order\**|\** order)\b", re.IGNORECASE
)
_SECONDS = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|milliseconds?|s|sec|seconds?)?\s*", re.IGNORECASE)
_MEMORY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(k|m|g)?[a-z]*\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Found:
    """What a row says of a problem.

    tests, public: the tests that are hidden, and those the set shows to whoever solves the problem.
    solutions: right programs, as the set says; `no_solution` is the reason to reject where there must be one.
    seconds, memory_mb: of a test; 0 MB: not stated.
    before, after: what the judge puts around a program.
    date: of the contest, YYYY-MM-DD; "" in sets that have none.
    marks: names of MARKS.
    """

    name: str
    statement: str
    tests: tuple[Test, ...]
    public: tuple[Test, ...] = ()
    solutions: tuple[str, ...] = ()
    no_solution: str = "no solution"
    seconds: float = TEST_S
    memory_mb: int = 0
    before: str = ""
    after: str = ""
    date: str = ""
    marks: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)


Reader = Callable[[Row, str], Found]


def open_r1(row: Row, language: str) -> Found:
    info, statement = row.part("verification_info"), row.text("problem", "problem_statement")
    cases = info.parts("test_cases") if info.fields.get("test_cases") else []
    if (info.optional_text("language") or "python") != language:
        raise Rejected("language")
    if not cases:
        raise Rejected("no tests")
    if len({kind_of(case) for case in cases}) > 1:
        raise Rejected("mixed kinds of tests")
    solution = row.optional_text("gold_standard_solution")
    tests = tests_of(cases)
    named = next((f for f in ("problem_id", "in_source_id") if row.fields.get(f)), None)
    metadata = row.fields.get("metadata")
    with contextlib.suppress(json.JSONDecodeError):
        metadata = json.loads(metadata) if isinstance(metadata, str) else metadata
    places = (row.fields, info.fields, metadata if isinstance(metadata, dict) else {})
    stated = next((place["time_limit"] for place in places if place.get("time_limit") is not None), TEST_S)
    return Found(
        name=row.name(named) if named else _number(row),
        statement=statement,
        tests=tests,
        solutions=(code_block(solution, names=names_of(tests)).strip(),) if solution else (),
        seconds=seconds_of(row, stated),
        meta={"source": row.optional_text("source")},
    )


def livecodebench(row: Row, language: str) -> Found:
    metadata = row.part("metadata") if row.fields.get("metadata") else Row(row.where, {})
    function = metadata.optional_text("func_name")

    def tests(cases: Sequence[Row]) -> tuple[Test, ...]:
        """As its judge: numbers by value, and without a tolerance."""
        return tests_of([_typed(case, function) for case in cases], tolerance=0.0, wrapped=False)

    return _checked(Found(
        name=row.name("question_id"),
        statement=_asked(row.text("question_content"), row.optional_text("starter_code"), function),
        tests=tests(unpacked(row, "private_test_cases")),
        public=tests(row.parts("public_test_cases")),
        seconds=LIVECODEBENCH_S,
        before=IMPORTS,
        date=_date(row, "contest_date"),
        meta={"difficulty": row.optional_text("difficulty"), "source": row.optional_text("platform")},
    ))  # fmt: skip


def codecontests(row: Row, language: str) -> Found:
    if row.optional_text("input_file") or row.optional_text("output_file"):
        raise Rejected("reads or writes a file")

    def tests(*names: str) -> tuple[Test, ...]:
        """As AlphaCode's judge: words without regard to case, and numbers within 1e-5."""
        return tests_of([case for name in names for case in _columns(row, name, "input")], "words")

    solutions = [(s.get("language"), s.text("solution")) for s in _columns(row, "solutions", "solution")]
    python3 = tuple(islice((code for language, code in solutions if language in PYTHON3 and parses(code)), REFERENCES))
    statement = row.text("description")
    limit = row.fields.get("time_limit")
    if isinstance(limit, dict):  # a protobuf Duration
        limit = (limit.get("seconds") or 0) + (limit.get("nanos") or 0) / 1e9
    facts = ("difficulty", "cf_rating", "source")
    return _checked(Found(
        name=row.name("name"),
        statement=_asked(statement),
        tests=tests("private_tests", "generated_tests"),
        public=tests("public_tests"),
        solutions=python3,
        no_solution="only Python 2 solutions" if any(s[0] in PYTHON2 for s in solutions) else "no solution",
        seconds=seconds_of(row, limit) if limit else TEST_S,
        memory_mb=memory_of(row, row.fields.get("memory_limit_bytes")),
        marks=marks_of(statement),
        meta={name: row.fields[name] for name in facts if row.fields.get(name) is not None},
    ))  # fmt: skip


def apps(row: Row, language: str) -> Found:
    """APPS and TACO, which has more fields."""
    if not row.fields.get("input_output"):
        raise Rejected("no tests")
    statement, starter = row.text("question"), row.optional_text("starter_code")
    tests = tests_of(cases_of(row.part("input_output")))
    names = names_of(tests)
    solutions, why = _python3(_texts(row, "solutions"), names)
    pictures = str(row.fields.get("picture_num") or 0).strip() not in ("0", "")
    marks = marks_of(statement)
    limit = row.fields.get("time_limit")
    return _checked(Found(
        name=row.name("problem_id") if "problem_id" in row.fields else _number(row),
        statement=_asked(statement, starter, *names),
        tests=tests,
        solutions=solutions,
        no_solution=why,
        seconds=seconds_of(row, limit) if limit else TEST_S,
        memory_mb=memory_of(row, row.fields.get("memory_limit")),
        before=IMPORTS,
        date=_date(row, "date"),
        marks=("image", *marks) if pictures and "image" not in marks else marks,
        meta={"difficulty": row.optional_text("difficulty"), "source": row.optional_text("source", "url")},
    ))  # fmt: skip


def leetcode(row: Row, language: str) -> Found:
    """Answers may come in any order where the statement says so; the set's judge wants that of its solution."""
    meta = row.part("meta") if row.fields.get("meta") else row
    method = row.text("entry_point").removeprefix("Solution().")
    if not method.isidentifier():
        raise DataError(f"{row.where}: entry_point must be Solution().METHOD, is {short(row.get('entry_point'))}")
    statement = (meta if "question_title" in meta.fields else row).text(
        "problem_description", "question_title", "query"
    )
    tests, after = asserted_calls(row.text("test"), "any" if ANY_ORDER.search(statement) else "same", method)
    solutions, why = _python3([row.text("completion")] if row.fields.get("completion") else [], [method])
    return _checked(Found(
        name=row.name("task_id"),
        statement=_asked(statement, meta.optional_text("starter_code", "lang_code"), method),
        tests=tests,
        solutions=solutions,
        no_solution=why,
        before=f"{row.optional_text('prompt').rstrip()}\n\n" if row.optional_text("prompt") else "",
        after=after,
        date=_date(meta, "estimated_date"),
        marks=marks_of(statement),
        meta={"difficulty": meta.optional_text("difficulty"), "names": [method]},
    ))  # fmt: skip


def deepcoder(row: Row, language: str) -> Found:
    """Its subsets store tests as their sources do: {"inputs", "outputs"} of TACO, lists of cases of the others."""
    statement, starter = row.text("problem"), row.optional_text("starter_code")
    metadata = row.part("metadata") if row.fields.get("metadata") else Row(row.where, {})
    function = metadata.optional_text("func_name")
    stored = _decoded(row, "tests")
    if not stored:
        raise Rejected("no tests")
    decoded = Row(row.where, {"tests": stored})
    if isinstance(stored, dict):
        tests = tests_of(cases_of(decoded.part("tests")))
    else:
        cases = decoded.parts("tests")
        typed = [_typed(case, function) for case in cases]
        of_livecodebench = "testtype" in cases[0].fields
        tests = tests_of(typed, tolerance=0.0, wrapped=False) if of_livecodebench else tests_of(typed)
    names = names_of(tests)
    solutions, why = _python3(_texts(row, "solutions"), names)
    return _checked(Found(
        name=_number(row),
        statement=_asked(statement, starter, *names),
        tests=tests,
        solutions=solutions,
        no_solution=why,
        seconds=LIVECODEBENCH_S,
        before=IMPORTS,
        marks=marks_of(statement),
    ))  # fmt: skip


READERS: dict[str, Reader] = {
    "open_r1": open_r1, "livecodebench": livecodebench, "codecontests": codecontests, "taco": apps, "apps": apps,
    "leetcode": leetcode, "deepcoder": deepcoder,
}  # fmt: skip
UNMARKED = ("open_r1", "livecodebench")  # their statements are taken as they are


def _checked(found: Found) -> Found:
    if not found.tests + found.public:
        raise Rejected("no tests")
    if len({type(test) for test in found.tests + found.public}) > 1:
        raise Rejected("mixed kinds of tests")
    return found


def names_of(tests: Sequence[Test]) -> list[str]:
    """The functions that are called."""
    return sorted({test.function for test in tests if isinstance(test, CallTest)})


def marks_of(statement: str) -> tuple[str, ...]:
    return tuple(name for name, pattern in MARKS.items() if pattern.search(statement))


def seconds_of(row: Row, stated: Any) -> float:
    """A time limit: "2.0 seconds", "1500 ms", 2."""
    parts = _SECONDS.fullmatch(str(stated))
    seconds = float(parts[1]) / (1000 if (parts[2] or "").lower().startswith("m") else 1) if parts else 0.0
    if not seconds:
        raise DataError(f"{row.where}: time_limit {short(stated)} must be a number above 0, of seconds or ms")
    return seconds


def memory_of(row: Row, stated: Any) -> int:
    """A memory limit in MB, of "256.0 megabytes" or a number of bytes; 0 where none is stated."""
    if not stated:
        return 0
    parts = _MEMORY.fullmatch(str(stated))
    if not parts:
        raise DataError(f"{row.where}: memory limit {short(stated)} must be a number, of bytes or with a unit")
    return int(float(parts[1]) * {"": 2**-20, "k": 2**-10, "m": 1, "g": 1024}[(parts[2] or "").lower()])


def _asked(statement: str, starter: str = "", *functions: str) -> str:
    """The statement and how to answer."""
    if starter.strip():
        return f"{statement.strip()}\n\n{SHOW_STARTER}\n\n```python\n{starter.strip()}\n```"
    asked = SHOW_FUNCTION.format(functions[0]) if functions and functions[0] else SHOW_STDIN
    return f"{statement.strip()}\n\n{asked}"


def _typed(case: Row, function: str) -> Row:
    """A case of LiveCodeBench, whose function stands in the problem's metadata or its own, with our names."""
    kind = case.optional_text("testtype", "type") or STDIN
    if kind in ("stdin", STDIN):
        return Row(case.where, {**case.fields, "type": STDIN})
    own = case.part("metadata").optional_text("func_name") if case.fields.get("metadata") else ""
    name = case.optional_text("fn_name") or own or function
    return Row(case.where, {**case.fields, "type": CALL if kind == "functional" else kind, "fn_name": name})


def _columns(row: Row, name: str, needed: str) -> list[Row]:
    """A list of objects, or the object of lists that the hub makes of it; empty where it is null or not there."""
    if not row.fields.get(name):
        return []
    if not isinstance(row.get(name), dict):
        return row.parts(name)
    part = row.part(name)
    columns = {key: part.values(key) for key in part.fields}
    if len({len(values) for values in columns.values()}) > 1:
        raise Rejected("not as many outputs as inputs" if needed == "input" else "solutions without a language")
    count = len(columns.get(needed, []))
    return [Row(f"{part.where}[{i}]", {key: columns[key][i] for key in columns}) for i in range(count)]


def _texts(row: Row, name: str) -> list[str]:
    """A list of texts, or JSON text of one; empty where it is null or not there."""
    if not row.fields.get(name):
        return []
    return Row(row.where, {name: _decoded(row, name)}).texts(name)


def _decoded(row: Row, name: str) -> Any:
    """A value, or what it is JSON text of; None where it is null, empty or not there."""
    value = row.fields.get(name)
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError):
        raise DataError(f"{row.where}: {name} is not JSON: {short(value)}") from None


def _python3(solutions: Sequence[str], names: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """The solutions that Python 3 can read, and why there is none."""
    programs = (code_block(s, names=list(names)).strip() if "```" in s else s for s in solutions)
    found = tuple(islice((code for code in programs if code.strip() and parses(code)), REFERENCES))
    return found, "only Python 2 solutions" if solutions else "no solution"


def _date(row: Row, name: str) -> str:
    value = row.fields.get(name)
    text = str(value)[:10] if value else ""
    return text if re.fullmatch(r"\d{4}-\d\d-\d\d", text) else ""


def _number(row: Row) -> str:
    """The row's place, where it has no name of its own."""
    return row.where.rsplit("/", 1)[-1]

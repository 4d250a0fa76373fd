"""The process that runs test code which cannot become data (sandbox/translate.py): stateful tests, mocks, classes.

It lives in a jail of its own with an empty file system and is fresh for every program. It shares with the program's
process a socket for plain values, and sees how much that one prints. What the test binds, imports or finds among
Python's builtins is the test's; all other names are the program's, and stand for values, functions and objects that
stay there (sandbox/remote.py). So a program can patch, exit, search its memory or lie about equality as it likes: it
can only answer with a value.
"""

from __future__ import annotations

import ast
import builtins
import functools
import marshal
import os
import symtable
import sys
import types
from typing import Any

from sandbox.failure import failure
from sandbox.plain import answer_frame, written
from sandbox.remote import CandidateEnded, FromCandidate, NotPlain, Remote, type_of
from sandbox.results import TaskError
from sandbox.translate import tested_builtins

CANDIDATE, TESTS, RESULTS, PRINTED = 3, 4, 5, (6, 7)  # file descriptors
LOST = 3  # exit status: the program's process had ended before its tests had
# What tests may import, and find there without an import where they use its name. Those with a dot, and the large ones
# of the second line, are loaded for tests that name them.
MODULES = (
    "abc", "array", "base64", "binascii", "bisect", "calendar", "cmath", "collections", "contextlib", "copy",
    "dataclasses", "datetime", "decimal", "difflib", "enum", "fractions", "functools", "hashlib", "heapq", "inspect",
    "io", "itertools", "json", "math", "numbers", "operator", "os", "pathlib", "pprint", "queue", "random", "re",
    "signal", "statistics", "string", "struct", "sys", "textwrap", "threading", "time", "traceback", "types", "typing",
    "unicodedata", "unittest", "warnings", "zlib", "gc", "builtins", "collections.abc", "tempfile", "uuid", "secrets",
    "asyncio", "unittest.mock", "numpy", "scipy", "pandas", "numpy.testing", "importlib", "xml", "csv", "sqlite3",
    "subprocess", "shutil", "pickle", "gzip", "html", "urllib.parse", "concurrent.futures", "logging", "argparse",
    "typing_extensions", "pytest", "sortedcontainers",
)  # fmt: skip


@functools.lru_cache(4096)
def modules_of(code: str) -> tuple[str, ...]:
    """The modules that a test imports, or names without binding them. Raises TaskError for one that it may not have."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError):
        return ()  # the examiner says what is wrong
    found = {name for node in ast.walk(tree) for name in _imported(node)}
    for name in found:
        if not any(name == m or name.startswith(m + ".") for m in MODULES):
            raise TaskError(
                f"the test imports {name}, which tests cannot; they may import {', '.join(sorted(MODULES))}"
            )
    return tuple(sorted(found | {name for name in free_names(code) if name in MODULES}))


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [a.name for a in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def free_names(code: str) -> set[str]:
    """The names that test code reads from outside: neither bound in it anywhere at its top nor by a function, lambda,
    comprehension, except or match clause."""
    top = symtable.symtable(code, "test.py", "exec")
    bound = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()}
    read: set[str] = set()
    tables = [top]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for symbol in table.get_symbols():
            if table is top or symbol.is_global():
                read |= {symbol.get_name()} if symbol.is_referenced() else set()
                bound |= {symbol.get_name()} if symbol.is_assigned() and symbol.is_declared_global() else set()
    return read - bound


@functools.lru_cache(256)
def _compiled(code: str) -> tuple[types.CodeType, list[str], list[str], list[str], dict[str, Any]]:
    """The code, the names that it must get from the program, its modules, the exceptions that it handles, and its
    `type`, which knows the program's objects."""
    tree = ast.parse(code, "test.py")
    compiled = compile(tree, "test.py", "exec", dont_inherit=True)
    free = free_names(code)
    modules = sorted(n for n in free if n in MODULES and n not in vars(builtins))
    names = {n for n in free if not hasattr(builtins, n) and n not in modules} | tested_builtins(tree)
    return compiled, sorted(names), modules, sorted(names & _handled(tree)), _type_of(tree)


def _type_of(tree: ast.AST) -> dict[str, Any]:
    """`type`, where the test only calls it, with one argument: it does not bind or compare it."""
    nodes = list(ast.walk(tree))
    called = {id(n.func) for n in nodes if isinstance(n, ast.Call) and len(n.args) == 1 and not n.keywords}
    other = any(isinstance(n, ast.Name) and n.id == "type" and id(n) not in called for n in nodes)
    return {} if other else {"type": type_of}


def _handled(tree: ast.AST) -> set[str]:
    """Names that stand where exceptions are handled or expected."""
    places: list[ast.AST] = [n.type for n in ast.walk(tree) if isinstance(n, ast.ExceptHandler) and n.type]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("raises", "assertRaises", "assertRaisesRegex", "suppress"):
                places += node.args
    return {n.id for place in places for n in ast.walk(place) if isinstance(n, ast.Name)}


def main() -> None:
    """Runs one program's tests, and writes a result for each."""
    with open(TESTS, "rb") as f:
        request = marshal.loads(f.read(int.from_bytes(f.read(8), "little")))
    sys.path.clear()
    sys.meta_path.clear()  # what is not in memory cannot be imported
    candidate, complete = Remote(CANDIDATE), False
    try:
        first = candidate.receive()
        if "loaded" not in first:
            failed = first.get("failed")
            failed = failed if isinstance(failed, dict) else {}
            claimed = {key: str(failed.get(key, ""))[-4000:] for key in ("status", "message", "traceback")}
            _write({"failed": claimed, "printed": max(written(*PRINTED))})
        else:
            for test in request["tests"]:
                result = run_test(test, candidate)
                _write({**result, "printed": max(written(*PRINTED))})
                if request["stop"] and result["status"] != "passed":
                    break
        complete = True
    except CandidateEnded:
        pass
    os._exit(0 if complete else LOST)


def run_test(test: dict[str, Any], candidate: Remote) -> dict[str, Any]:
    """A test's result, or {"task": ...} for a test that is broken. Raises CandidateEnded."""
    candidate.last_call, candidate.describing = "", False
    try:
        compiled, names, modules, handled, builtin = _compiled(test["code"])
    except (SyntaxError, ValueError, RecursionError) as error:
        return {"task": f"the test is not Python: {error}", "status": "sandbox_error"}
    try:
        scope: dict[str, Any] = {
            "__name__": "test",
            **builtin,
            **{name: sys.modules[name] for name in modules if name in sys.modules},
        }
        scope |= candidate.look(names, handled)
        exec(compiled, scope)
        if test["type"] == "check":
            entry_point = test["entry_point"]
            scope["check"](candidate.look([entry_point], []).get(entry_point) or _undefined(entry_point))
        if candidate.ended:  # and the test has caught it
            raise candidate.ended
        return {"status": "passed"}
    except CandidateEnded:
        raise
    except NotPlain as error:
        return {"task": str(error), "status": "sandbox_error"}
    except BaseException as error:
        candidate.describing = True
        result = {key: value for key, value in failure(error).items() if key in ("status", "message", "traceback")}
        if isinstance(error, FromCandidate):
            result |= {"traceback": error.traceback, "message": error.text}
        elif result["status"] == "wrong_answer" and candidate.last_call:
            result["input"] = candidate.last_call
        return result


def _undefined(name: str) -> Any:
    raise NameError(f"name {name!r} is not defined")


def _write(result: dict[str, Any]) -> None:
    view = memoryview(answer_frame(b"", result))
    while view:
        view = view[os.write(RESULTS, view) :]

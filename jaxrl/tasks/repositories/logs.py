"""What test runners print, as {test: passed | failed | skipped | error}; one parser a runner, by the official names.

The rules are those of SWE-bench's harness (github.com/SWE-bench/SWE-bench, 5.0.2), written anew. Each parser gets what
every test command printed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Literal

Status = Literal["passed", "failed", "skipped", "error"]
Results = dict[str, Status]
LONGEST_LINE = 2_000  # characters of a line of a log that are read
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_TIME = re.compile(r"\s*\(\d+(?:\.\d+)?\s*(?:ms|s)\)$")
_MARKS: dict[str, Status] = {
    "✓": "passed", "✔": "passed", "√": "passed", "✕": "failed", "✗": "failed", "×": "failed", "✖": "failed",
    "○": "skipped", "↓": "skipped",
}  # fmt: skip
# What a suite that ran at all leaves in its log.
_RAN = tuple(
    re.compile(pattern, re.M)
    for pattern in (
        r"^[ \t]*[1-9]\d* passing", r"^Tests:[ \t]+[1-9]", r"[1-9]\d* specs?, \d+ failures?", r"Executed [1-9]\d* of",
        r"^# tests [1-9]", r"^[ \t]*Tests[ \t]+[1-9]\d*", r'"tests":\s*[1-9]',
    )
)  # fmt: skip


def suite_ran(outputs: Sequence[str]) -> bool:
    """Whether a log shows that tests ran, though none of them may be named in it."""
    return any(pattern.search(plain(text)) for text in outputs for pattern in _RAN)


def plain(text: str) -> str:
    """Without colours and the ends of endless lines: patterns must not take forever on what programs print."""
    return "\n".join(line[:LONGEST_LINE] for line in _ANSI.sub("", text).split("\n"))


def jasmine_numbers(outputs: Sequence[str]) -> Results:
    """marked: a failure is a line "1) its full name"."""
    return {m[1].strip(): "failed" for text in outputs for m in re.finditer(r"^\d+\)\s(.*)", plain(text), re.M)}


def mocha_json(outputs: Sequence[str]) -> Results:
    """Prism: the report of mocha's json reporter, from the first { to the last }."""
    results: Results = {}
    for text in outputs:
        try:
            report = json.loads(text[text.index("{") : text.rindex("}") + 1])
            for name, status in (("passes", "passed"), ("failures", "failed"), ("pending", "skipped")):
                results |= {test["fullTitle"]: status for test in report.get(name, ())}  # type: ignore[misc]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            continue  # a suite that could not start prints none
    return results


def marks(outputs: Sequence[str]) -> Results:
    """jest and vitest: a mark, a name, and perhaps a duration."""
    results: Results = {}
    for line in "\n".join(map(plain, outputs)).splitlines():
        line = line.strip()
        if line[:1] in _MARKS and line[1:2] == " ":
            results[_TIME.sub("", line[2:].strip())] = _MARKS[line[0]]
    return results


def files(outputs: Sequence[str]) -> Results:
    """Runners that are only heard by file: PASS path, FAIL path (3.2 s)."""
    found = re.findall(r"^(PASS|FAIL)[ \t]+(\S.*?)[ \t]*$", "\n".join(map(plain, outputs)), re.M)
    return {_TIME.sub("", path): "passed" if word == "PASS" else "failed" for word, path in found}


def jest_json(outputs: Sequence[str]) -> Results:
    """jest --json."""
    statuses: dict[str, Status] = {"passed": "passed", "failed": "failed", "pending": "skipped", "todo": "skipped"}
    results: Results = {}
    for text in outputs:
        try:
            report = json.loads(text[text.index("{") : text.rindex("}") + 1])
            for suite in report["testResults"]:
                for test in suite["assertionResults"]:
                    name = " > ".join([*test.get("ancestorTitles", ()), test["title"]])
                    results[name] = statuses.get(test["status"], "error")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            continue
    return results


def pytest_lines(outputs: Sequence[str]) -> Results:
    """pytest -rA: PASSED path::test, FAILED path::test - why, in its summary."""
    statuses: dict[str, Status] = {
        "PASSED": "passed", "FAILED": "failed", "ERROR": "error", "SKIPPED": "skipped", "XFAIL": "passed",
        "XPASS": "passed",
    }  # fmt: skip
    found = re.findall(rf"^({'|'.join(statuses)}) (\S+::.*?)(?: - .*)?$", "\n".join(map(plain, outputs)), re.M)
    return {name: statuses[word] for word, name in found}


def tap(outputs: Sequence[str]) -> Results:
    """ok 1 name, not ok 2 name # SKIP."""
    results: Results = {}
    for m in re.finditer(r"^[ \t]*(not )?ok\b[ \t]*\d*[ \t]*-?[ \t]*(.*)$", "\n".join(map(plain, outputs)), re.M):
        name, _, directive = m[2].partition(" # ")
        skipped = directive.upper().startswith(("SKIP", "TODO"))
        results[name.strip()] = "skipped" if skipped else "failed" if m[1] else "passed"
    return results


def karma(outputs: Sequence[str]) -> Results:
    """Marks with the suites above them by indentation, joined by " ", until SUMMARY."""
    results: Results = {}
    stack: list[tuple[int, str]] = []
    for line in "\n".join(map(plain, outputs)).partition("SUMMARY:")[0].splitlines():
        indent, text = len(line) - len(line.lstrip()), line.strip()
        while stack and stack[-1][0] >= indent:
            stack.pop()
        if text[:1] in ("✔", "✖"):
            name = _TIME.sub("", text[1:].strip())
            results[" ".join([*(suite for _, suite in stack), name])] = _MARKS[text[0]]
        elif text:
            stack.append((indent, text))
    return results


def browser_failures(outputs: Sequence[str]) -> Results:
    """Chart.js, bpmn-js, openlayers: "Chrome 1.2 (Linux) name FAILED", "case X: mismatch"."""
    text = "\n".join(map(plain, outputs))
    found = re.findall(r"^.*?Chrome[\w ]* [\d.]+ \([^)]*\) (.*?) FAILED\s*$", text, re.M)
    found += re.findall(r"^(case .*?): mismatch", text, re.M)
    return {name.strip(): "failed" for name in found}


def mocha_spec(outputs: Sequence[str]) -> Results:
    """highlight.js: marks until the summary; below it numbered failures, whose suites stand indented above the name."""
    results: Results = {}
    for text in map(plain, outputs):
        stack: list[tuple[int, str]] = []
        for line in re.split(r"\n[ \t]*\d+ passing", text)[0].splitlines():
            indent, words = len(line) - len(line.lstrip()), line.strip()
            while stack and stack[-1][0] >= indent:
                stack.pop()
            numbered = re.match(r"\d+\) (.*)", words)
            if words[:1] in ("✓", "✔") or numbered:
                name = _TIME.sub("", numbered[1] if numbered else words[1:].strip())
                suite = stack[-1][1] if stack else ""
                results[".".join(filter(None, (suite, name)))] = "failed" if numbered else "passed"
            elif words and indent >= 2:
                stack.append((indent, words))
    return results


def indented_failures(outputs: Sequence[str]) -> Results:
    """p5.js: numbered failures, with what they belong to on growing indentation, joined by ":"."""
    results: Results = {}
    text = re.sub(r"^[ \t]*[<{].*?[>}][ \t]*$", "", "\n".join(map(plain, outputs)), flags=re.M)
    lines = text.splitlines()
    for i, line in enumerate(lines):
        if not (first := re.match(r"(\s*)\d+\) (.*)", line)):
            continue
        names, indent = [first[2].strip()], len(first[1])
        for following in lines[i + 1 :]:
            deeper = len(following) - len(following.lstrip())
            if not following.strip() or deeper <= indent:
                break
            names.append(following.strip())
            indent = deeper
        results[":".join(names).rstrip(":")] = "failed"
    return results


def jest_chunks(outputs: Sequence[str]) -> Results:
    """wp-calypso: marks with suites above them by indentation, joined by " - "."""
    results: Results = {}
    stack: list[tuple[int, str]] = []
    for line in "\n".join(map(plain, outputs)).splitlines():
        indent, text = len(line) - len(line.lstrip()), line.strip()
        if not text:
            continue
        while stack and stack[-1][0] >= indent:
            stack.pop()
        if text[:1] in ("✓", "✕", "○"):
            name = _TIME.sub("", text[1:].strip())
            results[" - ".join([*(suite for _, suite in stack), name])] = _MARKS[text[0]]
        else:
            stack.append((indent, text))
    return results


def numbered_suites(outputs: Sequence[str]) -> Results:
    """eslint: "  1) suite name" in the list of failures."""
    found = re.findall(r"^[ \t]+\d+\)[ \t]+(\S.*?)[ \t]*:?[ \t]*$", "\n".join(map(plain, outputs)), re.M)
    return dict.fromkeys(found, "failed")


PARSERS: dict[str, Callable[[Sequence[str]], Results]] = {
    "parse_log_marked": jasmine_numbers, "parse_log_prismjs": mocha_json, "parse_log_jest": marks,
    "parse_log_vitest": marks, "parse_log_jest_json": jest_json, "parse_log_karma": karma, "parse_log_tap": tap,
    "parse_log_highlight_js": mocha_spec, "parse_log_chart_js": browser_failures, "parse_log_p5js": indented_failures,
    "parse_log_bpmn_js": browser_failures, "parse_log_openlayers": browser_failures, "parse_log_calypso": jest_chunks,
    "parse_log_wp_calypso": jest_chunks, "parse_log_eslint": numbered_suites, "parse_log_react_pdf": files,
    "parse_log_carbon": files, "parse_log_prettier": files, "parse_log_scratch_gui": files,
    "parse_log_lighthouse": files, "parse_log_grommet": files, "parse_log_next": marks,
    "parse_log_pytest": pytest_lines,
}  # fmt: skip

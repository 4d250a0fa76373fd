"""How much a program does on larger and larger inputs, measured in the sandbox.

One request of the judge pool measures all series of a program (jaxrl/tasks/growth/inputs.py): operations counted
(jaxrl/tasks/growth/count.py), wall time in nanoseconds, or the peak of allocated memory in bytes. The inputs are made
in the sandbox, size after size, beside the program. A size at which the program fails is left out, and whatever the
clock a series ends where the counted operations are too many.
Counts are the same each time; so are bytes, as long as the program does not depend on the order of sets of texts.

A program is a function, called with an example's arguments, or a script that reads its standard input, as a class
`Input` of BigO(Bench) writes it (`dataclass_code`): its lines are made before the measurement begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxrl.tasks.growth import inputs
from jaxrl.tasks.growth.count import PRELUDE, instrumented
from jaxrl.tasks.growth.fit import Kind, schedule
from jaxrl.tasks.growth.inputs import Series, Variable
from jaxrl.tasks.growth.vote import Growth, growth
from sandbox.verdict import CallTest, Limits, Program, Verdict

Clock = Literal["operations", "time", "space"]
LIMITS = Limits(wall_s=600.0, cpu_s=300.0, memory_mb=2048)
OPERATIONS = 1_000_000  # of one call; larger sizes are left out, whatever the clock
SCRIPT_SERIES = 96  # that a script is asked for: how many it has is known in the sandbox only
TIME_REPEATS = 5
UNSEEN = "\0"  # what no call gives: a test shows only values that were not expected

HARNESS = """
import sys as _sys, io as _io, gc as _gc, time as _time, tracemalloc as _tracemalloc
_sys.setrecursionlimit(5000)
_clock = _time.perf_counter_ns  # before the program, which could replace it
_COUNTS, _DIGITS = {}, "0123456789abcdefghijklmnopqrstuvwxyz"
def _written(n):
    text = ""
    while n: n, digit = divmod(n, 36); text = _DIGITS[digit] + text
    return text or "0"
def _space():
    return {k: v for k, v in globals().items() if k.startswith("_") and not k.startswith("__")}
class _Lines(_io.StringIO):
    def __init__(self, text):
        super().__init__(text)
        self.left = text.splitlines(keepends=True)[::-1]
    def readline(self, size=-1): return self.left.pop() if self.left else ""
    def readlines(self, hint=-1):
        lines, self.left = self.left[::-1], []
        return lines
    def read(self, size=-1): return "".join(self.readlines())
    def __iter__(self): return self
    def __next__(self):
        if not self.left: raise StopIteration
        return self.left.pop()
def _prepared(program, arguments):
    if _NAME:
        space = _space() | {"__name__": "program"}
        exec(program, space)
        function = space[_NAME]
        return lambda: function(*arguments)
    lines = _Lines(repr(_INPUT["Input"](*arguments)))
    bare = [line.rstrip("\\n") for line in lines.left]
    def read(prompt=""):
        if not lines.left: raise EOFError
        lines.left.pop()
        return bare[len(lines.left)]
    space = _space() | {"__name__": "__main__", "input": read}
    def run():
        before = _sys.stdin
        _sys.stdin = lines
        try: exec(program, space)
        except SystemExit: pass
        finally: _sys.stdin = before
    return run
def _value(clock, program, series, size):
    call, out = _prepared(program, arguments(_EXAMPLE, series, size)), _sys.stdout
    _sys.stdout = _io.StringIO()
    _Count.total, _Count.limit = 0, _MOST
    try:
        if clock == "operations":
            call()
            return round(_Count.total)
        _gc.collect(); _gc.disable()
        if clock == "time":
            start = _clock()
            call()
            return _clock() - start
        _tracemalloc.start()
        try:
            before = _tracemalloc.get_traced_memory()[0]
            _tracemalloc.reset_peak()
            call()
            return max(_tracemalloc.get_traced_memory()[1] - before, 0)
        finally: _tracemalloc.stop()
    finally:
        _gc.enable()
        _Count.limit = float("inf")
        _sys.stdout = out
def _counts(number):
    if number not in _COUNTS:
        _COUNTS[number] = values = []
        for size in _SIZES:
            if arguments(_EXAMPLE, _SERIES[number], size) is None or values[1:].count(None) > 3: break
            try: values.append(_value("operations", _COUNTED, _SERIES[number], size))
            except _TooMuch: break
            except (Exception, SystemExit): values.append(None)
    return _COUNTS[number]
def _measure(number):
    if number == 0 and len(_SERIES) > 96: raise ValueError(f"{len(_SERIES)} series are too many to measure")
    if number >= len(_SERIES): return ""
    series, values = _SERIES[number], _counts(number)
    if _CLOCK != "operations":
        values = [None if n is None else _value(_CLOCK, _PLAIN, series, size) for size, n in zip(_SIZES, values)]
    varied = "".join(f"{i},{d};" for i, d in series.varied)
    shown = ",".join("" if n is None else _written(n) for n in values)
    return f"{varied}|{series.method}|{series.others}|{shown}"
"""


@dataclass(frozen=True)
class Measurement:
    """What is measured: a function on an example's arguments, or a script with the code of its class Input."""

    source: str
    function: str = ""  # "": a script
    example: tuple[Any, ...] | str = ()  # the arguments; of a script its standard input
    input_code: str = ""
    clock: Clock = "operations"
    end: int = 3100  # largest size
    operations: int = OPERATIONS


class Found(NamedTuple):
    """The values at each size, by series, and the class. error: why there is none."""

    values: dict[Series, dict[int, list[float]]]
    growth: Growth | None
    error: str = ""


def request(asked: Measurement, limits: Limits = LIMITS) -> Program:
    """The program that measures, for the judge pool. Raises SyntaxError for a source that is not Python."""
    parts = [Path(inputs.__file__).read_text(), PRELUDE]
    if asked.function:
        parts.append(f"_INPUT, _EXAMPLE = {{}}, {asked.example!r}")
        count = len(inputs.series_of(asked.example))  # type: ignore[arg-type]
    else:
        parts.append(f"_INPUT = {{'__name__': 'input'}}\nexec({_importable(asked.input_code)!r}, _INPUT)")
        parts.append(f"_FIRST = _INPUT['Input'].from_str({asked.example!r})")
        parts.append("_EXAMPLE = tuple(getattr(_FIRST, name) for name in _INPUT['Input'].__dataclass_fields__)")
        count = SCRIPT_SERIES
    parts.append(f"_NAME, _CLOCK, _MOST = {asked.function!r}, {asked.clock!r}, {asked.operations}")
    parts.append(f"_SIZES, _SERIES = {schedule(asked.end)!r}, series_of(_EXAMPLE)")
    for name, source in (("_COUNTED", instrumented(asked.source)), ("_PLAIN", asked.source)):
        parts.append(f"{name} = compile({source!r}, '<program>', 'exec', dont_inherit=True)")
    repeats = TIME_REPEATS if asked.clock == "time" else 1
    tests = [CallTest("_measure", (i,), UNSEEN) for i in range(count)] * repeats
    return Program("\n".join([*parts, HARNESS]), tuple(tests), limits)


def _importable(code: str) -> str:
    """The code of an Input class under a module's name that its dataclasses find."""
    return "import sys, types\nsys.modules.setdefault('input', types.ModuleType('input'))\n" + code


def read(verdict: Verdict) -> dict[Series, dict[int, list[float]]]:
    """The values at each size of each series, where the program gave any."""
    found: dict[Series, dict[int, list[float]]] = {}
    sizes = schedule(1 << 20)
    for test in verdict.tests:
        text = test.actual[1:-1] if test.status == "wrong_answer" else ""
        if text.count("|") != 3 or "..." in text:
            continue
        varied, method, others, values = text.split("|")
        pairs = [tuple(map(int, v.split(","))) for v in varied.split(";") if v]
        series = found.setdefault(Series(tuple((i, d) for i, d in pairs), method, others), {})
        for size, value in zip(sizes, values.split(",")):
            if value:
                series.setdefault(size, []).append(float(int(value, 36)))
    return found


def found(asked: Measurement, verdict: Verdict) -> Found:
    """The class that a verdict on `request(asked)` shows."""
    kind: Kind = "space" if asked.clock == "space" else "time"
    values = read(verdict)
    variables: list[Variable] = sorted({v for s in values for v in s.varied})
    if asked.function:
        variables = inputs.variables(asked.example)  # type: ignore[arg-type]
    if why := _ended(verdict):
        return Found(values, None, why)
    if not any(len(v) > 3 for v in values.values()):
        return Found(values, None, "the program failed on nearly all inputs, or does too much on them")
    return Found(values, growth(values, variables, kind))


def _ended(verdict: Verdict) -> str:
    """Why the measurement did not come to its end; "" where it did."""
    failed = next((t for t in verdict.tests if t.status not in ("passed", "wrong_answer")), None)
    if failed:
        return f"{failed.status}: {failed.message}"
    return "" if verdict.tests else f"{verdict.status}: {verdict.stderr}"

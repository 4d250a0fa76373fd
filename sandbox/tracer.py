"""Runs a program on one test and prints what its variables were, line by line. This file is put before the program.

    line 2: y = 4          the variables that the line changed
    line 3: f(x = 5)       a call of another function of the program
    f returned 8
    returned 8             of the function that the test called
    line 5: ValueError: x

It runs as a script in the program's own jail (sandbox/trace.py), where nothing of the sandbox can be imported, and
decides nothing: a program may print what it likes here, and only its own writer sees it.
"""

import builtins
import io
import re
import sys
import types
from typing import Any

EVENTS, VALUE, LINE = 200, 60, 160  # traced at most; characters of a value, and of a line


class Stop(BaseException):
    """Ends the program after EVENTS."""


def shown(value):
    """repr of a value, cut; without addresses, which differ from run to run."""
    try:
        text = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
    except BaseException as error:
        text = f"<{type(value).__name__}: {type(error).__name__} in its repr>"
    return text if len(text) <= VALUE else text[: VALUE - 3] + "..."


def variables(frame):
    """The frame's variables by name, as texts; of a module not its functions, classes and imports."""
    hidden = (types.ModuleType, types.FunctionType, type)
    return {
        name: shown(value)
        for name, value in frame.f_locals.items()
        if not name.startswith(("__", ".")) and not isinstance(value, hidden)
    }


class Tracer:
    """What sys.settrace calls. Frames of other files, lambdas and comprehensions are left out."""

    def __init__(self, out):
        self.out, self.events, self.frames, self.raised = out, 0, {}, set()

    def say(self, text):
        line = " ".join(text.split())
        self.out.write((line if len(line) <= LINE else line[: LINE - 3] + "...") + "\n")
        self.out.flush()

    def __call__(self, frame, event, _):
        code = frame.f_code
        if code.co_filename != "program.py" or (code.co_name.startswith("<") and code.co_name != "<module>"):
            return None
        given = {} if code.co_name == "<module>" else variables(frame)
        if self.frames:
            arguments = ", ".join(f"{name} = {value}" for name, value in given.items())
            self.say(f"line {frame.f_back.f_lineno}: {code.co_name}({arguments})")
        self.frames[frame] = None, given
        return self.local

    def local(self, frame, event, value):
        self.events += 1
        if self.events > EVENTS:
            sys.settrace(None)
            self.say(f"stopped after {EVENTS} events")
            raise Stop
        if event == "exception":
            self.changes(frame)
            self.say(f"line {frame.f_lineno}: {value[0].__name__}: {value[1]}".removesuffix(": "))
            self.raised.add(frame)
            return self.local
        self.changes(frame)
        if event == "return":
            del self.frames[frame]
            name = f"{frame.f_code.co_name} " if self.frames else ""
            if frame not in self.raised and frame.f_code.co_name != "<module>":
                self.say(f"{name}returned {shown(value)}")
        self.raised.discard(frame)
        return self.local

    def changes(self, frame):
        """Says which variables the line before this event has changed."""
        line, before = self.frames[frame]
        now = variables(frame)
        changed = [f"{name} = {value}" for name, value in now.items() if before.get(name) != value]
        if changed and line is not None:
            self.say(f"line {line}: {', '.join(changed)}")
        self.frames[frame] = frame.f_lineno, now


def run(kind, code, test):
    """Traces a test of this kind: a call (function, args, kwargs), code of a test, or a whole program."""
    out, sys.stdout = (
        sys.stdout,
        io.TextIOWrapper(io.BytesIO(), "utf-8"),
    )  # what the program prints is not part of the trace
    tracer = Tracer(out)
    space: dict[str, Any] = {"__name__": "__main__" if kind == "script" else "program", "__builtins__": builtins}
    try:
        program = compile(code, "program.py", "exec", dont_inherit=True)
        if kind == "script":
            sys.settrace(tracer)
            exec(program, space)
            return
        exec(program, space)
        if kind == "call":
            function, args, kwargs = test
            called = space[function] if function in space else getattr(space["Solution"](), function)
            sys.settrace(tracer)
            called(*args, **kwargs)
            return
        scope = dict(space, __name__="test")
        body, entry_point = test
        body = compile(body, "test.py", "exec", dont_inherit=True)
        if not entry_point:
            sys.settrace(tracer)
        exec(body, scope)
        if entry_point:
            sys.settrace(tracer)
            scope["check"](space[entry_point])
    except BaseException:  # it is in the trace
        pass
    finally:
        sys.settrace(None)

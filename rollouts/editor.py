"""A line editor that is driven by commands: the state and the language of Chain-of-Edits (arXiv 2507.05065). Pure.

    ### DELL 3                  line 3 is deleted
    ### ADDL 3 >>>TEXT          TEXT becomes line 3, the old line 3 moves down; one past the last line appends
    ### REPL 3 >>>TEXT          line 3 becomes TEXT
    ### REPW 3 >>>OLD >>>NEW    the first OLD in line 3 becomes NEW
    ### EXIT                    the work is done

Lines count from 1. An answer is one command and nothing else. TEXT is taken as it stands after >>>, with its leading
and trailing blanks, up to the end of the answer, and is a single line. Where code has >>> in it, OLD of REPW is the
longest that the line holds. The paper gives the commands; these rules are ours where it is silent.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

_COMMAND = re.compile(r"\s*### (?:(EXIT)[ \t]*|(DELL) ([0-9]{1,6})[ \t]*|(ADDL|REPL|REPW) ([0-9]{1,6}) >>>([^\n]*))\n*")
_BETWEEN = " >>>"


Kind = Literal["DELL", "ADDL", "REPL", "REPW", "EXIT"]


class Command(NamedTuple):
    """A command as it was written, before it is known whether it fits the text."""

    kind: Kind
    line: int = 0  # from 1; 0 of EXIT
    text: str = ""  # what follows >>>

    def __str__(self) -> str:
        if self.kind == "EXIT":
            return "### EXIT"
        return f"### {self.kind} {self.line}" + ("" if self.kind == "DELL" else f" >>>{self.text}")


EXIT = Command("EXIT")


def parse(answer: str) -> Command | None:
    """The command that an answer is; None where it is anything else."""
    found = _COMMAND.fullmatch(answer.replace("\r\n", "\n"))
    if not found:
        return None
    end, delete, deleted, kind, line, text = found.groups()
    if end:
        return EXIT
    return Command("DELL", int(deleted)) if delete else Command(cast(Kind, kind), int(line), text)


def apply(lines: Sequence[str], command: Command) -> tuple[str, ...] | None:
    """The lines after the command; None where it does not fit them: no such line, or OLD is not in it."""
    before, at, after = tuple(lines[: command.line - 1]), command.line, tuple(lines[command.line :])
    if command.kind == "EXIT":
        return tuple(lines)
    if command.kind == "ADDL":
        return (*before, command.text, *lines[at - 1 :]) if 1 <= at <= len(lines) + 1 else None
    if not 1 <= at <= len(lines):
        return None
    if command.kind == "DELL":
        return (*before, *after)
    if command.kind == "REPL":
        return (*before, command.text, *after)
    words = _words(lines[at - 1], command.text)
    return (*before, lines[at - 1].replace(*words, 1), *after) if words else None


def _words(line: str, text: str) -> tuple[str, str] | None:
    """OLD and NEW of OLD >>>NEW, cut where OLD is longest and in the line."""
    place = text.rfind(_BETWEEN)
    while place > 0:
        if text[:place] in line:
            return text[:place], text[place + len(_BETWEEN) :]
        place = text.rfind(_BETWEEN, 0, place + len(_BETWEEN) - 1)
    return None


def lines_of(program: str) -> tuple[str, ...]:
    """The lines of a program; one line end at its end is not a line."""
    return tuple(program.replace("\r\n", "\n").removesuffix("\n").split("\n"))


def render(lines: Sequence[str], feedback: Sequence[str] = ()) -> str:
    """The state as the model sees it: numbered lines, ***, and what the tests say."""
    return "\n".join([*(f"L {i} {line}" for i, line in enumerate(lines, 1)), "***", *feedback])

"""The model writes Python in its answer, sees what it prints, and goes on (tool-integrated reasoning).

ToRL (arXiv 2503.23383) puts the output into the answer itself; R1-Code-Interpreter (2505.21668) sends it as the next
message. Both are settings here.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt

from rollouts.environments.dialogue import OUTPUT_FENCE, Dialogue, DialogueEnvironment
from sandbox.session import CallResult

INSTRUCTION = (
    "You may use Python: write a fenced python block, and its output follows in a fenced output block. At the end give "
    "the final answer in \\boxed{}, or as a fenced python block if a program is asked for."
)
_CODE = re.compile(r"^[ \t]*```(?:python3?|py)[ \t]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
_LINE = re.compile(r'File "<call \d+>", line (\d+)')


@dataclass
class Settings:
    """An interpreter for the model: its calls, their limits, and where their output goes.

    The episode's reward is the task's, less `failed_call_penalty` for each call that did not pass (ToRL tried 0.5,
    which did not help). A `code_end` that opens the output block ("```output", as in ToRL) stays the model's.
    """

    name: str = ""
    max_calls: Annotated[int, Ge(0)] = 4  # of an episode; code after those is not run
    output_to: Literal["answer", "user", "tool"] = "answer"  # answer (ToRL), or a message of that role
    output_header: str = ""  # before the output in a message, which then has no fence; R1-Code-Interpreter has one
    code_end: str = "```\n"  # where an answer stops for its code to be run; ToRL: "```output"
    stateful: bool = True  # a call finds the variables of those before it
    output_characters: Annotated[int, Ge(1)] = 256  # longer output is cut in its middle
    failed_call_penalty: Annotated[float, Ge(0)] = 0.0  # off the reward, for each call that failed
    wall_s: Annotated[float, Gt(0)] = 10.0  # of a call
    cpu_s: Annotated[float, Gt(0)] = 10.0
    concurrency: Annotated[int, Ge(0)] = 0  # calls at a time; 0: two for each core

    def check(self, where: str = "rollout.environment") -> None:
        """Raises ValueError for a header when the output is not sent as a message."""
        if self.output_header and self.output_to == "answer":
            raise ValueError(f"{where}.output_header needs {where}.output_to = 'user' or 'tool'")

    sessions = True  # the run starts interpreters, with the limits above


class Interpreter(DialogueEnvironment):
    """Each closed python block is run, up to `max_calls` of them; after those, code is text like any other.

    output_to = "answer": a fenced output block in the answer, which stops at `code_end` then continues. "user" or
    "tool": the model ends its message after the block, and a message of that role brings the output.
    """

    settings: Settings

    async def converse(self, dialogue: Dialogue) -> None:
        assert self.services.open_session is not None
        session = self.services.open_session()
        try:
            for _ in range(self.settings.max_calls):
                code = await self._next_code(dialogue)
                if code is None:
                    return
                if not self.settings.stateful:
                    await asyncio.to_thread(session.reset)
                self._give(dialogue, await dialogue.tool(session.run_async(code)))
        finally:
            await asyncio.to_thread(session.close)
        await dialogue.sample()

    async def _next_code(self, dialogue: Dialogue) -> str | None:
        """Samples up to the next code to run; None when the model has ended its answer without."""
        if self.settings.output_to != "answer":
            return last_code(await dialogue.sample())
        answer = ""
        while not dialogue.ended:
            answer += await dialogue.sample((self.settings.code_end,))
            code = last_code(answer)
            if code is not None and not dialogue.ended:
                return code
        return None

    def _give(self, dialogue: Dialogue, result: CallResult) -> None:
        """The output, to where it belongs."""
        if result.status not in ("passed", "sandbox_error"):
            penalty = dialogue.parts.get("failed calls", 0.0) - self.settings.failed_call_penalty
            dialogue.parts |= {"failed calls": penalty} if self.settings.failed_call_penalty else {}
        output = shown(result, self.settings.output_characters)
        if self.settings.output_to == "answer":
            header = "" if dialogue.turns[-1].text.rstrip().endswith(OUTPUT_FENCE) else OUTPUT_FENCE
            dialogue.insert(f"{header}\n{output}\n```\n", status=result.status)
        else:
            header = self.settings.output_header
            block = f"{header}\n{output}" if header else f"{OUTPUT_FENCE}\n{output}\n```"
            dialogue.reply(block, self.settings.output_to, result.status)


def make_environment(**fields: Any) -> Interpreter:
    return Interpreter(**fields)


def last_code(answer: str) -> str | None:
    """The code of the last python block, if it is closed and nothing but the beginning of its output follows."""
    blocks = list(_CODE.finditer(answer))
    if not blocks or answer[blocks[-1].end() :].strip() not in ("", "output", OUTPUT_FENCE):
        return None
    return blocks[-1].group(1)


def shown(result: CallResult, limit: int) -> str:
    """What the model sees of a call: its output and last value, or the last line of its error and where it was."""
    value = "" if result.value is None else f"{result.value}\n"
    text = (result.stdout + ("" if result.stdout.endswith("\n") or not result.stdout else "\n") + value).rstrip("\n")
    text = shortened(text, limit)
    if result.status == "passed":
        return text
    return f"{text}\n{error_line(result)}".lstrip("\n")


def error_line(result: CallResult) -> str:
    """One line on what ended the call."""
    if result.status == "timeout":
        return f"TimeoutError: stopped after {result.wall_s:.0f} s"
    if result.status == "output_limit":
        return "Error: too much output"
    lines = result.traceback.strip().splitlines()
    if not lines:
        return {"memory": "MemoryError"}.get(result.status, f"Error: the interpreter has ended ({result.status})")
    places = _LINE.findall(result.traceback)
    return shortened(f"line {places[-1]}: {lines[-1]}" if places else lines[-1], 200)


def shortened(text: str, limit: int) -> str:
    """At most about `limit` characters: the beginning and the end, with a mark of what was left out between them."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[len(text) - half :]}"

"""The model writes Python in its answer, sees what it prints, and goes on (tool-integrated reasoning).

ToRL (arXiv 2503.23383) puts the output into the answer itself; R1-Code-Interpreter (2505.21668) sends it as the next
message. Both are settings here.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from rollouts.environments.dialogue import OUTPUT_FENCE, Dialogue, DialogueEnvironment
from sandbox.session import CallResult, Session

INSTRUCTION = (
    "You may use Python: write a fenced python block, and its output follows in a fenced output block. At the end give "
    "the final answer in \\boxed{}, or as a fenced python block if a program is asked for."
)
_CODE = re.compile(r"^[ \t]*```(?:python3?|py)[ \t]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
_LINE = re.compile(r'File "<call \d+>", line (\d+)')


@dataclass
class Interpreter(DialogueEnvironment):
    """Each closed python block is run, up to `max_calls` of them; after those, code is text like any other.

    `open_session` gives an interpreter of the sandbox. Rewards: the task's; `failed_call_penalty` for each call that
    did not pass (ToRL tried 0.5, without use).

    output_to: "answer": a fenced output block in the answer, which stops at `code_end` and goes on after it. "user" or
    "tool": the model ends its message after the block, and a message of that role brings the output.
    code_end: the stop string; one that opens the output block ("```output", as in ToRL) stays the model's.
    stateful: a call finds the variables of those before it.
    output_characters: longer output keeps its beginning and its end, with a mark between.
    """

    open_session: Callable[[], Session] | None = None
    max_calls: int = 4
    output_to: Literal["answer", "user", "tool"] = "answer"
    code_end: str = "```\n"
    stateful: bool = True
    output_characters: int = 256
    failed_call_penalty: float = 0.0

    async def converse(self, dialogue: Dialogue) -> None:
        assert self.open_session is not None
        session = self.open_session()
        try:
            for _ in range(self.max_calls):
                code = await self._next_code(dialogue)
                if code is None:
                    return
                if not self.stateful:
                    await asyncio.to_thread(session.reset)
                self._give(dialogue, await dialogue.tool(session.run_async(code)))
        finally:
            await asyncio.to_thread(session.close)
        await dialogue.sample()

    async def _next_code(self, dialogue: Dialogue) -> str | None:
        """Samples up to the next code to run; None when the model has ended its answer without."""
        if self.output_to != "answer":
            return last_code(await dialogue.sample())
        said = ""
        while not dialogue.ended:
            said += await dialogue.sample((self.code_end,))
            code = last_code(said)
            if code is not None and not dialogue.ended:
                return code
        return None

    def _give(self, dialogue: Dialogue, result: CallResult) -> None:
        """The output, to where it belongs."""
        if result.status not in ("passed", "sandbox_error"):
            penalty = dialogue.parts.get("failed calls", 0.0) - self.failed_call_penalty
            dialogue.parts |= {"failed calls": penalty} if self.failed_call_penalty else {}
        output = shown(result, self.output_characters)
        if self.output_to == "answer":
            header = "" if dialogue.turns[-1].text.rstrip().endswith(OUTPUT_FENCE) else OUTPUT_FENCE
            dialogue.insert(f"{header}\n{output}\n```\n", status=result.status)
        else:
            block = f"{OUTPUT_FENCE}\n{output}\n```"
            dialogue.reply(block, self.output_to, result.status)


def last_code(said: str) -> str | None:
    """The code of the last python block, if it is closed and nothing but the beginning of its output follows."""
    blocks = list(_CODE.finditer(said))
    if not blocks or said[blocks[-1].end() :].strip() not in ("", "output", OUTPUT_FENCE):
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

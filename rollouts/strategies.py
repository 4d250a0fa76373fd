"""Prompts of a strategy over turns: what the model is asked to think about first, and how it is asked for the program.

The kinds are those that Zheng et al. compare (arXiv 2410.08105); the wording is ours, since theirs was not found. A
reasoning prompt asks for a text, and the program is asked for in the next message; an instruction goes with the request
for the program. Where one is said is the schedule:

    first   in the first turn
    every   in every turn
    retry   only after a failure: the instruction in the second turn, the reasoning from the third on
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Literal, NamedTuple

Schedule = Literal["first", "every", "retry"]

REASONING = {
    "self_reflection": "Do not write the program yet. Say in your own words, point by point, what is asked: the input, "
    "the output, and every rule that is easy to overlook.",
    "explain_examples": "Do not write the program yet. Take the examples one at a time and explain how each output "
    "follows from its input; where there are none, make up two small ones.",
    "tags": "Do not write the program yet. Name the techniques that fit this problem (for instance sorting, recursion, "
    "dynamic programming, graphs, strings), with one sentence each on why.",
    "difficulty_and_edge_cases": "Do not write the program yet. Say how hard the problem is and what makes it so. Then "
    "list the special cases that a program must handle: empty, smallest, largest, repeated and negative values.",
    "naive_solution": "Do not write the program yet. Describe the simplest solution that is surely right, in plain "
    "words and step by step, even if it is slow.",
    "several_solutions": "Do not write the program yet. Describe three different ways to solve the problem, with what "
    "speaks for and against each, and say which one you choose.",
    "helper_docstrings": "Do not write the program yet. List the functions that it would be made of: for each the "
    "signature and a docstring that says what it takes and what it returns, without its body.",
    "variables_and_types": "Do not write the program yet. List the values that it must keep while it runs: for each "
    "a name, its type, and what it means.",
}
INSTRUCTION = {
    "helper_functions": "Build the program from small functions with names that say what they do, each of which is "
    "easy to check on its own.",
    "double_check": "Before you finish, check the imports, the names and types of all variables, and that every rule "
    "of the problem is kept; give the corrected program only.",
    "comment_lines": "Write a comment before each line of the program that says what the line is for.",
    "function_docstrings": "Give each function a docstring that says what it takes, what it returns, and an example.",
    "weak_then_better": "First write a program that is simple and may be slow or incomplete, then one that improves on "
    "it. The last block of code is your answer.",
    "step_by_step": "Work through the solution step by step while you write, and then give the whole program.",
}
PROMPTS = {"reasoning": REASONING, "instruction": INSTRUCTION}  # by the setting that chooses one
REQUEST = "Now write the whole program."


class Strategy(NamedTuple):
    """Which prompts are said, and when. Each is a name above, a text of one's own (more than one word), or ""."""

    reasoning: str = ""
    instruction: str = ""
    schedule: Schedule = "first"

    def at(self, turn: int) -> tuple[str, str]:
        """(reasoning prompt, instruction) of a turn, counted from 0; "" where it has none."""
        if self.schedule == "retry":
            reasoning, instruction = turn >= 2, turn == 1
        else:
            reasoning = instruction = turn == 0 or self.schedule == "every"
        return reasoning * text_of(self.reasoning, REASONING), instruction * text_of(self.instruction, INSTRUCTION)

    def last_change(self) -> int:
        """The first turn, counted from 0, by which every prompt of the strategy has been said."""
        return (2 if self.reasoning else 1) if self.schedule == "retry" else 0


# The paper's best: nothing at first, then an instruction, then reasoning. Which of its instructions that was is not
# known; "guidelines" is taken to mean this one.
STRATEGIES = {"cot_retry": Strategy("naive_solution", "helper_functions", "retry")}


def text_of(name: str, prompts: dict[str, str]) -> str:
    """The prompt of this name, or a text of one's own. Raises ValueError for one word that is not a name."""
    if name in prompts or not name:
        return prompts.get(name, "")
    if len(name.split()) < 2:
        near = get_close_matches(name, prompts, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(prompts)}"
        raise ValueError(f"{name!r} is not a prompt; {hint} (a text of your own has more than one word)")
    return name

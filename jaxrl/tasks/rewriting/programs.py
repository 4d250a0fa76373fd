"""The 16 rules, and programs drawn for them: before and after, and programs that a rule must leave alone."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass

from jaxrl.tasks.rewriting import expressions, statements
from jaxrl.tasks.rewriting.templates import NEUTRAL, PIECES
from jaxrl.tasks.rewriting.trees import Transform
from sandbox.trees import tree_text

# From rewrites of statements to optimizations.
RULES: dict[str, Transform] = {
    "needless_pass": statements.needless_pass,
    "augmented": statements.augmented,
    "negated_comparison": expressions.negated_comparison,
    "empty_test": expressions.empty_test,
    "literal": expressions.literal,
    "type_check": expressions.type_check,
    "f_string": expressions.f_string,
    "nested_if": statements.nested_if,
    "returned_condition": statements.returned_condition,
    "unreachable": statements.unreachable,
    "folded_constants": expressions.folded_constants,
    "comprehension": statements.comprehension,
    "direct_iteration": statements.direct_iteration,
    "strength": expressions.strength,
    "hoisted": statements.hoisted,
    "unused": statements.unused,
}
NAMES = (
    *"abcdpquwyz", "total", "count", "size", "left", "right", "result", "value", "kept", "parts", "found", "level",
    "width", "first", "last", "seen", "best",
)  # fmt: skip
LOOPED = ("v", "x", "k", "t", "entry", "each", "one", "char")  # names of loops' variables
WORDS = ("red", "sun", "map", "fox", "tea", "oak", "ice", "jam")
CONDITIONS = ("n > {k}", "n < {k}", "xs", "s", "n in xs", "s != '{w}'", "n > {k} or xs", "xs and n < {k}")
CALLS = 4  # of f, to compare what it gives
DRAWS = 200
OTHERS = 0.25  # share of controls that another rule would change


@dataclass(frozen=True)
class Pair:
    """A program before and after a rule, the same text where the rule leaves it alone.

    `calls`: arguments for its function f, by which behaviour is compared; (): it is not.
    """

    before: str
    after: str
    calls: tuple[tuple[object, ...], ...] = ()

    @property
    def applies(self) -> bool:
        return tree_text(self.before) != tree_text(self.after)


def draw_pair(rule: str, applies: bool, rng: random.Random, neutral: int = 2) -> Pair:
    """A program that the rule changes, or one that it must leave alone, of at most `neutral` more pieces."""
    transform = RULES[rule]
    for _ in range(DRAWS):
        pieces = PIECES[rule][0 if applies else 1]
        if not applies and rng.random() < OTHERS:
            pieces = PIECES[rng.choice([name for name in RULES if name != rule])][0]
        before = draw_program(rng.choice(pieces), rng, neutral)
        after = transform(before)
        if (before != after) == applies:  # a program that it leaves alone keeps its text
            return Pair(before, after, tuple(draw_call(rng) for _ in range(CALLS)))
    raise RuntimeError(f"no program was found for rule {rule}")


def draw_pairs(
    rule: str, applied: int, controls: int, rng: random.Random, neutral: int = 2, taken: Sequence[Pair] = ()
) -> list[Pair]:
    """Different programs that the rule changes, and then that it must leave alone; none of them in `taken`."""
    found: list[Pair] = []
    seen = {pair.before for pair in taken}
    while len(found) < applied + controls:
        pair = draw_pair(rule, len(found) < applied, rng, neutral)
        if pair.before not in seen:
            seen.add(pair.before)
            found.append(pair)
    return found


def draw_program(piece: str, rng: random.Random, neutral: int) -> str:
    """A module with a function f that has the piece among neutral ones."""
    before, after = (rng.randint(0, neutral) for _ in range(2))
    after = min(after, neutral - before) if neutral else 0
    pieces = [*rng.choices(NEUTRAL, k=before), piece, *rng.choices(NEUTRAL, k=max(after, 0))]
    names, looped = rng.sample(NAMES, len(NAMES)), rng.sample(LOOPED, len(LOOPED))
    results, top, body = [], "", ""
    for text in pieces:
        values = {key: names.pop() for key in "rabcd" if f"${key}" in text}
        if "$v" in text:
            values["v"] = looped.pop()
        values |= {"k": str(rng.randint(3, 9)), "j": str(rng.randint(3, 9)), "w": rng.choice(WORDS)}
        values["t"] = rng.choice(CONDITIONS).format(k=rng.randint(3, 9), w=rng.choice(WORDS))
        above, divided, below = string.Template(text).substitute(values).rpartition("\n---\n")
        top += f"{above}\n\n" if divided else ""
        body += below + "\n"
        results += [values["r"]] if "r" in values else []
    body += f"return {', '.join(results)}"
    indented = "\n".join(f"    {line}" for line in body.splitlines())
    return f"{top}def f(xs, n, s):\n{indented}\n"


def draw_call(rng: random.Random) -> tuple[list[int], int, str]:
    """Arguments for f: a list of numbers, a number, a text."""
    numbers = [rng.randint(-3, 9) for _ in range(rng.randint(0, 5))]
    return numbers, rng.randint(0, 9), "".join(rng.choice("abco ") for _ in range(rng.randint(0, 5)))

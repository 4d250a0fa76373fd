"""Small rules for small models: one pattern, one operator, one guard, answered in a line of swap(before, after, guard).

Programs are lines of assignments. Those that a rule must leave alone violate its guard or have another operator.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from jaxrl.tasks.rewriting import verbs
from jaxrl.tasks.rewriting.programs import Pair

# Before and after, {0} and {1} an operator or a value and what becomes of it; the operators. $a is guarded.
SCHEMES: dict[str, tuple[str, str, tuple[tuple[str, str], ...]]] = {
    "negate": ("not $a {0} $b", "$a {1} $b", (("==", "!="), ("!=", "=="), ("in", "not in"), ("is", "is not"),
                                              ("<", ">="), (">", "<="))),
    "augment": ("$b = $b {0} $a", "$b {1} $a", tuple((op, f"{op}=") for op in ("+", "-", "*", "//", "%", "|"))),
    "turn": ("$a {0} $b", "$b {1} $a", (("<", ">"), (">", "<"), ("<=", ">="), (">=", "<="))),
    "neutral": ("$a {0}", "$a{1}", (("+ 0", ""), ("- 0", ""), ("* 1", ""), ("// 1", ""))),
    "power": ("$a {0} 2", "$a {1} $a", (("**", "*"), ("*", "+"))),
    "type": ("type($a) == {0}", "isinstance($a, {1})", tuple((t, t) for t in ("int", "str", "list", "dict"))),
}  # fmt: skip
GUARDS = ("name", "no_call", "no_constant")
# What stands for $a where a guard holds, and where it does not.
HOLDS = {"name": ("name",), "no_call": ("name", "constant"), "no_constant": ("name", "call")}
FAILS = {"name": ("call", "constant"), "no_call": ("call",), "no_constant": ("constant",)}
RULES = tuple(f"{s} {op[0]} {g}" for s, (_, _, ops) in SCHEMES.items() for op in ops for g in GUARDS)
HELD_OUT = RULES[3::5]  # for held-out problems alone; their operators and their guards stand in other rules
VERBS = {"verbs.py": Path(verbs.__file__).read_text()}  # for the sandbox
HEADER = "from verbs import *\n"
NAMES = tuple("abcdeghklmnpqrstuvwxyz")
DRAWS = 200


def line(rule: str, guarded: bool = True) -> str:
    """The program of the rule, or the lazy one, which has no guard."""
    before, after, guard = _patterns(rule)
    return f'swap("{before}", "{after}", {guard}("a"))' if guarded else f'swap("{before}", "{after}")'


def _patterns(rule: str) -> tuple[str, str, str]:
    scheme, rest = rule.split(" ", 1)
    op, guard = rest.rsplit(" ", 1)
    before, after, ops = SCHEMES[scheme]
    return before.format(op), after.format(op, dict(ops)[op]), guard


def draw_pairs(
    rule: str, applied: int, controls: int, rng: random.Random, neutral: int = 2, taken: Sequence[Pair] = ()
) -> list[Pair]:
    """As jaxrl.tasks.rewriting.programs.draw_pairs. The first two that change have each kind that the guard allows."""
    before, after, guard = _patterns(rule)
    swap = verbs.make(before, after, getattr(verbs, guard)("a"))
    found: list[Pair] = []
    seen = {pair.before for pair in taken}
    for _ in range(DRAWS * (applied + controls)):
        number = len(found)
        if number == applied + controls:
            return found
        holds = number < applied
        kinds = (HOLDS if holds else FAILS)[guard]
        kind = kinds[number % len(kinds)] if number < 2 else rng.choice(kinds)
        near = not holds and taken and rng.random() < 0.25  # another operator; the public ones show the guard
        pattern = _patterns(rng.choice([r for r in RULES if r.split()[0] == rule.split()[0]]))[0] if near else before
        source = _program(pattern, kind if not near else rng.choice(HOLDS[guard]), rng, neutral)
        changed = verbs.apply(source, [swap])
        if source not in seen and (changed != source) == holds:
            seen.add(source)
            found.append(Pair(source, changed))
    raise RuntimeError(f"not enough programs were found for rule {rule}")


def _program(pattern: str, kind: str, rng: random.Random, neutral: int) -> str:
    """Lines, one of which has the pattern with $a of this kind."""
    names = rng.sample(NAMES, len(NAMES))
    number = rng.randint(3, 9)
    value = {"name": names[0], "call": f"{names[0]}({names[1]})", "constant": str(number)}[kind]
    text = pattern.replace("$a", value).replace("$b", names[2])
    lines = [f"{names.pop()} = {names.pop()} - {rng.randint(3, 9)}" for _ in range(rng.randint(0, neutral))]
    lines.insert(rng.randint(0, len(lines)), text if " = " in text else f"{names[3]} = {text}")
    return "\n".join(lines)

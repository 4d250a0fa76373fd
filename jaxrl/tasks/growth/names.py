"""Classes as people and models write them: when two say the same, and which grows faster.

o(m*n), o(n*m), o(nm) and o(mn) are the same; so are o(nlogn) and o(n*log(n)), o(n2), o(n*n) and o(n^2). Variables are
renamed in the order in which a normal form needs them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import permutations

VARIABLES = "nmkluvw"
MOST_POWER, MOST_TERMS = 9, 16  # of a class: what a model writes is read in the run's own process
_TOKENS = re.compile(r"log|\*\*|[a-z]|\d+|[()+*^]")


def normal_form(text: str) -> str | None:
    """A class such as o(n*logm+k) in normal form; None for what is not one.

    The least of its forms over all ways to name its variables, with products and sums sorted.
    """
    terms = parse(text)
    if terms is None:
        return None
    used = sorted({variable for term in terms for variables, *_ in term for variable in variables})
    if len(used) > len(VARIABLES):
        return None
    forms = (_written(terms, dict(zip(used, names))) for names in permutations(VARIABLES[: len(used)]))
    return min(forms)


Term = tuple[tuple[str, int, bool], ...]  # factors: variables (several where log takes a sum), power, whether in a log


def parse(text: str) -> tuple[Term, ...] | None:
    """The terms of a sum of products; None for what is not a class."""
    text = re.sub(r"\s+|\\times|\\cdot|\$", lambda m: "*" if m[0].startswith("\\") else "", text.lower())
    text = text.replace("×", "*").replace("·", "*").replace("²", "^2").replace("³", "^3").replace("\\log", "log")
    found = re.fullmatch(r"[oθ]?\((.*)\)", text)
    if not found:
        return None
    tokens = _TOKENS.findall(found[1])
    if "".join(tokens) != found[1] or not tokens:
        return None
    try:
        terms, rest = _sum(tokens)
    except (ValueError, IndexError, RecursionError):
        return None
    return tuple(sorted(set(terms))) if not rest else None


def _sum(tokens: list[str]) -> tuple[list[Term], list[str]]:
    terms, tokens = _product(tokens)
    while tokens[:1] == ["+"]:
        more, tokens = _product(tokens[1:])
        terms = terms + more
    return terms, tokens


def _product(tokens: list[str]) -> tuple[list[Term], list[str]]:
    """The terms of a product of sums, multiplied out."""
    terms: list[Term] = [()]
    while tokens and tokens[0] not in "+)":
        if tokens[0] == "*":
            tokens = tokens[1:]
        factor, tokens = _factor(tokens)
        terms = _distinct(_times(a, b) for a in terms for b in factor)
    return terms, tokens


def _factor(tokens: list[str]) -> tuple[list[Term], list[str]]:
    token, tokens = tokens[0], tokens[1:]
    if token == "log":
        power, tokens = _power(tokens) if tokens[:1] and tokens[0] in ("^", "**") else (1, tokens)
        inner, tokens = _factor(tokens)
        names = "".join(sorted({v for term in inner for variables, *_ in term for v in variables}))
        return [((names, power, True),)] if names else [()], tokens
    if token == "(":
        terms, tokens = _sum(tokens)
        if tokens[:1] != [")"]:
            raise ValueError("a parenthesis is not closed")
        tokens = tokens[1:]
    elif token.isdigit():
        return [()], tokens  # a constant factor
    elif token.isalpha():
        terms = [((token, 1, False),)]
    else:
        raise ValueError(f"unexpected {token}")
    power, tokens = _power(tokens)
    result: list[Term] = [()]
    for _ in range(power):
        result = _distinct(_times(a, b) for a in result for b in terms)
    return result, tokens


def _distinct(terms: Iterable[Term]) -> list[Term]:
    """Each once. Raises ValueError for more than a class has: a text may ask for millions."""
    found = list(dict.fromkeys(terms))
    if len(found) > MOST_TERMS:
        raise ValueError("too many terms")
    return found


def _power(tokens: list[str]) -> tuple[int, list[str]]:
    """An exponent, with or without its sign: n2 is n^2. Raises ValueError for one above MOST_POWER."""
    signed = tokens[:1] in (["^"], ["**"])
    rest = tokens[signed:]
    if not signed and not (rest[:1] and rest[0].isdigit()):
        return 1, tokens
    if len(rest[0]) > 2 or int(rest[0]) > MOST_POWER:
        raise ValueError("the power is too large")
    return int(rest[0]), rest[1:]


def _times(a: Term, b: Term) -> Term:
    powers: dict[tuple[str, bool], int] = {}
    for variables, power, log in (*a, *b):
        powers[variables, log] = powers.get((variables, log), 0) + power
    return tuple(sorted((variables, power, log) for (variables, log), power in powers.items()))


def _written(terms: tuple[Term, ...], names: dict[str, str]) -> str:
    texts = []
    for term in terms:
        factors = []
        for variables, power, log in term:
            renamed = "".join(sorted(names[v] for v in variables))
            inside = "+".join(renamed)
            factors.append((f"log({inside})" if log else inside) + (f"^{power}" if power > 1 else ""))
        texts.append("*".join(sorted(factors)) or "1")
    kept = sorted(set(texts)) if len(set(texts)) == 1 else sorted(t for t in set(texts) if t != "1")
    return f"o({'+'.join(kept)})"


def order(text: str) -> float:
    """The largest of the terms' orders: 1 for each variable, its power, .5 for a logarithm. Raises ValueError."""
    terms = parse(text)
    if terms is None:
        raise ValueError(f"{text!r} is not a class")
    return max((sum(0.5 if log else float(power) for _, power, log in term) for term in terms), default=0.0)


def same(a: str, b: str) -> bool:
    """Whether two classes are the same; what is not a class is like no other."""
    return (form := normal_form(a)) is not None and form == normal_form(b)


def answer_in(text: str, rule: str = "balanced") -> str | None:
    """The last class in a model's answer, after its thoughts; None where there is none.

    balanced: up to the parenthesis that closes it. bigobench: up to the first one, which cuts o((n+m)log(n+m)).
    """
    text = re.sub(r"<think>.*?</think>", "", text.lower(), flags=re.DOTALL)
    if rule == "bigobench":
        found = re.findall(r"o\(.*?\)", text)
        return found[-1] if found else None
    start = text.rfind("o(")
    while start >= 0:
        depth = 0
        for i in range(start + 1, len(text)):
            depth += {"(": 1, ")": -1}.get(text[i], 0)
            if depth == 0:
                return text[start : i + 1]
        start = text.rfind("o(", 0, start)
    return None

"""Arithmetic, matrices and counting."""

from __future__ import annotations

import ast
import math
import operator
import random
from collections.abc import Sequence
from fractions import Fraction
from itertools import permutations, product

from jaxrl.tasks.native.question import Question, named

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def _grid(rows: Sequence[Sequence[int]]) -> str:
    return "\n".join(" ".join(map(str, row)) for row in rows)


def pooling(rng: random.Random) -> Question:
    n, size = rng.randint(4, 7), rng.randint(2, 3)
    grid = [[rng.randint(0, 99) for _ in range(n)] for _ in range(n)]
    name, pool = rng.choice([("largest", max), ("smallest", min)])
    pooled = [
        [pool(grid[i + a][j + b] for a in range(size) for b in range(size)) for j in range(0, n - size + 1, size)]
        for i in range(0, n - size + 1, size)
    ]
    return Question(
        f"Cut this matrix into blocks of {size} x {size} from the top left, leaving out what is over at the right "
        "and below. "
        f"Give the {name} number of each block, as a list of rows.\n{_grid(grid)}",
        str(pooled),
    )


def matrix_transformation(rng: random.Random) -> Question:
    n, m = rng.randint(2, 4), rng.randint(2, 4)
    given = grid = [[rng.randint(0, 9) for _ in range(m)] for _ in range(n)]
    moves = {
        "turn it a quarter clockwise": lambda g: [list(r) for r in zip(*g[::-1])],
        "transpose it": lambda g: [list(r) for r in zip(*g)],
        "mirror it left to right": lambda g: [r[::-1] for r in g],
        "mirror it top to bottom": lambda g: g[::-1],
        "add 1 to every even number": lambda g: [[v + (v % 2 == 0) for v in r] for r in g],
        "double every number above 5": lambda g: [[2 * v if v > 5 else v for v in r] for r in g],
    }
    chosen = rng.choices([*moves], k=rng.randint(2, 4))
    for name in chosen:
        grid = moves[name](grid)
    return Question(
        f"Take the matrix\n{_grid(given)}\nand do this in order: {', then '.join(chosen)}. Give the result as a list "
        "of rows.",
        str(grid),
    )


def number_multiply(rng: random.Random) -> Question:
    factors = [rng.randint(11, 999) for _ in range(rng.randint(2, 4))]
    product = " * ".join(map(str, factors))
    return Question(f"What is {product}?", str(math.prod(factors)), code=f"print({product})")


def game24(rng: random.Random) -> Question:
    """Numbers that an expression with +, -, *, / and parentheses makes 24 of."""
    while True:
        numbers = sorted(rng.randint(1, 10) for _ in range(4))
        if solution := _expression([(Fraction(n), str(n)) for n in numbers]):
            break

    def check(text: str) -> bool:
        tree = ast.parse(text.split("=")[0].strip(), mode="eval").body
        used: list[int] = []
        return _value(tree, used) == 24 and sorted(used) == numbers

    return Question(
        f"Make 24 of {', '.join(map(str, numbers))}: use each number exactly once, with +, -, *, / and parentheses. "
        "Answer "
        "with the expression.",
        solution,
        check,
    )


def _expression(terms: list[tuple[Fraction, str]]) -> str:
    if len(terms) == 1:
        return terms[0][1] if terms[0][0] == 24 else ""
    for (i, (a, x)), (j, (b, y)) in permutations(enumerate(terms), 2):
        rest = [t for k, t in enumerate(terms) if k not in (i, j)]
        made = [(a + b, f"({x} + {y})"), (a - b, f"({x} - {y})"), (a * b, f"({x} * {y})")]
        made += [(a / b, f"({x} / {y})")] if b else []
        for term in made:
            if found := _expression([term, *rest]):
                return found
    return ""


def _value(node: ast.AST, used: list[int]) -> Fraction:
    """Of an expression of whole numbers and the four operations; notes the numbers. Raises ValueError for others."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        used.append(node.value)
        return Fraction(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value(node.left, used), _value(node.right, used))
    raise ValueError("not an expression of whole numbers")


def combinatorial_calculation(rng: random.Random) -> Question:
    """Signs between numbers that make a target; any that do are right."""
    numbers = [rng.randint(1, 9) for _ in range(rng.randint(4, 6))]
    signs = [rng.choice("+-*") for _ in numbers[1:]]
    told = lambda signs: str(numbers[0]) + "".join(f" {s} {n}" for s, n in zip(signs, numbers[1:]))  # noqa: E731
    target = _value(ast.parse(told(signs), mode="eval").body, [])

    def check(text: str) -> bool:
        used: list[int] = []
        tree = ast.parse(text.split("=")[0].strip(), mode="eval").body
        return _value(tree, used) == target and used == numbers and "(" not in text and "/" not in text

    return Question(
        f"Put +, - or * between the numbers {' '.join(map(str, numbers))}, in this order and without parentheses, so "
        "that the "
        f"result is {target}. Answer with the expression.",
        told(signs),
        check,
    )


def shopping(rng: random.Random) -> Question:
    things = rng.sample(["pens", "books", "lamps", "cups", "maps", "bags"], 3)
    counts, prices = [rng.randint(2, 9) for _ in things], [rng.randint(3, 40) for _ in things]
    percent, paid = rng.choice([10, 20, 25, 50]), rng.randint(1, 4) * 500
    total = sum(c * p for c, p in zip(counts, prices))
    left = Fraction(paid) - Fraction(total * (100 - percent), 100)
    told = ", ".join(f"{c} {t} at {p} coins each" for c, t, p in zip(counts, things, prices))
    return Question(
        f"Ann buys {told}. She gets {percent}% off the sum and had {paid} coins. How many coins has she left? Answer "
        "with a "
        "number with two decimals.",
        f"{float(left):.2f}",
        lambda text: abs(float(text) - float(left)) < 0.005,
    )


def sudoku(rng: random.Random) -> Question:
    """4 x 4; any filling that is allowed is right."""
    base = [[(2 * (i % 2) + i // 2 + j) % 4 for j in range(4)] for i in range(4)]
    digits = rng.sample("1234", 4)
    rows = [r for band in rng.sample([[0, 1], [2, 3]], 2) for r in rng.sample(band, 2)]
    grid = ["".join(digits[base[r][c]] for c in range(4)) for r in rows]
    hidden = set(rng.sample([*product(range(4), range(4))], rng.randint(5, 9)))
    shown = ["".join("_" if (i, j) in hidden else grid[i][j] for j in range(4)) for i in range(4)]

    def check(text: str) -> bool:
        lines = text.split()
        cells = {(i, j): lines[i][j] for i in range(4) for j in range(4)}
        units = [[(i, j) for j in range(4)] for i in range(4)] + [[(i, j) for i in range(4)] for j in range(4)]
        units += [[(a + i, b + j) for i in range(2) for j in range(2)] for a in (0, 2) for b in (0, 2)]
        fits = all(shown[i][j] in ("_", cells[i, j]) for i, j in cells)
        return [*map(len, lines)] == [4] * 4 and fits and all({cells[c] for c in u} == set("1234") for u in units)

    return Question(
        "Fill in this sudoku of 4 x 4: every row, every column and every block of 2 x 2 has 1, 2, 3 and 4 once.\n"
        + "\n".join(shown)
        + "\nAnswer with the rows, separated by blanks.",
        " ".join(grid),
        check,
    )


def logical_equation(rng: random.Random) -> Question:
    """Values of letters from conditions, of which there are enough for one solution."""
    names, values = "ABC", rng.sample(range(1, 7), 3)
    solutions, told = [*permutations(range(1, 7), 3)], []
    while len(solutions) > 1:
        i, j = rng.sample(range(3), 2)
        kind = rng.choice(["sum", "difference", "larger"])
        if kind == "sum":
            wanted, test = values[i] + values[j], lambda s, i=i, j=j: s[i] + s[j]
            text = f"{names[i]} + {names[j]} = {wanted}"
        elif kind == "difference":
            wanted, test = values[i] - values[j], lambda s, i=i, j=j: s[i] - s[j]
            text = f"{names[i]} - {names[j]} = {wanted}"
        else:
            wanted, test = values[i] > values[j], lambda s, i=i, j=j: s[i] > s[j]
            text = f"{names[i]} {'>' if wanted else '<'} {names[j]}"
        kept = [s for s in solutions if test(s) == wanted]
        if len(kept) < len(solutions):
            solutions = kept
            told.append(text)
    return Question(
        f"A, B and C are different numbers from 1 to 6 with {'; '.join(told)}. What are A, B, C? Answer with a list.",
        str(values),
    )


def new_operator(rng: random.Random) -> Question:
    a, b, c = (rng.randint(1, 9) for _ in range(3))
    x, y, z = (rng.randint(2, 20) for _ in range(3))
    apply = lambda p, q: a * p + b * q - c  # noqa: E731
    return Question(
        f"Let p @ q be {a} * p + {b} * q - {c}. What is ({x} @ {y}) @ {z}?",
        str(apply(apply(x, y), z)),
        code=f"print({a} * ({a} * {x} + {b} * {y} - {c}) + {b} * {z} - {c})",
    )


def polynomial_value(rng: random.Random) -> Question:
    coefficients = [rng.randint(-9, 9) for _ in range(4)]
    x = rng.randint(-9, 9)
    told = " + ".join(f"({c}) * x^{p}" for p, c in enumerate(coefficients))
    return Question(
        f"What is {told} at x = {x}?",
        str(sum(c * x**p for p, c in enumerate(coefficients))),
        code=f"print(sum(c * ({x}) ** p for p, c in enumerate({coefficients})))",
    )


def lattice_area(rng: random.Random) -> Question:
    """Twice the area of a triangle, by the cross product."""
    while True:
        (a, b), (c, d), (e, f) = points = [(rng.randint(-9, 9), rng.randint(-9, 9)) for _ in range(3)]
        twice = abs((c - a) * (f - b) - (e - a) * (d - b))
        if twice:
            break
    return Question(
        f"What is the area of the triangle with the corners {', '.join(map(str, points))}? Answer with a decimal "
        "number.",
        str(twice / 2),
        lambda text: abs(float(text) - twice / 2) < 1e-6,
    )


KINDS = named(
    pooling, matrix_transformation, number_multiply, game24, combinatorial_calculation, shopping, sudoku,
    logical_equation, new_operator, polynomial_value, lattice_area,
)  # fmt: skip

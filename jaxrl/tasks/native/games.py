"""Boards and cards."""

from __future__ import annotations

import random
from collections import Counter
from itertools import permutations, product

from jaxrl.tasks.native.question import Question, named, read

AROUND = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b]


def reversi(rng: random.Random) -> Question:
    """The stones that a move turns, in a position of random stones."""
    n = 6
    while True:
        board = [[rng.choice("..BW") for _ in range(n)] for _ in range(n)]
        moves = {
            (i, j): t for i, j in product(range(n), repeat=2) if board[i][j] == "." and (t := _turned(board, i, j))
        }
        if moves:
            break
    (i, j), turned = rng.choice([*moves.items()])
    return Question(
        f"A board of Reversi; rows and columns count from 0, the top left is (0, 0), . is empty:\n{_rows(board)}\n"
        f"Black (B) plays row {i}, column {j}. How many white stones are turned?",
        str(len(turned)),
    )


def _turned(board: list[list[str]], i: int, j: int) -> list[tuple[int, int]]:
    n, turned = len(board), []
    for a, b in AROUND:
        line, y, x = [], i + a, j + b
        while 0 <= y < n and 0 <= x < n and board[y][x] == "W":
            line.append((y, x))
            y, x = y + a, x + b
        if 0 <= y < n and 0 <= x < n and board[y][x] == "B":
            turned += line
    return turned


def _rows(board: list[list[str]]) -> str:
    return "\n".join("".join(row) for row in board)


def light_out(rng: random.Random) -> Question:
    n = 3
    presses = rng.sample([(i, j) for i in range(n) for j in range(n)], rng.randint(2, 4))
    start = _pressed([[0] * n for _ in range(n)], presses)

    def check(text: str) -> bool:
        given = read(text)
        cells = [(i, j) for i, j in given]
        return all(0 <= v < n for cell in cells for v in cell) and not any(map(sum, _pressed(start, cells)))

    shown = "\n".join("".join("#" if v else "." for v in row) for row in start)
    return Question(
        f"Lights on a board of 3 x 3 (# is on):\n{shown}\nPressing a light switches it and its neighbours above, "
        "below, left "
        "and right. Switch all lights off. Answer with a list of presses as (row, column), counted from 0.",
        str(presses),
        check,
    )


def _pressed(grid: list[list[int]], presses: list[tuple[int, int]]) -> list[list[int]]:
    grid, n = [row[:] for row in grid], len(grid)
    for i, j in presses:
        for y, x in ((i, j), (i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
            if 0 <= y < n and 0 <= x < n:
                grid[y][x] ^= 1
    return grid


def eight_queens(rng: random.Random) -> Question:
    """Some queens are given; any way to place the others is right."""
    n = 8
    while True:
        columns = rng.sample(range(n), n)
        if _apart(columns):
            break
    given = sorted(rng.sample(range(n), rng.randint(1, 4)))

    def check(text: str) -> bool:
        found = read(text)
        whole = isinstance(found, list) and sorted(found) == [*range(n)]
        return whole and _apart(found) and all(found[row] == columns[row] for row in given)

    told = ", ".join(f"({row}, {columns[row]})" for row in given)
    return Question(
        f"Place eight queens on a chess board so that none attacks another. Already there are queens at (row, "
        f"column) {told}, "
        "counted from 0. Answer with a list of the column of the queen in each row, from row 0 to row 7.",
        str(columns),
        check,
    )


def _apart(columns: list[int]) -> bool:
    pairs = [(i, j) for i in range(len(columns)) for j in range(i)]
    return all(abs(columns[i] - columns[j]) != i - j for i, j in pairs)


def merge_2048(rng: random.Random) -> Question:
    board = [[rng.choice([0, 0, 2, 4, 8, 16]) for _ in range(4)] for _ in range(4)]
    moves = rng.choices(["left", "right", "up", "down"], k=rng.randint(1, 3))
    after = board
    for move in moves:
        after = _moved(after, move)
    return Question(
        "A board of 2048 (0 is empty):\n"
        + "\n".join(" ".join(map(str, row)) for row in board)
        + f"\nMove {', then '.join(moves)}; no new tiles appear. Give the board as a list of rows.",
        str(after),
    )


def _moved(board: list[list[int]], move: str) -> list[list[int]]:
    if move in ("up", "down"):
        turned = [list(row) for row in zip(*board)]
        return [list(row) for row in zip(*_moved(turned, "left" if move == "up" else "right"))]
    return [_merged(row) if move == "left" else _merged(row[::-1])[::-1] for row in board]


def _merged(row: list[int]) -> list[int]:
    """To the left; a tile merges once."""
    tiles, made = [v for v in row if v], []
    while tiles:
        value = tiles.pop(0)
        if tiles and tiles[0] == value:
            value += tiles.pop(0)
        made.append(value)
    return made + [0] * (len(row) - len(made))


def mahjong(rng: random.Random) -> Question:
    """Whether tiles are sets of three and a pair."""
    sets = [
        [n, n, n] if rng.random() < 0.4 else [n, n + 1, n + 2]
        for n in (rng.randint(1, 7) for _ in range(rng.randint(1, 3)))
    ]
    pair = rng.randint(1, 9)
    tiles = [*(tile for three in sets for tile in three), pair, pair]
    if rng.random() < 0.5:
        tiles[rng.randrange(len(tiles))] = rng.randint(1, 9)
    tiles.sort()
    return Question(
        f"Can the tiles {' '.join(map(str, tiles))} be divided into one pair (two equal ones) and sets of three that "
        "are three "
        "equal ones or three in a row, such as 3 4 5? Answer with yes or no.",
        "yes" if any(_in_sets(Counter(tiles) - Counter({t: 2})) for t in set(tiles) if tiles.count(t) > 1) else "no",
    )


def _in_sets(tiles: Counter[int]) -> bool:
    if not +tiles:
        return True
    low = min(t for t, n in tiles.items() if n)
    for needed in (Counter({low: 3}), Counter({low: 1, low + 1: 1, low + 2: 1})):
        if all(tiles[t] >= n for t, n in needed.items()) and _in_sets(tiles - needed):
            return True
    return False


def linear_arrangement(rng: random.Random) -> Question:
    """People in a row by clues, of which there are enough for one order."""
    people = rng.sample(["Ann", "Ben", "Cem", "Dan", "Eva", "Fay"], rng.randint(4, 5))
    orders, clues = [*permutations(people)], []
    while len(orders) > 1:
        a, b = rng.sample(people, 2)
        d = people.index(b) - people.index(a)
        if abs(d) == 1:
            text = f"{a} is directly {'left' if d > 0 else 'right'} of {b}"
            kept = [o for o in orders if o.index(b) - o.index(a) == d]
        else:
            text = f"{a} is somewhere {'left' if d > 0 else 'right'} of {b}"
            kept = [o for o in orders if (o.index(b) > o.index(a)) == (d > 0)]
        if len(kept) < len(orders):
            orders = kept
            clues.append(text)
    names = ", ".join(sorted(people))
    return Question(
        f"{names} stand in a row. {'. '.join(clues)}. Who stands where, from left to right? Answer with the names, "
        "separated "
        "by commas.",
        ", ".join(people),
        lambda text: [name.strip() for name in text.split(",")] == people,
    )


def number_grid(rng: random.Random) -> Question:
    """Numbers to keep so that each row has its sum; any choice that fits is right."""
    n = rng.randint(2, 3)
    grid = [[rng.randint(1, 9) for _ in range(4)] for _ in range(n)]
    kept = [[rng.random() < 0.5 for _ in row] for row in grid]
    sums = [sum(v for v, k in zip(row, keep) if k) for row, keep in zip(grid, kept)]

    def check(text: str) -> bool:
        chosen = read(text)
        sizes = [*map(len, chosen)] == [4] * n and all(v in (0, 1) for row in chosen for v in row)
        return sizes and [sum(v * k for v, k in zip(row, keep)) for row, keep in zip(grid, chosen)] == sums

    shown = "\n".join(f"{' '.join(map(str, row))} -> {total}" for row, total in zip(grid, sums))
    return Question(
        f"In each row keep some numbers, so that they add up to the number after the arrow:\n{shown}\nAnswer with a "
        "list of "
        "rows of 1 (kept) and 0 (not).",
        str([[int(k) for k in row] for row in kept]),
        check,
    )


def permuted_cards(rng: random.Random) -> Question:
    """Cards after swaps and reversals."""
    cards = rng.sample("ABCDEFGH", rng.randint(4, 7))
    after, told = cards[:], []
    for _ in range(rng.randint(3, 6)):
        i, j = sorted(rng.sample(range(len(cards)), 2))
        if rng.random() < 0.6:
            after[i], after[j] = after[j], after[i]
            told.append(f"swap the cards at {i + 1} and {j + 1}")
        else:
            after[i : j + 1] = after[i : j + 1][::-1]
            told.append(f"reverse the cards from {i + 1} to {j + 1}")
    return Question(
        f"Cards lie in the order {' '.join(cards)}; places count from 1. In this order: {'; '.join(told)}. What is "
        "the order then? "
        "Answer with the letters, without blanks.",
        "".join(after),
    )


KINDS = named(
    reversi, light_out, eight_queens, merge_2048, mahjong, linear_arrangement, number_grid, permuted_cards
)  # fmt: skip

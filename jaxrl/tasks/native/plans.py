"""Plans, which are checked by carrying them out."""

from __future__ import annotations

import random
from collections import deque
from itertools import pairwise

from jaxrl.tasks.native.question import Question, named, read

Cell = tuple[int, int]
MOVES = {"U": (-1, 0), "D": (1, 0), "L": (0, -1), "R": (0, 1)}


def blocks_world(rng: random.Random) -> Question:
    blocks = rng.sample("ABCDE", rng.randint(3, 4))
    start = goal = _stacks(rng, blocks)
    while sorted(goal) == sorted(start):
        goal = _stacks(rng, blocks)

    def check(text: str) -> bool:
        stacks = [list(s) for s in start]
        for move in filter(None, (m.strip() for m in text.split(","))):
            block, target = (part.strip() for part in move.split("->"))
            source = next(s for s in stacks if s and s[-1] == block)
            source.pop()
            next(s for s in stacks if s and s[-1] == target).append(block) if target != "table" else stacks.append(
                [block]
            )
        return sorted("".join(s) for s in stacks if s) == sorted(goal)

    return Question(
        f"Blocks stand in stacks, written from bottom to top: {', '.join(start)}. Move one block at a time, from the "
        "top of a "
        f"stack onto the top of another or onto the table, until the stacks are: {', '.join(goal)}. Answer with the "
        "moves, such "
        "as A->table, B->A.",
        _unstacked(start, goal),
        check,
    )


def _stacks(rng: random.Random, blocks: list[str]) -> list[str]:
    order = rng.sample(blocks, len(blocks))
    cuts = sorted(rng.sample(range(1, len(order)), rng.randint(0, 2)))
    return ["".join(order[a:b]) for a, b in zip([0, *cuts], [*cuts, len(order)])]


def _unstacked(start: list[str], goal: list[str]) -> str:
    """All onto the table, then up again: never the shortest, always right."""
    moves = [f"{b}->table" for stack in start for b in stack[:0:-1]]
    moves += [f"{top}->{below}" for stack in goal for below, top in pairwise(stack)]
    return ", ".join(moves)


def box_lift(rng: random.Random) -> Question:
    """Groups of lifters for each box; any grouping that lifts all boxes in the given number of steps is right."""
    strengths = [rng.randint(2, 9) for _ in range(rng.randint(3, 5))]
    steps = rng.randint(2, 3)
    plan, boxes = [], []
    for _ in range(steps):
        order = rng.sample(range(len(strengths)), len(strengths))
        team = sorted(order[: rng.randint(1, len(order))])
        weight = sum(strengths[i] for i in team) - rng.randint(0, 1)
        boxes.append(max(weight, 1))
        plan.append([[len(boxes) - 1, team]])

    def check(text: str) -> bool:
        given, lifted = read(text), []
        for step in given:
            used: list[int] = []
            for box, team in step:
                used += team
                if sum(strengths[i] for i in set(team)) < boxes[box] or min(team) < 0:
                    return False
                lifted.append(box)
            if len(set(used)) < len(used):
                return False
        return len(given) <= steps and sorted(lifted) == [*range(len(boxes))]

    return Question(
        f"Lifters 0 to {len(strengths) - 1} have the strengths {strengths}. Boxes 0 to {len(boxes) - 1} weigh "
        f"{boxes}. In each step "
        "a lifter can help with one box, and a team lifts a box if its strengths add up to at least its weight. Lift "
        "each box "
        f"once, in at most {steps} steps. Answer with a list of steps; a step is a list of [box, [lifters]].",
        str(plan),
        check,
    )


def box_net(rng: random.Random) -> Question:
    """A box is carried by arms between neighbouring cells."""
    n = rng.randint(2, 4)
    start, goal = rng.sample(_cells(n), 2)
    return _path_question(
        f"A box lies in cell {start} of a grid of {n} x {n}; cells are (row, column), counted from 0 at the top "
        "left. An arm in "
        f"each cell can hand the box to the cell above (U), below (D), left (L) or right (R). Bring it to {goal} in "
        "as few moves "
        "as possible.",
        start, goal, set(_cells(n)), shortest=True,
    )  # fmt: skip


def path_plan(rng: random.Random) -> Question:
    """A way through a grid with walls that visits a cell on its way to the goal."""
    n = rng.randint(4, 6)
    while True:
        free = {c for c in _cells(n) if rng.random() > 0.25}
        if len(free) > 3:
            start, goal = rng.sample(sorted(free), 2)
            if _shortest(start, goal, free):
                break
    shown = "\n".join(
        "".join("S" if (i, j) == start else "G" if (i, j) == goal else "." if (i, j) in free else "#" for j in range(n))
        for i in range(n)
    )
    return _path_question(f"Find a way from S to G that avoids the walls (#):\n{shown}", start, goal, free)


def _path_question(text: str, start: Cell, goal: Cell, free: set[Cell], shortest: bool = False) -> Question:
    best = _shortest(start, goal, free)

    def check(answer: str) -> bool:
        y, x = start
        moves = answer.replace(",", "").replace(" ", "").upper()
        for move in moves:
            y, x = y + MOVES[move][0], x + MOVES[move][1]
            if (y, x) not in free:
                return False
        return (y, x) == goal and not (shortest and len(moves) > len(best))

    return Question(f"{text} Answer with the moves as letters U, D, L, R, without blanks.", best, check)


def _cells(n: int) -> list[Cell]:
    return [(i, j) for i in range(n) for j in range(n)]


def _shortest(start: Cell, goal: Cell, free: set[Cell]) -> str:
    """A shortest way as moves; "" where there is none."""
    ways, waiting = {start: ""}, deque([start])
    while waiting:
        y, x = waiting.popleft()
        for move, (a, b) in MOVES.items():
            cell = y + a, x + b
            if cell in free and cell not in ways:
                ways[cell] = ways[y, x] + move
                waiting.append(cell)
    return ways.get(goal, "")


KINDS = named(blocks_world, box_lift, box_net, path_plan)

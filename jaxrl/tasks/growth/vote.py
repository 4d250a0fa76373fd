"""From the curves of many series to one class: the vote and the groups of BigO(Bench), arXiv 2503.15242.

Each variable's series elect one class among those that say the most: of time the lowest, of space the highest. What
adds little is O(1). Joint series then say whether variables multiply or add: `combined` has the rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from jaxrl.tasks.growth.fit import Fit, Kind, best, fits, prepared
from jaxrl.tasks.growth.inputs import Series, Variable
from jaxrl.tasks.growth.names import VARIABLES

MOST, LEAST = 0.8, 0.2  # of the largest prediction: what takes part in the vote, and what is not O(1)
Measured = Mapping[Series, Mapping[int, Sequence[float]]]  # the values at each size


class Candidate(NamedTuple):
    """The class of a series, and what it says for the largest size."""

    series: Series
    fit: Fit
    largest: float


@dataclass(frozen=True)
class Node:
    """A part of the class: a variable, or several joined. order: 1 for n, .5 for a logarithm."""

    members: tuple[Node, ...]
    join: str  # "": one variable of class `name`; "*" or "+" of the members
    order: float
    name: str = "1"
    squared: bool = False
    log: bool = False  # X log X

    @property
    def whole(self) -> int:
        return int(self.order)


class Growth(NamedTuple):
    """How a program grows."""

    text: str  # o(n*m)
    coefficient: float  # of the dominating variable; for O(1) its value
    classes: dict[Variable, str]  # of each variable alone
    candidates: list[Candidate]  # of all series


def growth(measured: Measured, variables: Sequence[Variable], kind: Kind = "time") -> Growth:
    """The class of a program, from its values (counts, seconds or bytes) for each series and size."""
    candidates = of_series(measured, kind)
    elected = {v: elect([c for c in candidates if c.series.varied == (v,)], kind) for v in variables}
    most = max((c.largest for c in elected.values() if c), default=0.0)
    nodes: list[tuple[set[Variable], Node]] = []
    for variable, chosen in elected.items():
        small = chosen is None or chosen.largest < LEAST * most
        name = "1" if small or chosen is None else chosen.fit.name
        nodes.append(({variable}, Node((), "", 0.0 if name == "1" or chosen is None else chosen.fit.order, name)))
    classes = {v: node.name for ((v,), node) in nodes}
    for tied in sorted(dict.fromkeys(c.series.varied for c in candidates if len(c.series.varied) > 1), key=len):
        joint = elect([c for c in candidates if c.series.varied == tied], kind)
        inside = [item for item in nodes if item[0] & {*tied}]
        if joint and len(inside) > 1:
            joined = set().union(*(names for names, _ in inside))
            place = nodes.index(inside[0])
            nodes = [item for item in nodes if item not in inside]
            nodes.insert(place, (joined, combined([n for _, n in inside], joint.fit.order, joint.fit.name)))
    whole = combined([node for _, node in nodes], 0.0) if len(nodes) > 1 else nodes[0][1] if nodes else Node((), "", 0)
    ranked = [c for c in elected.values() if c]
    leading = max(ranked, key=lambda c: c.largest, default=None)
    return Growth(f"o({written(whole)})", leading.fit.coefficient if leading else 0.0, classes, candidates)


def of_series(measured: Measured, kind: Kind) -> list[Candidate]:
    """A candidate for each series that has a curve; all predict for the largest size of any."""
    curves = {s: c for s, values in measured.items() if (c := prepared(values)) is not None}
    end = max((c[0][-1] for c in curves.values()), default=1)
    found = []
    for series, curve in curves.items():
        fit = best(fits(curve), kind)
        found.append(Candidate(series, fit, fit.at(end)))
    return found


def elect(candidates: Sequence[Candidate], kind: Kind) -> Candidate | None:
    """Of those that predict nearly the most: the lowest class for time, the highest for space."""
    if not candidates:
        return None
    most = max(c.largest for c in candidates)
    kept = [c for c in candidates if c.largest >= MOST * most]
    return (min if kind == "time" else max)(kept, key=lambda c: c.fit.order)


def combined(nodes: Sequence[Node], order: float, name: str = "1") -> Node:
    """Variables as one, whose joint series are of this class; order 0 where there is no joint series.

    With S the sum of the whole parts of the members' orders and G that of the joint one:
    1. S = 0 < G: one variable of the joint class.     2. S = G: a product; X log X if it is below the joint order.
    3. G = 0 < S: a product.     4. all members below G: a product; if S < G its square where 2 S = G, else as 1.
    5. else a sum; X log X if all members are below the joint order.
    """
    members, total, joint = tuple(nodes), sum(n.whole for n in nodes), int(order)
    summed = sum(n.order for n in nodes)
    one = Node(members, "", order, name)
    product = Node(members, "*", summed)
    if total == 0 and joint > 0:
        return one
    if total == joint:
        return replace(product, log=True, order=summed + 0.5) if summed < order else product
    if joint == 0:
        return product
    if all(n.whole < joint for n in nodes):
        if total >= joint:
            return product
        return replace(product, squared=True, order=2 * summed) if 2 * total == joint else one
    log = all(n.order < order for n in nodes)
    return Node(members, "+", max(n.order for n in nodes) + 0.5 * log, log=log)


def written(node: Node) -> str:
    """The class as the benchmark writes it, with letters in order for the variables that are not O(1)."""
    letters = iter(VARIABLES + "abcdefghijpqrstxyz")
    return _written(node, letters) or "1"


def _written(node: Node, letters: object) -> str:
    if not node.join:
        if node.name == "1":
            return ""
        letter = next(letters)  # type: ignore[call-overload]
        return node.name.replace("n^", "n**").replace("n", letter) if node.name != "nlogn" else f"{letter}log{letter}"
    parts = [(m, text) for m in node.members if (text := _written(m, letters))]
    if not parts:
        return ""
    bare = [f"({text})" if node.join == "*" and m.join == "+" and not m.log and len(parts) > 1 else text
            for m, text in parts]  # fmt: skip
    text = node.join.join(bare)
    single = len(parts) == 1 and parts[0][1].isalpha() and len(parts[0][1]) == 1
    if node.squared:
        text = f"{text}**2" if single else f"({text})**2"
    if node.log:
        text = f"{text}log{text}" if single else f"({text})log({text})"
    return text

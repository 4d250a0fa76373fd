"""Letters and patterns."""

from __future__ import annotations

import random
from collections import Counter
from itertools import product

from jaxrl.tasks.native.question import Question, named


def _names(text: str) -> list[str]:
    return text.split()


WORDS = _names("""
apple bread cloud dance earth flame grass house image juice knife lemon music night ocean paper queen river stone
table uncle voice water young zebra bridge candle dragon engine forest garden hammer island jacket kitten ladder
""")


def string_insertion(rng: random.Random) -> Question:
    text = "".join(rng.choices("ABCDE", k=rng.randint(10, 20)))
    pattern, insert = "".join(rng.choices("ABCDE", k=2)), rng.choice("ABCDE")
    answer, i = "", 0
    while i < len(text):
        found = text.startswith(pattern, i)
        answer += text[i : i + 2] + insert if found else text[i]
        i += 2 if found else 1
    return Question(
        f"Read {text} from left to right. After each {pattern}, insert {insert} and continue with what follows; "
        "matches do not overlap. What is the result?",
        answer,
    )


def string_deletion(rng: random.Random) -> Question:
    text = answer = "".join(rng.choices("abc", k=rng.randint(10, 18)))
    first, second = rng.sample(["ab", "bc", "ca", "aa", "cc", "ba"], 2)
    for _ in range(20):
        for rule in (first, second):
            if rule in answer:
                answer = answer.replace(rule, "", 1)
                break
        else:
            break
    return Question(
        f"Start with {text}. Again and again: if it contains {first}, delete the leftmost {first}; otherwise, if it "
        f"contains {second}, delete the leftmost {second}; otherwise stop. What is left? Write empty if nothing is.",
        answer or "empty",
    )


def string_splitting(rng: random.Random) -> Question:
    """A machine that turns pieces into others, until no rule applies."""
    have = {name: rng.randint(0, 4) for name in "ABC"}
    rules = rng.sample(["A", "B", "C"], 2)
    gives = {r: tuple(rng.choices("XYZ", k=2)) for r in rules}
    made: Counter[str] = Counter({**have, "X": 0, "Y": 0, "Z": 0})
    for rule in rules:
        for _ in range(made[rule]):
            made.update(gives[rule])
        made[rule] = 0
    told = " ".join(f"One {r} is split into one {gives[r][0]} and one {gives[r][1]}." for r in rules)
    order = "ABCXYZ"
    return Question(
        f"There are {', '.join(f'{have[n]} {n}' for n in 'ABC')} and no X, Y or Z. {told} Everything that can be "
        "split is "
        "split. How many A, B, C, X, Y, Z are there then? Answer with a list of six numbers in this order.",
        str([made[n] for n in order]),
    )


def string_synthesis(rng: random.Random) -> Question:
    """Rules with several inputs, applied in order as often as they can be."""
    have = Counter({name: rng.randint(1, 9) for name in "ABC"})
    rules = [({"A": rng.randint(1, 2), "B": 1}, "D"), ({"C": rng.randint(1, 2), "D": 1}, "E"), ({"A": 1, "E": 1}, "F")]
    left = Counter(have)
    for needs, gives in rules:
        times = min(left[n] // k for n, k in needs.items())
        left.subtract({n: k * times for n, k in needs.items()})
        left[gives] += times
    told = "; ".join(f"{' and '.join(f'{k} {n}' for n, k in needs.items())} make one {g}" for needs, g in rules)
    return Question(
        f"You have {', '.join(f'{have[n]} {n}' for n in 'ABC')}. The rules are, in order: {told}. Apply the first rule "
        "as often as possible, then the second, then the third. How many A, B, C, D, E, F do you have in the end? "
        "Answer with "
        "a list of six numbers.",
        str([left[n] for n in "ABCDEF"]),
    )


def synthesis_decomposition(rng: random.Random) -> Question:
    have = {"wheat": rng.randint(0, 20), "wood": rng.randint(0, 20), "iron": rng.randint(0, 20)}
    left, steps = dict(have), []
    for _ in range(rng.randint(3, 5)):
        source, target = rng.sample([*have], 2)
        price, count = rng.randint(2, 4), rng.randint(1, 3)
        times = left[source] // price
        left[source] -= times * price
        left[target] += times * count
        steps.append(f"change every {price} {source} into {count} {target}, as often as possible")
    return Question(
        f"You have {', '.join(f'{n} {name}' for name, n in have.items())}. In this order: {'; '.join(steps)}. How "
        "much wheat, "
        "wood and iron do you have then? Answer with a list of three numbers.",
        str([*left.values()]),
    )


def letters(rng: random.Random) -> Question:
    word = "".join(rng.choices("abcdefgh", k=rng.randint(8, 16)))
    letter = rng.choice(word)
    places = [i for i, c in enumerate(word, 1) if c == letter]
    return Question(
        f"At which positions does {letter} stand in {word}, counted from 1? Answer with a list in increasing order.",
        str(places),
        code=f"print([i for i, c in enumerate({word!r}, 1) if c == {letter!r}])",
    )


def letter_diagram(rng: random.Random) -> Question:
    """A Latin square with its first row and some cells given."""
    n = rng.randint(3, 4)
    rows, columns, symbols = (rng.sample(range(n), n) for _ in range(3))
    grid = [["ABCD"[symbols[(rows[i] + columns[j]) % n]] for j in range(n)] for i in range(n)]
    hidden = rng.sample([*product(range(n), range(n))], n + 1)
    shown = [["_" if (i, j) in hidden else grid[i][j] for j in range(n)] for i in range(n)]

    def check(text: str) -> bool:
        lines = text.split()
        ok = len(lines) == n and all(len(line) == n for line in lines)
        alphabet = set("ABCD"[:n])
        return (
            ok
            and all(set(line) == alphabet for line in lines)
            and all({line[j] for line in lines} == alphabet for j in range(n))
            and all(shown[i][j] in ("_", lines[i][j]) for i in range(n) for j in range(n))
        )

    return Question(
        f"Fill in the blanks so that every row and every column has each of {', '.join('ABCD'[:n])} once:\n"
        + "\n".join("".join(row) for row in shown)
        + "\nAnswer with the rows, separated by blanks.",
        " ".join("".join(row) for row in grid),
        check,
    )


def cryptanalysis(rng: random.Random) -> Question:
    """A code of three digits from how guesses matched; guesses are added until one code is left."""
    codes = ["".join(c) for c in product("123456", repeat=3) if len(set(c)) == 3]
    secret, left, clues = rng.choice(codes), codes, []
    while len(left) > 1:
        guess = rng.choice([c for c in codes if c != secret])
        left = [c for c in left if _matches(guess, c) == _matches(guess, secret)]
        placed, present = _matches(guess, secret)
        clues.append(f"{guess}: {placed} in the right place, {present} in another place")
    return Question(
        "A code has three different digits from 1 to 6. Guesses and how many of their digits the code has:\n"
        + "\n".join(clues)
        + "\nWhat is the code?",
        secret,
    )


def _matches(guess: str, code: str) -> tuple[int, int]:
    placed = sum(a == b for a, b in zip(guess, code))
    return placed, len(set(guess) & set(code)) - placed


def pattern_counting(rng: random.Random) -> Question:
    text, pattern = "".join(rng.choices("AB", k=rng.randint(16, 30))), "".join(rng.choices("AB", k=rng.randint(2, 3)))
    count = sum(text.startswith(pattern, i) for i in range(len(text)))
    return Question(
        f"How often does {pattern} occur in {text}? Overlapping occurrences count, too.",
        str(count),
        code=f"print(sum({text!r}.startswith({pattern!r}, i) for i in range({len(text)})))",
    )


def statistical_counting(rng: random.Random) -> Question:
    words = rng.choices(WORDS, k=rng.randint(4, 8))
    text = " ".join(words)
    worth = {"vowel": rng.randint(1, 5), "other": rng.randint(1, 5)}
    score = sum(worth["vowel"] if c in "aeiou" else worth["other"] for c in text if c != " ")
    return Question(
        f"Every vowel (a, e, i, o, u) is worth {worth['vowel']} and every other letter {worth['other']}. What are "
        "the letters "
        f"of this text worth together? {text}",
        str(score),
    )


KINDS = named(
    string_insertion, string_deletion, string_splitting, string_synthesis, synthesis_decomposition, letters,
    letter_diagram, cryptanalysis, pattern_counting, statistical_counting,
)  # fmt: skip

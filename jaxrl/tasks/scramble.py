"""Unscramble a word: the task for debugging the loop, without programs or a sandbox.

The letters of a common word of 4 to 8 letters come in another order, and any word of the list with these letters is
right. They are spelled with blanks between them, as is the answer in the demonstrations, so that each letter is a
token. A wrong answer earns a little for its form, its letters and those in the right place.

Held out are orders of letters, not words: a small model cannot know a word that it never saw.
"""

from __future__ import annotations

import random
import re
import zlib
from dataclasses import dataclass

from jaxrl.config.task import TaskSettings
from jaxrl.tasks import Task
from jaxrl.tasks.sampling import Generated
from rollouts.episode import Problem, Reward, Submission
from rollouts.services import Services

FORMAT, LETTERS, PLACES = 0.1, 0.1, 0.2  # partial credit; a right answer earns 1 in all
HELD_OUT_SHARE = 8  # one order of letters in this many
HELD_OUT_SEED = 20_000_003  # the same held-out problems for every run

_WORD_LIST = """
able acid also area army atom aunt baby back bake ball band bank base bear beat bell belt bend bird blow blue boat body
bold bone book born both bowl bulk burn bush busy cake call calm came camp card care cart case cash cave cell chat chin
city clay club coal coat code cold come cook cool cope copy core corn cost crew crop dark data dawn deal dear debt deep
desk dirt dish dive door dose down draw drop drum duck dust duty each earn ease east edge else even ever evil exit face
fact fair fall farm fast fear feed feel file fill film find fine fire firm fish five flag flat flow fold folk food foot
fork form four free frog fuel full fund gain game gate gift girl give glad goal goat gold golf good gray grew grow hair
half hall hand hang hard harm hate head hear heat help hero hill hint hold hole home hope horn host hour huge hunt idea
inch iron item join jump jury keep kick kind king kite knee know lack lady lake lamp land lane last late lawn lazy lead
leaf lean left lend less life lift like line lion list live load loan lock long look lord lose loud love luck lung mail
main make many mark mask mass meal meat menu milk mind mine miss mode mood moon more most move much must name navy near
neck need nest news next nine node none nose note oven over pack page pain pair palm park part pass past path peak pick
pile pine pink pipe plan play plot poem poet pole pool poor port post pour pull pump pure push quit race rail rain rank
rate read rely rent rest rice rich ride ring rise risk road rock role roll roof room root rope rule safe sail salt sand
apple beach bread bring brown build chair cheap clean clear clock cloud coast cover crowd dance depth dress drink earth
eight empty enjoy entry equal event every field fifth final flame floor fresh front fruit glass grass green group happy
heart heavy honey horse hotel house human image juice knife large laugh learn lemon level light limit local lucky lunch
magic major maple march match metal model money month mouse mouth music never night noise north novel ocean offer order
other paint paper party peace phone piano place plain plant plate point power price print prize queen quick quiet radio
raise range reach river round royal salad scale scene score sense seven shade share sharp sheep sheet shelf shirt short
sight sleep small smile smoke snake solid sound south space speak spend sport stage stand start steam stone storm story
street summer animal answer autumn banana basket battle beauty bottle bridge butter button camera candle castle cattle
change circle coffee copper corner cotton county course create danger desert dinner doctor dollar double dragon driver
engine family farmer father finger flight flower forest friend garden gentle ground growth guitar hammer health height
island jacket jungle kitten ladder leader letter little lizard market mirror monkey mother narrow nature number office
orange palace pencil people pepper person planet pocket potato prince public rabbit reason record remain rescue result
ribbon rocket school season secret shadow silver sister smooth spirit spring square stream strong sudden sunday switch
balance blanket cabinet captain century chicken climate college company concert country culture curtain diamond drawing
evening factory feather freedom gallery general history holiday husband journey kingdom kitchen library machine measure
morning mystery network officer outside package parents pattern perfect picture popular problem product project promise
quality quarter railway science section service society station student subject success support surface teacher theatre
umbrella baseball birthday building business calendar children computer creature daughter distance elephant exercise
football friendly geometry hospital industry language mountain neighbor notebook painting platform position princess
question rainfall sandwich shoulder strength sunshine swimming thousand together tomorrow treasure vacation whatever
"""
WORDS = tuple(_WORD_LIST.split())


_BY_LETTERS: dict[str, list[str]] = {}
for _word in WORDS:
    _BY_LETTERS.setdefault("".join(sorted(_word)), []).append(_word)


def held_out(letters: str) -> bool:
    """Whether these letters in this order are for held-out problems only."""
    return zlib.crc32(letters.encode()) % HELD_OUT_SHARE == 0


def generate(rng: random.Random, name: str, for_held_out: bool) -> Problem:
    """A word with its letters in an order that is no word."""
    while True:
        word = rng.choice(WORDS)
        letters = "".join(rng.sample(word, len(word)))
        if letters not in WORDS and held_out(letters) == for_held_out:
            return Problem(
                id=f"scramble/{name}",
                messages=({"role": "user", "content": f"unscramble: {' '.join(letters)}"},),
                answer=word,
                demonstration=" ".join(word),
                meta={"difficulty": len(word), "letters": letters},
            )


def generated(name: str, size: int, seed: int) -> Generated:
    """`size` problems that are not held out."""
    return Generated(size, lambda i: generate(random.Random(f"{name} {seed} {i}"), f"{name}/{i}", for_held_out=False))


def held_out_problems(count: int) -> list[Problem]:
    """Different problems."""
    rng = random.Random(HELD_OUT_SEED)
    problems: dict[str, Problem] = {}
    while len(problems) < count:
        problem = generate(rng, f"held_out/{len(problems)}", for_held_out=True)
        problems.setdefault(problem.meta["letters"], problem)
    return list(problems.values())


def normal_form(text: str) -> str:
    """The word that a text spells."""
    return "".join(text.lower().split())


def is_word(text: str) -> bool:
    """Whether the text is nothing but a word, with or without blanks between its letters."""
    return re.fullmatch("[a-z]( [a-z])*|[a-z]+", text.strip().lower()) is not None


def reward_of(answer: str, text: str) -> Reward:
    """The reward of a text: 1 for `answer` or another word of its letters, spelled with or without blanks.

    Only a text of nothing but letters earns partial credit.
    """
    text = text.strip().lower()
    word = normal_form(text)
    right = _BY_LETTERS["".join(sorted(answer))]
    solved = word in right
    well_formed = is_word(text)
    places = max(sum(a == b for a, b in zip(word, r)) for r in right) / max(len(answer), len(word))
    partial = well_formed and not solved
    parts = {
        "exact": float(solved),
        "format": FORMAT * partial,
        "letters": LETTERS * (partial and sorted(word) == sorted(answer)),
        "places": PLACES * partial * places,
    }
    return Reward(sum(parts.values()), solved, parts, answer=word or None)


async def judge(problem: Problem, submission: Submission, services: Services) -> Reward:
    """1 for a right word, else at most 0.4; nothing is run in the sandbox."""
    return reward_of(problem.answer, submission.text)


@dataclass
class Settings(TaskSettings):
    """Unscrambling words."""


def make_task(settings: Settings, seed: int) -> Task:
    spelled = [" ".join(word) for word in WORDS]
    return Task(
        name="scramble",
        train=generated("train", settings.train_problems, seed),
        held_out=held_out_problems(settings.held_out_problems),
        judge=judge,
        answers=True,
        demonstrations=generated("demonstration", settings.demonstrations, seed),
        well_formed=lambda problem, submission: is_word(submission.text),
        corpus=lambda: [*(f"user\nunscramble: {s}" for s in spelled), *(f"assistant\n{s}" for s in spelled)],
    )

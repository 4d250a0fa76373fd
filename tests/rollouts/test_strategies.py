"""Prompts of a strategy: which are said in which turn, what is judged, what is seen, what is refused."""

from __future__ import annotations

import dataclasses

import pytest
from played import Script, play, whole

from jaxrl.config import Config
from jaxrl.config.rules import check_settings
from jaxrl.errors import UserError
from jaxrl.runs.environments import make_environment
from jaxrl.runs.tokenizer import train_tokenizer
from jaxrl.tasks import Task
from jaxrl.tasks.extract import code_block
from jaxrl.tasks.rewards import judge_program
from rollouts.engine import PromptTooLongError
from rollouts.environments.feedback import Settings
from rollouts.episode import Problem
from rollouts.services import Services
from rollouts.strategies import INSTRUCTION, REASONING, STRATEGIES, Strategy
from sandbox.verdict import CallTest

ADD = Problem(
    "add", ({"role": "user", "content": "f(x) = x + 2?"},),
    tests=(CallTest("f", (1,), 3), CallTest("f", (0,), 2), CallTest("f", (5,), 7)),
    public_tests=(CallTest("f", (1,), 3), CallTest("f", (0,), 2)),
)  # fmt: skip
WRONG, HALF, RIGHT = "def f(x): return 0", "def f(x): return x * 3", "def f(x): return x + 2"
THINK, CARE = "Think about it first.", "Take great care."


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["def f(x): return x + 2\nuser assistant Think about it first. program wrong"] * 3, 400)


@pytest.fixture
def played(tokenizer, pool):
    """Plays a problem by the environment's settings with an engine that says these texts: the episode, the engine."""

    def run(settings: Settings, *texts: str, problem: Problem = ADD, **rollout):
        config = Config()
        config.rollout.max_prompt_length, config.rollout.max_new_tokens = 1000, 3000
        config.rollout.environment = settings
        for name, value in rollout.items():
            setattr(config.rollout, name, value)
        check_settings(config)
        judge = lambda p, s, services: judge_program(p, s, services)  # noqa: E731
        task = Task("own", [problem], [problem], judge, extract=lambda problem, text: code_block(text))
        environment = make_environment(config, task, tokenizer, Services(pool), 1.0)
        engine = Script(tokenizer, *texts)
        return play(environment, engine, problem), engine

    return run


def said(episode) -> list[str]:
    return [t.text for t in episode.turns if not t.sampled]


def test_the_registry():
    assert (len(REASONING), len(INSTRUCTION)) == (8, 6)
    assert not REASONING.keys() & INSTRUCTION.keys()
    assert all("Do not write the program yet." in text for text in REASONING.values())
    assert len({*REASONING.values(), *INSTRUCTION.values()}) == 14


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("first", [(THINK, CARE), ("", ""), ("", ""), ("", "")]),
        ("every", [(THINK, CARE)] * 4),
        ("retry", [("", ""), ("", CARE), (THINK, ""), (THINK, "")]),
    ],
)
def test_what_each_turn_says(schedule, expected):
    assert [Strategy(THINK, CARE, schedule).at(turn) for turn in range(4)] == expected


def test_a_turn_with_reasoning_is_two_messages_and_one_program(played, tokenizer):
    settings = Settings(reasoning=THINK, instruction=CARE, max_turns=2)
    episode, engine = played(settings, "```python\nx = 1\n```", WRONG, RIGHT, instruction="Write f.")
    prompt = tokenizer.decode(episode.prompt)
    assert f"f(x) = x + 2?\nWrite f.\n{THINK}<|im_end|>" in prompt and CARE not in prompt
    assert said(episode) == [
        f"Now write the whole program.\n{CARE}",
        "Your program is wrong:\nf(1) gave 0, expected 3\nf(0) gave 0, expected 2\nWrite the whole program again.",
    ]
    assert [t.kind for t in episode.turns if t.sampled] == ["text", "", ""] and len(engine.prompts) == 3
    assert episode.attempts == [(False, False, True), (True, True, True)] and episode.reward.solved
    assert episode.submitted.program == RIGHT and episode.reward.value == 1
    assert episode.sampled_length == sum(len(t.tokens) for t in episode.turns if t.sampled)
    assert episode.sampled_length > sum(len(t.tokens) for t in episode.answers)  # what it thought counts too
    assert [t.plain for t in episode.turns if not t.sampled] == ["", None]
    assert whole(tokenizer, episode).count("assistant\n") == 3


def test_an_instruction_alone_is_in_the_first_message(played, tokenizer):
    episode, _ = played(Settings(instruction="double_check"), RIGHT)
    assert tokenizer.decode(episode.prompt).count(INSTRUCTION["double_check"]) == 1
    assert said(episode) == [] and len(episode.attempts) == 1


def test_retry_is_plain_then_instructed_then_reasoned(played, tokenizer):
    """The paper's CoT-retry, as a named strategy."""
    episode, engine = played(Settings(strategy="cot_retry"), WRONG, WRONG, "It is simple.", RIGHT)
    first, second, third = (tokenizer.decode(p) for p in (engine.prompts[0], engine.prompts[1], engine.prompts[2]))
    naive, guide = REASONING["naive_solution"], INSTRUCTION["helper_functions"]
    assert guide not in first and naive not in first
    assert guide in second and naive not in second
    assert naive in third
    facts = "Your program is wrong:\nf(1) gave 0, expected 3\nf(0) gave 0, expected 2"
    again = "Write the whole program again."
    assert said(episode) == [f"{facts}\n{again}\n{guide}", f"{facts}\n{naive}", again]
    assert [t.plain for t in episode.turns if not t.sampled] == [f"{facts}\n{again}"] * 2 + [""]
    assert [a.solved for a in episode.attempts] == [False, False, True]
    for texts in ([RIGHT], [WRONG, RIGHT]):  # later prompts stay unsaid
        episode, engine = played(Settings(strategy="cot_retry"), *texts)
        assert len(engine.prompts) == len(texts) and naive not in whole(tokenizer, episode)
        assert (guide in whole(tokenizer, episode)) == (len(texts) == 2) and episode.status == "finished"


@pytest.mark.parametrize(
    ("feedback", "message"),
    [
        ("binary", "Your program is wrong. Write the whole program again."),
        ("failed", "Your program is wrong:\nf(1) gave 0, expected 3\nWrite the whole program again."),
        ("tests", "Your program is wrong:\nf(1) gave 0, expected 3\nWrite the whole program again."),
        (
            "failed_and_passed",
            "Your program is wrong:\nf(1) gave 0, expected 3\nThese tests pass:\nf(0) gives 0\n"
            "Write the whole program again.",
        ),
        (
            "trace",
            "Your program is wrong:\nf(1) gave 0, expected 3\nWhat happened in the first of them:\n"
            "returned 0, expected 3\nWrite the whole program again.",
        ),
    ],
)
def test_how_much_of_the_tests_is_seen(played, feedback, message):
    tests = (CallTest("f", (0,), 0), CallTest("f", (1,), 3), CallTest("f", (5,), 7))
    problem = dataclasses.replace(ADD, tests=tests, public_tests=tests[:2])
    episode, _ = played(Settings(feedback=feedback), WRONG, "def f(x): return x + x + x", problem=problem)
    assert said(episode) == [message]
    assert "5" not in message and not episode.reward.solved  # hidden tests are never seen, and decide


def test_a_trace_of_what_cannot_run(played):
    episode, _ = played(Settings(feedback="trace", max_turns=2), "def f(x) return", RIGHT)
    assert "SyntaxError" in said(episode)[0] and "What happened" not in said(episode)[0]


def test_stop_strings_do_not_cut_what_the_model_thinks(played):
    episode, _ = played(Settings(reasoning=THINK), "One.\n\nTwo.", RIGHT, stop_strings=("\n\n",))
    assert episode.turns[0].text == "One.\n\nTwo." and episode.reward.solved


@pytest.mark.parametrize(("settings", "texts", "solved"), [
    ({"reasoning": THINK}, [f"word {'word ' * 300}"], False),  # cut while it thinks: there is no program
    ({"reasoning": THINK, "schedule": "every"}, ["Hm.", HALF, "word " * 300], False),
])  # fmt: skip
def test_an_episode_that_ends_while_it_thinks_is_judged_by_its_last_program(played, settings, texts, solved):
    episode, _ = played(Settings(**settings), *texts, max_new_tokens=200)
    assert episode.status == "truncated" and episode.reward.solved == solved
    assert episode.submitted.text == (HALF if len(texts) == 3 else "")
    assert len(episode.attempts) == len(episode.answers) == len(texts) // 2


def test_prompts_that_do_not_fit_are_refused(played):
    with pytest.raises(PromptTooLongError, match="problem add: its prompt has"):
        played(Settings(reasoning="naive_solution"), RIGHT, max_prompt_length=40)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reasoning": "naive_solutoin"}, r"environment\.reasoning: 'naive_solutoin' is not a prompt; did you mean '"),
        ({"instruction": "qqq"}, r"environment\.instruction: 'qqq' is not a prompt; there are: helper_functions, "),
        ({"schedule": "every"}, r"environment\.schedule = 'every' needs environment\.reasoning or "),
        ({"strategy": "cot_retry", "reasoning": "tags"}, r"environment\.strategy = 'cot_retry' must be '' with "),
        ({"strategy": "cot_retry", "max_turns": 2}, r"environment\.max_turns = 2 must be at least 3"),
        ({"instruction": CARE, "schedule": "retry", "max_turns": 1}, r"environment\.max_turns = 1 must be at least 2"),
        ({"reasoning": THINK, "schedule": "every", "max_turns": 1}, r"environment\.max_turns = 1 must be at least 2"),
        ({"trace_lines": 9}, r"environment\.trace_lines = 9 needs environment\.feedback = 'trace'"),
    ],
)  # fmt: skip
def test_settings_that_do_nothing_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        check_settings(Settings(**settings), "environment")


def test_named_strategies_are_allowed():
    for name in STRATEGIES:
        check_settings(Settings(strategy=name), "environment")  # pyright: ignore[reportArgumentType]

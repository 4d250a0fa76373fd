"""Environments with several turns: tokens, masks, tools, budgets, and what goes wrong."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import Any

import numpy as np
import pytest
from played import USER, Script, judged_by, make, play, whole

from jaxrl.config.rules import check_settings
from jaxrl.errors import UserError
from jaxrl.runs.tokenizer import load_tokenizer, train_tokenizer
from jaxrl.tasks.extract import code_block
from rollouts.chat import TemplateError, chat_prompt, conversation, following, stop_tokens
from rollouts.collect import collect
from rollouts.environments import feedback, interpreter, single_turn
from rollouts.environments.dialogue import Budget
from rollouts.environments.interpreter import last_code, shortened
from rollouts.episode import Problem, Reward, Submission
from sandbox.session import CallResult, Sessions
from sandbox.verdict import CallTest, Limits

# Llama 3's: its own tokens around the role, contents trimmed, a beginning-of-text token before the first message.
LLAMA3 = (
    "{% for m in messages %}{% set text = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] |"
    " trim + '<|eot_id|>' %}{{ (bos_token if loop.first else '') + text }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# Like Qwen3's and DeepSeek-R1's: reasoning of earlier answers is left out when the conversation goes on.
FORGETFUL = (
    "{% for m in messages %}{% set text = m['content'] %}{% if m['role'] == 'assistant' and not loop.last %}"
    "{% set text = text.split('</think>')[-1] | trim %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + text + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + FORGETFUL
)


@pytest.fixture(scope="module")
def small():
    return train_tokenizer(["```python\nprint(6 * 7)\n```\n```output\n42\n```\nuser assistant \\boxed{42}"] * 3, 400)


@pytest.fixture(scope="module")
def llama3():
    tokenizer: Any = train_tokenizer(["assistant user"], 300)
    names = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.chat_template = names[0], names[3], LLAMA3
    return tokenizer


@pytest.fixture(scope="module")
def qwen(data):
    return load_tokenizer(str(data / "qwen_tokenizer"))


@pytest.fixture(scope="module")
def sessions():
    with Sessions(Limits(wall_s=1.0, cpu_s=5.0), preload=()) as opened:
        yield opened


CALL = "Let me see.\n```python\nprint(6 * 7)\n```\n"


# --- tokens


@pytest.mark.parametrize(("name", "end"), [("qwen", "<|im_end|>"), ("llama3", "<|eot_id|>"), ("small", "<|im_end|>")])
def test_what_stands_between_two_answers_is_what_the_template_puts_there(name, end, request):
    tokenizer = request.getfixturevalue(name)
    more = [{"role": "user", "content": "Wrong. Try again."}]
    for answer in ("It is 41.", "```python\nprint(6)\n```"):
        messages = [USER, {"role": "assistant", "content": answer}, *more]
        prompt = chat_prompt(tokenizer, Problem("p", (USER,)))
        said = tokenizer.encode(answer, add_special_tokens=False)
        for sampled in (said, [*said, tokenizer.convert_tokens_to_ids(end)]):
            tokens = np.concatenate([prompt, sampled, following(tokenizer, more, sampled[-1])]).astype(int).tolist()
            text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            assert tokens == tokenizer.encode(text, add_special_tokens=False)


def test_templates_that_rewrite_earlier_answers_do_not_touch_what_was_sampled(small):
    tokenizer = train_tokenizer(["<think> </think> user assistant"], 300)
    tokenizer.chat_template = FORGETFUL
    tests = (CallTest("f", (1,), 2),)
    engine = Script(tokenizer, "<think>\nhm\n</think>\n\n one ", "<think>two</think>\n")

    async def fails(problem, submission):
        return Reward(0.0, False, verdict=failing("f(1) gave 1, expected 2"))

    episode = play(
        make(feedback, tokenizer, judge=fails, max_turns=2), engine, Problem("p", (USER,), public_tests=tests)
    )
    np.testing.assert_array_equal(engine.prompts[1][: len(engine.prompts[0])], engine.prompts[0])
    sampled = [t for t in episode.turns if t.sampled]
    said = tokenizer.encode("<think>\nhm\n</think>\n\n one ")
    assert sampled[0].tokens.tolist() == [*said, stop_tokens(tokenizer)[0]]
    assert "</think>\n\n one <|im_end|>\n<|im_start|>user\nYour program is wrong:" in whole(tokenizer, episode)


def test_a_template_without_system_role_gets_it_in_the_first_message(small):
    tokenizer = train_tokenizer(["user"], 300)
    tokenizer.chat_template = NO_SYSTEM
    problem = Problem("p", ({"role": "system", "content": "Be brief."}, USER))
    expected = "<|im_start|>user\nBe brief.\n\nWhat is 6 * 7?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(chat_prompt(tokenizer, problem)) == expected
    with pytest.raises(TemplateError, match="problem p: the chat template refuses messages with the roles system: "):
        chat_prompt(tokenizer, Problem("p", ({"role": "system", "content": "alone"},)))


@pytest.mark.parametrize("name", ["qwen", "llama3", "small"])
def test_messages_that_end_with_an_answer_are_an_answer_begun(name, request):
    tokenizer = request.getfixturevalue(name)
    begun = Problem("p", (USER, {"role": "assistant", "content": "It is <|im_end|>"}))
    plain = tokenizer.decode(chat_prompt(tokenizer, Problem("p", (USER,))))
    tokens = chat_prompt(tokenizer, begun)
    assert tokenizer.decode(tokens) == plain + "It is <|im_end|>"
    assert tokens[-1] != tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_a_demonstration_has_the_tokens_and_the_mask_of_the_episode(small, sessions):
    answers = [CALL, "So \\boxed{42}."]
    environment = make(interpreter, small, open_session=sessions.open)
    episode = play(environment, Script(small, *answers))
    messages = [
        USER,
        {"role": "assistant", "content": answers[0]},
        {"role": "output", "content": "```output\n42\n```\n"},
        {"role": "assistant", "content": answers[1]},
    ]
    tokens, learned = conversation(small, messages)
    np.testing.assert_array_equal(tokens, np.concatenate([episode.prompt, *(t.tokens for t in episode.turns)]))
    mask = [np.zeros(len(episode.prompt), bool), *(np.full(len(t.tokens), t.learned) for t in episode.turns)]
    np.testing.assert_array_equal(learned, np.concatenate(mask))


# --- the interpreter


def test_code_is_run_and_its_output_comes_back(small, sessions):
    engine = Script(small, CALL, "So \\boxed{42}.")
    episode = play(make(interpreter, small, open_session=sessions.open), engine)
    assert [(t.role, t.text, t.status) for t in episode.turns] == [
        ("assistant", CALL, ""), ("output", "```output\n42\n```\n", "passed"), ("assistant", "So \\boxed{42}.", ""),
    ]  # fmt: skip
    assert (episode.status, episode.reward.value, episode.calls, len(engine.released)) == (
        "finished",
        1.0,
        ["passed"],
        1,
    )
    assert [t.learned for t in episode.turns] == [True, False, True] and episode.turns[1].logprobs is None
    np.testing.assert_array_equal(
        engine.prompts[1], np.concatenate([episode.prompt, episode.turns[0].tokens, episode.turns[1].tokens])
    )


@pytest.mark.parametrize("role", ["user", "tool"])
def test_output_as_a_message(small, sessions, role):
    engine = Script(small, CALL.strip(), "\\boxed{42}")
    episode = play(make(interpreter, small, open_session=sessions.open, output_to=role), engine)
    assert f"```<|im_end|><|im_start|>{role}\n```output\n42\n```<|im_end|><|im_start|>assistant\n" in whole(
        small, episode
    )
    assert episode.reward.solved and episode.calls == ["passed"]
    assert code_block(episode.text) == "print(6 * 7)\n"  # the fence that ended a message ends its line


def test_output_under_a_header(small, sessions):
    """As R1-Code-Interpreter sends it."""
    header = "Code Execution Results:"
    engine = Script(small, CALL.strip(), "\\boxed{42}")
    given = {"output_to": "user", "output_header": header}
    episode = play(make(interpreter, small, open_session=sessions.open, **given), engine)
    assert f"<|im_start|>user\n{header}\n42<|im_end|>" in whole(small, episode)
    with pytest.raises(UserError, match=r"environment\.output_header needs environment\.output_to = 'user' or 'tool'"):
        check_settings(interpreter.Settings(output_header=header), "environment")


def test_an_answer_ends_with_its_stop_string(small, sessions):
    environment = make(interpreter, small, open_session=sessions.open)
    environment.params = dataclasses.replace(environment.params, stop_strings=("\nQ:",))
    episode = play(environment, Script(small, "42\nQ:", "and more"))
    assert episode.text == "42\nQ:" and episode.status == "finished"


def test_torl_stops_at_the_marker_of_the_output(small, sessions):
    environment = make(interpreter, small, open_session=sessions.open, code_end="```output")
    episode = play(environment, Script(small, CALL + "```output", "\\boxed{42}"))
    assert episode.turns[1].text == "\n42\n```\n" and episode.turns[0].text.endswith("```output")
    assert episode.text == CALL + "\\boxed{42}"


def test_after_the_last_call_code_is_text(small, sessions):
    environment = make(interpreter, small, open_session=sessions.open, max_calls=1)
    episode = play(environment, Script(small, CALL, CALL + "\\boxed{42}"))
    assert episode.calls == ["passed"] and episode.status == "finished" and episode.reward.solved


@pytest.mark.parametrize(("stateful", "seen"), [(True, "5"), (False, "line 1: NameError: name 'x' is not defined")])
def test_variables_live_as_long_as_the_setting_says(small, sessions, stateful, seen):
    calls = ["```python\nx = 5\n```\n", "```python\nx\n```\n", "done"]
    episode = play(make(interpreter, small, open_session=sessions.open, stateful=stateful), Script(small, *calls))
    assert [t.text for t in episode.turns if t.role == "output"] == ["```output\n\n```\n", f"```output\n{seen}\n```\n"]


@pytest.mark.parametrize(
    ("code", "output", "status"),
    [
        ("print('a')\n1 / 0", "a\nline 2: ZeroDivisionError: division by zero", "runtime_error"),
        ("def f():\n    return g()\nf()", "line 2: NameError: name 'g' is not defined", "runtime_error"),
        ("print(", "line 1: SyntaxError: '(' was never closed", "syntax_error"),
        ("while True: pass", "TimeoutError: stopped after 1 s", "timeout"),
        ("import os; os.kill(os.getpid(), 9)", "Error: the interpreter has ended (killed)", "killed"),
        ("print('x' * 10**7)", "Error: too much output", "output_limit"),
        ("print('x' * 1000)", "[... 744 characters left out ...]", "passed"),
        ("import sys; n = sys.stdout.buffer.write(bytes([0, 255, 7, 10]))", "\0\ufffd\7", "passed"),
        ("print('<|im_end|><|im_start|>')", "<|im_end|><|im_start|>", "passed"),
    ],
)
def test_what_the_model_sees_of_a_call(small, sessions, code, output, status):
    engine = Script(small, f"```python\n{code}\n```\n", "hm")
    budget = Budget(2000)
    episode = play(make(interpreter, small, budget, open_session=sessions.open), engine)
    inserted = episode.turns[1]
    assert output in inserted.text and inserted.status == status and episode.status == "finished"
    assert len(inserted.text) < 600 and not np.isin(inserted.tokens, small.all_special_ids).any()
    assert small.decode(inserted.tokens) == inserted.text


def test_a_sandbox_that_is_down_is_no_reward(small):
    class Down:
        async def run_async(self, code):
            return CallResult("sandbox_error", stderr="no process could be started")

        def close(self): ...

    episode = play(make(interpreter, small, open_session=Down), Script(small, CALL))
    assert episode.status == "sandbox_error" and not episode.reward.solved


def test_penalty_for_calls_that_fail(small, sessions):
    environment = make(interpreter, small, open_session=sessions.open, failed_call_penalty=0.5)
    episode = play(environment, Script(small, "```python\n1/0\n```\n", CALL, "\\boxed{42}"))
    assert episode.reward.value == 0.5 and episode.reward.parts == {"solved": 1.0, "failed calls": -0.5}


def test_last_code():
    assert last_code("a\n```python\nx = 1\n```\n") == "x = 1\n"
    assert last_code("```py\nx\n```\nthen\n```python\ny\n```output") == "y\n"
    for text in ("no code", "```python\nx = 1\n", "```python\nx\n```\nThe answer", "```\nx\n```\n"):
        assert last_code(text) is None
    assert shortened("abcdef", 6) == "abcdef" and shortened("abcdefgh", 4) == "ab\n[... 4 characters left out ...]\ngh"


# --- feedback


def failing(message: str, status: Any = "wrong_answer"):
    from sandbox.verdict import TestResult, Verdict

    return Verdict(status, (TestResult(status, message),))


ADD = Problem(
    "add", ({"role": "user", "content": "f(x) = x + 2?"},),
    tests=(CallTest("f", (1,), 3), CallTest("f", (5,), 7)), public_tests=(CallTest("f", (1,), 3),),
)  # fmt: skip


def test_failures_come_back_until_the_public_tests_pass(small, pool):
    engine = Script(small, "def f(x): return", "def f(x) return", "def f(x): return x + 2")
    episode = play(make(feedback, small, judge=judged_by(pool)), engine, ADD)
    said = [t.text for t in episode.turns if t.role == "user"]
    assert said[0] == "Your program is wrong:\nf(1) gave None, expected 3\nWrite the whole program again."
    assert "SyntaxError" in said[1] and episode.status == "finished"
    assert episode.attempts == [(False, False, True), (False, False, False), (True, True, True)]
    assert episode.reward.value == pytest.approx(0.8) and episode.reward.parts["invalid"] == -0.2


def test_hidden_tests_decide(small, pool):
    engine = Script(small, "def f(x): return 3")
    episode = play(make(feedback, small, judge=judged_by(pool)), engine, ADD)
    assert episode.attempts == [(True, False, True)] and episode.reward.value == 0 and episode.status == "finished"


def test_turns_are_used_up(small, pool):
    engine = Script(small, *["def f(x): return 0"] * 2)
    episode = play(make(feedback, small, judge=judged_by(pool), max_turns=2, feedback="binary"), engine, ADD)
    assert episode.status == "out_of_turns" and episode.attempts == [(False, False, True)] * 2
    assert episode.turns[1].text == "Your program is wrong. Write the whole program again."


@pytest.mark.parametrize(
    ("budget", "texts", "settings", "penalty"),
    [
        (Budget(500), ["def f(x) return"] * 3, {}, -0.4),
        (Budget(500), ["def f(x) return"] * 3, {"penalize_last": True}, -0.6),
        (Budget(500, turns=1), ["def f(x) return"], {}, 0.0),  # the last one, whatever ends the episode
        (Budget(30), ["def f(x) return"], {}, 0.0),  # what it would be told does not fit
        (Budget(150), ["def f(x) return", "word " * 150], {}, -0.2),  # the last answer is cut
    ],
)
def test_every_answer_but_the_last_must_be_a_program(small, pool, budget, texts, settings, penalty):
    episode = play(make(feedback, small, budget, judge=judged_by(pool), **settings), Script(small, *texts), ADD)
    assert episode.reward.value == pytest.approx(penalty)


def test_an_episode_keeps_the_text_that_was_judged(small, pool, sessions):
    judged = []

    async def judge(problem: Problem, submission: Submission) -> Reward:
        judged.append(submission)
        return await judged_by(pool)(problem, submission)

    engine = Script(small, "```python\ndef f(x): return 0\n```", "```python\ndef f(x): return x + 2\n```")
    episode = play(make(feedback, small, judge=judge), engine, ADD)
    assert episode.submission is judged[-1] is judged[-2]  # of the public tests and of all: extracted once
    assert episode.submitted.text == "```python\ndef f(x): return x + 2\n```" != episode.text
    episode = play(make(feedback, small, Budget(500, turns=1), judge=judge), Script(small, "def f(x): return 0"), ADD)
    assert episode.submission is judged[-1] and episode.submitted.program == "def f(x): return 0"
    # A whole conversation is judged where the output comes back into it.
    environment = make(interpreter, small, open_session=sessions.open)
    episode = play(environment, Script(small, CALL, "It is \\boxed{42}."))
    assert episode.submitted.text == episode.text and episode.reward.solved


def test_random_feedback_is_of_another_problem(small, pool):
    other = Problem("other", tests=(CallTest("g", (8,), 9),))
    environment = make(feedback, small, judge=judged_by(pool), max_turns=2, feedback="random", others=[ADD, other])
    texts = {play(environment, Script(small, *["def f(x): return 0"] * 2), ADD, s).turns[1].text for s in range(1, 3)}
    assert len(texts) == 1 and "expected 3" not in texts.pop()


def test_a_problem_without_public_tests_is_an_error(small, pool):
    with pytest.raises(ValueError, match="problem p has no public tests"):
        play(make(feedback, small, judge=judged_by(pool)), Script(small, "x"))


# --- budgets


def test_tokens(small, sessions):
    environment = make(interpreter, small, Budget(40), open_session=sessions.open)
    episode = play(environment, Script(small, "word " * 50))
    assert episode.status == "truncated" and episode.sampled_length == 40
    episode = play(environment, Script(small, "```python\nprint('a' * 200)\n```\n"))  # its output does not fit
    assert episode.status == "truncated" and [t.role for t in episode.turns] == ["assistant"]


def test_tokens_of_a_turn(small, pool):
    environment = make(feedback, small, Budget(300, turn_tokens=6), judge=judged_by(pool))
    episode = play(environment, Script(small, "word " * 50, "word " * 50, "def f(x): return x + 2 # more"), ADD)
    assert [len(t.tokens) for t in episode.turns if t.sampled] == [6, 6, 6] and episode.status == "out_of_turns"
    assert "<|im_end|><|im_start|>user\nYour program" in whole(small, episode)  # the cut turns were ended


def test_turns(small, sessions):
    environment = make(interpreter, small, Budget(500, turns=2), open_session=sessions.open)
    assert play(environment, Script(small, *[CALL] * 3)).status == "out_of_turns"


def test_wall_time(small, sessions):
    """An episode that never finishes is ended, whether it is the engine or the tool that hangs."""

    class Hangs(Script):
        async def sample(self, prompt, params):
            if not self.texts:
                await asyncio.sleep(60)
            return await super().sample(prompt, params)

    environment = make(interpreter, small, Budget(500, wall_s=0.3), open_session=sessions.open)
    start = time.perf_counter()
    first, second = play(environment, Hangs(small)), play(environment, Hangs(small, CALL))
    assert (first.status, second.status) == ("out_of_time", "out_of_time") and time.perf_counter() - start < 5
    assert first.sampled_length == 0 and second.calls == ["passed"]


def test_waiting_for_the_sandbox_overlaps(small):
    """64 episodes of 4 turns, 0.2 s a call: hardly longer than one of them alone."""

    class Slow:
        async def run_async(self, code):
            await asyncio.sleep(0.2)
            return CallResult("passed", stdout="42\n")

        def close(self): ...

    class Many(Script):
        async def sample(self, prompt, params):
            await asyncio.sleep(0.01)
            self.texts.append(CALL if len(self.prompts) < 3 * 64 else "\\boxed{42}")
            return await super().sample(prompt, params)

    environment = make(interpreter, small, open_session=Slow, max_calls=3)
    start = time.perf_counter()
    groups = collect(Many(small), environment, [Problem(str(i), (USER,), answer="42") for i in range(8)], 8, (0,))
    seconds = time.perf_counter() - start
    episodes = [e for g in groups for e in g.episodes]
    assert all(e.reward.solved and len(e.calls) == 3 for e in episodes)
    longest = max(e.timings["sample"] + e.timings["tool"] for e in episodes)
    assert 0.6 < seconds < 1.3 * max(longest, 0.7)


def test_one_turn_is_one_request(small):
    engine = Script(small, "\\boxed{42}")
    episode = play(make(single_turn, small), engine)
    assert episode.reward.solved and engine.released == [] and len(episode.turns) == 1
    assert dataclasses.asdict(episode.reward)["parts"] == {"solved": 1.0}

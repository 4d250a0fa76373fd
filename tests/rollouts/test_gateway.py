"""Agents from outside: one conversation a session, in the very tokens that were sampled."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import random
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from played import USER, Script, make, whole

from jaxrl.config.rules import check_settings
from jaxrl.errors import UserError
from jaxrl.runs.tokenizer import train_tokenizer
from rollouts.engine import UnsupportedError
from rollouts.environments import agent
from rollouts.environments.dialogue import Budget
from rollouts.episode import Problem

SCRIPT = Path(__file__).parents[1] / "support" / "talking_agent.py"
PROBLEM = Problem("p", (USER,), answer="42")


def trained():
    return train_tokenizer(
        ["system user assistant You are an agent. What is 6 * 7? \\boxed{42} Again. It is."] * 3, 400
    )


@pytest.fixture(scope="module")
def tokenizer():
    return trained()


def played(tokenizer, mode: str, *texts: str, problems=(PROBLEM,), budget=Budget(500), **settings):
    engine = Script(tokenizer, *texts)
    environment = make(agent, tokenizer, budget, **{"command": f"{sys.executable} {SCRIPT} {mode}"} | settings)

    async def all_of_them():
        return await asyncio.gather(*(environment.play(p, engine, 5) for p in problems))

    return engine, asyncio.run(all_of_them())


@pytest.mark.parametrize("mode", ["plain", "stream"])
def test_an_agent_plays_an_episode(tokenizer, mode):
    engine, (episode,) = played(tokenizer, mode, "It is 41.", "It is \\boxed{42}.")
    assert episode.status == "finished" and episode.reward.solved
    assert whole(tokenizer, episode) == (
        "<|im_start|>system\nYou are an agent.<|im_end|><|im_start|>user\nWhat is 6 * 7?<|im_end|>"
        "<|im_start|>assistant\nIt is 41.<|im_end|><|im_start|>user\nAgain.<|im_end|><|im_start|>assistant\n"
        "It is \\boxed{42}.<|im_end|>"
    ).replace("<|im_end|><|im_start|>", _between(tokenizer))
    assert [t.sampled for t in episode.turns] == [True, False, True]
    # What the engine saw last is all that came before, to the token.
    tokens = np.concatenate([episode.prompt, *(t.tokens for t in episode.turns[:-1])])
    assert engine.prompts[-1].tolist() == tokens.tolist()
    assert all((t.logprobs == np.float32(-0.5)).all() for t in episode.turns if t.sampled)
    assert episode.weight_versions == (3, 3) and episode.submission.text == "It is \\boxed{42}."
    assert episode.problem is PROBLEM and len(engine.released) == 1


def _between(tokenizer) -> str:
    rendered = tokenizer.apply_chat_template([USER, {"role": "assistant", "content": "x"}, USER], tokenize=False)
    return "<|im_end|>" + rendered.split("x<|im_end|>")[1].split("<|im_start|>")[0] + "<|im_start|>"


def test_a_file_is_the_submission(tokenizer):
    _, (episode,) = played(tokenizer, "submit", "41", "41")
    assert episode.reward.solved and episode.submission.text == "\\boxed{42}"


def test_tokens_that_do_not_encode_to_themselves_stay_as_they_were(tokenizer):
    """Sampled one letter at a time: encoding the text again would give other tokens."""

    class Letters(Script):
        async def sample(self, prompt, params):
            (completion,) = await super().sample(prompt, params)
            text = self.tokenizer.decode(completion.tokens, skip_special_tokens=True)
            tokens = [t for letter in text for t in self.tokenizer.encode(letter)] + [int(completion.tokens[-1])]
            assert tokens != completion.tokens.tolist()
            zeros = np.zeros(len(tokens), np.float32)
            return [dataclasses.replace(completion, tokens=np.array(tokens, np.int32), logprobs=zeros)]

    engine = Letters(tokenizer, "It is an agent.", "What is 6 * 7?")
    environment = make(agent, tokenizer, command=f"{sys.executable} {SCRIPT} plain")
    episode = asyncio.run(environment.play(PROBLEM, engine, 5))
    first = episode.turns[0].tokens
    assert tokenizer.decode(first[:-1]) == "It is an agent." and len(first) == len("It is an agent.") + 1
    assert engine.prompts[-1][len(episode.prompt) :][: len(first)].tolist() == first.tolist()


@pytest.mark.parametrize(
    ("mode", "settings", "reason"),
    [
        (
            "changed",
            {},
            "messages[2] is not what was said: it was 'assistant' 'It is 41.', and is 'assistant' 'something",
        ),
        ("fails", {}, "the agent ended with 1: I cannot do this"),
        ("silent", {}, "the agent has asked the model nothing and submitted nothing"),
        ("greedy", {}, "temperature = 0.0 must be 1, as this run samples"),
        ("plain", {"command": "sh -c 'exit 255'"}, "the agent ended with 255: "),
        ("plain", {"command": "sh -c 'kill -9 $$'"}, "the agent ended with 137: "),
        (
            "plain",
            {"command": "/no/such/agent"},
            "rollout.environment.command: the agent ended with 127: /no/such/agent: No such file or directory",
        ),
    ],
)
def test_an_agent_that_fails_is_not_trained_on(tokenizer, mode, settings, reason):
    engine = Script(tokenizer, "It is 41.", "42", "42")
    environment = make(agent, tokenizer, **{"command": f"{sys.executable} {SCRIPT} {mode}"} | settings)
    episode = asyncio.run(environment.play(PROBLEM, engine, 5))
    assert episode.status == "sandbox_error" and episode.reward.value == 0
    assert reason in episode.reward.verdict.stderr


def test_sampling_parameters_may_be_ignored(tokenizer):
    _, (episode,) = played(tokenizer, "greedy", "41", "\\boxed{42}", ignore_sampling=True)
    assert episode.reward.solved


def test_an_agent_that_does_not_end_is_ended(tokenizer):
    start = time.monotonic()
    _, (episode,) = played(tokenizer, "forever", "\\boxed{42}", agent_s=3.0)
    assert time.monotonic() - start < 30 and episode.reward.solved and episode.status == "finished"


def test_a_conversation_that_is_too_long_is_cut(tokenizer):
    _, (episode,) = played(tokenizer, "plain", "It is 41 or so, I think.", "42", budget=Budget(8))
    assert episode.status == "truncated" and sum(len(t.tokens) for t in episode.turns) <= 8


def test_many_agents_at_once_keep_apart(tokenizer):
    problems = [Problem(f"p{i}", ({"role": "user", "content": f"What is {i}?"},), answer="42") for i in range(6)]
    engine, episodes = played(tokenizer, "plain", *["It is \\boxed{42}."] * 12, problems=problems, concurrency=3)
    for i, episode in enumerate(episodes):
        assert f"What is {i}?" in tokenizer.decode(episode.prompt) and episode.reward.solved
    assert len(engine.prompts) == 12


def served(tokenizer, **settings):
    """An environment whose agents come from elsewhere."""
    environment = make(agent, tokenizer, **settings)
    environment.served = True
    return environment


def test_an_environment_without_a_command_is_refused(tokenizer):
    with pytest.raises(UnsupportedError, match=r"rollout\.environment\.command is empty"):
        asyncio.run(make(agent, tokenizer).play(PROBLEM, Script(tokenizer), 5))


@pytest.mark.parametrize(
    ("settings", "message"), [({"command": "a 'b"}, "No closing quotation"), ({"port": 70000}, "port")]
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises((ValueError, UserError), match=message):
        check_settings(agent.Settings(**settings), "rollout.environment")


class Slow(Script):
    async def sample(self, prompt, params):
        await asyncio.sleep(2.0)
        return await super().sample(prompt, params)


def test_an_answer_that_comes_too_late_is_not_part_of_the_episode(tokenizer):
    engine = Slow(tokenizer, "late")
    environment = make(agent, tokenizer, command=f"{sys.executable} {SCRIPT} plain", agent_s=1.5)

    async def run():
        episode = await environment.play(PROBLEM, engine, 5)
        turns = len(episode.turns)
        await asyncio.sleep(2.0)
        return episode, turns

    episode, turns = asyncio.run(run())
    assert len(episode.turns) == turns == 0 and episode.status == "sandbox_error"
    assert len(engine.released) == 1 and engine.texts == ["late"]


@pytest.fixture
def lengths():
    """Two lengths of sleep that no other process on this machine has."""
    made = [f"600.{random.randrange(10**9)}" for _ in range(2)]
    yield made
    for length in made:
        subprocess.run(["pkill", "-f", f"^sleep {length}$"])


def running(*lengths: str) -> int:
    """How many of these sleeps are running."""
    listed = subprocess.run(["ps", "-eo", "stat,args"], capture_output=True, text=True).stdout.splitlines()
    return sum(line.split()[1:] == ["sleep", length] and line[0] != "Z" for line in listed for length in lengths)


def sleeper(folder: Path, lengths, then: str = "") -> str:
    """The command of an agent that starts a sleep in a session of its own, one in its own, and does something else."""
    (folder / "agent.py").write_text(
        "import os, signal, subprocess, time\n"
        f"subprocess.Popen(['sleep', '{lengths[0]}'], start_new_session=True)\n"
        f"other = subprocess.Popen(['sleep', '{lengths[1]}'])\n{then}"
    )
    return f"{sys.executable} {folder / 'agent.py'}"


STOPS = "os.kill(os.getppid(), signal.SIGSTOP)\nother.wait()"
KILLS = "time.sleep(1)\nos.kill(os.getppid(), signal.SIGKILL)\ntime.sleep(5)"


def test_what_an_agent_leaves_running_does_not_hold_the_episode(tokenizer, tmp_path, lengths):
    start = time.monotonic()
    _, (episode,) = played(tokenizer, "", command=sleeper(tmp_path, lengths))
    assert time.monotonic() - start < 15 and "asked the model nothing" in episode.reward.verdict.stderr
    assert not running(*lengths)


@pytest.mark.parametrize("then", ["other.wait()", STOPS], ids=["waits", "stops its supervisor"])
def test_a_cancelled_episode_ends_its_agent(tokenizer, tmp_path, lengths, then):
    environment = make(agent, tokenizer, command=sleeper(tmp_path, lengths, then))

    async def cancelled():
        playing = asyncio.create_task(environment.play(PROBLEM, Script(tokenizer), 5))
        while running(*lengths) < 2:
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)
        playing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await playing

    asyncio.run(cancelled())
    assert not running(*lengths)


def test_an_agent_that_kills_its_supervisor_is_not_trained_on(tokenizer, tmp_path, lengths):
    _, (episode,) = played(tokenizer, "", command=sleeper(tmp_path, lengths, KILLS))
    assert episode.status == "sandbox_error" and "the agent ended with -9" in episode.reward.verdict.stderr
    assert not running(lengths[1])  # the other one has left the group


RUN = """
import sys
sys.path[:0] = {path!r}
from test_gateway import played, trained
played(trained(), "", command={command!r})
"""


def test_an_agent_does_not_outlive_a_run_that_is_killed(tmp_path, lengths):
    path = [str(Path(__file__).parent), *sys.path]
    program = RUN.format(path=path, command=sleeper(tmp_path, lengths, "other.wait()"))
    # A run that is killed leaves its agent's empty folder.
    run = subprocess.Popen([sys.executable, "-c", program], env=os.environ | {"TMPDIR": str(tmp_path)})
    try:
        wait_until(lambda: running(*lengths) == 2)
    finally:
        run.kill()
        run.wait()
    wait_until(lambda: not running(*lengths))


def wait_until(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def session(tokenizer):
    """The URL of a session that waits for an agent from elsewhere, and what ends it."""
    engine = Script(tokenizer, "It is 41.", "It is 42.", "43")
    engine.slow = threading.Event()
    environment = served(tokenizer)
    made, episodes = {}, []
    ready = threading.Event()

    async def run():
        playing = asyncio.create_task(environment.play(PROBLEM, engine, 5))
        made["session"] = await environment.opened.get()
        made["url"] = agent.gateway(0).url(made["session"])
        ready.set()
        episodes.append(await playing)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert ready.wait(30)

    def end():
        session = made["session"]
        session.loop.call_soon_threadsafe(session.ended.set)
        thread.join(30)
        return episodes[0]

    yield made["url"], end
    if thread.is_alive():
        end()


def post(url: str, body, path: str = "chat/completions") -> tuple[int, dict]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}/{path}", data)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


HELLO = [{"role": "user", "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": "."}]}]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "the body must be JSON"),
        (b"[1]", 400, "the body must be a JSON object"),
        ({"messages": HELLO, "n": 2}, 400, "n must be 1"),
        ({"messages": HELLO, "max_tokens": -1}, 400, "max_tokens = -1 must be a whole number of at least 1"),
        ({"messages": HELLO, "max_tokens": "8"}, 400, "max_tokens = '8' must be a whole number"),
        ({"messages": HELLO, "stop": 5}, 400, "stop must be a text, or a list of texts"),
        ({"messages": 5}, 400, "messages must be a list"),
        ({"messages": [{"role": [], "content": "x"}]}, 400, "must be an object with a role of: system"),
        ({"messages": HELLO, "tools": [{}]}, 400, "tools is not supported"),
        ({"messages": HELLO, "temperature": 0.5}, 400, "temperature = 0.5 must be 1, as this run samples,"),
        ({"messages": HELLO, "seed": 1}, 400, "seed = 1 must be left out or"),
        ({"messages": HELLO, "stop": [1]}, 400, "stop must be a text, or a list of texts"),
        ({"messages": ["Hello"]}, 400, "messages[0] must be an object with a role"),
        ({"messages": [{"role": "bot", "content": "x"}]}, 400, "must be an object with a role of: system"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "content must be a text"),
    ],
)  # fmt: skip
def test_requests_that_cannot_be_answered_do_not_end_the_session(session, body, status, message):
    url, end = session
    code, response = post(url, body)
    assert code == status and message in response["error"]["message"]
    code, response = post(url, {"messages": HELLO, "temperature": 1.0, "max_tokens": 400})
    assert code == 200 and response["choices"][0]["message"]["content"] == "It is 41."
    assert response["usage"]["completion_tokens"] == len(end().turns[0].tokens)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages must end with a new message of role user or tool"),
        ([{"role": "user", "content": "Hello."}], "messages must end with a new message"),
        ([{"role": "user", "content": "Hi."}], "messages[0] is not what was said"),
        (
            [
                {"role": "user", "content": "Hello."}, {"role": "assistant", "content": "It is 41."},
                {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"},
                {"role": "user", "content": "z"},
            ],
            "messages has an answer that this session did not give",
        ),
    ],
)  # fmt: skip
def test_a_conversation_that_was_changed_ends_the_session(session, messages, message):
    url, end = session
    assert post(url, {"messages": HELLO})[0] == 200
    code, response = post(url, {"messages": messages})
    assert code == 409 and message in response["error"]["message"]
    code, response = post(url, {"messages": HELLO})
    assert code == 410 and "the session is over" in response["error"]["message"]
    assert end().status == "sandbox_error"


def test_two_new_messages_stand_between_two_answers(session, tokenizer):
    url, end = session
    assert post(url, {"messages": HELLO})[0] == 200
    more = [{"role": "tool", "content": "one"}, {"role": "user", "content": "two"}]
    code, _ = post(url, {"messages": [*HELLO, {"role": "assistant", "content": "It is 41."}, *more]})
    assert code == 200
    episode = end()
    assert [t.role for t in episode.turns] == ["assistant", "tool", "user", "assistant"]
    between = tokenizer.decode(np.concatenate([t.tokens for t in episode.turns[1:3]]))
    assert between.count("assistant") == 1 and between.index("one") < between.index("two") < between.index("assistant")


def test_stop_strings_are_left_out_of_what_the_agent_gets(session):
    url, end = session
    code, response = post(url, {"messages": HELLO, "stop": "41."})
    said = response["choices"][0]
    assert code == 200 and said["message"]["content"] == "It is " and said["finish_reason"] == "stop"
    again = [*HELLO, said["message"], {"role": "user", "content": "And?"}]
    assert post(url, {"messages": again})[1]["choices"][0]["message"]["content"] == "It is 42."
    assert [t.text for t in end().turns] == ["It is 41.", "And?", "It is 42."]


def test_other_addresses_are_errors(session):
    url, _ = session
    assert post(url, {}, "completions")[0] == 404
    assert post(url.replace(url.split("/")[3], "x"), {"messages": HELLO})[0] == 404
    with urllib.request.urlopen(f"{url}/models", timeout=30) as response:
        assert json.loads(response.read())["data"][0]["id"] == "jaxrl"


def test_two_requests_at_once_end_the_session(tokenizer):
    async def run():
        environment = served(tokenizer)
        playing = asyncio.create_task(environment.play(PROBLEM, Slow(tokenizer, "a", "b"), 5))
        session = await environment.opened.get()
        url = agent.gateway(0).url(session)
        first = asyncio.create_task(asyncio.to_thread(post, url, {"messages": HELLO}))
        await asyncio.sleep(0.3)
        second = await asyncio.to_thread(post, url, {"messages": HELLO})
        assert second[0] == 409 and "while another one was being answered" in second[1]["error"]["message"]
        await first
        session.ended.set()
        assert (await playing).status == "sandbox_error"

    asyncio.run(run())


def test_a_mistake_in_an_engine_keeps_its_traceback(tokenizer):
    engine = Script(tokenizer)  # has nothing to say: IndexError
    environment = make(agent, tokenizer, command=f"{sys.executable} {SCRIPT} plain")
    with pytest.raises(IndexError):
        asyncio.run(environment.play(PROBLEM, engine, 5))

"""Conversations for SFT: what is read, what is refused, what rejection sampling keeps."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jaxrl.config import Config
from jaxrl.runs.prompts import demonstration_tokens
from jaxrl.runs.tokenizer import train_tokenizer
from jaxrl.tasks.conversations import read_conversations
from jaxrl.tasks.rows import DataError
from jaxrl.traces import episode_messages, main, select, write_traces
from rollouts.episode import Episode, Group, Problem, Reward, Turn

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "6 * 7?"},
    {"role": "assistant", "content": "```python\n6 * 7\n```\n"},
    {"role": "output", "content": "```output\n42\n```\n"},
    {"role": "assistant", "content": "42"},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes."},
]


def written(tmp_path, *rows) -> str:
    path = tmp_path / "traces.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def test_the_loss_is_on_what_the_assistant_says(tmp_path):
    (problem,) = read_conversations(written(tmp_path, {"messages": CONVERSATION, "more": 1}))
    tokenizer = train_tokenizer(["a"], 300)
    config = Config()
    tokens, learned = demonstration_tokens(tokenizer, problem, config.rollout)
    assert tokenizer.decode(tokens[learned]) == "```python\n6 * 7\n```\n42<|im_end|>Yes.<|im_end|>"
    assert tokenizer.decode(tokens[~learned]) == (
        "<|im_start|>system\nBe brief.<|im_end|><|im_start|>user\n6 * 7?<|im_end|><|im_start|>assistant\n"
        "```output\n42\n```\n<|im_start|>user\nSure?<|im_end|><|im_start|>assistant\n"
    )
    config.rollout.learn_inserted = True
    _, all_learned = demonstration_tokens(tokenizer, problem, config.rollout)
    assert all_learned.sum() > learned.sum() and not all_learned[: learned.argmax()].any()


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (None, "row has no field 'messages'"),
        ([], "messages must be a list"),
        (
            [{"role": "bot", "content": "x"}],
            r"messages\[0\]: role must be one of system, user",
        ),
        ([{"role": "user", "content": 3}], r"messages\[0\]: content must be a text, is the number 3"),
        (
            [CONVERSATION[1], *[{"role": "assistant", "content": "x"}] * 2],
            r"messages\[1\] and \[2\] are both the assistant's; make them one message",
        ),
        (CONVERSATION[:2], ".* must begin with another message and end with the assistant's"),
        (CONVERSATION[2:3], ".* must begin with another message and end with the assistant's"),
    ],
)
def test_rows_that_are_no_conversations(tmp_path, messages, message):
    good = {"messages": CONVERSATION}
    with pytest.raises(DataError, match=f"traces.jsonl:2: {message}"):
        read_conversations(written(tmp_path, good, {} if messages is None else {"messages": messages}))


def episode(problem: Problem, text: str, solved: bool = True, status="finished") -> Episode:
    turn = Turn("assistant", np.zeros(len(text), np.int32), True, np.zeros(len(text), np.float32), text=text)
    return Episode(problem, np.zeros(3, np.int32), [turn], Reward(float(solved), solved), status, text)


def test_what_passes_is_kept_once(tmp_path):
    p, q = (Problem(name, ({"role": "user", "content": name},)) for name in "pq")
    groups = [
        Group(p, [episode(p, text, text != "wrong") for text in ("a  b", "a b", "wrong", "longest", "c")]),
        Group(q, [episode(q, "cut", status="truncated")]),
    ]  # fmt: skip
    chosen, counts = select(groups, keep=2)
    assert [e.text for e in chosen] == ["c", "a b"]
    assert counts == {"sampled": 6, "not solved": 1, "not finished": 1, "duplicate": 1, "more than wanted": 1}
    write_traces(tmp_path / "traces.jsonl", chosen, Config(), {"model": "m"})
    problems = read_conversations(str(tmp_path / "traces.jsonl"))
    assert [p.demonstration[0]["content"] for p in problems] == ["c", "a b"]  # type: ignore[index]
    assert json.loads((tmp_path / "traces.jsonl").read_text().splitlines()[0])["origin"] == {"model": "m"}
    assert episode_messages(chosen[0], p)[0] == p.messages[0]


def test_turns_with_nothing_between_them_are_one_message():
    """An interpreter's episode stops at every closing fence, and goes on where it was no code to run."""
    p = Problem("p", ({"role": "user", "content": "p"},))
    e = episode(p, "Plan:\n```\n")
    e.turns += episode(p, "6 * 7\n```\nSo 42").turns
    assert episode_messages(e, p)[1:] == [{"role": "assistant", "content": "Plan:\n```\n6 * 7\n```\nSo 42"}]


TINY = [
    "--config=configs/scramble.py", "--config.model.shape.hidden_size=32", "--config.model.shape.intermediate_size=64",
    "--config.model.shape.num_hidden_layers=1", "--config.rollout.slots=8", "--config.traces.problems=4",
    "--config.traces.samples=2",
]  # fmt: skip


def test_a_model_that_solves_nothing_gives_nothing(tmp_path, capsys):
    assert main([*TINY, f"--config.runs_dir={tmp_path}"]) == 1
    assert capsys.readouterr().err == "error: none of 8 episodes solved its problem: there is nothing to learn from\n"

"""Conversations for SFT: what is read, what is refused, what rejection sampling keeps."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jaxrl.config import Config
from jaxrl.config.rules import check_settings
from jaxrl.errors import UserError
from jaxrl.runs.prompts import demonstration_tokens
from jaxrl.runs.tokenizer import train_tokenizer
from jaxrl.tasks.conversations import read_conversations
from jaxrl.tasks.rows import DataError, read_rows
from jaxrl.traces import episode_messages, main, select, uncontaminated, write_traces
from rollouts.environments import feedback
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


def conversation(*turns: tuple[str, str, str | None]) -> Episode:
    made = [
        Turn(role, np.zeros(1, np.int32), role == "assistant", text=text, plain=plain)  # pyright: ignore
        for role, text, plain in turns
    ]
    return Episode(P, np.zeros(3, np.int32), made, Reward(1.0, True), "finished", "")


P = Problem("p", ({"role": "user", "content": "P"},))
THOUGHT = (
    ("assistant", "T", None), ("user", "I", ""), ("assistant", "C1", None), ("user", "FB\nR", "FB"),
    ("assistant", "T2", None), ("user", "I", ""), ("assistant", "C2", None),
)  # fmt: skip


def test_prompts_of_a_strategy_are_stripped():
    """[P+R, T, I, C1, FB, C2] -> [P, T+C1, FB, C2]: what the model thought begins the message with its program."""
    e = conversation(*THOUGHT[:3], ("user", "FB", None), ("assistant", "C2", None))
    said = [("user", "P"), ("assistant", "T\nC1"), ("user", "FB"), ("assistant", "C2")]
    assert [(m["role"], m["content"]) for m in episode_messages(e, P, strip=True)] == said
    whole = [(m["role"], m["content"]) for m in episode_messages(conversation(*THOUGHT), P)]
    assert whole == [("user", "P"), *((role, text) for role, text, _ in THOUGHT)]
    stripped = episode_messages(conversation(*THOUGHT), P, strip=True, learn="last")
    assert [(m["content"], m.get("weight")) for m in stripped] == [
        ("P", None), ("T\nC1", 0), ("FB", None), ("T2\nC2", None),
    ]  # fmt: skip


def test_what_is_written_has_the_prompts_or_not(tmp_path):
    config = Config()
    config.rollout.environment = feedback.Settings(name="feedback", reasoning="Think about it.")
    e = conversation(*THOUGHT)
    for strip, first in ((False, "P\nThink about it."), (True, "P")):
        config.traces.strip_prompts, config.traces.learn = strip, "last"
        check_settings(config)
        write_traces(tmp_path / "traces.jsonl", [e], config, {})
        (problem,) = read_conversations(str(tmp_path / "traces.jsonl"))
        assert problem.messages[0]["content"] == first
        assert [m.get("weight") for m in problem.demonstration if m["role"] == "assistant"][-1] is None  # type: ignore
        _, learned = demonstration_tokens(train_tokenizer(["PTCFB12 Think about it."], 300), problem, config.rollout)
        said = 2 + 1 + 3 * strip  # C2 and its end, with T2 and a line's end before it
        assert learned.sum() == said


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"strip_prompts": True},
            r"traces\.strip_prompts = True needs prompts: rollout.environment.reasoning or instr",
        ),
        ({"max_solutions": 3, "keep": 4}, r"traces\.keep = 4 must not be set with traces.max_solutions"),
        ({"decontaminate_similarity": 0.5}, r"traces\.decontaminate_similarity needs traces.decontaminate"),
    ],
)
def test_settings_that_do_nothing_are_refused(settings, message):
    config = Config()
    for name, value in settings.items():
        setattr(config.traces, name, value)
    with pytest.raises(UserError, match=message):
        check_settings(config)


def test_programs_that_are_nearly_the_same_are_kept_once():
    body = "\n".join(f"    value_{i} = x + {i}" for i in range(30))
    texts = [f"def f(x):\n{body}\n    return {end}" for end in ("value_1", "value_1 ", "value_2", "sum(x for x in y)")]
    other = "def f(x):\n    while x < 100:\n        x *= 2\n    return x"
    groups = [Group(P, [episode(P, text) for text in (*texts, other)])]
    assert len(select(groups, keep=9)[0]) == 4  # a blank at the end is no difference
    chosen, counts = select(groups, keep=9, max_solutions=9, similarity=0.8)
    assert [e.text for e in chosen] == [texts[0], other] and counts["duplicate"] == 3
    assert [e.text for e in select(groups, keep=9, max_solutions=1)[0]] == [texts[0]]  # the first, not the shortest
    assert [e.text for e in select(groups, keep=1)[0]] == [other]


def test_a_share_is_kept():
    groups = [Group(P, [episode(P, f"x = {i}") for i in range(10)])]
    chosen, counts = select(groups, keep=10, keep_share=0.6, seed=1)
    assert len(chosen) == 6 and counts["not drawn"] == 4
    again, other = ([e.text for e in select(groups, 10, keep_share=0.6, seed=seed)[0]] for seed in (1, 2))
    assert [e.text for e in chosen] == again != other


def test_problems_of_a_benchmark_are_left_out(tmp_path, data):
    words = (
        "Write a function that returns the sum of the squares of all even numbers in a list, and 0 for an empty one."
    )
    rows = [{"prompt": words}, {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "a b c"}]}]
    same = Problem("same", ({"role": "user", "content": words.replace("Write a", "Please write a")},))
    short, other = (Problem(text, ({"role": "user", "content": text},)) for text in ("a b c", "a b d"))
    assert uncontaminated([same, short, other], written(tmp_path, *rows), 0.8) == [other]
    changed = Problem("changed", ({"role": "user", "content": words.replace("even", "odd")},))
    assert uncontaminated([changed], written(tmp_path, *rows), 0.8) == [changed]
    assert uncontaminated([changed], written(tmp_path, *rows), 0.5) == []
    with pytest.raises(DataError, match=r"traces.jsonl:1: row has no field 'prompt'"):
        uncontaminated([same], written(tmp_path, {"code": "x"}), 0.8)
    human_eval = str(data / "humaneval" / "HumanEval.jsonl.gz")
    asked = [Problem(r.text("task_id"), prompt=r.text("prompt")) for r in read_rows(human_eval, "test")]
    assert uncontaminated([*asked, other], human_eval, 0.8) == [other]


TINY = [
    "--config=configs/scramble.py", "--config.model.shape.hidden_size=32", "--config.model.shape.intermediate_size=64",
    "--config.model.shape.num_hidden_layers=1", "--config.rollout.slots=8", "--config.traces.problems=4",
    "--config.traces.samples=2",
]  # fmt: skip


def test_a_model_that_solves_nothing_gives_nothing(tmp_path, capsys):
    assert main([*TINY, f"--config.runs_dir={tmp_path}"]) == 1
    assert capsys.readouterr().err == "error: none of 8 episodes solved its problem: there is nothing to learn from\n"

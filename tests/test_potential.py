"""How much there is to learn from each training problem, measured by several agents."""

from __future__ import annotations

import json

import pytest

from jaxrl.config import Config
from jaxrl.errors import UserError
from jaxrl.potential import check_agents, main
from jaxrl.tasks import load_task, scramble
from jaxrl.tasks.curriculum import read_potentials

CONFIG = """
from jaxrl.config import Config
from jaxrl.tasks import scramble
from rollouts.environments import interpreter


def get_config(agent="plain"):
    config = Config(name=f"try_{agent}")
    config.task = scramble.Settings(held_out_problems=4, train_problems=20, demonstrations=20)
    config.model.shape.hidden_size, config.model.shape.num_hidden_layers = 32, 1
    config.rollout.max_new_tokens, config.rollout.max_prompt_length = 16, 256
    config.traces.problems, config.traces.samples = 6, 4
    if agent == "tool":
        config.rollout.environment = interpreter.Settings(max_calls=1)
    if agent == "long":
        config.rollout.max_new_tokens = 17
    return config
"""


def command(tmp_path, agents: str) -> int:
    (tmp_path / "agents.py").write_text(CONFIG)
    return main(["--config", f"{tmp_path / 'agents.py'}", "--agents", agents, f"--config.runs_dir={tmp_path}"])


def test_two_agents_give_a_file_that_a_curriculum_reads(tmp_path, capsys):
    assert command(tmp_path, "plain,tool") == 0
    out = capsys.readouterr().out
    path = tmp_path / "try_plain" / "potential.jsonl"
    assert str(path) in out and "plain  " in out and "tool  " in out and "potential of 6 problems" in out
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        p = row["solved"] / row["n"]
        assert row["n"] == 8 and row["potential"] == pytest.approx(4 * p * (1 - p))
        assert [sum(column) for column in zip(*row["agents"].values())] == [row["solved"], row["n"]]
    task = load_task(scramble.Settings(held_out_problems=4, train_problems=20, demonstrations=20), 0)
    assert [p.id for p, _ in read_potentials(str(path), task.train)] == [task.train[i].id for i in range(6)]
    assert (path.parent / "samples" / "tool.jsonl").exists() and not [*path.parent.glob("*.journal")]
    before = path.read_bytes()
    assert command(tmp_path, "plain,tool") == 0 and path.read_bytes() == before


def test_agents_must_be_one_model_on_one_task(tmp_path, capsys):
    assert command(tmp_path, "plain,long") == 1
    assert "agents plain and long differ in rollout.max_new_tokens; only label, name" in capsys.readouterr().err
    assert command(tmp_path, "plain,plain") == 1
    assert "must be different names with commas between them" in capsys.readouterr().err


def test_a_difference_deep_in_the_settings_is_named():
    other = Config(name="b")
    other.model.shape.hidden_size += 32
    with pytest.raises(UserError, match=r"agents a and b differ in model\.shape\.hidden_size"):
        check_agents({"a": Config(name="a"), "b": other})

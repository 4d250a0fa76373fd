"""Every number of every settings class has a range, and a value outside is refused with one line that names it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any

import pytest
from annotated_types import Ge, Gt, Le, Lt
from conftest import ROOT

from jaxrl.algorithms.policy_gradient import Settings as PolicyGradientSettings
from jaxrl.config import Config, OptimizerConfig
from jaxrl.config.command_line import read_config
from jaxrl.config.plugins import PLUGINS, built_in, make_settings
from jaxrl.config.rules import Infinite, Off, Rule, check_settings, rules_of, settings_in
from jaxrl.errors import UserError
from jaxrl.tasks import functions, mixture
from jaxrl.train import train


def plugin_settings() -> dict[str, Any]:
    """The settings of every plug-in, checked on their own."""
    names = [(kind, name) for kind, plugin in PLUGINS.items() for name in built_in(plugin)]
    settings = {f"{kind}.{name}": make_settings(PLUGINS[kind], name) for kind, name in names}
    settings["task.mixture"].parts = (mixture.Part(functions.Settings()),)
    return settings


def leaves() -> dict[str, tuple[str, Rule]]:
    """(where it stands, its rule) of every plain setting of a config and of all plug-ins, by name."""
    found = {}
    for root, settings in {"config": Config(), **plugin_settings()}.items():
        for where, part in settings_in(settings):
            for name, rule in rules_of(type(part)).items():
                if rule.kind in (int, float, bool, str):
                    found[f"{root}: {where}.{name}".replace(": .", ": ")] = (root, rule)
    return found


LEAVES = leaves()
NUMBERS = [name for name, (_, rule) in LEAVES.items() if rule.kind in (int, float) and not rule.choices]
CHOICES = [name for name, (_, rule) in LEAVES.items() if rule.choices]


def holder_of(name: str) -> tuple[Any, Any, str, str]:
    """(the settings that are checked, those that hold the field, the field, its name in messages)."""
    root, path = name.split(": ")
    settings = Config() if root == "config" else plugin_settings()[root]
    where, _, field = path.rpartition(".")
    return settings, dict(settings_in(settings))[where], field, path


def outside(rule: Rule) -> list[float]:
    """Numbers just beyond each bound, and those that are not numbers."""
    step = 1 if rule.kind is int else 1e-3
    values: list[float] = [] if rule.kind is int else [math.nan, -math.inf]
    values += [math.inf] if rule.kind is float and not rule.of(Infinite) else []
    ge, gt, le, lt = (rule.of(bound) for bound in (Ge, Gt, Le, Lt))
    values += [ge.ge - step] if ge else []
    values += [le.le + step] if le else []
    values += [rule.kind(gt.gt)] if gt and not (rule.of(Off) and gt.gt == 0) else []
    values += [rule.kind(lt.lt)] if lt else []
    return values


def test_every_setting_is_walked():
    assert len(NUMBERS) > 110 and len(CHOICES) > 25 and len(LEAVES) > 180


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_outside_of_their_range_are_refused(name):
    settings, holder, field, path = holder_of(name)
    rule = rules_of(type(holder))[field]
    values = outside(rule)
    assert values and rule.bounds, f"{name} has no range; write it in its annotation"
    before = getattr(holder, field)
    for value in [*values, True, "1", None]:
        setattr(holder, field, (value,) if rule.is_tuple else value)
        with pytest.raises(UserError) as caught:
            check_settings(settings)
        assert str(caught.value).startswith(f"{path} = ") and "\n" not in str(caught.value)
    setattr(holder, field, before)
    check_settings(settings)


@pytest.mark.parametrize("name", CHOICES)
def test_texts_that_are_not_a_choice_are_refused(name):
    settings, holder, field, path = holder_of(name)
    for value in ("not a choice", 3, ("a",)):
        setattr(holder, field, value)
        with pytest.raises(UserError, match=rf"^{path} = ".replace("[", r"\[").replace("]", r"\]")):
            check_settings(settings)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("grpo.group_size=0", r"grpo\.group_size = 0 must be >= 1"),
        ("sft.batch_size=0", r"sft\.batch_size = 0 must be >= 1"),
        ("grpo.steps=-1", r"grpo\.steps = -1 must be >= 0"),
        ("optimizer.max_grad_norm=-1", r"optimizer\.max_grad_norm = -1.0 must be >= 0"),
        ("sft.optimizer.learning_rate=nan", r"sft\.optimizer\.learning_rate = nan must be finite and > 0"),
        ("optimizer.learning_rate=inf", r"optimizer\.learning_rate = inf must be finite and > 0"),
        ("seed=4294967296", r"seed = 4294967296 must be in \[0, 4294967295\]"),
        ("sandbox.workers=-1", r"sandbox\.workers = -1 must be >= 0"),
        ("task.held_out_problems=0", r"task\.held_out_problems = 0 must be >= 1"),
        ("optimizer.b2=1.0", r"optimizer\.b2 = 1.0 must be in \[0, 1\)"),
        ("task.extraction.block=middle", r"task\.extraction\.block = 'middle' must be one of"),
        ("evaluation.k=(0,)", r"evaluation\.k = \(0,\) must be >= 1"),
        ("mesh.data=-2", r"mesh\.data = -2 must be a number of devices, 0 \(chosen\) or -1"),
    ],
)
def test_the_command_line_refuses_in_one_line(argument, message):
    with contextlib.chdir(ROOT), pytest.raises(UserError, match=f"^{message}"):
        task = ["--config.task=humaneval"] if "extraction" in argument else []
        read_config(["--config", "configs/scramble.py", *task, f"--config.{argument}"])


def test_types_set_in_a_config_file_are_checked_too():
    for change, message in (
        ({"seed": 1.5}, "seed = 1.5 must be a whole number"),
        ({"name": 3}, "name = 3 must be a text"),
        ({"optimizer": PolicyGradientSettings()}, "optimizer = .* must be a OptimizerConfig"),
    ):
        with pytest.raises(UserError, match=message):
            check_settings(dataclasses.replace(Config(), **change))
    config = Config()
    config.task.families = "list"  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(UserError, match=r"task\.families = 'list' must be a tuple"):
        check_settings(config)
    check_settings(Config(optimizer=OptimizerConfig(learning_rate=1)))  # a whole number is a number


def test_the_overlong_buffer_is_checked_before_anything_is_sampled():
    config = Config()
    config.grpo.steps, config.rollout.max_new_tokens = 1, 32
    config.grpo.loss = PolicyGradientSettings(overlong="penalty", overlong_buffer=33)
    with pytest.raises(UserError, match=r"overlong_buffer = 33 must be at most rollout\.max_new_tokens = 32"):
        train(config)


def test_a_file_that_is_not_python_is_named(tmp_path):
    (tmp_path / "broken.py").write_text("def get_config(:\n")
    with pytest.raises(UserError, match=r"broken.py:1: not Python"):
        read_config(["--config", str(tmp_path / "broken.py")])


def test_a_config_file_may_define_dataclasses(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom jaxrl.config import Config\n"
        "@dataclass\nclass Mine:\n    seed: int = 7\n"
        "def get_config():\n    return Config(name='mine', seed=Mine().seed)\n"
    )
    assert read_config(["--config", str(tmp_path / "mine.py")]).seed == 7

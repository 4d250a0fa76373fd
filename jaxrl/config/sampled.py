"""Settings of commands that sample outside of training: pass rates, and questions with tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxrl.config.rules import Count, NonNegative, Positive, Share
from jaxrl.errors import UserError


@dataclass
class RatesConfig:
    """Pass rates of a policy's answers (python -m jaxrl.rates)."""

    part: Literal["train", "held_out"] = "train"  # problems of the task
    problems: Count = 0  # of them, evenly spaced; 0: all
    samples: Positive = 16  # answers to each, at rollout.temperature


@dataclass
class SynthesisConfig:
    """Questions with tests, made from code (python -m jaxrl.synthesize)."""

    path: str = ""  # seeds: a folder of .py files or a file of rows with "code"; or a candidates.jsonl, to be solved
    seeds: Count = 0  # of the path, or of the task's problems, at most; 0: all
    # model: asks the run's model; template: makes them from the training problems of config.task, without a model
    writer: Literal["model", "template"] = "model"
    # The program by which tests are filtered. template: the problem's own; none: stops at candidates.jsonl.
    reference: Literal["model", "template", "none"] = "model"
    tests: Positive = 20  # asked for
    temperature: NonNegative = 0.7  # of the questions; reference programs are greedy
    rule: Literal["paper", "code"] = "paper"  # fewest tests a question keeps: paper 5, code 4
    wrong_tests: Share = 0.0  # of the template's tests
    wrong_references: Share = 0.0  # of the template's reference programs

    @property
    def least_tests(self) -> int:
        """Tests that a question must keep: the paper drops those with fewer than 5, the code asks for more than 3."""
        return 5 if self.rule == "paper" else 4

    def check(self, where: str = "synthesis") -> None:
        """Raises UserError for settings that do nothing together."""
        default = SynthesisConfig()
        if self.writer == "template" and self.path:
            raise UserError(f"{where}.path = {self.path!r} has no effect with {where}.writer = 'template'")
        if self.writer == "model" and self.wrong_tests:
            raise UserError(f"{where}.wrong_tests = {self.wrong_tests:g} needs {where}.writer = 'template'")
        if self.reference == "template" and self.writer != "template":
            raise UserError(f"{where}.reference = 'template' needs {where}.writer = 'template'")
        if self.reference != "template" and self.wrong_references:
            raise UserError(
                f"{where}.wrong_references = {self.wrong_references:g} needs {where}.reference = 'template'"
            )
        if self.reference == "none" and self.rule != default.rule:
            raise UserError(f"{where}.rule = {self.rule!r} has no effect with {where}.reference = 'none'")

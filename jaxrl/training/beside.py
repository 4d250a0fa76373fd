"""Evaluations that do not stop training: on an engine of their own, in a thread, of the weights of one step."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

import jax

from jaxrl.config import Config
from jaxrl.errors import UserError
from jaxrl.runs.log import Progress
from jaxrl.training.trainer import Trainer, log_evaluation, measure
from models.lora import copy_trained
from rollouts.episode import Group
from rollouts.jax.engine import JaxEngine


def check_beside(config: Config, processes: int) -> None:
    """Raises UserError where an evaluation cannot have an engine of its own."""
    if config.evaluation.beside and (config.rollout.engine != "jax" or processes > 1):
        raise UserError(
            "evaluation.beside = True needs rollout.engine = 'jax' and one process: the weights of an evaluation are "
            "those of one step, and the sampler's change"
        )


class Beside:
    """One evaluation at a time. `finish` logs what it measured: the order of the log does not depend on time."""

    def __init__(self, t: Trainer):
        self._t = t
        self._engine: JaxEngine | None = None
        self._going: Future[tuple[dict[str, float], list[Group]]] | None = None
        self._of = 0, ""

    def start(self, params: Any, step: int, after: str) -> None:
        """Evaluates these parameters, which the caller may donate as soon as this returns."""
        assert isinstance(self._t.engine, JaxEngine) and self._going is None
        self._engine = self._engine or self._t.engine.another()
        with self._t.policy.turns:
            kept = [jax.block_until_ready(copy_trained(params))]
        self._of, self._going = (step, after), Future()
        # A thread that the interpreter does not wait for, when the run ends by an error.
        threading.Thread(target=self._run, args=(self._going, kept, step), name="evaluation", daemon=True).start()

    def _run(self, going: Future[tuple[dict[str, float], list[Group]]], kept: list[Any], step: int) -> None:
        assert self._engine is not None
        try:
            self._engine.load_weights(kept.pop(), step)  # in memory once
            going.set_result(measure(self._t, self._engine, Progress(quiet=True)))
        except BaseException as error:  # of any type: `finish` raises it
            going.set_exception(error)
        finally:
            self._engine.unload()

    def finish(self) -> str:
        """Waits for the evaluation under way, if there is one, and logs it. Returns as run_evaluation does."""
        if self._going is None:
            return ""
        metrics, groups = self._going.result()
        self._going = None
        return log_evaluation(self._t, metrics, groups, *self._of)

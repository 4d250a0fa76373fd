"""The SFT stage: updates on demonstrations."""

from __future__ import annotations

from jaxrl.algorithms.batch import fill, token_counts
from jaxrl.algorithms.sft import make_objective
from jaxrl.config import Config, row_length
from jaxrl.costs.flops import update_flops
from jaxrl.runs.prompts import demonstration_tokens
from jaxrl.tasks.sampling import shuffled
from jaxrl.training.learner import Learner, TrainState
from jaxrl.training.packing import sft_batch
from jaxrl.training.stages import Progressing, Stage
from jaxrl.training.trainer import Trainer, check_update


def sft_stage(config: Config, start: int) -> Stage:
    """The stage after step `start`."""
    return Stage(
        name="sft",
        start=start,
        end=start + config.sft.steps,
        optimizer=config.sft.optimizer,
        objective=make_objective(),
        begin=Supervised,
    )


class Supervised(Progressing):
    """Each step is one update on the next demonstrations."""

    def __init__(self, t: Trainer, stage: Stage, learner: Learner, state: TrainState, done: int):
        self.t, self.learner = t, learner

    def step(self, state: TrainState, step: int, stage_step: int) -> tuple[TrainState, dict[str, float]]:
        t, config, size = self.t, self.t.config, self.t.config.sft.batch_size
        problems = shuffled(t.task.demonstrations, config.seed, (stage_step - 1) * size, size)
        examples = [demonstration_tokens(t.policy.tokenizer, p, config.rollout) for p in problems]
        batch = sft_batch(examples, row_length=row_length(config), microbatch_rows=config.batch.microbatch_rows)
        state, metrics = self.learner.update(state, batch)
        check_update(t, metrics, batch, step)
        metrics |= {f"batch/{name}": value for name, value in fill(batch).items()}
        metrics["flops"] = metrics["flops/update"] = update_flops(t.policy.config, *token_counts(batch))
        return state, metrics

    def evaluated(self, state: TrainState, step: int) -> None:
        self.t.engine.unload()

"""The reward model's stage: updates on pairs of answers, measured on the pairs of held-out questions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxrl.algorithms.batch import Batch, fill, token_counts
from jaxrl.algorithms.bradley_terry import REJECTED, REWARD, make_reward_objective, pair_margins, pair_weights
from jaxrl.config import Config, row_length
from jaxrl.costs.flops import update_flops, without_vocabulary
from jaxrl.errors import UserError
from jaxrl.runs.reward_model import answer_sequence
from jaxrl.tasks.pairs import Pair, read_pairs, split_pairs
from jaxrl.tasks.sampling import shuffled
from jaxrl.training.learner import Learner, TrainState
from jaxrl.training.packing import first_fit_decreasing
from jaxrl.training.stages import Progressing, Stage
from jaxrl.training.trainer import Trainer, check_update
from models.attention import most_segments

HEADLINE = "accuracy@pairs"


class PairTokens(NamedTuple):
    """A pair as both answers' whole conversations, i32[n] and i32[m], each to the token that ends the answer."""

    pair: Pair
    chosen: np.ndarray
    rejected: np.ndarray

    @property
    def length(self) -> int:
        return len(self.chosen) + len(self.rejected)


def reward_stage(config: Config, start: int) -> Stage:
    """The stage after step `start`."""
    return Stage(
        name="reward",
        start=start,
        end=start + config.reward.steps,
        optimizer=config.reward.optimizer,
        objective=make_reward_objective(),
        begin=Preference,
        samples=False,
    )


class Preference(Progressing):
    """Each step is one update on the next pairs, or on all pairs of the next questions."""

    def __init__(self, t: Trainer, stage: Stage, learner: Learner, state: TrainState, done: int):
        self.t, self.learner, self.config = t, learner, t.config
        settings = t.config.reward
        pairs, held_out = split_pairs(read_pairs(settings.path), settings.held_out, t.config.seed)
        self.of_question: dict[str, list[Pair]] = {}
        for pair in pairs:
            self.of_question.setdefault(pair.question, []).append(pair)
        # What one draw brings: a pair, or all pairs of a question.
        self.units = [[p] for p in pairs] if settings.average == "pair" else [*self.of_question.values()]
        self.held_out = [x for x in map(self.tokens, held_out) if x is not None]
        if held_out and not self.held_out:
            raise UserError(f"reward.path = {settings.path!r}: no held-out pair fits a row (batch.row_length)")
        t.progress.print(f"{len(pairs)} pairs to train on, {len(self.held_out)} held out")
        if done == stage.start and self.config.evaluation.at_start:
            self.evaluate(state, done, "start")

    def tokens(self, pair: Pair) -> PairTokens | None:
        """The pair's tokens; None for one that is too long, where rollout.reject_long_prompts says so."""
        tokenizer, longest = self.t.policy.tokenizer, row_length(self.config)
        both = (answer_sequence(tokenizer, pair.messages, text) for text in (pair.chosen, pair.rejected))
        found = PairTokens(pair, *both)
        positions = self.t.policy.config.max_length
        if found.length <= longest and max(len(found.chosen), len(found.rejected)) <= positions:
            return found
        if self.config.rollout.reject_long_prompts:
            return None
        raise UserError(
            f"{pair.where}: two answers have {found.length} tokens with their prompts, more than a row of {longest} "
            f"(batch.row_length), or one more than the model's {positions} positions; raise the first, or set "
            "rollout.reject_long_prompts"
        )

    def step(self, state: TrainState, step: int, stage_step: int) -> tuple[TrainState, dict[str, float]]:
        t, settings = self.t, self.config.reward
        units = shuffled(self.units, self.config.seed, (stage_step - 1) * settings.batch_size, settings.batch_size)
        drawn = [self.tokens(pair) for unit in units for pair in unit]
        kept = [x for x in drawn if x is not None]
        batch, _ = pair_batch(kept, settings.average, row_length(self.config), self.config.batch.microbatch_rows)
        state, metrics = self.learner.update(state, batch)
        check_update(t, metrics, batch, step)
        metrics |= {f"batch/{name}": value for name, value in fill(batch).items()}
        metrics |= {"pairs": float(len(kept)), "pairs/too_long": float(len(drawn) - len(kept))}
        metrics["tokens"] = float(sum(x.length for x in kept))
        model = without_vocabulary(t.policy.config)
        metrics["flops"] = metrics["flops/update"] = update_flops(model, *token_counts(batch))
        return state, metrics

    def evaluate(self, state: TrainState, step: int, after: str) -> str:
        """Logs accuracy and margin on the held-out pairs, in a record of stage "evaluate"."""
        if not self.held_out:
            return ""
        clock, t = time.perf_counter(), self.t
        batch, places = pair_batch(self.held_out, "pair", row_length(self.config), self.config.batch.microbatch_rows)
        scores = self.learner.outputs(state, batch).heads[REWARD.name]
        margins = np.asarray(pair_margins(scores, batch), np.float64)[tuple(places.T)]
        questions = [x.pair.question for x in self.held_out]
        metrics = pair_metrics(questions, margins, self.config.evaluation.bootstrap)
        metrics["time/evaluate_s"] = time.perf_counter() - clock
        record = {"step": step, "stage": "evaluate", "stage_step": step, "after": after, "headline": HEADLINE}
        t.log.write(record | metrics)
        accuracy, margin = metrics[f"held_out/{HEADLINE}"], metrics["held_out/margin"]
        t.progress.print(f"held-out pairs after {after} (step {step}): {accuracy:.1%} right, margin {margin:.3g}")
        return ""


def pair_batch(
    pairs: Sequence[PairTokens], average: str, row_length: int, microbatch_rows: int
) -> tuple[Batch, np.ndarray]:
    """Both members of a pair side by side in a row, the rejected one first; see jaxrl/algorithms/bradley_terry.py.

    The chosen one's last token is the pair's only learned one: at [row, column], i64[P, 2], the second thing returned.
    """
    rows = first_fit_decreasing([x.length for x in pairs], row_length, max(1, most_segments(row_length) // 2))
    B = max(1, -(-len(rows) // microbatch_rows)) * microbatch_rows
    weights = pair_weights([x.pair.question for x in pairs], average, [(x.pair.chosen, x.pair.rejected) for x in pairs])
    tokens, positions, segment_ids = np.zeros((3, B, row_length), np.int32)
    mask, weight, back = np.zeros((3, B, row_length), np.float32)
    places = np.zeros((len(pairs), 2), np.int64)
    for b, row in enumerate(rows):
        start = 0
        for place, i in enumerate(row):
            for half, sequence in enumerate((pairs[i].rejected, pairs[i].chosen)):
                here = (b, slice(start, start + len(sequence)))
                tokens[here], positions[here] = sequence, np.arange(len(sequence))
                segment_ids[here] = 2 * place + half + 1
                start += len(sequence)
            mask[b, start - 1], weight[b, start - 1], back[b, start - 1] = 1.0, weights[i], len(pairs[i].chosen)
            places[i] = b, start - 1
    zeros = np.zeros((B, row_length), np.float32)
    return Batch(tokens, positions, segment_ids, mask, weight, zeros, zeros, extras={REJECTED: back}), places


def pair_metrics(questions: Sequence[str], margins: np.ndarray, bootstrap: int) -> dict[str, float]:
    """Accuracy (ties count half), mean margin and log loss of pairs with margins f64[P], and how many there are.

    The accuracy's interval is that of other questions: they are drawn anew, each with its pairs.
    """
    right = 0.5 * (1 + np.sign(margins))
    metrics = {
        f"held_out/{HEADLINE}": float(right.mean()),
        "held_out/margin": float(margins.mean()),
        "held_out/loss": float(np.logaddexp(0, -margins).mean()),
        "held_out/n": float(len(margins)),
        "held_out/questions": float(len(set(questions))),
    }
    if bootstrap:
        names = {q: i for i, q in enumerate(dict.fromkeys(questions))}
        sums = np.zeros((len(names), 2))
        np.add.at(sums, [names[q] for q in questions], np.stack([right, np.ones(len(right))], 1))
        drawn = sums[np.random.default_rng(0).integers(0, len(sums), (bootstrap, len(sums)))].sum(1)
        low, high = map(float, np.quantile(drawn[:, 0] / drawn[:, 1], (0.025, 0.975)))
        metrics |= {f"held_out/{HEADLINE}/low": low, f"held_out/{HEADLINE}/high": high}
    return metrics

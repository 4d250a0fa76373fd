"""Episodes and demonstrations to the packed rows of a Batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxrl.algorithms.batch import Array, Batch, fill
from jaxrl.algorithms.credit import is_usable, token_weights, usable
from jaxrl.algorithms.objective import Credit, Objective
from jaxrl.errors import UserError
from models.attention import most_segments
from rollouts.episode import Episode, Group


class Example(NamedTuple):
    """One sequence to train on, not yet packed."""

    name: str  # for error messages
    tokens: np.ndarray  # i32[n]
    learned: np.ndarray  # bool[n], the tokens in the loss: k of them
    logprobs: np.ndarray  # f32[n], the sampler's, 0 where not learned
    advantage: float | np.ndarray  # of all learned tokens, or f64[k]
    extras: Mapping[str, np.ndarray] = {}  # f32[k] by name


def make_batch(
    groups: Sequence[Group], objective: Objective, *, row_length: int, microbatch_rows: int
) -> tuple[Batch, dict[str, float]]:
    """The batch of one update, and what is worth logging about it.

    Credit is computed within each group. Episodes that are not usable are left out of everything: sandbox_errors, and
    nothing_sampled, which ran out of time before any token. Episodes to which the objective gives no credit (None)
    count in their group's statistics but are not trained on. Where zero_credit_trains is off, episodes whose credit is
    0 count in the average but get no row, which saves their whole computation (if no episode has a gradient, the first
    few get rows all the same). B is a multiple of microbatch_rows, at least one; the log counts what was left out
    (without_gradient and the names above). Metrics that are means over the batch's tokens (clip_fraction, entropy,
    kl/*) cover only what is in the rows.

    Raises ValueError, naming the problem, for an episode longer than row_length, one that cannot be trained on (no
    prompt, nothing sampled, missing or non-finite logprobs), and credit that does not fit it.
    """
    examples, filtered, dropped = [], 0, 0
    for group in groups:
        episodes = usable(group)
        if len(episodes) < objective.fewest_usable:
            dropped += 1
            continue
        for episode, credit in zip(episodes, objective.credit(episodes), strict=True):
            if credit is None:
                filtered += 1
            else:
                examples.append(_episode_example(episode, credit, objective))
    lengths = [int(e.learned.sum()) for e in examples]
    weights = objective.token_weights(lengths)
    used = [i for i, e in enumerate(examples) if objective.zero_credit_trains or np.any(e.advantage)]
    # A batch is computed anyway: instead of padding it shows how well sampler and trainer agree.
    used = used or list(range(min(len(examples), microbatch_rows)))
    batch = pack([examples[i] for i in used], weights[used], row_length, microbatch_rows, objective.extras)
    log = {
        "groups": len(groups),
        "groups_without_signal": sum(not objective.signal(g) for g in groups),
        "groups_too_small": dropped,
        "episodes": len(examples),
        "sandbox_errors": sum(e.status == "sandbox_error" for g in groups for e in g.episodes),
        "nothing_sampled": sum(e.status != "sandbox_error" for g in groups for e in g.episodes if not is_usable(e)),
        "overlong_filtered": filtered,
        "without_gradient": len(examples) - len(used),
        "sampled_tokens": sum(lengths),
    } | fill(batch)
    return batch, log


def sft_batch(examples: Sequence[tuple[np.ndarray, np.ndarray]], *, row_length: int, microbatch_rows: int) -> Batch:
    """A batch of demonstrations, tokens i32[n] and learned bool[n]; the loss is the mean over all learned tokens.

    Raises ValueError, naming its index, for a demonstration that begins with a learned token, has none, or is longer
    than row_length.
    """
    sequences = []
    for index, (tokens, learned) in enumerate(examples):
        if not learned.any() or learned[0]:
            raise UserError(f"demonstration {index}: the {'prompt' if learned.any() else 'answer'} has no tokens")
        sequences.append(Example(f"demonstration {index}", tokens, learned, np.zeros(len(tokens), np.float32), 1.0))
    weights = token_weights([int(e.learned.sum()) for e in sequences], "token")
    return pack(sequences, weights, row_length, microbatch_rows)


def pack(
    examples: Sequence[Example],
    weights: np.ndarray,  # [len(examples)], of each learned token in the loss
    row_length: int,
    microbatch_rows: int,
    extras: Sequence[str] = (),  # names in Batch.extras; 0 for an example that does not have one
) -> Batch:
    """Examples in rows of row_length; B as in `make_batch`."""
    for e in examples:
        if len(e.tokens) > row_length:
            raise UserError(f"{e.name}: {len(e.tokens)} tokens do not fit a row of {row_length} (batch.row_length)")
    rows = first_fit_decreasing([len(e.tokens) for e in examples], row_length, most_segments(row_length))
    B = max(1, -(-len(rows) // microbatch_rows)) * microbatch_rows
    tokens, positions, segment_ids = np.zeros((3, B, row_length), np.int32)
    loss_mask, loss_weights, advantage, logprobs = np.zeros((4, B, row_length), np.float32)
    more: dict[str, Array] = {name: np.zeros((B, row_length), np.float32) for name in extras}
    for b, row in enumerate(rows):
        start = 0
        for segment, i in enumerate(row, 1):
            e = examples[i]
            place = (b, slice(start, start + len(e.tokens)))
            tokens[place] = e.tokens
            positions[place] = np.arange(len(e.tokens))
            segment_ids[place] = segment
            loss_mask[place] = e.learned
            loss_weights[place] = e.learned * weights[i]
            logprobs[place] = e.logprobs
            advantage[place][e.learned] = e.advantage
            for name, values in e.extras.items():
                more[name][place][e.learned] = values
            start += len(e.tokens)
    return Batch(tokens, positions, segment_ids, loss_mask, loss_weights, advantage, logprobs, extras=more)


def first_fit_decreasing(lengths: Sequence[int], row_length: int, most: int) -> list[list[int]]:
    """Indices of the items of each row, at most `most`: longest first (ties in order), into the first row with room."""
    rows: list[list[int]] = []
    free = np.zeros(len(lengths), np.int64)
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = np.flatnonzero(free[: len(rows)] >= lengths[i])
        if len(fitting):
            row = int(fitting[0])
        else:
            row = len(rows)
            rows.append([])
            free[row] = row_length
        rows[row].append(i)
        free[row] = free[row] - lengths[i] if len(rows[row]) < most else 0
    return rows


def _episode_example(episode: Episode, credit: Credit, objective: Objective) -> Example:
    """Prompt and turns in one sequence. Raises ValueError naming the problem if it cannot be trained on."""
    name = f"problem {episode.problem.id}"
    if len(episode.prompt) == 0:
        raise ValueError(f"{name}: an episode without prompt tokens; the first token needs one before it")
    if episode.sampled_length == 0:
        raise ValueError(f"{name}: an episode without sampled tokens")
    learned, logprobs = [np.zeros(len(episode.prompt), bool)], [np.zeros(len(episode.prompt), np.float32)]
    fresh = [np.ones(len(episode.prompt), bool)]
    for turn in episode.turns:
        # The sampler's logprobs of inserted tokens are not known; NaN where they are learned: see fill_behaviour.
        unknown = np.full(len(turn.tokens), np.nan if turn.learned else 0.0, np.float32)
        given = turn.logprobs if turn.sampled else unknown
        if given is None or len(given) != len(turn.tokens) or not (np.isfinite(given).all() or not turn.sampled):
            raise ValueError(f"{name}: a sampled turn of {len(turn.tokens)} tokens needs as many finite logprobs")
        learned.append(np.full(len(turn.tokens), turn.learned))
        logprobs.append(given)
        fresh.append(np.ones(len(turn.tokens), bool) if turn.fresh is None else turn.fresh)
    tokens, mask = np.concatenate([episode.prompt, *(t.tokens for t in episode.turns)]), np.concatenate(learned)
    _check_credit(name, credit, int(mask.sum()), objective)
    whole = Example(name, tokens, mask, np.concatenate(logprobs), credit.advantage, credit.extras)
    return _without_stale(whole, np.concatenate(fresh))


def _without_stale(e: Example, fresh: np.ndarray) -> Example:
    """The example with only its fresh tokens learned. They keep the credit that the whole episode gave them."""
    if fresh.all():
        return e
    still = fresh[e.learned]  # bool[k]
    advantage = e.advantage if np.ndim(e.advantage) == 0 else np.asarray(e.advantage)[still]
    extras = {name: values[still] for name, values in e.extras.items()}
    return e._replace(learned=e.learned & fresh, logprobs=e.logprobs * fresh, advantage=advantage, extras=extras)


def _check_credit(name: str, credit: Credit, learned: int, objective: Objective) -> None:
    """Raises ValueError, naming the problem, for numbers that are not finite or not one for each learned token."""
    for what, values in (("advantage", np.asarray(credit.advantage)), *credit.extras.items()):
        where = f"{name}: objective {objective.name}: {what}"
        if what != "advantage" and what not in objective.extras:
            raise ValueError(f"{where} must be among the objective's extras: {', '.join(objective.extras) or 'none'}")
        if np.shape(values) != (learned,) and not (what == "advantage" and values.ndim == 0):
            raise ValueError(f"{where} has shape {np.shape(values)}, must be ({learned},): one for each learned token")
        if not np.isfinite(values).all():
            raise ValueError(f"{where} must be finite")

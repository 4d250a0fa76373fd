"""A reward model as a judge: one number for each answer to a question, from the run that trained it."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxrl.config import Config, RolloutConfig
from jaxrl.costs.flops import forward_flops, without_vocabulary
from jaxrl.distributed.processes import Processes
from jaxrl.errors import UserError
from jaxrl.runs.policy import Policy
from jaxrl.runs.prompts import instructed, instruction
from jaxrl.runs.teacher import check_same, load_frozen
from jaxrl.runs.tokenizer import tokenizer_of
from models.config import ModelConfig, UnsupportedModelError
from models.decoder import Compute, Decoder
from models.files import ConversionError
from models.reward import load_reward_head
from models.sharding import batch_sharding
from models.stored import fingerprint
from rollouts.chat import conversation
from rollouts.episode import Group, Problem

SHORTEST = 64  # tokens of a row; longer rows have twice, four times ... as many, so that few programs are compiled


def answer_sequence(tokenizer: Any, messages: Sequence[dict[str, Any]], answer: str) -> np.ndarray:
    """i32[n]: the conversation by the chat template, to the token that ends the answer, where its score is read.

    What a template puts after that token (a line break) is left out: causality makes it meaningless for the score.
    """
    tokens, learned = conversation(tokenizer, [*messages, {"role": "assistant", "content": answer}])
    return tokens[: int(np.flatnonzero(learned)[-1]) + 1]


def prompt_of(problem: Problem, rollout: RolloutConfig) -> tuple[dict[str, Any], ...]:
    """The messages of a problem as the policy got them, with its instruction."""
    asked = instructed(problem, instruction(rollout, problem))
    return asked.messages or ({"role": "user", "content": asked.prompt or ""},)


@dataclass
class RewardModel:
    """A trained reward model. Its tokenizer is its own: answers come to it as text.

    Scores are known up to a constant for each question; only those of the same question can be compared.
    """

    path: str
    config: ModelConfig
    graphdef: nnx.GraphDef
    params: Any
    weight: jax.Array  # f32[D], of the head
    tokenizer: Any
    compute: Compute
    rows: int  # of one forward pass
    turns: AbstractContextManager[Any]  # as jaxrl.runs.policy.turns_of

    def __post_init__(self) -> None:
        self._program = jax.jit(self._forward)
        self.flops = 0.0  # of all scores so far, padding not counted

    def score_groups(self, groups: Sequence[Group], rollout: RolloutConfig) -> list[list[float]]:
        """The score of each episode's submission, by group."""
        asked = [
            (prompt_of(group.problem, rollout), e.submitted.text or e.text) for group in groups for e in group.episodes
        ]
        scores = iter(self.score(asked).tolist())
        return [[next(scores) for _ in group.episodes] for group in groups]

    def score(self, answers: Sequence[tuple[Sequence[dict[str, Any]], str]]) -> np.ndarray:
        """f64[N], of (messages of the prompt, answer). Raises UserError for one that has more tokens than positions."""
        return self.score_tokens([answer_sequence(self.tokenizer, messages, text) for messages, text in answers])

    def score_tokens(self, sequences: Sequence[np.ndarray]) -> np.ndarray:
        """f64[N], read at the last token of each sequence i32[n]."""
        found, by_length = np.zeros(len(sequences)), defaultdict(list)
        for i, tokens in enumerate(sequences):
            if len(tokens) > self.config.max_length:
                raise UserError(
                    f"reward.model = {self.path!r} has {self.config.max_length} positions, an answer with its prompt "
                    f"has {len(tokens)} tokens; lower rollout.max_new_tokens"
                )
            by_length[SHORTEST * 2 ** max(0, int(np.ceil(np.log2(len(tokens) / SHORTEST))))].append(i)
            self.flops += forward_flops(without_vocabulary(self.config), len(tokens), (len(tokens) + 1) / 2)
        for length, members in by_length.items():
            for start in range(0, len(members), self.rows):
                part = members[start : start + self.rows]
                tokens, ends = np.zeros((self.rows, length), np.int32), np.zeros(self.rows, np.int32)
                for row, i in enumerate(part):
                    tokens[row, : len(sequences[i])], ends[row] = sequences[i], len(sequences[i])
                found[part] = self._run(tokens, ends)[: len(part)]
        return found

    def _run(self, tokens: np.ndarray, ends: np.ndarray) -> np.ndarray:
        with self.turns:
            placed = tokens if self.compute.mesh is None else jax.device_put(tokens, batch_sharding(self.compute.mesh))
            return np.asarray(self._program(self.params, self.weight, placed, ends), np.float64)

    def _forward(self, params: Any, weight: jax.Array, tokens: jax.Array, ends: jax.Array) -> jax.Array:
        """f32[b], of tokens i32[b, T] of which the first `ends` i32[b] are real."""
        model: Decoder = nnx.merge(self.graphdef, params)
        places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        hidden = model(tokens, places, (places < ends[:, None]).astype(jnp.int32), self.compute)
        last = jnp.take_along_axis(hidden, jnp.maximum(ends - 1, 0)[:, None, None], axis=1)[:, 0]
        return jnp.einsum("bd,d->b", last.astype(jnp.float32), weight, precision="highest")


def load_reward_model(
    config: Config,
    compute: Compute,
    folder: Path,
    processes: Processes = Processes(),
    turns: AbstractContextManager[Any] = nullcontext(),
) -> RewardModel:
    """The reward model of config.reward.model. FOLDER/reward_model.json identifies its weights.

    Raises UserError for one that is not a run that trained a reward model, that has other weights than when FOLDER was
    begun, and for several processes.
    """
    path = config.reward.model
    if processes.count > 1:
        raise UserError(
            f"reward.model = {path!r}: processes.count = {processes.count} must be 1: it judges in one process"
        )
    try:
        head = load_reward_head(Path(path).expanduser())
        model, graphdef, params = load_frozen(path, compute)
        tokenizer = tokenizer_of(path)
    except (ConversionError, FileNotFoundError, UnsupportedModelError) as error:
        raise UserError(f"reward.model = {path!r}: {error}") from None
    weights = f"{fingerprint(params)} {hashlib.sha256(head.tobytes()).hexdigest()[:32]}"
    found = {"path": path, "dtype": compute.dtype.name, "fingerprint": weights}
    check_same(folder / "reward_model.json", found, f"reward.model = {path!r}", writes=True)
    rows = config.batch.microbatch_rows
    return RewardModel(path, model, graphdef, params, jnp.asarray(head), tokenizer, compute, rows, turns)


def reward_model_of(config: Config, policy: Policy | None, folder: Path, processes: Processes) -> RewardModel | None:
    """The reward model of config.reward.model, on the policy's devices; None where the config has none.

    An evaluation of another server's model has no devices of its own: the scores are computed on the first one.
    """
    if not config.reward.model:
        return None
    compute, turns = (policy.compute, policy.turns) if policy is not None else (Compute(), nullcontext())
    return load_reward_model(config, compute, folder, processes, turns)

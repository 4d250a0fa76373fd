"""Tunix's side of grpo_step.py: its GRPOLearner with its own Qwen2 model and its vanilla sampler, beta 0."""

from __future__ import annotations

import os
import tempfile
import time
from importlib.metadata import version

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax
import workload as w
from flax import nnx
from tunix.models.qwen2 import model as qwen2
from tunix.rl import rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout

NEVER = 1_000_000  # an end token that the model does not have: completions are cut at the full length


class Words:
    """A tokenizer of the words t0, t1, ...."""

    def encode(self, text: str, **_: object) -> list[int]:
        return [int(word[1:]) for word in text.split()]

    def decode(self, ids: list[int], **_: object) -> str:
        return " ".join(f"t{int(i)}" for i in ids)

    def bos_id(self) -> int:
        return 1

    def eos_id(self) -> int:
        return NEVER

    def pad_id(self) -> int:
        return 0


def make_actor(shape: dict, dtype: jnp.dtype) -> tuple[jax.sharding.Mesh, nnx.Module]:
    """Its Qwen2 of this shape with random weights, and the mesh of one device that it lives on."""
    config = qwen2.ModelConfig(
        num_layers=shape["num_hidden_layers"],
        vocab_size=shape["vocab_size"],
        embed_dim=shape["hidden_size"],
        hidden_dim=shape["intermediate_size"],
        num_heads=shape["num_attention_heads"],
        head_dim=shape["hidden_size"] // shape["num_attention_heads"],
        num_kv_heads=shape["num_key_value_heads"],
        rope_theta=10_000,
        norm_eps=1e-6,
        use_tied_embedding=True,
        dtype=dtype,
        param_dtype=dtype,
    )
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with mesh:
        actor = qwen2.Qwen2(config, rngs=nnx.Rngs(0))
    # Its own random embedding has std 1: the model repeats its prompt's last token, all rewards of a group are equal
    # and the gradient is 0. Like the other peers' weights, 0.02.
    embedding = actor.embedder.input_embedding
    embedding[...] = 0.02 * jax.random.normal(jax.random.key(1), embedding.shape, dtype)
    return mesh, actor


def make_cluster(
    actor: nnx.Module, mesh: jax.sharding.Mesh, work: w.Work, steps: int, micro_batch: int
) -> rl_cluster.RLCluster:
    """Actor and rollouts on the one device; micro_batch in prompts."""
    roles = dict.fromkeys((rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT), mesh)
    return rl_cluster.RLCluster(
        actor=actor,
        reference=None,
        tokenizer=Words(),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh=roles,
            rollout_engine="vanilla",
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optax.adamw(1e-4),
                eval_every_n_steps=10_000,
                max_steps=steps,
                mini_batch_size=work.prompts,
                train_micro_batch_size=micro_batch,
                checkpoint_root_directory=None,
                max_inflight_computations=1,
            ),
            rollout_config=base_rollout.RolloutConfig(
                max_tokens_to_generate=work.new_tokens,
                max_prompt_length=work.prompt_length,
                # Its sampler pads prompts to a power of two and wants one token to spare.
                kv_cache_size=max(32, work.prompt_length) + work.new_tokens + 1,
                temperature=1.0,
                top_p=1.0,
                eos_tokens=[NEVER],
            ),
        ),
    )


def main() -> None:
    options = w.arguments(__doc__)
    dtype, work = jnp.dtype(options.dtype), options.work
    micro_batch = max(1, (options.rows or work.rows) // work.samples)  # in prompts
    mesh, actor = make_actor(work.shape, dtype)
    first = jax.tree.map(np.array, nnx.state(actor, nnx.Param))  # copies: the trainer updates in place
    steps, seconds, clock, tokens = options.steps + w.WARM_UP, [], [time.perf_counter()], [0]

    def reward(prompts: list[str], completions: list[str], **_: object) -> list[float]:
        ids = [[int(t[1:]) for t in c.split()] for c in completions]
        tokens[0] += sum(map(len, ids))
        return [w.reward(row, work) for row in ids]

    def batches():
        for step in range(steps):
            yield {"prompts": np.array([" ".join(f"t{t}" for t in prompt) for prompt in w.prompts(step, work)])}
            now = time.perf_counter()  # asked for the next batch: this step is done
            seconds.append(now - clock[0])
            clock[0] = now

    cluster = make_cluster(actor, mesh, work, steps, micro_batch)
    learner = grpo_learner.GRPOLearner(
        rl_cluster=cluster,
        algo_config=grpo_learner.GRPOConfig(num_generations=work.samples, num_iterations=1, beta=0.0),
        reward_fns=reward,
    )
    os.chdir(tempfile.mkdtemp())
    with mesh:
        learner.train(batches())
    name = f"tunix {version('google-tunix')}, jax {jax.__version__}"
    last = jax.device_get(nnx.state(cluster.actor_trainer.model, nnx.Param))
    changes = jax.tree.map(lambda a, b: float(np.abs(np.float32(a) - np.float32(b)).max()), first, last)
    done = {
        "tokens": tokens[0],
        "updates": cluster.actor_trainer.train_steps,
        "moved": max(jax.tree.leaves(changes)),
    }
    w.report("tunix", name, options, seconds, done)


if __name__ == "__main__":
    main()

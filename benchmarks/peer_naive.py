"""A plain JAX loop at the same shape, as one writes it in an afternoon: the yardstick of what a library must beat."""

from __future__ import annotations

import time
from functools import partial

import jax
import jax.numpy as jnp
import optax
import workload as w

OPTIONS = w.arguments(__doc__)
WORK = OPTIONS.work
SHAPE = WORK.shape
L, D, F, V = SHAPE["num_hidden_layers"], SHAPE["hidden_size"], SHAPE["intermediate_size"], SHAPE["vocab_size"]
H, K = SHAPE["num_attention_heads"], SHAPE["num_key_value_heads"]
Dh = D // H
P, N, B = WORK.prompt_length, WORK.new_tokens, WORK.rows


def init(key):
    shapes = {"q": (D, H * Dh), "k": (D, K * Dh), "v": (D, K * Dh), "o": (H * Dh, D)}
    shapes |= {"g": (D, F), "u": (D, F), "d": (F, D)}

    def layer(key):
        keys = jax.random.split(key, len(shapes))
        return {name: 0.02 * jax.random.normal(k, shape) for k, (name, shape) in zip(keys, shapes.items())}

    return {"embed": 0.02 * jax.random.normal(key, (V, D)), "layers": [layer(k) for k in jax.random.split(key, L)]}


def norm(x):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def rope(x, positions):
    angles = positions[..., None, None] / 10_000 ** (jnp.arange(Dh // 2) * 2 / Dh)
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * jnp.cos(angles) - b * jnp.sin(angles), b * jnp.cos(angles) + a * jnp.sin(angles)], -1)


def forward(params, tokens, positions, cache):
    """Logits, and the cache [L] of (k, v) with the new tokens at their positions."""
    x, new = params["embed"][tokens], []
    rows = jnp.arange(tokens.shape[0])[:, None]
    for p, (ck, cv) in zip(params["layers"], cache):
        h = norm(x)
        q = rope((h @ p["q"]).reshape(*h.shape[:2], H, Dh), positions)
        ck = ck.at[rows, positions].set(rope((h @ p["k"]).reshape(*h.shape[:2], K, Dh), positions))
        cv = cv.at[rows, positions].set((h @ p["v"]).reshape(*h.shape[:2], K, Dh))
        new.append((ck, cv))
        k, v = jnp.repeat(ck, H // K, 2), jnp.repeat(cv, H // K, 2)
        scores = jnp.einsum("bthd,bshd->bhts", q, k) / Dh**0.5
        seen = jnp.arange(ck.shape[1])[None, None] <= positions[:, :, None]
        weights = jax.nn.softmax(jnp.where(seen[:, None], scores, -1e30), -1)
        x = x + jnp.einsum("bhts,bshd->bthd", weights, v).reshape(*h.shape[:2], H * Dh) @ p["o"]
        h = norm(x)
        x = x + (jax.nn.silu(h @ p["g"]) * (h @ p["u"])) @ p["d"]
    return norm(x) @ params["embed"].T, new


def empty():
    return [(jnp.zeros((B, P + N, K, Dh)),) * 2 for _ in range(L)]


@jax.jit
def sample(params, prompts, key):
    logits, cache = forward(params, prompts, jnp.broadcast_to(jnp.arange(P), (B, P)), empty())

    def step(carry, i):
        logits, cache = carry
        token = jax.random.categorical(jax.random.fold_in(key, i), logits)
        logits, cache = forward(params, token[:, None], jnp.full((B, 1), P + i), cache)
        return (logits[:, 0], cache), token

    return jax.lax.scan(step, (logits[:, -1], cache), jnp.arange(N))[1].T


@partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def update(optimizer, params, state, tokens, advantages):
    def loss(params):
        logits, _ = forward(params, tokens, jnp.broadcast_to(jnp.arange(P + N), tokens.shape), empty())
        logprobs = jnp.take_along_axis(jax.nn.log_softmax(logits[:, P - 1 : -1]), tokens[:, P:, None], -1)[..., 0]
        ratio = jnp.exp(logprobs - jax.lax.stop_gradient(logprobs))
        return -jnp.mean(jnp.minimum(ratio * advantages, jnp.clip(ratio, 0.8, 1.2) * advantages))

    updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state


def main() -> None:
    params, optimizer, seconds, tokens = init(jax.random.key(0)), optax.adamw(1e-4), [], 0
    first, state = jax.device_get(params), optimizer.init(params)
    steps = OPTIONS.steps + w.WARM_UP
    for step in range(steps):
        start = time.perf_counter()
        prompts = jnp.repeat(jnp.array(w.prompts(step, WORK)), WORK.samples, 0)
        sampled = sample(params, prompts, jax.random.key(step))
        rewards = jnp.array([w.reward(row, WORK) for row in sampled.tolist()]).reshape(WORK.prompts, WORK.samples)
        advantages = ((rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, keepdims=True) + 1e-4)).reshape(B, 1)
        params, state = update(optimizer, params, state, jnp.concatenate([prompts, sampled], 1), advantages)
        jax.block_until_ready(params)
        seconds.append(time.perf_counter() - start)
        tokens += sampled.size
    moved = max(float(abs(a - b).max()) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(first)))
    w.report("naive", f"jax {jax.__version__}", OPTIONS, seconds, {"tokens": tokens, "updates": steps, "moved": moved})


if __name__ == "__main__":
    main()

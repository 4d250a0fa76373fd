"""The update: microbatched gradients of a loss over packed rows, then one optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from jaxrl.algorithms import LossMetrics, combine, summarize
from jaxrl.batch import Batch
from jaxrl.config import OptimizerConfig
from models.decoder import Compute, Decoder
from models.sharding import batch_sharding, mesh_size, param_shardings
from models.vocabulary import token_logprobs

Params = Any  # nnx.State of the decoder
Loss = Callable[[jax.Array, Batch], tuple[jax.Array, LossMetrics]]


class TrainState(NamedTuple):
    """Parameters and the optimizer's state."""

    params: Params
    opt_state: optax.OptState


class Learner:
    """Gradients and updates of one loss.

    `update` cuts the batch into microbatches of `microbatch_rows` rows; because the loss is a sum over tokens, the
    result does not depend on the cut but for rounding. All shapes are fixed by the configuration, so each of the
    programs below is compiled once.

    Args:
        graphdef: of the Decoder.
        loss: (logprobs f32[b, T], microbatch) -> (loss, LossMetrics), see jaxrl.algorithms.
        temperature: the logprobs are those of softmax(logits / temperature), as the sampler's are.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        loss: Loss,
        optimizer: optax.GradientTransformation,
        *,
        compute: Compute = Compute(),
        temperature: float = 1.0,
        microbatch_rows: int = 16,
    ):
        self.optimizer, self.microbatch_rows, self.compute = optimizer, microbatch_rows, compute
        forward = partial(_logprobs, graphdef, compute, temperature)

        def objective(params: Params, batch: Batch) -> tuple[jax.Array, LossMetrics]:
            logprobs, entropy = forward(params, batch)
            value, metrics = loss(logprobs, batch)
            sums = {**metrics.sums, "entropy": jnp.sum(entropy * batch.loss_mask)}
            return value, LossMetrics(sums, metrics.maxima)

        def pinned(params: Params) -> Params:
            """As `param_shardings` has it, whatever the compiler would like better: buffers are used again."""
            if compute.mesh is None:
                return params
            return jax.lax.with_sharding_constraint(params, param_shardings(params, compute.mesh))

        def accumulate(params: Params, total: Params, batch: Batch) -> tuple[Params, jax.Array, LossMetrics]:
            (value, metrics), gradient = jax.value_and_grad(objective, has_aux=True)(params, batch)
            return pinned(jax.tree.map(jnp.add, total, gradient)), value, metrics

        def apply(state: TrainState, gradient: Params) -> tuple[TrainState, jax.Array]:
            updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
            norm = optax.tree.norm(gradient)
            return TrainState(pinned(optax.apply_updates(state.params, updates)), opt_state), norm

        self._accumulate = jax.jit(accumulate, donate_argnums=1)
        self._apply = jax.jit(apply, donate_argnums=0)
        self._logprobs = jax.jit(lambda params, batch: forward(params, batch)[0])
        self._zeros = jax.jit(lambda params: pinned(jax.tree.map(jnp.zeros_like, params)))

    def init(self, params: Params) -> TrainState:
        """A state with a fresh optimizer."""
        return TrainState(params, jax.jit(self.optimizer.init, out_shardings=self.state_shardings(params))(params))

    def state_shardings(self, params: Params) -> Any:
        """Of the optimizer's state: what belongs to a parameter is sharded as it is; None: on one device."""
        mesh = self.compute.mesh
        if mesh is None:
            return None
        shardings = {
            path: sharding.spec for path, sharding in jax.tree_util.tree_leaves_with_path(param_shardings(params, mesh))
        }

        def sharding(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
            names = next((shardings[path[i:]] for i in range(len(path)) if path[i:] in shardings), ())
            whole = (n if s % mesh_size(mesh, n) == 0 else None for n, s in zip(names, leaf.shape))
            return NamedSharding(mesh, PartitionSpec(*whole))

        return jax.tree_util.tree_map_with_path(sharding, jax.eval_shape(self.optimizer.init, params))

    def update(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, float]]:
        """One optimizer step on the batch. The old state's buffers are used up."""
        gradient, values, metrics = self._zeros(state.params), [], []
        for microbatch in self.microbatches(batch):
            gradient, value, measured = self._accumulate(state.params, gradient, microbatch)
            values.append(value)
            metrics.append(measured)
        state, norm = self._apply(state, gradient)
        total = metrics[0]
        for measured in metrics[1:]:
            total = combine(total, measured)
        host = jax.device_get({**summarize(total), "loss": sum(values), "grad_norm": norm})
        return state, {name: float(value) for name, value in host.items()}

    def logprobs(self, params: Params, batch: Batch) -> np.ndarray:
        """f32[B, T]: the logprob of each token under `params`, 0 for the first of a row."""
        rows = [self._logprobs(params, microbatch) for microbatch in self.microbatches(batch)]
        return np.concatenate(jax.device_get(rows))

    def programs(self, state: TrainState, batch: Batch) -> dict[str, tuple[Any, tuple[Any, ...]]]:
        """The compiled programs by name, each with the arguments that it gets for this state and microbatch.

        To lower them ahead of time state and batch may be ShapeDtypeStructs.
        """
        gradient = state.params
        return {
            "accumulate": (self._accumulate, (state.params, gradient, batch)),
            "apply": (self._apply, (state, gradient)),
            "logprobs": (self._logprobs, (state.params, batch)),
        }

    def microbatches(self, batch: Batch) -> Iterator[Batch]:
        """The batch in parts of microbatch_rows rows, on the mesh."""
        for start in range(0, len(batch.tokens), self.microbatch_rows):
            part = jax.tree.map(lambda a, s=start: a[s : s + self.microbatch_rows], batch)
            mesh = self.compute.mesh
            yield part if mesh is None else jax.device_put(part, batch_sharding(mesh, self.compute.context))


def make_optimizer(config: OptimizerConfig, steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW (arXiv 1711.05101) behind a clip of the global norm, and its learning rate as a function of the step.

    Norms and biases are not decayed. Raises ValueError for an unknown schedule.
    """
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(config.learning_rate, max(1, steps - config.warmup_steps))
    elif config.schedule == "constant":
        after = optax.constant_schedule(config.learning_rate)
    else:
        raise ValueError(f"optimizer.schedule = {config.schedule!r} must be one of: constant, cosine")
    warmup = optax.linear_schedule(
        config.learning_rate / (config.warmup_steps + 1), config.learning_rate, config.warmup_steps
    )
    schedule = optax.join_schedules([warmup, after], [config.warmup_steps]) if config.warmup_steps else after
    clip = optax.clip_by_global_norm(config.max_grad_norm) if config.max_grad_norm else optax.identity()
    adamw = optax.adamw(schedule, config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=_decayed)
    return optax.chain(clip, adamw), schedule


def _decayed(params: Params) -> Any:
    """True for matrices, False for norms and biases."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not _is_norm_or_bias(path), params)


def _is_norm_or_bias(path: tuple[Any, ...]) -> bool:
    names = [str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey)]
    return names[-1].endswith(("norm", "bias"))


def _logprobs(
    graphdef: nnx.GraphDef, compute: Compute, temperature: float, params: Params, batch: Batch
) -> tuple[jax.Array, jax.Array]:
    """Logprob and entropy f32[b, T] of the distribution that each token was drawn from; 0 for a row's first token."""
    model: Decoder = nnx.merge(graphdef, params)
    tokens = jnp.asarray(batch.tokens)
    hidden = model(tokens, jnp.asarray(batch.positions), jnp.asarray(batch.segment_ids), compute)
    # All of a row's tokens, the last one's successor too, so that rows are cut evenly over devices.
    following = jnp.roll(tokens, -1, axis=1)
    of_following = token_logprobs(
        hidden, following, model.unembedding(), temperature, mesh=compute.mesh, context=compute.context
    )
    logprobs, entropy = (jnp.pad(x[:, :-1], ((0, 0), (1, 0))) for x in of_following)
    return logprobs, entropy

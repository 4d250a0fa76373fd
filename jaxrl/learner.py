"""The update: microbatched gradients of a loss over packed rows, then one optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from jaxrl.algorithms import LossMetrics, combine, summarize
from jaxrl.batch import Batch
from jaxrl.optimizer import check_host_memory, state_shardings, to_device
from models.decoder import Compute, Decoder
from models.lora import join_params, split_params
from models.sharding import batch_sharding, param_shardings
from models.vocabulary import token_logprobs

Params = Any  # nnx.State of the decoder
Loss = Callable[[jax.Array, Batch], tuple[jax.Array, LossMetrics]]


class TrainState(NamedTuple):
    """Parameters, all of them, and the optimizer's state of those that are trained."""

    params: Params
    opt_state: optax.OptState


class Learner:
    """Gradients and updates of one loss.

    `update` cuts the batch into microbatches of `microbatch_rows` rows; because the loss is a sum over tokens, the
    result does not depend on the cut but for rounding. All shapes are fixed by the configuration, so each of the
    programs below is compiled once. Of a model with adapters only these have gradients and optimizer state, and only
    their buffers are used up (models/lora.py).

    Args:
        graphdef: of the Decoder.
        loss: (logprobs f32[b, T], microbatch) -> (loss, LossMetrics), see jaxrl.algorithms.
        temperature: the logprobs are those of softmax(logits / temperature), as the sampler's are.
        offload: the optimizer's state is in host memory between updates; `make_optimizer` must know it too.
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
        offload: bool = False,
    ):
        self.optimizer, self.microbatch_rows, self.compute = optimizer, microbatch_rows, compute
        self.offload = offload
        forward = partial(_logprobs, graphdef, compute, temperature)

        def objective(trained: Params, frozen: Params, batch: Batch) -> tuple[jax.Array, LossMetrics]:
            logprobs, entropy = forward(join_params(trained, frozen), batch)
            value, metrics = loss(logprobs, batch)
            sums = {**metrics.sums, "entropy": jnp.sum(entropy * batch.loss_mask)}
            return value, LossMetrics(sums, metrics.maxima)

        def pinned(params: Params) -> Params:
            """As `param_shardings` has it, whatever the compiler would like better: buffers are used again."""
            if compute.mesh is None:
                return params
            return jax.lax.with_sharding_constraint(params, param_shardings(params, compute.mesh))

        def gradient(params: Params, batch: Batch) -> tuple[Params, jax.Array, LossMetrics]:
            (value, metrics), gradient = jax.value_and_grad(objective, has_aux=True)(*split_params(params), batch)
            return pinned(gradient), value, metrics

        def accumulate(params: Params, total: Params, batch: Batch) -> tuple[Params, jax.Array, LossMetrics]:
            part, value, metrics = gradient(params, batch)
            return pinned(jax.tree.map(jnp.add, total, part)), value, metrics

        def apply(trained: TrainState, gradient: Params) -> tuple[TrainState, jax.Array, Params]:
            gradient = jax.tree.map(lambda g: g.astype(jnp.float32), gradient)
            updates, opt_state = optimizer.update(gradient, trained.opt_state, trained.params)
            norm = optax.tree.norm(gradient)
            trained = TrainState(optax.apply_updates(trained.params, updates), opt_state)
            # Given back, the updates take the gradient's place while the moments' pieces come and go.
            return trained, norm, updates if offload else None

        self._gradient = jax.jit(gradient)
        self._accumulate = jax.jit(accumulate, donate_argnums=1)
        self._apply = apply
        self._applying: Callable[..., Any] | None = None
        # Whole on every device, so that each process can read all of it.
        whole = None if compute.mesh is None else NamedSharding(compute.mesh, PartitionSpec())
        self._logprobs = jax.jit(lambda params, batch: forward(params, batch)[0], out_shardings=whole)
        self._zeros = jax.jit(lambda trained: pinned(jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), trained)))

    def init(self, params: Params) -> TrainState:
        """A state with a fresh optimizer. Raises ValueError where it cannot be in host memory as it should."""
        if self.offload:
            check_host_memory(params, "optimizer.offload")
        trained, _ = split_params(params)
        return TrainState(params, jax.jit(self.optimizer.init, out_shardings=self.state_shardings(params))(trained))

    def state_shardings(self, params: Params) -> Any:
        """Where the optimizer's state is: what belongs to a parameter is sharded as it is."""
        mesh, (trained, _) = self.compute.mesh, split_params(params)
        shardings = jax.tree.map(lambda x: x.sharding, trained) if mesh is None else param_shardings(trained, mesh)
        return state_shardings(self.optimizer, trained, shardings, self.offload)

    def update(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, float]]:
        """One optimizer step on the batch. The old state's buffers are used up, but for the frozen parameters'."""
        (trained, frozen), values, metrics = split_params(state.params), [], []
        # One microbatch needs no sum to add to, and so neither its memory nor its time.
        gradient = self._zeros(trained) if len(batch.tokens) > self.microbatch_rows else None
        for microbatch in self.microbatches(batch):
            if gradient is None:
                gradient, value, measured = self._gradient(state.params, microbatch)
            else:
                gradient, value, measured = self._accumulate(state.params, gradient, microbatch)
            values.append(value)
            metrics.append(measured)
        before = TrainState(trained, state.opt_state)
        (trained, opt_state), norm, _ = self.apply_program(before)(before, gradient)
        state = TrainState(join_params(trained, frozen), opt_state)
        # Added up on the host: on the device each sum of two scalars would be a program and a dispatch of its own.
        values, metrics, norm = jax.device_get((values, metrics, norm))
        host = summarize(reduce(combine, metrics)) | {"loss": sum(values), "grad_norm": norm}
        return state, {name: float(value) for name, value in host.items()}

    def apply_program(self, trained: TrainState) -> Callable[..., tuple[TrainState, jax.Array, Params]]:
        """The jitted step of the optimizer, on the trained parameters and its state.

        (state, gradient) -> (the next state, the gradient's norm, what is left).

        The state's leaves, which may be abstract, say where the next one's are: on the same devices, cut the same way,
        in the same memory. So its buffers are used again.
        """
        if self._applying is None:
            shardings = jax.tree.map(lambda x: x.sharding, trained)
            donated, left = ((0, 1), shardings.params) if self.offload else (0, None)
            self._applying = jax.jit(self._apply, donate_argnums=donated, out_shardings=(shardings, None, left))
        return self._applying

    def logprobs(self, params: Params, batch: Batch) -> np.ndarray:
        """f32[B, T]: the logprob of each token under `params`, 0 for the first of a row.

        Parameters in host memory are on the devices during the call only.
        """
        params = to_device(params)
        rows = [self._logprobs(params, microbatch) for microbatch in self.microbatches(batch)]
        return np.concatenate(jax.device_get(rows))

    def programs(self, state: TrainState, batch: Batch) -> dict[str, tuple[Any, tuple[Any, ...]]]:
        """The compiled programs by name, each with the arguments that it gets for this state and microbatch.

        To lower them ahead of time state and batch may be ShapeDtypeStructs.
        """
        trained, _ = split_params(state.params)
        gradient = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.float32, sharding=p.sharding), trained)
        before = TrainState(trained, state.opt_state)
        return {
            "accumulate": (self._accumulate, (state.params, gradient, batch)),
            "apply": (self.apply_program(before), (before, gradient)),
            "logprobs": (self._logprobs, (state.params, batch)),
        }

    def microbatches(self, batch: Batch) -> Iterator[Batch]:
        """The batch in parts of microbatch_rows rows, on the mesh."""
        for start in range(0, len(batch.tokens), self.microbatch_rows):
            part = jax.tree.map(lambda a, s=start: a[s : s + self.microbatch_rows], batch)
            mesh = self.compute.mesh
            yield part if mesh is None else _placed(part, batch_sharding(mesh))


def _placed(batch: Batch, sharding: NamedSharding) -> Batch:
    """Host arrays, the same in all processes, on the devices; each process places its part."""
    if sharding.is_fully_addressable:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda a: jax.make_array_from_callback(a.shape, sharding, lambda part: a[part]), batch)


def _logprobs(
    graphdef: nnx.GraphDef, compute: Compute, temperature: float, params: Params, batch: Batch
) -> tuple[jax.Array, jax.Array]:
    """Logprob and entropy f32[b, T] of the distribution that each token was drawn from; 0 for a row's first token."""
    model: Decoder = nnx.merge(graphdef, params)
    tokens = jnp.asarray(batch.tokens)
    hidden = model(tokens, jnp.asarray(batch.positions), jnp.asarray(batch.segment_ids), compute)
    # All of a row's tokens, the last one's successor too, so that rows are cut evenly over devices.
    following = jnp.roll(tokens, -1, axis=1)
    of_following = token_logprobs(hidden, following, model.unembedding(), temperature, mesh=compute.mesh)
    logprobs, entropy = (jnp.pad(x[:, :-1], ((0, 0), (1, 0))) for x in of_following)
    return logprobs, entropy

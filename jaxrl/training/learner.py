"""The update: microbatched gradients of an objective over packed rows, then one optimizer step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from jaxrl.algorithms import LossMetrics, combine, summarize
from jaxrl.algorithms.batch import Batch, fill_behaviour
from jaxrl.algorithms.objective import OLD, Objective, Outputs
from jaxrl.training.optimizer import check_host_memory, state_shardings, to_device
from models.decoder import Compute, Decoder
from models.heads import Head, head_outputs, initial_heads, with_heads, without_heads
from models.lora import join_params, split_params
from models.sharding import batch_sharding, param_shardings, platform, sharded
from models.vocabulary import token_logprobs

Params = Any  # nnx.State of the decoder
Weights = Any  # nnx.State of the decoder, and of its heads if it has any


class TrainState(NamedTuple):
    """All parameters, the heads beside them, and the optimizer's state of what is trained."""

    params: Params  # of the decoder alone: what engines, exports and sidecars get
    opt_state: optax.OptState
    heads: Any = None  # nnx.State by name, see models.heads; None: the objective has none

    @property
    def weights(self) -> Weights:
        """Decoder and heads in one."""
        return with_heads(self.params, self.heads)


class Learner:
    """Gradients and updates of one objective.

    `update` cuts the batch into microbatches of `microbatch_rows` rows; because the loss is a sum over tokens, the
    result does not depend on the cut, apart from rounding. All shapes are fixed by the configuration, so each of the
    programs below is compiled once. The objective's heads are always trained. Of a decoder with adapters, only the
    adapters have gradients and optimizer state, and only their buffers are donated (models/lora.py).

    Args:
        graphdef: of the Decoder.
        objective: the loss and what it needs, see jaxrl.algorithms.objective.
        temperature: the logprobs are those of softmax(logits / temperature), as the sampler's are.
        offload: the optimizer's state is in host memory between updates; `make_optimizer` must know it too.
        turns: held while programs run, where another thread runs some on the same devices (jaxrl.runs.policy.turns_of).
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        objective: Objective,
        optimizer: optax.GradientTransformation,
        *,
        compute: Compute = Compute(),
        temperature: float = 1.0,
        microbatch_rows: int = 16,
        offload: bool = False,
        turns: AbstractContextManager[Any] = nullcontext(),
    ):
        self.turns, self.objective = turns, objective
        self.optimizer, self.microbatch_rows, self.compute = optimizer, microbatch_rows, compute
        self.offload = offload
        forward = partial(
            _forward, graphdef, objective.heads, compute, temperature, objective.entropy_gradient, objective.vocabulary
        )
        self._gradient, self._accumulate, self._zeros = _gradient_programs(forward, objective, compute)
        self._applying: Callable[..., Any] | None = None
        # Whole on every device, so that each process can read all of it.
        whole = None if compute.mesh is None else NamedSharding(compute.mesh, PartitionSpec())
        self._whole, self._temperature = whole, temperature
        self._logprobs = self.logprobs_program(graphdef)
        self._outputs = jax.jit(forward, out_shardings=whole)

    def init(self, params: Params, *, heads: Any = None, seed: int = 0) -> TrainState:
        """A state with a fresh optimizer, and heads drawn from the seed unless given. Raises as `check` does."""
        self.check(params)
        if heads is None and self.objective.heads:
            shardings = jax.tree.map(lambda x: x.sharding, self._abstract_heads(params))
            heads = jax.jit(self._initial_heads, out_shardings=shardings)(params, jax.random.key(seed))
        weights = with_heads(params, heads)
        trained, _ = split_trained(weights)
        opt_state = jax.jit(self.optimizer.init, out_shardings=self.state_shardings(weights))(trained)
        return TrainState(params, opt_state, heads)

    def check(self, params: Params) -> None:
        """Raises ValueError where the optimizer's state cannot be in host memory as it should."""
        if self.offload:
            check_host_memory(params, "optimizer.offload")

    def abstract(self, params: Params) -> TrainState:
        """What `init` makes, with heads and optimizer state as ShapeDtypeStructs; `params` may be abstract too."""
        heads = self._abstract_heads(params) if self.objective.heads else None
        weights = with_heads(params, heads)
        trained, _ = split_trained(weights)
        opt_state = sharded(jax.eval_shape(self.optimizer.init, trained), self.state_shardings(weights))
        return TrainState(params, opt_state, heads)

    def _initial_heads(self, params: Params, key: jax.Array) -> Any:
        return initial_heads(self.objective.heads, params, key)

    def _abstract_heads(self, params: Params) -> Any:
        """The heads' ShapeDtypeStructs, on the decoder's devices."""
        heads, mesh = jax.eval_shape(self._initial_heads, params, jax.random.key(0)), self.compute.mesh
        place = jax.tree.leaves(params)[0].sharding
        shardings = jax.tree.map(lambda _: place, heads) if mesh is None else param_shardings(heads, mesh)
        return sharded(heads, shardings)

    def state_shardings(self, weights: Weights) -> Any:
        """Where the optimizer's state is: what belongs to a parameter is sharded as it is."""
        mesh, (trained, _) = self.compute.mesh, split_trained(weights)
        shardings = jax.tree.map(lambda x: x.sharding, trained) if mesh is None else param_shardings(trained, mesh)
        return state_shardings(self.optimizer, trained, shardings, self.offload)

    def update(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, float]]:
        """One optimizer step on the batch. The old state's buffers are donated, except the frozen parameters'."""
        with self.turns:
            return self._update(state, batch)

    def _update(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, float]]:
        weights, values, metrics = state.weights, [], []
        trained, frozen = split_trained(weights)
        # One microbatch needs no sum to add to, and so neither its memory nor its time.
        gradient = self._zeros(trained) if len(batch.tokens) > self.microbatch_rows else None
        for microbatch in self.microbatches(batch):
            if gradient is None:
                gradient, value, measured = self._gradient(weights, microbatch)
            else:
                gradient, value, measured = self._accumulate(weights, gradient, microbatch)
            values.append(value)
            metrics.append(measured)
            self._wait_for_last(values)
        before = TrainState(trained, state.opt_state)
        (trained, opt_state, _), norm, _ = self.apply_program(before)(before, gradient)
        params, heads = without_heads(join_params(trained, frozen))
        # Added up on the host: on the device each sum of two scalars would be a program and a dispatch of its own.
        values, metrics, norm = jax.device_get((values, metrics, norm))
        jax.block_until_ready(trained)  # another thread may have the devices now
        host = summarize(reduce(combine, metrics)) | {"loss": sum(values), "grad_norm": norm}
        return TrainState(params, opt_state, heads), {name: float(value) for name, value in host.items()}

    def apply_program(self, trained: TrainState) -> Callable[..., tuple[TrainState, jax.Array, Params]]:
        """The jitted step of the optimizer, on what is trained (heads among its params) and its state.

        (state, gradient) -> (the next state, the gradient's norm, what is left).

        The state's leaves, which may be abstract, say where those of the next one are: on the same devices, sharded the
        same way, in the same memory. So its buffers are reused.
        """
        if self._applying is None:
            shardings = jax.tree.map(lambda x: x.sharding, trained)
            donated, left = ((0, 1), shardings.params) if self.offload else (0, None)
            apply = partial(_apply, self.optimizer, self.offload)
            self._applying = jax.jit(apply, donate_argnums=donated, out_shardings=(shardings, None, left))
        return self._applying

    def prepare(
        self,
        state: TrainState,
        batch: Batch,
        reference: Params = None,
        teacher: Callable[[Batch], np.ndarray] | None = None,
    ) -> Batch:
        """The batch with everything that must be known before its first update, by `state`, on the host.

        That is what the objective `needs` and `prepare`s, and the trainer's logprobs of learned tokens that nobody
        sampled.

        Args:
            reference: the decoder's parameters for "reference_logprobs".
            teacher: gives "teacher_logprobs", see `logprobs_by`.
        """
        needs = self.objective.needs
        unknown = bool(np.isnan(np.asarray(batch.behaviour_logprobs)).any())
        if unknown or not needs.isdisjoint(OLD):
            if not needs.isdisjoint({"heads", "old_entropy"}):
                logprobs, heads, entropy = self.outputs(state, batch)
                found = dict(heads) if "heads" in needs else {}
                found |= {"entropy": np.asarray(entropy)} if "old_entropy" in needs else {}
                learned = np.asarray(batch.loss_mask) > 0
                old = {f"old_{name}": np.where(learned, x, np.float32(0)) for name, x in found.items()}
                batch = dataclasses.replace(batch, extras=dict(batch.extras) | old)
            else:
                logprobs = self.logprobs(state.params, batch)
            batch = fill_behaviour(batch, logprobs) if unknown else batch
            batch = dataclasses.replace(batch, old_logprobs=logprobs) if "old_logprobs" in needs else batch
        if "reference_logprobs" in needs:
            if reference is None:
                raise ValueError(f"objective {self.objective.name} needs a reference model")
            batch = dataclasses.replace(batch, reference_logprobs=self.logprobs(reference, batch))
        if "teacher_logprobs" in needs:
            if teacher is None:
                raise ValueError(f"objective {self.objective.name} needs a teacher")
            given = np.where(np.asarray(batch.loss_mask) > 0, teacher(batch), np.float32(0))
            batch = dataclasses.replace(batch, extras=dict(batch.extras) | {"teacher_logprobs": given})
        batch = self.objective.prepare(batch)
        if batch.extras.keys() != set(self.objective.extras):
            found, wanted = sorted(batch.extras), sorted(self.objective.extras)
            raise ValueError(f"objective {self.objective.name}: prepare gives the extras {found}, must give {wanted}")
        return batch

    def logprobs(self, params: Params, batch: Batch) -> np.ndarray:
        """f32[B, T]: the logprob of each token under `params`, 0 for the first of a row.

        Parameters in host memory are on the devices during the call only.
        """
        return self._of_batch(self._logprobs, params, batch)

    def logprobs_by(self, graphdef: nnx.GraphDef, params: Params) -> Callable[[Batch], np.ndarray]:
        """`logprobs` under another decoder than the policy's, such as a teacher."""
        return partial(self._of_batch, self.logprobs_program(graphdef), params)

    def logprobs_program(self, graphdef: nnx.GraphDef) -> Any:
        """Jitted: (parameters of this decoder, microbatch) -> f32[b, T], the logprob of each token."""
        forward = partial(_forward, graphdef, (), self.compute, self._temperature, False, True)
        return jax.jit(lambda params, batch: forward(params, batch).logprobs, out_shardings=self._whole)

    def outputs(self, state: TrainState, batch: Batch) -> Outputs:
        """What the decoder and its heads say about the batch, f32[B, T] on the host."""
        return self._of_batch(self._outputs, state.weights, batch)

    def _of_batch(self, program: Callable[..., Any], weights: Weights, batch: Batch) -> Any:
        """What a program gives for each microbatch, put together on the host."""
        with self.turns:
            weights = to_device(weights)
            parts: list[Any] = []
            for microbatch in self.microbatches(batch):
                parts.append(program(weights, microbatch))
                self._wait_for_last(parts)
            parts = jax.device_get(parts)
            return jax.tree.map(lambda *rows: np.concatenate(rows), *parts)

    def _wait_for_last(self, results: list[Any]) -> None:
        """Until at most one microbatch is waiting for its turn; on a CPU, which runs all that it has at once, none."""
        ahead = 0 if platform(self.compute.mesh) == "cpu" else 1
        jax.block_until_ready(results[-1 - ahead :][0])

    def programs(self, state: TrainState, batch: Batch) -> dict[str, tuple[Any, tuple[Any, ...]]]:
        """The compiled programs by name, each with the arguments that it gets for this state and microbatch.

        To lower them ahead of time, state and batch may be ShapeDtypeStructs. "outputs" only if there are heads, or
        the entropy is needed.
        """
        trained, _ = split_trained(state.weights)
        gradient = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.float32, sharding=p.sharding), trained)
        before = TrainState(trained, state.opt_state)
        programs = {
            "accumulate": (self._accumulate, (state.weights, gradient, batch)),
            "apply": (self.apply_program(before), (before, gradient)),
            "logprobs": (self._logprobs, (state.params, batch)),
        }
        more = self.objective.heads or "old_entropy" in self.objective.needs
        return programs | ({"outputs": (self._outputs, (state.weights, batch))} if more else {})

    def microbatches(self, batch: Batch) -> Iterator[Batch]:
        """The batch in parts of microbatch_rows rows, placed on the mesh."""
        for start in range(0, len(batch.tokens), self.microbatch_rows):
            part = jax.tree.map(lambda a, s=start: a[s : s + self.microbatch_rows], batch)
            mesh = self.compute.mesh
            yield part if mesh is None else _placed(part, batch_sharding(mesh))


def split_trained(weights: Weights) -> tuple[Weights, Params]:
    """(trained, frozen): as `split_params`, with all heads among what is trained. `join_params` undoes it."""
    params, heads = without_heads(weights)
    trained, frozen = split_params(params)
    return with_heads(trained, heads), frozen


def _gradient_programs(forward: Callable[..., Any], objective: Objective, compute: Compute) -> tuple[Any, Any, Any]:
    """Jitted: the gradient of a microbatch, the same added to a sum (donated), and a sum to begin with."""

    def loss(trained: Weights, frozen: Params, batch: Batch) -> tuple[jax.Array, LossMetrics]:
        outputs = forward(join_params(trained, frozen), batch)
        value, metrics = objective.loss(outputs, batch)
        if not objective.vocabulary:
            return value, metrics
        sums = {**metrics.sums, "entropy": jnp.sum(outputs.entropy * batch.loss_mask)}
        return value, metrics._replace(sums=sums)

    def pinned(weights: Weights) -> Weights:
        """As `param_shardings` has it, whatever the compiler would prefer: buffers are reused."""
        if compute.mesh is None:
            return weights
        return jax.lax.with_sharding_constraint(weights, param_shardings(weights, compute.mesh))

    def gradient(weights: Weights, batch: Batch) -> tuple[Weights, jax.Array, LossMetrics]:
        (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(*split_trained(weights), batch)
        return pinned(gradient), value, metrics

    def accumulate(weights: Weights, total: Weights, batch: Batch) -> tuple[Weights, jax.Array, LossMetrics]:
        part, value, metrics = gradient(weights, batch)
        return pinned(jax.tree.map(jnp.add, total, part)), value, metrics

    def zeros(trained: Weights) -> Weights:
        return pinned(jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), trained))

    return jax.jit(gradient), jax.jit(accumulate, donate_argnums=1), jax.jit(zeros)


def _apply(
    optimizer: optax.GradientTransformation, offload: bool, trained: TrainState, gradient: Weights
) -> tuple[TrainState, jax.Array, Weights]:
    gradient = jax.tree.map(lambda g: g.astype(jnp.float32), gradient)
    updates, opt_state = optimizer.update(gradient, trained.opt_state, trained.params)
    norm = optax.tree.norm(gradient)
    trained = TrainState(optax.apply_updates(trained.params, updates), opt_state)
    # Returned, the updates take the gradient's place while the moments' pieces come and go.
    return trained, norm, updates if offload else None


def _placed(batch: Batch, sharding: NamedSharding) -> Batch:
    """Host arrays, the same in all processes, placed on the devices; each process places its part."""
    if sharding.is_fully_addressable:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda a: jax.make_array_from_callback(a.shape, sharding, lambda part: a[part]), batch)


def _forward(
    graphdef: nnx.GraphDef,
    heads: tuple[Head, ...],
    compute: Compute,
    temperature: float,
    entropy_gradient: bool,
    vocabulary: bool,
    weights: Weights,
    batch: Batch,
) -> Outputs:
    """The outputs f32[b, T]. Logprob and entropy are 0 for a row's first token, and may be 0 where loss_mask is."""
    params, state = without_heads(weights)
    model: Decoder = nnx.merge(graphdef, params)
    tokens = jnp.asarray(batch.tokens)
    hidden = model(tokens, jnp.asarray(batch.positions), jnp.asarray(batch.segment_ids), compute)

    def of_own(trained: Params) -> jax.Array:
        own: Decoder = nnx.merge(graphdef, join_params(trained, split_params(params)[1]))
        return own(tokens, jnp.asarray(batch.positions), jnp.asarray(batch.segment_ids), compute)

    of_heads = head_outputs(heads, state, hidden, of_own) if state is not None else {}
    if not vocabulary:
        nothing = jnp.zeros(tokens.shape, jnp.float32)
        return Outputs(nothing, of_heads, nothing)
    # All of a row's tokens, the last one's successor too, so that rows are divided evenly over devices.
    following = jnp.roll(tokens, -1, axis=1)
    wanted = jnp.roll(jnp.asarray(batch.loss_mask), -1, axis=1) > 0
    frozen = model.config.lora is not None
    of_following = token_logprobs(
        hidden,
        following,
        model.unembedding(),
        temperature,
        mesh=compute.mesh,
        frozen=frozen,
        wanted=wanted,
        entropy_gradient=entropy_gradient,
    )
    logprobs, entropy = (jnp.pad(x[:, :-1], ((0, 0), (1, 0))) for x in of_following)
    return Outputs(logprobs, of_heads, entropy)

"""Checkpoints by orbax: the trained parameters, optimizer state and the place in the run.

Parameters that are not trained never change: `jaxrl.run.keep_base` sees to those once a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx
from orbax.checkpoint.checkpoint_managers import preservation_policy

from jaxrl.learner import TrainState
from models.lora import join_params, split_params


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; the message names the last good one."""


def saved_steps(folder: Path) -> list[int]:
    """The steps saved whole in a folder of `Checkpoints`, in order; asks nobody else."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


class Checkpoints:
    """checkpoints/STEP/{params,opt_state,place} of a run, written in the background, beside and renamed.

    The newest `keep` are kept, and all whose step is in `permanent` (ends of stages).
    """

    def __init__(self, folder: Path, keep: int, permanent: frozenset[int] = frozenset()):
        kept = preservation_policy.AnyPreservationPolicy(
            [preservation_policy.LatestN(keep), preservation_policy.CustomSteps(sorted(permanent))]
        )
        options = ocp.CheckpointManagerOptions(preservation_policy=kept, enable_async_checkpointing=True)
        self._folder = folder
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, step: int, state: TrainState, place: dict[str, Any]) -> None:
        """Starts to save; the arrays are copied before this returns. `place` is plain JSON data.

        Raises CheckpointError if this save, or the one still running, fails.
        """
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(nnx.to_pure_dict(split_params(state.params)[0])),
            opt_state=ocp.args.StandardSave(_flat(state.opt_state)),
            place=ocp.args.JsonSave(place),
        )
        with self._naming_the_last_good_one():
            self._manager.save(step, args=items)

    def latest(self) -> int | None:
        """The newest step that was saved whole."""
        self._manager.reload()  # as the disk has it: a save may have failed
        return self._manager.latest_step()

    def place(self, step: int) -> dict[str, Any]:
        """What `save` was given as the place."""
        return self._manager.restore(step, args=ocp.args.Composite(place=ocp.args.JsonRestore()))["place"]

    def restore_params(self, step: int, like: Any) -> Any:
        """The parameters at a step, with the structure, types and shardings of `like`, whose frozen ones they share."""
        trained, frozen = split_params(like)
        target = ocp.args.StandardRestore(_abstract(nnx.to_pure_dict(trained)))
        pure = self._manager.restore(step, args=ocp.args.Composite(params=target))["params"]
        trained = jax.tree.map(lambda x: x, trained)
        nnx.replace_by_pure_dict(trained, pure)
        return join_params(trained, frozen)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state at a step, with the structure, types and shardings of `like`."""
        params = self.restore_params(step, like.params)
        target = ocp.args.StandardRestore(_abstract(_flat(like.opt_state)))
        flat = self._manager.restore(step, args=ocp.args.Composite(opt_state=target))["opt_state"]
        paths, structure = jax.tree_util.tree_flatten_with_path(like.opt_state)
        leaves = [flat[jax.tree_util.keystr(path)] for path, _ in paths]
        return TrainState(params, jax.tree_util.tree_unflatten(structure, leaves))

    def wait(self) -> None:
        """Returns when all that was started is saved. Raises CheckpointError if it was not (a full disk, say)."""
        with self._naming_the_last_good_one():
            self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()

    @contextmanager
    def _naming_the_last_good_one(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # orbax raises what its storage raises: OSError, ValueError, ...
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            good = f"the last good one in {self._folder} is of step {self.latest()}"
            raise CheckpointError(f"a checkpoint could not be written: {reason}; {good}") from error


def _flat(tree: Any) -> dict[str, jax.Array]:
    """Leaves by path: independent of the optimizer's classes."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)

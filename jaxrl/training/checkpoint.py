"""Checkpoints by orbax: the trained parameters, heads, optimizer state and the place in the run.

Parameters that are not trained never change: `jaxrl.runs.policy.keep_base` saves them once per run.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx
from orbax.checkpoint.checkpoint_managers import preservation_policy

from jaxrl.errors import CheckpointError
from jaxrl.training.learner import TrainState
from models.checksums import find_damage, missing_arrays, write_checksums
from models.lora import join_params, split_params

ITEMS = ("params", "opt_state", "place")
HEADS = "heads"  # an item of checkpoints whose state has heads


def saved_steps(folder: Path) -> list[int]:
    """The steps saved in a folder of `Checkpoints`, in order, as the disk has them."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def damage(folder: Path, step: int) -> str:
    """What is wrong with a checkpoint, naming the file; "" if nothing is known to be."""
    return next(filter(None, (find_damage(path) for path in _items(folder / str(step)))), "")


def _items(checkpoint: Path) -> list[Path]:
    """The folders of a checkpoint's items."""
    heads = [checkpoint / HEADS] if (checkpoint / HEADS).exists() else []
    return [*(checkpoint / item for item in ITEMS), *heads]


class Checkpoints:
    """checkpoints/STEP/{params,opt_state,place} of a run, and heads/ if it has any.

    Written in the background under another name, then renamed. The newest `keep` are kept, and all whose step is in
    `permanent` (ends of stages). Before a checkpoint gets its name, its arrays are looked up as a reader would, and
    checksums of its files are put beside them.
    """

    def __init__(self, folder: Path, keep: int, permanent: frozenset[int] = frozenset()):
        kept = preservation_policy.AnyPreservationPolicy(
            [preservation_policy.LatestN(keep), preservation_policy.CustomSteps(sorted(permanent))]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=kept,
            enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._inspect),
        )
        self._folder = folder
        self._saving: tuple[int, dict[str, int]] = 0, {}  # the step, and its arrays in each item
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, step: int, state: TrainState, place: dict[str, Any]) -> None:
        """Starts to save; the arrays are copied before this returns. `place` is plain JSON data.

        Raises CheckpointError if this save, or the one still running, fails.
        """
        arrays = {"params": nnx.to_pure_dict(split_params(state.params)[0]), "opt_state": _flat(state.opt_state)}
        if state.heads is not None:
            arrays[HEADS] = nnx.to_pure_dict(state.heads)
        items = {item: ocp.args.StandardSave(tree) for item, tree in arrays.items()}
        with self._naming_the_last_good_one():
            self._manager.wait_until_finished()
            self._saving = step, {item: len(jax.tree.leaves(tree)) for item, tree in arrays.items()}
            self._manager.save(step, args=ocp.args.Composite(**items, place=ocp.args.JsonSave(place)))

    def _inspect(self) -> None:
        """Called by orbax when everything is written, before the checkpoint gets its name. Raises OSError."""
        step, arrays = self._saving
        if jax.process_index() != 0:
            return
        (written,) = self._folder.glob(f"{step}.orbax-checkpoint-tmp*")
        for item, count in arrays.items():
            if missing := missing_arrays(written / item, count):
                raise OSError(f"{missing} of {count} arrays cannot be found in {written / item}")
        for path in _items(written):
            write_checksums(path)

    def latest(self) -> int | None:
        """The newest step that was saved completely."""
        self._manager.reload()  # as the disk has it: a save may have failed
        return self._manager.latest_step()

    def place(self, step: int) -> dict[str, Any]:
        """What `save` was given as the place. Raises CheckpointError if the checkpoint is damaged."""
        if jax.process_index() == 0 and (reason := damage(self._folder, step)):
            raise self._damaged(step, reason)
        with self._reading(step):
            return self._manager.restore(step, args=ocp.args.Composite(place=ocp.args.JsonRestore()))["place"]

    def restore_params(self, step: int, like: Any) -> Any:
        """The parameters at a step, with the structure, types and shardings of `like`, whose frozen ones they share."""
        trained, frozen = split_params(like)
        return join_params(self._restore_state(step, "params", trained), frozen)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state at a step, with the structure, types and shardings of `like`.

        Raises CheckpointError if the checkpoint is damaged or has other heads than `like`.
        """
        saved: list[str] = self._saved_heads(step)
        wanted: list[str] = sorted(like.heads or {})
        if saved != wanted:
            raise CheckpointError(
                f"checkpoint {self._folder / str(step)} has {_named(saved)}, but the objective trains "
                f"{_named(wanted)}: resume with the objective it was made with, or start in another folder"
            )
        params = self.restore_params(step, like.params)
        heads = None if like.heads is None else self._restore_state(step, HEADS, like.heads)
        flat = self._restore_item(step, "opt_state", _flat(like.opt_state))
        paths, structure = jax.tree_util.tree_flatten_with_path(like.opt_state)
        leaves = [flat[jax.tree_util.keystr(path)] for path, _ in paths]
        return TrainState(params, jax.tree_util.tree_unflatten(structure, leaves), heads)

    def _restore_state(self, step: int, item: str, like: Any) -> Any:
        """An nnx.State as it was saved."""
        pure = self._restore_item(step, item, nnx.to_pure_dict(like))
        state = jax.tree.map(lambda x: x, like)
        nnx.replace_by_pure_dict(state, pure)
        return state

    def _restore_item(self, step: int, item: str, like: Any) -> Any:
        target = ocp.args.StandardRestore(_abstract(like))
        with self._reading(step):
            return self._manager.restore(step, args=ocp.args.Composite(**{item: target}))[item]

    def _saved_heads(self, step: int) -> list[str]:
        """The names of the heads in a checkpoint, in order."""
        path = self._folder / str(step) / HEADS
        if not path.is_dir():
            return []
        with self._reading(step), ocp.StandardCheckpointer() as reader:  # the manager forgets what it did not save
            metadata: Any = reader.metadata(path.absolute()).item_metadata
            return sorted(metadata)

    def wait(self) -> None:
        """Returns when every save that was started is complete. Raises CheckpointError if one failed (a full disk)."""
        with self._naming_the_last_good_one():
            self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()

    @contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        try:
            yield
        except jax.errors.JaxRuntimeError:  # memory, most likely
            raise
        except Exception as error:  # orbax and its storage raise KeyError, ValueError, TypeError, ... for damaged files
            raise self._damaged(step, f"{_first_line(error)} ({type(error).__name__})") from error

    def _damaged(self, step: int, reason: str) -> CheckpointError:
        """The error that says what to do; looks for an intact earlier checkpoint."""
        good = next((s for s in reversed(saved_steps(self._folder)) if s < step and not damage(self._folder, s)), None)
        whole = "no earlier one is intact" if good is None else f"the last good one is of step {good}"
        then = "start again in another folder" if good is None else f"delete that folder to resume from step {good}"
        return CheckpointError(f"checkpoint {self._folder / str(step)} cannot be read: {reason}; {whole}: {then}")

    @contextmanager
    def _naming_the_last_good_one(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # orbax raises what its storage raises: OSError, ValueError, ...
            for partial in self._folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(partial, ignore_errors=True)
            good = f"the last good one in {self._folder} is of step {self.latest()}"
            raise CheckpointError(f"a checkpoint could not be written: {_first_line(error)}; {good}") from error


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _named(heads: list[str]) -> str:
    return f"the heads {', '.join(heads)}" if heads else "no heads"


def _flat(tree: Any) -> dict[str, jax.Array]:
    """Leaves by path: independent of the optimizer's classes."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)

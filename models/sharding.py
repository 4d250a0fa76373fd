"""One table from the logical axes of parameters and activations to the axes of the device mesh."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class MeshError(ValueError):
    """The sizes of a mesh do not fit the devices."""


MESH_AXES = ("data", "fsdp", "context", "tensor")
MeshSizes = tuple[int, int, int, int]  # in that order
MeshAxes = str | tuple[str, ...] | None
LOGICAL_TO_MESH: dict[str, MeshAxes] = {
    "layers": None,
    # Each device has a part of the vocabulary at full width: neither table nor logits are ever gathered.
    "vocab": ("fsdp", "context", "tensor"),
    "embed": ("fsdp", "context"),
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "batch": ("data", "fsdp"),
    "time": "context",  # for rows so long that there are fewer of them than devices
}
# For sampling: matrices are sharded over tensor only, because each decoding step would gather them otherwise.
SERVING: dict[str, MeshAxes] = LOGICAL_TO_MESH | {"embed": None}


def make_mesh(
    data: int = 1, fsdp: int = -1, context: int = 1, tensor: int = 1, devices: list[Any] | None = None
) -> Mesh:
    """The mesh (data, fsdp, context, tensor); one size may be -1, which takes the remaining devices.

    Neighbouring TPUs on the mesh are close on the torus, too; other devices stay in JAX's order.

    Raises ValueError when the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, context, tensor]
    if sizes.count(-1) == 1:
        known = -int(np.prod(sizes))
        sizes[sizes.index(-1)] = max(1, len(devices) // known)
    if int(np.prod(sizes)) != len(devices) or min(sizes) < 1:
        shape = f"{data} x {fsdp} x {context} x {tensor}"
        raise MeshError(f"mesh {' x '.join(MESH_AXES)} = {shape} does not fit {len(devices)} devices")
    if devices[0].platform == "tpu":
        return Mesh(mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True), MESH_AXES)
    return Mesh(np.array(devices).reshape(sizes), MESH_AXES)


def serving_mesh(mesh: Mesh) -> Mesh:
    """The same devices for sampling, where a step has one token per row: context becomes a part of fsdp."""
    data, fsdp, context, tensor = mesh.devices.shape
    return Mesh(mesh.devices.reshape(data, fsdp * context, 1, tensor), mesh.axis_names)


def mesh_size(mesh: Mesh | None, axes: MeshAxes) -> int:
    """Devices along these axes of the mesh; 1 without a mesh."""
    names = (axes,) if isinstance(axes, str) else axes or ()
    return int(np.prod([mesh.shape[name] for name in names], dtype=int)) if mesh is not None else 1


def platform(mesh: Mesh | None) -> str:
    """cpu, gpu or tpu: the kind of the mesh's devices; without a mesh, of JAX's default ones."""
    return mesh.devices.flat[0].platform if mesh is not None else jax.default_backend()


def partition_spec(
    axes: tuple[str | None, ...],
    table: Mapping[str, MeshAxes] = LOGICAL_TO_MESH,
    pieces: tuple[int, ...] | None = None,
    mesh: Mesh | None = None,
) -> PartitionSpec:
    """PartitionSpec of an array with these logical axes.

    With a mesh, an axis stays whole if the mesh does not divide its `pieces` (indivisible parts, such as heads).
    """
    names = [table[a] if a is not None else None for a in axes]
    if mesh is not None and pieces is not None:
        names = [n if p % mesh_size(mesh, n) == 0 else None for n, p in zip(names, pieces)]
    return PartitionSpec(*names)


def param_shardings(params: nnx.State, mesh: Mesh, table: Mapping[str, MeshAxes] = LOGICAL_TO_MESH) -> Any:
    """A NamedSharding for each parameter, as a pytree like `params`."""

    def sharding(variable: nnx.Variable) -> nnx.Variable:
        metadata = variable.get_metadata()
        pieces = metadata.get("pieces") or variable.shape
        return variable.replace(NamedSharding(mesh, partition_spec(metadata["out_sharding"], table, pieces, mesh)))

    return jax.tree.map(sharding, params, is_leaf=lambda x: isinstance(x, nnx.Variable))


def sharded(tree: Any, shardings: Any) -> Any:
    """The tree's shapes and dtypes with these shardings, as ShapeDtypeStructs; nothing is allocated."""
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, shardings)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of [B, T]: rows over the data and fsdp axes, their tokens over context."""
    return NamedSharding(mesh, partition_spec(("batch", "time")))


def constrain(x: jax.Array, mesh: Mesh | None, spec: PartitionSpec) -> jax.Array:
    """x with this sharding; unchanged on a mesh of one device."""
    if mesh is None or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

"""One table from the logical axes of parameters and activations to the axes of the device mesh."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "context", "tensor")
MeshSizes = tuple[int, int, int, int]  # in that order
MeshAxes = str | tuple[str, ...] | None
LOGICAL_TO_MESH: dict[str, MeshAxes] = {
    "layers": None,
    # A part of the vocabulary on each device, of its whole width: neither table nor logits are ever gathered.
    "vocab": ("fsdp", "context", "tensor"),
    "embed": ("fsdp", "context"),
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "batch": ("data", "fsdp"),
    "time": "context",  # of rows so long that there are fewer of them than devices
}
# For sampling: whole matrices but for tensor, because each decoding step would gather those that are cut further.
SERVING: dict[str, MeshAxes] = LOGICAL_TO_MESH | {"embed": None}


def make_mesh(
    data: int = 1, fsdp: int = -1, context: int = 1, tensor: int = 1, devices: list[Any] | None = None
) -> Mesh:
    """The mesh (data, fsdp, context, tensor); one size may be -1 and takes the devices that are left.

    TPUs that are neighbours on the mesh are near each other on the torus, too; other devices stay in JAX's order.

    Raises ValueError when the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, context, tensor]
    if sizes.count(-1) == 1:
        known = -int(np.prod(sizes))
        sizes[sizes.index(-1)] = max(1, len(devices) // known)
    if int(np.prod(sizes)) != len(devices) or min(sizes) < 1:
        shape = f"{data} x {fsdp} x {context} x {tensor}"
        raise ValueError(f"mesh {' x '.join(MESH_AXES)} = {shape} does not fit {len(devices)} devices")
    if devices[0].platform == "tpu":
        return Mesh(mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True), MESH_AXES)
    return Mesh(np.array(devices).reshape(sizes), MESH_AXES)


def serving_mesh(mesh: Mesh) -> Mesh:
    """The same devices for sampling, where a step has one token of a row: those along context are more of fsdp."""
    data, fsdp, context, tensor = mesh.devices.shape
    return Mesh(mesh.devices.reshape(data, fsdp * context, 1, tensor), mesh.axis_names)


def mesh_size(mesh: Mesh | None, axes: MeshAxes) -> int:
    """Devices along these axes of the mesh; 1 without a mesh."""
    names = (axes,) if isinstance(axes, str) else axes or ()
    return int(np.prod([mesh.shape[name] for name in names], dtype=int)) if mesh is not None else 1


def platform(mesh: Mesh | None) -> str:
    """cpu, gpu or tpu: where the mesh's arrays are computed on."""
    return mesh.devices.flat[0].platform if mesh is not None else jax.default_backend()


def partition_spec(
    axes: tuple[str | None, ...],
    table: Mapping[str, MeshAxes] = LOGICAL_TO_MESH,
    pieces: tuple[int, ...] | None = None,
    mesh: Mesh | None = None,
) -> PartitionSpec:
    """PartitionSpec of an array with these logical axes.

    With a mesh, an axis whose `pieces` (what must stay together: a head, say) it does not divide stays whole.
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


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of [B, T]: rows over the data and fsdp axes, their tokens over context."""
    return NamedSharding(mesh, partition_spec(("batch", "time")))


def constrain(x: jax.Array, mesh: Mesh | None, spec: PartitionSpec) -> jax.Array:
    """x, sharded so; a mesh of one device changes nothing."""
    if mesh is None or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

"""One table from the logical axes of parameters and activations to the axes of the device mesh."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")
LOGICAL_TO_MESH = {
    "layers": None,
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "batch": ("data", "fsdp"),
}


def make_mesh(data: int = 1, fsdp: int = -1, tensor: int = 1, devices: list[Any] | None = None) -> Mesh:
    """The mesh (data, fsdp, tensor); one size may be -1 and takes the devices that are left.

    Raises ValueError when the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) == 1:
        known = -int(np.prod(sizes))
        sizes[sizes.index(-1)] = max(1, len(devices) // known)
    if int(np.prod(sizes)) != len(devices) or min(sizes) < 1:
        raise ValueError(f"mesh data x fsdp x tensor = {data} x {fsdp} x {tensor} does not fit {len(devices)} devices")
    return Mesh(np.array(devices).reshape(sizes), MESH_AXES)


def partition_spec(axes: tuple[str | None, ...]) -> PartitionSpec:
    """PartitionSpec of an array with these logical axes."""
    return PartitionSpec(*(LOGICAL_TO_MESH[a] if a is not None else None for a in axes))


def param_shardings(params: nnx.State, mesh: Mesh) -> Any:
    """A NamedSharding for each parameter, as a pytree like `params`.

    An axis whose size the mesh does not divide stays whole.
    """

    def sharding(variable: nnx.Variable) -> nnx.Variable:
        axes = variable.get_metadata()["out_sharding"]
        names = [
            LOGICAL_TO_MESH[a] if a is not None and size % mesh.shape[LOGICAL_TO_MESH[a] or "data"] == 0 else None
            for a, size in zip(axes, variable.shape)
        ]
        return variable.replace(NamedSharding(mesh, PartitionSpec(*names)))

    return jax.tree.map(sharding, params, is_leaf=lambda x: isinstance(x, nnx.Variable))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over the data and fsdp axes."""
    return NamedSharding(mesh, partition_spec(("batch",)))

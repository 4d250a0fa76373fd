"""Sends weights from the trainer's GPU to vLLM's by NCCL: one end of vLLM's weight-transfer API, without torch.

The trainer is rank 0 of a group with all workers of all servers, and broadcasts the tensors one after another from
device memory to device memory. A unique id sent over HTTP identifies the group; all members enter it at the same time
and begin with an all-reduce of one element, as vLLM's workers do.
"""

from __future__ import annotations

import asyncio
import base64
import ctypes
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from models.config import ModelConfig
from models.convert import hf_tensors
from models.lora import LoraParam, merged_parameters
from rollouts.vllm.server import PAUSE_MODES, Server, compare
from rollouts.vllm.sidecar import SidecarError

UNIQUE_ID_BYTES = 128
_TYPES = {"float16": 6, "float32": 7, "bfloat16": 9}  # ncclDataType_t
_SUM = 0  # ncclRedOp_t


class UniqueId(ctypes.Structure):
    """ncclUniqueId."""

    _fields_ = [("internal", ctypes.c_byte * UNIQUE_ID_BYTES)]


class NcclSender:
    """Rank 0 of a group. All calls return when the device is done.

    Args:
        libraries: (NCCL, CUDA's runtime); None: those that the process has loaded for JAX.
        device: the one that holds the arrays to send; None: the first of this process, as in `device_tensors`.

    Raises SidecarError where NCCL is not available.
    """

    def __init__(self, libraries: tuple[Any, Any] | None = None, device: Any = None):
        self._nccl, self._cuda = libraries or _libraries()
        self._device = device or jax.local_devices()[0]
        unique_id = UniqueId()
        self._check("ncclGetUniqueId", ctypes.byref(unique_id))
        self._unique_id, self._group = unique_id, ctypes.c_void_p()
        self.unique_id = bytes(unique_id)

    def join(self, world_size: int) -> None:
        """Enters the group; waits until all others do."""
        self._set_device()
        self._check("ncclCommInitRank", ctypes.byref(self._group), world_size, self._unique_id, 0)
        one = jax.device_put(np.zeros(1, np.float32), self._device)
        self._run("ncclAllReduce", one, _SUM)

    def broadcast(self, tensor: jax.Array) -> None:
        """Sends an array that is entirely on the sender's device."""
        self._run("ncclBroadcast", tensor, 0)

    def close(self) -> None:
        """Leaves the group without waiting for the others."""
        if self._group:
            self._nccl.ncclCommAbort(self._group)
            self._group = ctypes.c_void_p()

    def _run(self, function: str, tensor: jax.Array, argument: int) -> None:
        pointer = ctypes.c_void_p(tensor.block_until_ready().unsafe_buffer_pointer())
        count, kind = ctypes.c_size_t(tensor.size), _TYPES[tensor.dtype.name]
        self._set_device()
        self._check(function, pointer, pointer, count, kind, argument, self._group, None)
        if self._cuda.cudaDeviceSynchronize():
            raise SidecarError(f"{function}: the device failed")

    def _set_device(self) -> None:
        """Sets CUDA's current device, which NCCL uses; it is per thread, and device 0 at first."""
        number = self._device.local_hardware_id
        if self._cuda.cudaSetDevice(ctypes.c_int(number)):
            raise SidecarError(f"cannot select CUDA device {number}, which holds the weights")

    def _check(self, function: str, *arguments: Any) -> None:
        code = getattr(self._nccl, function)(*arguments)
        if code:
            raise SidecarError(f"{function} failed with code {code}")


def check_available() -> None:
    """Raises SidecarError where a trainer cannot send by NCCL."""
    _libraries()


def _libraries() -> tuple[ctypes.CDLL, ctypes.CDLL]:
    if jax.default_backend() not in ("gpu", "cuda"):
        raise SidecarError("rollout.sidecar.sync = 'nccl' needs a trainer on NVIDIA GPUs; use 'files'")
    found = []
    for names in (("libnccl.so.2",), ("libcudart.so.13", "libcudart.so.12")):
        for name in names:
            try:
                found.append(ctypes.CDLL(name))
                break
            except OSError:
                continue
        else:
            raise SidecarError(f"rollout.sidecar.sync = 'nccl': {names[0]} cannot be loaded; use 'files'")
    return found[0], found[1]


def device_tensors(params: Any, config: ModelConfig, dtype: str) -> Iterator[tuple[str, jax.Array]]:
    """Hugging Face's name and the tensor [out, in] in `dtype`, one at a time, entirely on the first device.

    Adapters are merged.
    """
    for path, value in merged_parameters(params, config, dtype):
        names, stacked, transposed = hf_tensors(path, config.num_layers)
        for l, name in enumerate(names):
            tensor = value[l] if stacked else value
            tensor = (tensor.T if transposed else tensor).astype(dtype)
            yield name, jax.device_put(tensor, jax.local_devices()[0])


class NcclTransfer:
    """Sends weights to a set of servers. A failure breaks the group; make another one."""

    def __init__(self, servers: Sequence[Server], workers: int, sender: NcclSender | None = None):
        self.servers, self.workers = list(servers), workers  # GPU workers of each server
        self._sender, self._joined = sender or NcclSender(), False

    async def send(self, params: Any, config: ModelConfig, dtype: str, label: str, in_flight: str) -> None:
        """Gives all servers these parameters, and checks that they have them.

        Raises httpx.HTTPError, BadReplyError or SidecarError if any of them fails.
        """
        if not self._joined:
            await self._join()
        shapes = list(_shapes(params, config))
        update = {
            "names": [n for n, _ in shapes],
            "dtype_names": [dtype] * len(shapes),
            "shapes": [list(s) for _, s in shapes],
        }
        await self._all(f"/pause?mode={PAUSE_MODES[in_flight]}")
        try:
            await self._all("/start_weight_update")
            sending = asyncio.to_thread(self._broadcast_all, params, config, dtype)
            await asyncio.gather(sending, self._all("/update_weights", {"update_info": update}))
            await self._all("/finish_weight_update", {})
            checked = _first_and_last_layer(params, config, dtype)
            for server in self.servers:
                for report in await server.rpc("jaxrl_finish_transfer"):
                    compare(checked, report, server.address)
            await self._all("/reset_prefix_cache")
            await self._all("/update_weight_version", {"new_version": label})
        finally:
            await asyncio.gather(*(s.call("/resume") for s in self.servers), return_exceptions=True)

    async def _join(self) -> None:
        world_size = 1 + self.workers * len(self.servers)
        unique_id = base64.b64encode(self._sender.unique_id).decode()

        def info(place: int) -> dict[str, Any]:
            rank = 1 + place * self.workers
            return {"rank_offset": rank, "world_size": world_size, "nccl_unique_id_b64": unique_id, "packed": False}

        await asyncio.gather(
            asyncio.to_thread(self._sender.join, world_size),
            *(s.call("/init_weight_transfer_engine", {"init_info": info(i)}) for i, s in enumerate(self.servers)),
        )
        self._joined = True

    def _broadcast_all(self, params: Any, config: ModelConfig, dtype: str) -> None:
        for _, tensor in device_tensors(params, config, dtype):
            self._sender.broadcast(tensor)

    async def _all(self, path: str, body: dict[str, Any] | None = None) -> None:
        await asyncio.gather(*(s.call(path, body) for s in self.servers))

    def close(self) -> None:
        self._sender.close()


def _shapes(params: Any, config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of `device_tensors`."""
    for path, variable in nnx.to_flat_state(params):
        if isinstance(variable, LoraParam):
            continue
        names, stacked, transposed = hf_tensors(path, config.num_layers)
        shape = variable.shape[1:] if stacked else variable.shape
        for name in names:
            yield name, shape[::-1] if transposed else shape


def _first_and_last_layer(params: Any, config: ModelConfig, dtype: str) -> dict[str, np.ndarray]:
    """Copies on the host of the norms and of two layers' parameters, to compare checksums with."""
    wanted = {"model.norm.weight"}
    prefixes = ("model.layers.0.", f"model.layers.{config.num_layers - 1}.")
    tensors = {}
    for path, value in merged_parameters(params, config, dtype):
        names, stacked, transposed = hf_tensors(path, config.num_layers)
        for l, name in enumerate(names):
            if name in wanted or name.startswith(prefixes):
                tensor = np.asarray((value[l] if stacked else value).astype(dtype))
                tensors[name] = tensor.T if transposed else tensor
    return tensors

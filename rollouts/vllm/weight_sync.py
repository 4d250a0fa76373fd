"""Sends the trainer's weights to vLLM servers, by rollouts/vllm/weight_files.py or rollouts/vllm/nccl.py.

Of a model with adapters a server gets the frozen base once, and then the adapters alone, if it takes them. The base
must not change while the engine lives. Servers that come back, and those that NCCL did not reach, always get files.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np

from models.config import ModelConfig
from rollouts.vllm.nccl import NcclTransfer
from rollouts.vllm.server import BadReplyError, ClientSettings, Server
from rollouts.vllm.sidecar import ADAPTERS_NAME, MODEL_NAME, SidecarError
from rollouts.vllm.weight_files import adapter_tensors, claim_folder, named_tensors, write_weights


class WriteError(RuntimeError):
    """Weights could not be written: they have been donated, or the disk is full. It is not a server's failure."""


@dataclass
class Weights:
    """What the servers should hold."""

    version: int
    params: Any  # the trainer's, which its next update may donate; None once they are in files
    tensors: dict[str, np.ndarray] | None = None  # as in the files, once those are written


class WeightSync:
    """Writes and sends weights, and keeps the newest; `prepare` must be called before the first ones."""

    def __init__(self, config: ModelConfig, settings: ClientSettings):
        self.config, self.settings = config, settings
        self.session = secrets.token_hex(4)  # distinguishes this trainer's weights from others
        self.dtype, self.model = "", MODEL_NAME  # the servers', and the name in requests
        self.base: dict[str, np.ndarray] | None = None  # as in its files, once those are written
        self.newest: Weights | None = None
        self.folder = settings.sync_folder / f"jaxrl-{self.session}"
        self._lock = claim_folder(self.folder)
        self._writing = asyncio.Lock()
        self._transfer: NcclTransfer | None = None
        self._members: list[tuple[Server, int]] = []  # of the transfer, with each server's number of revivals

    def close(self) -> None:
        self.leave_group()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()

    def prepare(self, facts: Sequence[dict[str, Any]], say: Callable[[str], None]) -> None:
        """Takes the servers' dtype, and decides how adapters are sent; says why if they cannot travel alone."""
        self.dtype = facts[0]["dtype"]
        if self.config.lora is None or self.settings.lora == "merged":
            return
        room = min(f.get("lora_rank", 0) for f in facts)
        if self.settings.sync == "nccl":
            why = "rollout.sidecar.sync = 'nccl' sends whole weights"
        elif room < self.config.lora.rank:
            why = f"a server has room for adapters of rank {room}, not {self.config.lora.rank} (--lora-rank)"
        else:
            self.model = ADAPTERS_NAME
            return
        say(f"sampler: adapters are merged before they are sent: {why}")

    @property
    def adapters_only(self) -> bool:
        return self.model == ADAPTERS_NAME

    # ------------------------------------------------------------------ files

    def write(self, weights: Weights) -> dict[str, np.ndarray]:
        """Writes the weights' files, or the adapters' (and the base's once), and returns the tensors in them."""
        folder = self._version_folder(weights.version)
        shutil.rmtree(folder, ignore_errors=True)
        if self.adapters_only:
            if self.base is None:
                tensors = named_tensors(weights.params, replace(self.config, lora=None), self.dtype)
                self.base = write_weights(tensors, self.dtype, self.folder / "base")
            tensors = adapter_tensors(weights.params, self.config, self.dtype)
            weights.tensors = write_weights(tensors, self.dtype, folder, self.config.lora)
        else:
            tensors = named_tensors(weights.params, self.config, self.dtype)
            weights.tensors = write_weights(tensors, self.dtype, folder)
        weights.params = None
        return weights.tensors

    def remove_old(self, version: int) -> None:
        """Removes the files of all other versions."""
        for old in self.folder.glob("version_*"):
            if old != self._version_folder(version):
                shutil.rmtree(old, ignore_errors=True)

    async def load(self, server: Server, weights: Weights) -> None:
        """Has a server load these weights from files, which are written first if necessary.

        With adapters alone, a server that does not hold the base gets it first. Raises WriteError, and what
        Server.load_files does.
        """
        async with self._writing:
            try:
                tensors = weights.tensors or await asyncio.to_thread(self.write, weights)
            except (OSError, RuntimeError) as error:
                raise WriteError(f"weights of version {weights.version}: {error}") from error
        folder = self._version_folder(weights.version)
        if not self.adapters_only:
            await server.load_files(folder, tensors, self._label(weights), self.settings.in_flight)
            return
        base = f"{self.session}/base"
        if not await server.has_base(base):
            assert self.base is not None
            await server.load_base(self.folder / "base", self.base, base, folder)
        await server.load_adapters(folder, tensors, self._label(weights), self.settings.in_flight)

    def _version_folder(self, version: int) -> Path:
        return self.folder / f"version_{version}"

    def _label(self, weights: Weights) -> str:
        return f"{self.session}/{weights.version}"

    # ------------------------------------------------------------------ NCCL

    async def broadcast(self, servers: Sequence[Server], workers: int, weights: Weights) -> None:
        """Sends to all servers at once. After an error the next call makes a new group.

        Raises SidecarError, BadReplyError or httpx.HTTPError.
        """
        try:
            members = [(server, server.revivals) for server in servers]
            if self._transfer is None or self._members != members:
                self.leave_group()
                self._transfer, self._members = NcclTransfer(list(servers), workers), members
            label, mode = self._label(weights), self.settings.in_flight
            await self._transfer.send(weights.params, self.config, self.dtype, label, mode)
        except (httpx.HTTPError, BadReplyError, SidecarError):
            self.leave_group()
            raise

    def leave_group(self) -> None:
        if self._transfer is not None:
            self._transfer.close()
            self._transfer = None

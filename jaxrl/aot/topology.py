"""Meshes of chips to compile for that need not exist: libtpu knows every TPU slice and needs no TPU."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from jaxrl.costs.chips import CHIPS, SLICES, Chip, chip_of
from jaxrl.errors import UserError
from models.sharding import MeshSizes, make_mesh

_ACCELERATOR = {"v4": "v4", "v5e": "v5litepod", "v5p": "v5p", "v6e": "v6e", "tpu7x": "tpu7x"}


class Topology(NamedTuple):
    """The devices of a slice."""

    name: str
    devices: list[Any]
    chip: Chip  # what one device has
    chips: int
    platform: str = "tpu"  # tpu | cuda (programs are lowered for it, not compiled)

    def mesh(self, sizes: MeshSizes) -> Mesh:
        """data x fsdp x context x tensor."""
        return make_mesh(*sizes, devices=self.devices)


def find_topology(name: str) -> Topology:
    """The TPU slice (v5e:4x4) or the number of GPUs (h100:8) of this name. Raises UserError."""
    kind = name.partition(":")[0]
    chip = chip_of(kind)
    return gpu_topology(name) if chip is not None and kind not in SLICES else tpu_topology(name)


def gpu_topology(name: str) -> Topology:
    """A number of GPUs such as h100:8. CPU devices stand for them, so JAX must not have started. Raises UserError."""
    kind, _, count = name.partition(":")
    chip = chip_of(kind)
    if chip is None or not count.isdigit() or int(count) < 1:
        raise UserError(f"unknown topology {name!r}; GPUs are given by their number, such as {kind}:8")
    jax.config.update("jax_num_cpu_devices", int(count))
    return Topology(name, jax.devices("cpu"), chip, int(count), "cuda")


def find_libtpu() -> Path | None:
    """The TPU compiler: $TPU_LIBRARY_PATH, an installed libtpu, or one beside this environment (`make aot`).

    Only ahead-of-time compilation sees the last one; where libtpu is installed, JAX looks for TPUs at every start.
    """
    given = os.environ.get("TPU_LIBRARY_PATH")
    beside = Path(sys.prefix) / "libtpu" / "libtpu" / "libtpu.so"
    spec = importlib.util.find_spec("libtpu")
    installed = Path(spec.origin).parent / "libtpu.so" if spec is not None and spec.origin else None
    return next((p for p in (Path(given) if given else None, installed, beside) if p is not None and p.is_file()), None)


def tpu_topology(name: str) -> Topology:
    """The slice `name`, such as v5e:4x4. Raises UserError for one that does not exist, or without libtpu."""
    kind, _, shape = name.partition(":")
    if kind not in SLICES:
        kinds = list(dict.fromkeys(c.name for c in CHIPS))
        near = get_close_matches(kind, kinds, 1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(kinds)}"
        raise UserError(f"unknown topology {name!r}; {hint} (examples: v5e:4x4, h100:8)")
    known = f"known for {kind}: {', '.join(SLICES[kind])}"
    if not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        raise UserError(f"unknown topology {name!r}; {known}")
    library = find_libtpu()
    if library is None:
        raise UserError("compiling for TPUs needs libtpu: make aot, or pip install libtpu (no TPU is needed)")
    chips = math.prod(int(n) for n in shape.split("x"))
    os.environ["TPU_LIBRARY_PATH"] = str(library)
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # compiling occupies no TPU, so several processes may compile
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{_ACCELERATOR[kind]}-{chips}")  # libtpu looks for these and
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")  # warns without them
    single = {"chips_per_host_bounds": (1, 1, 1)} if chips == 1 else {}
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=name, **single)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise UserError(f"unknown topology {name!r} ({str(error).splitlines()[0][:120]}); {known}") from None
    devices = list(described.devices)
    chip = chip_of(kind)
    assert chip is not None
    return Topology(name, devices, chip.share(len(devices) // chips), chips)

"""One run in several processes, each with its own devices: who they are, and what they do together.

Every process runs the same program on the same problems. What is for a process alone (sampling on its devices,
scoring in its sandbox) is shared out and exchanged, so that all have the same groups and build the same batch; what
is for all devices (updates, checkpoints) they do together; files are written by the first one.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxrl.channel import Channel, relay
from jaxrl.command_line import UserError
from jaxrl.config import ProcessesConfig
from models.sharding import SERVING, param_shardings
from rollouts.collect import Environment, collect_episodes
from rollouts.engine import Engine
from rollouts.episode import Episode, Group, Problem

T = TypeVar("T")
R = TypeVar("R")
JAX_HEARTBEAT_S = 100  # JAX's own, which aborts without a word: only where the channel's does not work
SHUTDOWN_S = 60
NEWS_S = 3.0  # between a failure and the news that another process is gone, which may be its cause


class Place(NamedTuple):
    """This process among the others."""

    address: str  # host:port of the first one
    count: int
    index: int
    devices: list[int] | None = None  # those of this machine that it may use; None: all


@dataclass(frozen=True)
class Processes:
    """The processes of a run, as seen by one of them. `Processes()` is a run in one process."""

    count: int = 1
    index: int = 0
    channel: Channel | None = None

    @property
    def first(self) -> bool:
        """Whether this one writes the run's files and talks to the user."""
        return self.index == 0

    def exchange(self, name: str, value: Any) -> list[Any]:
        """The values of all processes, see Channel.exchange."""
        return [value] if self.channel is None else self.channel.exchange(name, value)

    def shared(self, name: str, items: Sequence[T], work: Callable[[Sequence[T]], Sequence[R]]) -> list[R]:
        """work(items), of which each process does its part."""
        start, end = (len(items) * i // self.count for i in (self.index, self.index + 1))
        return [result for part in self.exchange(name, work(items[start:end])) for result in part]

    @contextlib.contextmanager
    def after_first(self, name: str) -> Iterator[None]:
        """The first process does this before the others, who then find what it has written."""
        if not self.first:
            self.exchange(name, None)
        yield
        if self.first:
            self.exchange(name, None)

    def collect(
        self,
        name: str,
        engine: Engine,
        environment: Environment,
        problems: Sequence[Problem],
        group_size: int,
        seed: Sequence[int],
    ) -> list[Group]:
        """As rollouts.collect.collect, of which each process plays its part of the episodes."""

        def play(numbers: Sequence[int]) -> list[Episode]:
            episodes = collect_episodes(engine, environment, problems, group_size, seed, numbers)
            if self.channel is not None:
                for episode in episodes:  # everyone has the problems
                    episode.problem = None  # pyright: ignore[reportAttributeAccessIssue]
            return episodes

        episodes = self.shared(name, range(len(problems) * group_size), play)
        for number, episode in enumerate(episodes):
            episode.problem = problems[number // group_size]
        return [Group(p, episodes[i * group_size : (i + 1) * group_size]) for i, p in enumerate(problems)]

    def local(self, params: Any, mesh: Mesh) -> Any:
        """The parameters for this process's own engine: a `local_copy`, or in a run of one process themselves."""
        return params if self.channel is None else local_copy(params, mesh)

    def close(self) -> None:
        """The regular end, for all processes together."""
        if self.channel is not None:
            self.channel.close()
            jax.distributed.shutdown()

    def fail(self, said: str, code: int = 1) -> None:
        """Says why this process stops, to the others its last line, and ends it; nothing in a run of one process.

        Not by sys.exit: at a regular exit JAX waits for the other processes. What fails because another one is gone
        fails about when that becomes known, and is not said.
        """
        if self.channel is not None and not self.channel.over:
            time.sleep(NEWS_S)
            print(said, file=sys.stderr)
            self.channel.leave(said.strip().splitlines()[-1])
            _exit(code)


@dataclass
class Stop:
    """Whether the run is to end after the step that it is in."""

    requested: bool = False  # of this process
    agreed: bool = False  # by all

    def agree(self, processes: Processes) -> None:
        """The same answer in all processes: whether any of them was asked to."""
        self.agreed = any(processes.exchange("stop", self.requested))


@contextlib.contextmanager
def stop_on_signals(say: Callable[[str], None]) -> Iterator[Stop]:
    """Ctrl-C and SIGTERM ask for a stop; a second one raises KeyboardInterrupt at once."""
    stop = Stop()

    def request(*_: object) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        say("stopping after this step (press Ctrl-C again to stop at once)")

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start(config: ProcessesConfig, folder: Path, after: Callable[[], str] = lambda: "") -> Processes:
    """Joins the other processes of the run. Must come before anything that asks JAX for its devices.

    A process that is gone ends this one with exit code 1 and a line on stderr, whatever it is doing then.

    Args:
        folder: of the run, which all processes see.
        after: said at the end of that line.

    Raises UserError for settings that are not complete, ChannelError when the others do not come.
    """
    if config.cpu_devices:
        jax.config.update("jax_num_cpu_devices", config.cpu_devices)
    place = find_place(config)
    if place is None:
        return Processes()

    def on_loss(line: str) -> None:
        print(f"error: {line}{after()}", file=sys.stderr, flush=True)
        _exit(1)

    channel = Channel(
        place.address,
        place.count,
        place.index,
        read_key=lambda: _key(folder, place.index == 0),
        on_loss=on_loss,
        heartbeat_s=config.heartbeat_s,
        wait_s=config.wait_s,
    )
    port = channel.exchange("port", _free_port() if place.index == 0 else None)[0]
    if place.index:
        address = f"127.0.0.1:{relay(channel.host, port)}"
    else:
        address = f"127.0.0.1:{port}"
    # Preemption is for the run to handle: JAX would take SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        address,
        place.count,
        place.index,
        place.devices,
        cluster_detection_method="deactivate",
        coordinator_bind_address=f"[::]:{port}",
        initialization_timeout=math.ceil(config.wait_s),
        heartbeat_timeout_seconds=max(JAX_HEARTBEAT_S, math.ceil(3 * config.heartbeat_s)),
        shutdown_timeout_seconds=SHUTDOWN_S,
    )
    return Processes(place.count, place.index, channel)


def find_place(config: ProcessesConfig) -> Place | None:
    """By the settings, else by the cluster that JAX finds; None where there is but one process.

    Raises UserError when only some of the settings are given.
    """
    environment = os.environ
    given = {
        "address": config.address or environment.get("JAXRL_PROCESS_ADDRESS", ""),
        "count": str(config.count or environment.get("JAXRL_PROCESS_COUNT", "")),
        "index": str(config.index) if config.index >= 0 else environment.get("JAXRL_PROCESS_INDEX", ""),
    }
    if not any(given.values()):
        return _cluster()
    missing = [name for name, value in given.items() if not value]
    if given["count"] == "1":
        return None
    if missing:
        raise UserError(
            f"config.processes.{missing[0]} (or JAXRL_PROCESS_{missing[0].upper()}) is needed too: several processes "
            "are given by address, count and index"
        )
    host, _, port = given["address"].rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"config.processes.address = {given['address']!r} must be host:port of the first process")
    if not (given["count"].isdigit() and given["index"].isdigit() and int(given["index"]) < int(given["count"])):
        raise UserError(f"config.processes.index = {given['index']} must be from 0 to below count = {given['count']}")
    return Place(given["address"], int(given["count"]), int(given["index"]))


def _cluster() -> Place | None:
    """As JAX finds it: SLURM, Open MPI, a TPU pod on Google Cloud or GKE, an indexed job of Kubernetes."""
    from jax._src.clusters import ClusterEnv  # JAX has no public question for it

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Kubernetes without its package, which is a machine like any other
        kinds = (kind for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method)
        found = next((kind for kind in kinds if _may_be(kind.__name__) and kind.is_env_present()), None)
    if found is None or found.get_process_count() == 1:
        return None
    port = os.environ.get("JAX_COORDINATOR_PORT")
    address = found.get_coordinator_address(timeout_secs=300, override_coordinator_port=port)
    return Place(address, found.get_process_count(), found.get_process_id(), _own_devices(found.get_local_process_id()))


def _may_be(cluster: str) -> bool:
    """A pod of Kubernetes is one of several processes only in an indexed job."""
    return cluster != "K8sCluster" or "JOB_COMPLETION_INDEX" in os.environ


def _own_devices(local_index: int | None) -> list[int] | None:
    """GPUs of this machine that are for this process: one for each of several processes, unless the scheduler has
    given each its own; all for a single one."""
    environment = os.environ
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") or "1"
    bound = "SLURM_GPUS_PER_TASK" in environment or environment.get("CUDA_VISIBLE_DEVICES", ",").count(",") == 0
    alone = tasks.split("(")[0].split(",")[0] == "1"
    return None if local_index is None or alone or bound else [local_index]


def _key(folder: Path, first: bool) -> bytes:
    """The run's secret: who can read its folder may join."""
    path = folder / "processes.key"
    if first:
        folder.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is not there; all processes must see the same runs_dir") from None


def _free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# ---------------------------------------------------------------------- arrays


def ordered_devices() -> list[Any]:
    """All devices, those of a process next to one another, so that little of a mesh goes between processes."""
    return sorted(jax.devices(), key=lambda device: (device.process_index, device.id))


def local_mesh(mesh: Mesh) -> Mesh:
    """The devices of this process: over `tensor` as many as that axis has of them, the others over `fsdp`."""
    return Mesh(_by_process(mesh)[jax.process_index()], mesh.axis_names)


def local_copy(params: Any, mesh: Mesh) -> Any:
    """Parameters (nnx.State) on a mesh over all processes -> for sampling on the devices of each (`local_mesh`).

    All processes must call this. The devices gather the shards; nothing goes through the hosts' memory. A process's
    devices may be anywhere on the mesh, as they are where it follows a TPU's torus.
    """
    apart = Mesh(_by_process(mesh), ("process", *mesh.axis_names))
    own = param_shardings(params, local_mesh(mesh), SERVING)
    gathered = jax.device_put(params, jax.tree.map(lambda s: NamedSharding(apart, s.spec), own))

    def as_local(array: jax.Array, sharding: NamedSharding) -> jax.Array:
        shards = [shard.data for shard in array.addressable_shards]
        return jax.make_array_from_single_device_arrays(array.shape, sharding, shards)

    return jax.tree.map(as_local, gathered, own)


def _by_process(mesh: Mesh) -> np.ndarray:
    """Devices [process, data = 1, fsdp, context = 1, tensor], in the mesh's order."""
    count = jax.process_count()
    rows = [[device for device in mesh.devices.flat if device.process_index == p] for p in range(count)]
    tensor = math.gcd(mesh.shape["tensor"], len(rows[0]))
    return np.array(rows).reshape(count, 1, -1, 1, tensor)

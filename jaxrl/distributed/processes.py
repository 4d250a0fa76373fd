"""One run in several processes, each with its own devices: how they find one another, and what they do together.

Every process runs the same program on the same problems. Each does a part of the sampling (on its devices) and of the
judging (in its sandbox) and sends it to the others, so that all have the same groups and build the same batch. Updates
and checkpoints involve all devices and are done together; the first process writes the files.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxrl.config import ProcessesConfig
from jaxrl.distributed.channel import Channel, relay
from jaxrl.errors import UserError, for_user, one_line
from models.sharding import param_shardings
from rollouts.collect import Environment, Keeper, collect_episodes
from rollouts.engine import Engine
from rollouts.episode import Episode, Group, Problem

T = TypeVar("T")
R = TypeVar("R")
JAX_HEARTBEAT_S = 100  # JAX's own, which aborts without a message: a fallback for the channel's
SHUTDOWN_S = 60
AT_ONCE_S = 5.0  # how long a second Ctrl-C waits for an orderly end
TOGETHER_S = 1.0  # SIGTERMs closer than this are one: `timeout` and Slurm signal all processes, a study forwards it
NEWS_S = 3.0  # after a failure, time to learn that another process is gone, which may be the cause


class Place(NamedTuple):
    """Where a process stands among the others."""

    address: str  # host:port of the first one
    count: int
    index: int
    devices: list[int] | None = None  # those of the machine that it may use; None: all


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
        """work(items), divided over the processes."""
        start, end = (len(items) * i // self.count for i in (self.index, self.index + 1))
        return [result for part in self.exchange(name, work(items[start:end])) for result in part]

    @contextlib.contextmanager
    def after_first(self, name: str) -> Iterator[None]:
        """The first process runs the body before the others, which then find the files that it wrote."""
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
        keeper: Keeper | None = None,
    ) -> list[Group]:
        """rollouts.collect.collect with the episodes divided over the processes; the keeper sees this one's."""

        def play(numbers: Sequence[int]) -> list[Episode]:
            episodes = collect_episodes(engine, environment, problems, group_size, seed, numbers, keeper)
            if self.channel is not None:
                for episode in episodes:  # every process has the problems
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
        """The regular end of all processes together."""
        if self.channel is not None:
            self.channel.close()
            jax.distributed.shutdown()

    def failed(self, error: BaseException) -> None:
        """`fail`, for a command that ends with this error."""
        if isinstance(error, KeyboardInterrupt):
            self.fail("interrupted", 130)
        else:
            self.fail(f"error: {one_line(error)}" if for_user(error) else traceback.format_exc())

    def fail(self, message: str, code: int = 1) -> None:
        """Prints why this process stops, sends the last line to the others, and ends it; a lone process carries on.

        Not by sys.exit: at a regular exit JAX waits for the other processes. A failure that is due to the loss of
        another process happens about when the loss becomes known, and is not printed.
        """
        if self.channel is not None and not self.channel.over:
            time.sleep(NEWS_S)
            print(message, file=sys.stderr)
            self.channel.leave(message.strip().splitlines()[-1])
            _exit(code)


@dataclass
class Stop:
    """Whether the run is to end after the current step."""

    requested: bool = False  # of this process
    agreed: bool = False  # by all

    def agree(self, processes: Processes) -> None:
        """Agrees with all processes on whether any of them has a request to stop."""
        self.agreed = any(processes.exchange("stop", self.requested))


@contextlib.contextmanager
def stop_on_signals(say: Callable[[str], None]) -> Iterator[Stop]:
    """Ctrl-C, SIGTERM and the loss of the terminal (unless nohup ignores it) request a stop.

    A second Ctrl-C, or a SIGTERM more than TOGETHER_S later, raises KeyboardInterrupt at once; AT_ONCE_S after that
    the process exits, whatever it is doing.
    """
    stop, is_second = Stop(), _second_signal()

    def request(number: int, _: object) -> None:
        if is_second(number):
            raise KeyboardInterrupt
        if not stop.requested:
            stop.requested = True
            say("stopping after this step (press Ctrl-C again to stop at once)")

    numbers = [signal.SIGINT, signal.SIGTERM]
    numbers += [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else []
    before = {number: signal.signal(number, request) for number in numbers}
    try:
        with _ending_at_second():
            yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _second_signal() -> Callable[[int], bool]:
    """A function that tells for each signal whether it requests an immediate stop or only repeats the first."""
    first_at = math.inf

    def is_second(number: int) -> bool:
        nonlocal first_at
        since = time.monotonic() - first_at
        first_at = min(first_at, time.monotonic())
        # A lost terminal sends SIGHUP twice: from the terminal and from the shell.
        return (number == signal.SIGINT and since >= 0) or (number == signal.SIGTERM and since > TOGETHER_S)

    return is_second


@contextlib.contextmanager
def _ending_at_second() -> Iterator[None]:
    """Ends the process AT_ONCE_S after a second signal.

    In a thread that the interpreter's C handler wakes through a socket: Python handlers wait while the main thread runs
    an executable, and the interpreter's end waits for threads that sample.
    """
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    is_second, numbers = _second_signal(), (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def listen() -> None:
        while data := ours.recv(1):
            if data[0] in numbers and is_second(data[0]):
                time.sleep(AT_ONCE_S)
                _exit(130)

    threading.Thread(target=listen, name="second-signal", daemon=True).start()
    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        theirs.close()


def start(config: ProcessesConfig, folder: Path, after: Callable[[], str] = lambda: "") -> Processes:
    """Joins the other processes of the run. Must be called before JAX initializes its devices.

    When a process is lost, this one ends with exit code 1 and a line on stderr, whatever it is doing then.

    Args:
        folder: of the run, visible to all processes.
        after: gives the end of that line.

    Raises UserError for incomplete settings, ChannelError when the others do not join.
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
    # The run handles preemption itself; JAX would take SIGTERM.
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
    """From the settings, or else from the cluster that JAX detects; None where there is only one process.

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
            f"config.processes.{missing[0]} (or JAXRL_PROCESS_{missing[0].upper()}) is missing: several processes need "
            "address, count and index"
        )
    host, _, port = given["address"].rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"config.processes.address = {given['address']!r} must be host:port of the first process")
    if not (given["count"].isdigit() and given["index"].isdigit() and int(given["index"]) < int(given["count"])):
        raise UserError(f"config.processes.index = {given['index']} must be >= 0 and below count = {given['count']}")
    return Place(given["address"], int(given["count"]), int(given["index"]))


def _cluster() -> Place | None:
    """As JAX detects it: SLURM, Open MPI, a TPU pod on Google Cloud or GKE, an indexed job of Kubernetes."""
    from jax._src.clusters import ClusterEnv  # JAX has no public function for it

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Kubernetes without its Python package: treated as any other machine
        kinds = (kind for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method)
        found = next((kind for kind in kinds if _may_be(kind.__name__) and kind.is_env_present()), None)
    if found is None or found.get_process_count() == 1:
        return None
    port = os.environ.get("JAX_COORDINATOR_PORT")
    address = found.get_coordinator_address(timeout_secs=300, override_coordinator_port=port)
    return Place(address, found.get_process_count(), found.get_process_id(), _own_devices(found.get_local_process_id()))


def _may_be(cluster: str) -> bool:
    """A Kubernetes pod is one of several processes only in an indexed job."""
    return cluster != "K8sCluster" or "JOB_COMPLETION_INDEX" in os.environ


def _own_devices(local_index: int | None) -> list[int] | None:
    """The GPUs of this machine that belong to this process; None: all that it sees.

    One for each of several processes on a machine, unless the scheduler has already given each its own.
    """
    environment = os.environ
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") or "1"
    bound = "SLURM_GPUS_PER_TASK" in environment or environment.get("CUDA_VISIBLE_DEVICES", ",").count(",") == 0
    alone = tasks.split("(")[0].split(",")[0] == "1"
    return None if local_index is None or alone or bound else [local_index]


def _key(folder: Path, first: bool) -> bytes:
    """The run's secret: whoever can read its folder may join."""
    path = folder / "processes.key"
    if first:
        folder.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; all processes must see the same runs_dir") from None


def _free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# ---------------------------------------------------------------------- arrays


def ordered_devices() -> list[Any]:
    """All devices, those of each process side by side, so that few links of a mesh cross processes."""
    return sorted(jax.devices(), key=lambda device: (device.process_index, device.id))


def local_mesh(mesh: Mesh) -> Mesh:
    """The mesh of this process's devices: `tensor` as large as the whole mesh allows, the rest `fsdp`."""
    return Mesh(_by_process(mesh)[jax.process_index()], mesh.axis_names)


def local_copy(params: Any, mesh: Mesh) -> Any:
    """Parameters (nnx.State) on a mesh over all processes -> sharded over each process's devices, for sampling.

    All processes must call this. The devices gather the shards; nothing passes through the hosts' memory. A process's
    devices may be anywhere on the mesh, as on a mesh that follows a TPU's torus. See `local_mesh`.
    """
    apart = Mesh(_by_process(mesh), ("process", *mesh.axis_names))
    own = param_shardings(params, local_mesh(mesh))
    gathered = jax.device_put(params, jax.tree.map(lambda s: NamedSharding(apart, s.spec), own))

    def as_local(array: jax.Array, sharding: NamedSharding) -> jax.Array:
        shards = [shard.data for shard in array.addressable_shards]
        return jax.make_array_from_single_device_arrays(array.shape, sharding, shards)

    return jax.tree.map(as_local, gathered, own)


def _by_process(mesh: Mesh) -> np.ndarray:
    """Devices [process, data = 1, fsdp, context = 1, tensor], in the mesh's order."""
    rows = [[device for device in mesh.devices.flat if device.process_index == p] for p in processes_of(mesh)]
    tensor = math.gcd(mesh.shape["tensor"], len(rows[0]))
    return np.array(rows).reshape(len(rows), 1, -1, 1, tensor)


def processes_of(mesh: Mesh) -> list[int]:
    """The processes that own the mesh's devices; of a slice that is only compiled for, its hosts."""
    return sorted({device.process_index for device in mesh.devices.flat})

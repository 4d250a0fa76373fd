"""Settings of the machines: processes, the sandbox, the log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from jaxrl.config.rules import AboveZero, Count, Positive


@dataclass
class ProcessesConfig:
    """A run in several processes (docs/guide/processes.md). These settings may differ when a run is resumed.

    With none of the first three, SLURM, Open MPI, GKE and TPU pods are found by themselves. The environment variables
    JAXRL_PROCESS_ADDRESS, JAXRL_PROCESS_COUNT and JAXRL_PROCESS_INDEX may stand for them.
    """

    address: str = ""  # host:port of the first process, which the others can reach
    count: Count = 0
    index: Annotated[int, Ge(-1)] = -1  # of this process, from 0
    heartbeat_s: AboveZero = 30.0  # without a sign of life from a process until the run stops
    wait_s: AboveZero = 300.0  # for the others at the start
    cpu_devices: Count = 0  # devices of each process on CPU, for tests; 0: one


@dataclass
class SandboxConfig:
    """Limits on one program, where its problem has none of its own, and how well it must be isolated."""

    workers: Count = 0  # 0: one per core
    least: str = ""  # least isolation accepted: process, namespaces, everything, layers with commas; "": the default
    ray_address: str = ""  # a Ray cluster ("auto": the running one) whose nodes score programs; "": this machine
    wall_s: AboveZero = 10.0
    cpu_s: AboveZero = 2.0
    memory_mb: Positive = 1024
    output_kb: Positive = 64
    processes: Positive = 16
    tree_memory_mb: Annotated[int, Ge(64)] = 2048  # of a working tree: its processes, and its files, at most half of it


@dataclass
class LogConfig:
    """Where metrics go beside the run's folder. These settings may differ when a run is resumed."""

    wandb: str = ""  # project of Weights & Biases (pip install 'jaxrl[wandb]'); "": not logged there

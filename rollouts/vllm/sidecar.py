"""vLLM servers beside the trainer, which starts, restarts and stops them.

vLLM has an environment of its own (`make sidecar` builds .venv-vllm), since its torch and its pins need not agree with
the trainer's packages. The servers are vLLM's OpenAI-compatible ones with rollouts/vllm/extension.py loaded. A server
that other machines can reach needs a key in the environment variable JAXRL_SIDECAR_KEY; without a key the endpoints for
weights and RPC are closed even on this machine.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx2 as httpx

from rollouts import supervisor as supervisor_program
from rollouts.supervisor import cpu_seconds, descendants, kill_descendants
from rollouts.vllm.extension import KEY_VARIABLE

MODEL_NAME = "policy"  # the model's name in requests
MAX_SEQUENCES = 256  # decoded together by one replica
ADAPTERS_NAME = "adapters"  # of the model with adapters
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has room for
HEALTH_S = 10.0  # time for a starting server to answer /health, at first
KILL_S = 40.0  # time for a supervisor to kill its server

# On CPUs compilation does not pay off for small models, and prompts are read in chunks of CPU_BATCH tokens: with vLLM's
# 2,048, one step at 1.5B takes a minute on two cores, during which the server does not answer.
_CPU_ARGUMENTS = ["--enforce-eager", "--worker-cls", "rollouts.vllm.cpu.Worker"]
CPU_BATCH = 512


class SidecarError(RuntimeError):
    """A sampler cannot be started or does not answer; the message says which one, and where its log is."""


@dataclass(frozen=True)
class SidecarSettings:
    """What to start."""

    model: Path  # Hugging Face folder
    python: Path = Path(".venv-vllm/bin/python")  # of vLLM's environment
    host: str = "127.0.0.1"
    port: int = 0  # of the first replica, the others follow; 0: any free ports
    replicas: int = 1
    tensor_parallel: int = 1  # GPUs per replica
    devices: tuple[str, ...] = ()  # CUDA devices for all replicas; (): the first visible ones
    dtype: str = "auto"  # auto | float32 | bfloat16 | float16
    max_length: int = 0  # tokens of prompt and completion together; 0: the model's
    max_sequences: int = MAX_SEQUENCES
    dummy_weights: bool = False  # start from random weights; the trainer sends its own
    lora_rank: int = 0  # room for adapters of this rank; 0: none
    tokenizer: bool = True  # False: ids only, no stop strings
    arguments: tuple[str, ...] = ()  # further ones for vLLM
    start_timeout_s: float = 900.0
    key: str = field(default="", repr=False)

    def check(self) -> None:
        """Raises SidecarError for settings that cannot be started."""
        if not self.python.is_file():
            raise SidecarError(f"vLLM's environment has no {self.python}; run `make sidecar`, or set another path")
        if not (self.model / "config.json").is_file():
            raise SidecarError(f"{self.model} is not a Hugging Face folder: config.json is missing")
        if not is_loopback(self.host) and not self.key:
            raise SidecarError(f"host {self.host} can be reached from other machines; set {KEY_VARIABLE} to a key")
        if self.lora_rank > LORA_RANKS[-1]:
            raise SidecarError(f"lora_rank = {self.lora_rank} must be <= {LORA_RANKS[-1]}, vLLM's largest")
        if self.devices and len(self.devices) < self.replicas * self.tensor_parallel:
            raise SidecarError(
                f"{self.replicas} replicas of {self.tensor_parallel} GPUs need {self.replicas * self.tensor_parallel} "
                f"devices, but {len(self.devices)} are given"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Sidecar:
    """vLLM servers owned by this process, which starts, restarts and stops them.

    Each runs under a supervisor (rollouts/supervisor.py), which kills it when this process ends, by SIGKILL too.
    """

    def __init__(self, settings: SidecarSettings, log_folder: Path):
        settings.check()
        self.settings, self.log_folder = settings, log_folder
        self.ports = [settings.port + i if settings.port else _free_port() for i in range(settings.replicas)]
        self.supervisors: list[subprocess.Popen[bytes] | None] = [None] * settings.replicas

    @property
    def addresses(self) -> list[str]:
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        return [f"http://{host}:{port}" for port in self.ports]

    def log(self, replica: int) -> Path:
        return self.log_folder / f"replica_{replica}.log"

    def start(self, replica: int) -> None:
        """Starts a server, after killing the previous one."""
        self.kill(replica)
        self.log_folder.mkdir(parents=True, exist_ok=True)
        command = json.dumps(self._command(replica)) + "\n"
        # In a session of its own, because Ctrl-C is for the trainer.
        with open(self.log(replica), "ab") as log:
            supervisor = subprocess.Popen(
                [sys.executable, "-I", "-S", supervisor_program.__file__, str(os.getpid())],
                stdin=subprocess.PIPE, stdout=log, stderr=log, env=self._environment(replica), start_new_session=True,
            )  # fmt: skip
        self.supervisors[replica] = supervisor
        assert supervisor.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the supervisor was killed, which `alive` reports
            supervisor.stdin.write(command.encode())
            supervisor.stdin.flush()

    def kill(self, replica: int) -> None:
        """Kills a server and all its descendants, whatever state they are in."""
        supervisor = self.supervisors[replica]
        if supervisor is None:
            return
        assert supervisor.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            supervisor.stdin.close()
        supervisor.terminate()  # closing the pipe is not enough if a forked process holds it too
        try:
            supervisor.wait(timeout=KILL_S)
        except subprocess.TimeoutExpired:  # the supervisor itself is stopped
            kill_descendants(supervisor.pid)
        with contextlib.suppress(ProcessLookupError):  # the rest of the group of a supervisor that was killed
            os.killpg(supervisor.pid, signal.SIGKILL)
        supervisor.wait()
        self.supervisors[replica] = None

    def stop(self) -> None:
        """Ends all servers."""
        for replica in range(len(self.supervisors)):
            self.kill(replica)

    def alive(self, replica: int) -> bool:
        supervisor = self.supervisors[replica]
        return supervisor is not None and supervisor.poll() is None

    def pids(self, replica: int) -> list[int]:
        """The server's processes, parents before children."""
        supervisor = self.supervisors[replica]
        return [] if supervisor is None else descendants(supervisor.pid)

    def cpu_seconds(self, replica: int) -> float:
        """The CPU time that the server's processes have used."""
        supervisor = self.supervisors[replica]
        return 0.0 if supervisor is None else cpu_seconds(supervisor.pid)

    def wait_until_healthy(self, replica: int, limit_s: float | None = None) -> None:
        """Returns when the server answers.

        Raises SidecarError, with the log's last error, if it ends or takes more than limit_s (None: the settings').
        """
        limit_s = self.settings.start_timeout_s if limit_s is None else limit_s
        start = time.monotonic()
        while (waited := time.monotonic() - start) < limit_s:
            supervisor = self.supervisors[replica]
            if supervisor is None or supervisor.poll() is not None:
                code = "was stopped" if supervisor is None else f"ended with code {supervisor.returncode}"
                raise SidecarError(f"the vLLM server {code}: {self.last_error(replica)} (log: {self.log(replica)})")
            try:
                address = f"{self.addresses[replica]}/health"
                timeout = min(max(HEALTH_S, waited), limit_s - waited)  # a slow server gets more time with each attempt
                if httpx.get(address, timeout=timeout, trust_env=False).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        raise SidecarError(f"the vLLM server did not answer within {limit_s:.0f} s (log: {self.log(replica)})")

    def last_error(self, replica: int) -> str:
        """The last line of the log that names an error."""
        lines = self.log(replica).read_text(errors="replace").splitlines() if self.log(replica).exists() else []
        found = [line for line in lines if re.search(r"\w(Error|Exception): ", line) and "EngineDeadError" not in line]
        line = (found or lines or ["no output"])[-1].strip()
        return re.sub(r"^.*?(?=\w+(Error|Exception): )", "", line, count=1)[:300]  # without vLLM's prefix

    def _command(self, replica: int) -> list[str]:
        s = self.settings
        command = [str(s.python.absolute()), "-m", "vllm.entrypoints.openai.api_server"]
        options = {
            "model": s.model.absolute(), "served-model-name": MODEL_NAME, "host": s.host, "port": self.ports[replica],
            "dtype": s.dtype, "tensor-parallel-size": s.tensor_parallel, "max-num-seqs": s.max_sequences,
            "logprobs-mode": "processed_logprobs", "generation-config": "vllm",
            "worker-extension-cls": "rollouts.vllm.extension.WorkerExtension",
            "middleware": "rollouts.vllm.extension.Guard",
        }  # fmt: skip
        if s.max_length:
            options["max-model-len"] = s.max_length
        if s.dummy_weights:
            options["load-format"] = "dummy"
        for name, value in options.items():
            command += [f"--{name}", str(value)]
        command += ["--enable-scale-out"]  # /inference/v1/generate: token ids in, token ids and versions out
        command += ["--enable-prompt-tokens-details"]  # how much of a prompt was cached
        if s.lora_rank:
            room = next(rank for rank in LORA_RANKS if rank >= s.lora_rank)
            command += ["--enable-lora", "--max-lora-rank", str(room)]
        command += [] if s.tokenizer else ["--skip-tokenizer-init"]
        if self._on_cpu():
            batch = max(CPU_BATCH, s.max_sequences)  # vLLM needs room for a token of each sequence
            command += [*_CPU_ARGUMENTS, "--max-num-batched-tokens", str(batch)]
        else:
            command += ["--weight-transfer-config", '{"backend": "nccl"}']
        return [*command, *s.arguments]

    def _environment(self, replica: int) -> dict[str, str]:
        s = self.settings
        environment = {
            # For vLLM's CPU build: cache memory in GiB, threads, no pinning to cores that others use.
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // s.replicas)),
            "VLLM_NO_USAGE_STATS": "1",
            # Idle connections: the client closes its own after 2 s, and a busy machine may be late to send a request.
            "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "60",
            "HF_HUB_OFFLINE": "1",
            **({"TORCH_COMPILE_DISABLE": "1"} if self._on_cpu() else {}),  # 10 s of the first request
            **os.environ,
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1" if s.key and s.lora_rank else "0",
            "VLLM_SERVER_DEV_MODE": "1" if s.key else "0",  # the endpoints for weights; Guard closes them without a key
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *_given("PYTHONPATH")]),
            KEY_VARIABLE: s.key,
        }
        if s.devices:
            mine = s.devices[replica * s.tensor_parallel : (replica + 1) * s.tensor_parallel]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
        elif s.replicas > 1 and not self._on_cpu():
            wanted = range(replica * s.tensor_parallel, (replica + 1) * s.tensor_parallel)
            visible = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
            if visible and wanted[-1] >= len(visible):
                raise SidecarError(
                    f"{s.replicas} servers of {s.tensor_parallel} GPUs, but CUDA_VISIBLE_DEVICES = {','.join(visible)}"
                )
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(visible[i] if visible else str(i) for i in wanted)
        for name in ("VIRTUAL_ENV", "PYTHONHOME"):
            environment.pop(name, None)
        return environment

    def _on_cpu(self) -> bool:
        """Whether the environment holds vLLM's CPU build."""
        return any(self.settings.python.parent.parent.glob("lib/python*/site-packages/vllm_cpu-*"))


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _given(variable: str) -> list[str]:
    """The value of an environment variable, if it has one."""
    return [os.environ[variable]] if os.environ.get(variable) else []


def new_key() -> str:
    """A key for servers that only this process uses."""
    return secrets.token_urlsafe(32)

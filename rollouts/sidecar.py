"""Starts vLLM servers beside the trainer: `python -m rollouts.sidecar --model DIR [--port 8100 --replicas 2 ...]`.

vLLM lives in an environment of its own (`make sidecar` builds .venv-vllm), since its torch and its pins need not agree
with the trainer's packages. The servers are the stock OpenAI-compatible ones with rollouts/vllm_extension.py loaded.
Whatever listens beyond this machine needs a key in the environment variable JAXRL_SIDECAR_KEY; without one the
endpoints for weights and RPC are closed on this machine, too.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx2 as httpx

from rollouts.vllm_extension import KEY_VARIABLE

MODEL_NAME = "policy"  # how requests name the model
MAX_SEQUENCES = 256  # decoded together by one replica

# vLLM 0.32 on CPU ends with "CPU Generator does not use offset" when the prompt of a request with a seed comes in
# chunks; and compiling takes longer than the small models of such a machine are worth.
_CPU_ARGUMENTS = ["--enforce-eager", "--no-enable-chunked-prefill"]

# Run between fork and vLLM: the server dies with the process that started it, however that ends.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]): sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class SidecarError(RuntimeError):
    """A sampler that cannot be started or does not answer; the message says which, and where its log is."""


@dataclass(frozen=True)
class SidecarSettings:
    """What to start."""

    model: Path  # Hugging Face folder
    python: Path = Path(".venv-vllm/bin/python")  # of vLLM's environment
    host: str = "127.0.0.1"
    port: int = 0  # of the first replica, the next ones follow; 0: any free ones
    replicas: int = 1
    tensor_parallel: int = 1  # GPUs a replica
    devices: tuple[str, ...] = ()  # CUDA devices for all replicas; (): the first ones that are visible
    dtype: str = "auto"  # auto | float32 | bfloat16 | float16
    max_length: int = 0  # tokens of prompt and completion together; 0: the model's
    max_sequences: int = MAX_SEQUENCES
    dummy_weights: bool = False  # start from random weights; the trainer sends its own
    tokenizer: bool = True  # False: ids only, no stop strings
    arguments: tuple[str, ...] = ()  # more of vLLM's own
    start_timeout_s: float = 900.0
    key: str = field(default="", repr=False)

    def check(self) -> None:
        """Raises SidecarError for settings that cannot be started."""
        if not self.python.is_file():
            raise SidecarError(f"vLLM's environment has no {self.python}; run `make sidecar`, or give another path")
        if not (self.model / "config.json").is_file():
            raise SidecarError(f"{self.model} is no Hugging Face folder: config.json is missing")
        if not is_loopback(self.host) and not self.key:
            raise SidecarError(f"host {self.host} can be reached from other machines; set {KEY_VARIABLE} to a key")
        if self.devices and len(self.devices) < self.replicas * self.tensor_parallel:
            raise SidecarError(
                f"{self.replicas} replicas of {self.tensor_parallel} GPUs need {self.replicas * self.tensor_parallel} "
                f"devices, {len(self.devices)} are given"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Sidecar:
    """vLLM servers owned by this process: started, restarted and stopped by it, and killed by the kernel if it dies.

    Start it from a thread that lives as long as the servers should: the kernel ends them with that thread.
    """

    def __init__(self, settings: SidecarSettings, log_folder: Path):
        settings.check()
        self.settings, self.log_folder = settings, log_folder
        self.ports = [settings.port + i if settings.port else _free_port() for i in range(settings.replicas)]
        self.processes: list[subprocess.Popen[bytes] | None] = [None] * settings.replicas

    @property
    def addresses(self) -> list[str]:
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        return [f"http://{host}:{port}" for port in self.ports]

    def log(self, replica: int) -> Path:
        return self.log_folder / f"replica_{replica}.log"

    def start(self, replica: int) -> None:
        """Starts a server; the one that was there is killed first."""
        self.kill(replica)
        self.log_folder.mkdir(parents=True, exist_ok=True)
        # A session of its own: Ctrl-C is for the trainer, and the whole group can be killed at once.
        with open(self.log(replica), "ab") as log:
            command = [sys.executable, "-c", _DIE_WITH_PARENT, str(os.getpid()), *self._command(replica)]
            self.processes[replica] = subprocess.Popen(
                command, stdout=log, stderr=log, env=self._environment(replica), start_new_session=True
            )

    def kill(self, replica: int) -> None:
        """Ends a server and its workers, however they are."""
        process = self.processes[replica]
        if process is not None:
            shared = {path for member in _group_members(process.pid) for path in _shared_memory(member)}
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for path in shared:  # vLLM leaves its own behind
                path.unlink(missing_ok=True)
            self.processes[replica] = None

    def stop(self) -> None:
        """Ends all servers."""
        for replica in range(len(self.processes)):
            self.kill(replica)

    def alive(self, replica: int) -> bool:
        process = self.processes[replica]
        return process is not None and process.poll() is None

    def wait_until_healthy(self, replica: int) -> None:
        """Returns when the server answers.

        Raises SidecarError, with the log's last error, if it ends or takes too long.
        """
        deadline = time.monotonic() + self.settings.start_timeout_s
        while time.monotonic() < deadline:
            process = self.processes[replica]
            if process is None or process.poll() is not None:
                code = "was stopped" if process is None else f"ended with code {process.returncode}"
                raise SidecarError(f"the vLLM server {code}: {self.last_error(replica)} (log: {self.log(replica)})")
            try:
                if httpx.get(f"{self.addresses[replica]}/health", timeout=2.0, trust_env=False).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        raise SidecarError(
            f"the vLLM server did not answer within {self.settings.start_timeout_s:.0f} s (log: {self.log(replica)})"
        )

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
            "worker-extension-cls": "rollouts.vllm_extension.WorkerExtension",
            "middleware": "rollouts.vllm_extension.Guard",
        }  # fmt: skip
        if s.max_length:
            options["max-model-len"] = s.max_length
        if s.dummy_weights:
            options["load-format"] = "dummy"
        for name, value in options.items():
            command += [f"--{name}", str(value)]
        command += ["--enable-scale-out"]  # /inference/v1/generate: token ids in, token ids and versions out
        command += ["--enable-prompt-tokens-details"]  # how much of a prompt was cached
        command += [] if s.tokenizer else ["--skip-tokenizer-init"]
        command += _CPU_ARGUMENTS if self._on_cpu() else ["--weight-transfer-config", '{"backend": "nccl"}']
        return [*command, *s.arguments]

    def _environment(self, replica: int) -> dict[str, str]:
        s = self.settings
        environment = {
            # vLLM's CPU build: memory for keys and values in GiB, threads, no pinning to cores that others use.
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // s.replicas)),
            "VLLM_NO_USAGE_STATS": "1",
            # Longer than the client's 2 s, however long a busy machine keeps a request from being sent.
            "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "60",
            "HF_HUB_OFFLINE": "1",
            **({"TORCH_COMPILE_DISABLE": "1"} if self._on_cpu() else {}),  # the first request would wait 10 s for it
            **os.environ,
            "VLLM_SERVER_DEV_MODE": "1" if s.key else "0",  # the endpoints for weights; Guard closes them without a key
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), *_given("PYTHONPATH")]),
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


def _group_members(group: int) -> list[Path]:
    """/proc/PID of each process of a group."""
    members = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((path / "stat").read_text().rpartition(")")[2].split()[2]) == group:
                members.append(path)
    return members


def _shared_memory(process: Path) -> set[Path]:
    """The blocks of multiprocessing.shared_memory that a process has mapped."""
    with contextlib.suppress(OSError):
        mapped = [line.split()[-1] for line in (process / "maps").read_text().splitlines() if "/dev/shm/psm_" in line]
        return {Path(name) for name in mapped if name.startswith("/dev/shm/")}
    return set()


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


def main(arguments: Sequence[str]) -> int:
    """Runs servers until Ctrl-C, SIGTERM or the end of one of them: 0 when it was told to end, else 1."""
    parser = argparse.ArgumentParser(prog="python -m rollouts.sidecar", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--environment", type=Path, default=Path(".venv-vllm"), help="where vLLM is installed")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8100, help="of the first replica")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--tensor-parallel", type=int, default=1, help="GPUs a replica")
    parser.add_argument("--devices", default="", help="CUDA devices for all replicas, with commas")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--max-length", type=int, default=0, help="tokens of prompt and completion; 0: the model's")
    parser.add_argument("--max-sequences", type=int, default=MAX_SEQUENCES, help="decoded together")
    parser.add_argument("--start-timeout", type=float, default=900.0, metavar="SECONDS")
    parser.add_argument("--log-folder", type=Path, default=Path("runs/sidecar"))
    options, more = parser.parse_known_args(arguments)
    settings = SidecarSettings(
        model=options.model,
        python=options.environment / "bin/python",
        host=options.host,
        port=options.port,
        replicas=options.replicas,
        tensor_parallel=options.tensor_parallel,
        devices=tuple(d for d in options.devices.split(",") if d),
        dtype=options.dtype,
        max_length=options.max_length,
        max_sequences=options.max_sequences,
        start_timeout_s=options.start_timeout,
        tokenizer=(options.model / "tokenizer_config.json").is_file(),
        arguments=tuple(more),
        key=os.environ.get(KEY_VARIABLE, ""),
    )
    try:
        sidecar = Sidecar(settings, options.log_folder)
    except SidecarError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        for replica in range(settings.replicas):
            sidecar.start(replica)
        for replica, address in enumerate(sidecar.addresses):
            sidecar.wait_until_healthy(replica)
            print(f"{address}  log: {sidecar.log(replica)}", flush=True)
        if not settings.key:
            print(f"no {KEY_VARIABLE}: completions are open on this machine, weights cannot be sent", flush=True)
        while all(sidecar.alive(replica) for replica in range(settings.replicas)):
            time.sleep(0.5)
        dead = next(r for r in range(settings.replicas) if not sidecar.alive(r))
        raise SidecarError(f"replica {dead} ended: {sidecar.last_error(dead)} (log: {sidecar.log(dead)})")
    except SidecarError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        sidecar.stop()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

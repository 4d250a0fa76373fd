"""A server that speaks as much of vLLM's protocol as the client uses, samples by the JAX engine, and fails on request.

Run as a program it takes vLLM's command line (see `fake_environment`), and its faults from the file that FAKE_FAULTS
names: one word a line, taken by one request each; FAKE_PHASES names a file that it tells what it does. Because the JAX
engine gives a request the same tokens whatever else happens, a run with faults must be bit by bit the run without them.
"""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from jaxrl.files import write_beside
from models.config import read_config, to_hf
from models.convert import SafetensorsFolder, load_hf
from rollouts.engine import SamplingParams
from rollouts.jax.engine import JaxEngine
from rollouts.vllm.extension import CHECKED_ROWS, KEY_VARIABLE


class FakeServer(ThreadingHTTPServer):
    """The server; `faults` is what the next requests will meet."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, model: Path, port: int = 0, max_length: int = 64, key: str = "", fault_file: Path | None = None):
        super().__init__(("127.0.0.1", port), Handler)
        self.config = read_config(model)
        self.max_length, self.key, self.fault_file = max_length, key, fault_file
        self.faults: list[str] = []
        self.version, self.checksums, self.engine = "default", {}, None
        self.calls: list[str] = []
        self.infos: list = []
        self.requests: list[dict] = []  # for completions
        self.served = 0  # completions
        self.tokens = 0  # as its metrics count them: only faults do
        self.mute_until = 0.0  # nothing but metrics is answered until then
        self.delay = 0.0  # seconds before each answer
        self.running = 0  # requests now, and the most at a time
        self.most_running = 0
        self.nccl = None  # what the test's NCCL has sent
        self.gate = threading.Condition()  # closed while paused
        self.open, self.sampling = True, 0
        self.lock = threading.Lock()
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def start(self) -> FakeServer:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address) -> None:
        """A client that hung up is no news."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def take_fault(self) -> str:
        with self.lock:
            if self.faults:
                return self.faults.pop(0)
        if self.fault_file is None or not self.fault_file.exists():
            return ""
        with open(f"{self.fault_file}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            first, *rest = self.fault_file.read_text().splitlines() or [""]
            write_beside(self.fault_file, "".join(f"{line}\n" for line in rest))  # a fault may end us meanwhile
        return first

    def say_phase(self, phase: str) -> None:
        """For a test that waits for it, in FAKE_PHASES."""
        if path := os.environ.get("FAKE_PHASES"):
            with open(path, "a") as file:
                file.write(f"{phase}\n")

    def be_mute(self, seconds: float, busy: str) -> None:
        """Answers nobody for so long, and meanwhile does nothing (""), counts "tokens", or uses "cpu" time."""
        end = self.mute_until = time.monotonic() + seconds
        while time.monotonic() < end:
            if busy == "cpu":
                sum(range(20_000))
            else:
                time.sleep(0.05 if busy else seconds)
            self.tokens += busy == "tokens"

    def pause(self) -> None:
        """Lets what is being sampled finish; more waits for `resume`."""
        with self.gate:
            self.open = False
            self.gate.wait_for(lambda: not self.sampling)

    def resume(self) -> None:
        with self.gate:
            self.open = True
            self.gate.notify_all()

    def forget(self) -> None:
        """As after a restart: other weights, and no version."""
        self.version, self.engine = "default", None

    def load(self, folder: Path) -> dict:
        tensors = SafetensorsFolder(folder)
        _, graphdef, params = load_hf_with(self.config, folder)
        if self.engine is None:
            self.engine = JaxEngine(graphdef, params, slots=8, max_length=self.max_length, unroll=True)
        self.engine.load_weights(params, 0)
        parameters = {
            name: [zlib.crc32(tensors.read(name)[:CHECKED_ROWS].tobytes()), list(tensors.shape(name))]
            for name in tensors.names()
        }
        return {"rank": 0, "size": 1, "parameters": parameters}

    def generate(self, body: dict) -> dict:
        p = body["sampling_params"]
        params = SamplingParams(
            max_new_tokens=p["max_tokens"],
            temperature=p["temperature"],
            stop_tokens=tuple(p["stop_token_ids"]),
            seed=p["seed"],
        )
        version, engine = self.version, self.engine
        prompt = np.array(body["token_ids"], np.int32)
        sampling = asyncio.run_coroutine_threadsafe(engine.sample(prompt, params), self.loop)
        (completion,) = sampling.result(timeout=60)
        ids = completion.tokens.tolist()
        content = [{"token_id": t, "logprob": float(l)} for t, l in zip(ids, completion.logprobs)]
        choice = {
            "finish_reason": completion.finish_reason,
            "token_ids": ids,
            "logprobs": {"content": content},
            "weight_versions": [{"version": version, "start": 0, "end": len(ids)}],
        }
        return {"choices": [choice]}


def load_hf_with(config, folder: Path):
    """load_hf of a folder that holds weights only."""
    with tempfile.TemporaryDirectory() as whole:
        (Path(whole) / "config.json").write_text(json.dumps(to_hf(config)))
        (Path(whole) / "model.safetensors").symlink_to(folder / "model.safetensors")
        return load_hf(whole, dtype=np.float32)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FakeServer

    def log_message(self, *_: object) -> None:
        pass

    def reply(self, value: object, status: int = 200, raw: bytes | None = None) -> None:
        body = json.dumps(value).encode() if raw is None else raw
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        time.sleep(self.server.delay)
        if self.path == "/metrics":
            lines = ["# TYPE vllm:generation_tokens_total counter"]
            lines += [
                f'vllm:{kind}_tokens_total{{engine="0"}} {self.server.tokens}.0' for kind in ("prompt", "generation")
            ]
            return self.reply(None, raw="\n".join([*lines, ""]).encode())
        self.wait_while_mute()
        self.reply({} if self.path == "/health" else {"error": "no such path"}, 200 if self.path == "/health" else 404)

    def wait_while_mute(self) -> None:
        time.sleep(max(0.0, self.server.mute_until - time.monotonic()))

    def do_POST(self) -> None:
        server = self.server
        time.sleep(server.delay)
        self.wait_while_mute()
        body = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or "{}")
        path = self.path.partition("?")[0]
        server.calls.append(body.get("method", self.path))
        if server.key and self.headers.get("authorization") != f"Bearer {server.key}":
            self.reply({"error": "the key is missing or wrong"}, 401)
        elif path == "/inference/v1/generate":
            with server.lock:
                server.running += 1
                server.most_running = max(server.most_running, server.running)
            try:
                self.generate(body)
            finally:
                with server.lock:
                    server.running -= 1
        elif path == "/collective_rpc":
            self.rpc(body)
        elif path == "/update_weight_version":
            server.version = body["new_version"]
            self.reply({})
        elif path in ("/init_weight_transfer_engine", "/start_weight_update", "/finish_weight_update"):
            server.infos.append(body.get("init_info", path))
            self.reply({})
        elif path == "/update_weights":
            self.receive(body["update_info"])
        elif path in ("/pause", "/resume", "/reset_prefix_cache"):
            {"/pause": server.pause, "/resume": server.resume}.get(path, lambda: None)()
            self.reply({})
        else:
            self.reply({"error": "no such path"}, 404)

    def rpc(self, body: dict) -> None:
        server = self.server
        if body["method"] == "jaxrl_describe":
            facts = {"dtype": "float32", "logprobs_mode": "processed_logprobs", "max_length": server.max_length}
            self.reply({"results": [facts | {"vocab_size": server.config.vocab_size}]})
        elif body["method"] == "jaxrl_load":
            server.say_phase("loading")
            time.sleep(float(os.environ.get("FAKE_LOADING_S", "0")))
            report = server.load(Path(body["args"][0]))
            if "corrupt" in server.faults:
                server.faults.remove("corrupt")
                name = next(iter(report["parameters"]))
                report["parameters"][name][0] ^= 1
            if "no report" in server.faults:
                server.faults.remove("no report")
                report = None
            self.reply({"results": [report]})
        elif body["method"] == "jaxrl_finish_transfer":
            self.reply({"results": [server.report]})

    def receive(self, update: dict) -> None:
        """The tensors of an update, from the test's NCCL."""
        server = self.server
        if "broken link" in server.faults:
            server.faults.remove("broken link")
            return self.reply({"error": "NCCL error"}, 500)
        while len(server.nccl.sent) < len(update["names"]):
            time.sleep(0.01)
        sent = zip(update["names"], update["shapes"], server.nccl.sent)
        tensors = {name: np.frombuffer(data, np.float32).reshape(shape) for name, shape, data in sent}
        with tempfile.TemporaryDirectory() as folder:
            save_file(tensors, Path(folder) / "model.safetensors")
            server.report = server.load(Path(folder))
        self.reply({})

    def generate(self, body: dict) -> None:
        server, fault = self.server, self.server.take_fault()
        server.requests.append(body)
        server.say_phase("sampling")
        if fault == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault == "oom":
            print("MemoryError: out of memory", file=sys.stderr, flush=True)
            os._exit(137)
        elif fault == "hang":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif fault == "old":
            server.forget()
        elif fault.startswith("mute"):  # mute SECONDS [tokens | cpu]
            _, seconds, *busy = fault.split()
            server.be_mute(float(seconds), "".join(busy))
        elif fault.startswith("slow"):
            time.sleep(float(fault.partition(" ")[2] or 1))
        if fault == "500":
            return self.reply({"error": {"message": "EngineDeadError"}}, 500)
        if fault == "garbage":
            return self.reply(None, raw=b"<html>not what you asked for</html>")
        if fault == "drop":
            self.close_connection = True
            return self.connection.shutdown(2)
        if fault == "abort":
            return self.reply({"choices": [{"finish_reason": "abort"}]})
        if server.engine is None:
            content = [{"token_id": 1, "logprob": -1.0}]
            choice = {"finish_reason": "length", "token_ids": [1], "logprobs": {"content": content}}
            choice["weight_versions"] = [{"version": "default", "start": 0, "end": 1}]
            return self.reply({"choices": [choice]})
        with server.gate:
            server.gate.wait_for(lambda: server.open)
            server.sampling += 1
        try:
            answer = server.generate(body)
        finally:
            with server.gate:
                server.sampling -= 1
                server.gate.notify_all()
        spoil(answer["choices"][0], fault)
        server.served += 1
        self.reply(answer)


def spoil(choice: dict, fault: str) -> None:
    """Changes an answer as the fault says, if it is one of answers."""
    if fault == "nan":
        choice["logprobs"]["content"][0]["logprob"] = float("nan")
    elif fault == "unknown":
        choice["logprobs"]["content"][0]["logprob"] = -9999.0
    elif fault == "long":
        choice["token_ids"] += [1] * 100
    elif fault == "vocabulary":
        choice["token_ids"][0] = choice["logprobs"]["content"][0]["token_id"] = 10**6
    elif fault.startswith("abort"):  # abort TOKENS: after these
        n = int(fault.split()[1])
        choice |= {"finish_reason": "abort", "token_ids": choice["token_ids"][:n]}
        choice["logprobs"]["content"] = choice["logprobs"]["content"][:n]
        choice["weight_versions"][0]["end"] = n
    elif fault == "stale":
        session, version = choice["weight_versions"][0]["version"].split("/")
        choice["weight_versions"][0]["version"] = f"{session}/{int(version) - 1}"
    elif fault == "wrong":
        for entry in choice["logprobs"]["content"]:
            entry["logprob"] -= 0.5


def fake_environment(folder: Path) -> Path:
    """A folder like vLLM's environment, whose Python runs this program."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    root = Path(__file__).parents[2]
    python.write_text(
        f'#!/bin/sh\nexport PYTHONPATH={root} JAX_PLATFORMS=cpu\nexec {sys.executable} {Path(__file__)} "$@"\n'
    )
    python.chmod(0o755)
    return folder


# A child, and a grandchild that loses its parent, each in a session of its own: as a server's engine and workers may.
FAMILY = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.setsid()
if child := os.fork():
    os.waitpid(child, 0)
    print("complete", flush=True)
else:
    os.setsid()
    if os.fork(): os._exit(0)
time.sleep(600)
"""


def start_family(mark: str) -> None:
    """Processes below this one, which a test finds by the last word of their command lines; none without a mark."""
    if mark:
        child = subprocess.Popen([sys.executable, "-c", FAMILY, mark], stdout=subprocess.PIPE)
        assert child.stdout is not None and child.stdout.readline() == b"complete\n"


def main(arguments: list[str]) -> None:
    """vLLM's command line, as far as it matters."""
    options = dict(itertools.pairwise(arguments))
    fault_file = os.environ.get("FAKE_FAULTS")
    server = FakeServer(
        Path(options["--model"]),
        int(options["--port"]),
        int(options["--max-model-len"]),
        os.environ.get(KEY_VARIABLE, ""),
        Path(fault_file) if fault_file else None,
    )
    start_family(os.environ.get("FAKE_FAMILY", ""))
    server.say_phase("starting")
    time.sleep(float(os.environ.get("FAKE_STARTING_S", "0")))
    server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])

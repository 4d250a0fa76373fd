"""Starts vLLM servers beside the trainer: `python -m rollouts.sidecar --model DIR [--port 8100 --replicas 2 ...]`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rollouts.vllm.extension import KEY_VARIABLE
from rollouts.vllm.sidecar import MAX_SEQUENCES, Sidecar, SidecarError, SidecarSettings


def main(arguments: Sequence[str]) -> int:
    """Runs servers until Ctrl-C or SIGTERM (exit code 0), or until one of them ends (1)."""
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
    parser.add_argument("--lora-rank", type=int, default=0, help="room for adapters of this rank; 0: none")
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
        lora_rank=options.lora_rank,
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
            print(f"{KEY_VARIABLE} is not set: completions are open here, but weights are refused", flush=True)
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

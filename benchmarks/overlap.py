"""Does sampling the next batch while training on this one shorten the step? Staleness 0 and 1, each part on one core.

    python benchmarks/overlap.py [--environment .venv-vllm] [--steps 40]

A 3M-parameter model on the scramble task: vLLM on one core, the trainer on another, so that neither gains by the
other's absence. Prints the median step and what share of the steps' time sampler and trainer were at work.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

KEY = "benchmark"
MODEL = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4}
SETTINGS = {
    "sft.steps": 1, "sft.batch_size": 8, "grpo.problems_per_step": 16, "grpo.group_size": 8,
    "grpo.loss.sampler_correction": "truncate", "rollout.engine": "vllm",
    "task.held_out_problems": 8, "log_samples_every": 0, "checkpoint.every": 1000,
} | {f"model.shape.{name}": value for name, value in MODEL.items()}  # fmt: skip


def train(folder: Path, name: str, core: int, **settings: object) -> Path:
    """A run of the scramble task pinned to one core."""
    command = ["taskset", "-c", str(core), sys.executable, "-m", "jaxrl.train", "--config", "configs/scramble.py"]
    command += [f"--config.runs_dir={folder}", f"--config.name={name}"]
    command += [f"--config.{field}={value}" for field, value in settings.items()]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"JAXRL_SIDECAR_KEY": KEY})
    return folder / name


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--environment", type=Path, default=Path(".venv-vllm"))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--port", type=int, default=8177)
    options = parser.parse_args()
    os.chdir(Path(__file__).parent.parent)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shape = SETTINGS | {"rollout.engine": "jax", "grpo.steps": 0}
        train(folder, "shape", 0, **shape)
        subprocess.run(
            [sys.executable, "-m", "models.convert", "export", str(folder / "shape"), str(folder / "hf")], check=True
        )
        command = ["taskset", "-c", "1", sys.executable, "-m", "rollouts.sidecar", "--model", str(folder / "hf")]
        command += ["--environment", str(options.environment), "--port", str(options.port), "--max-length", "64"]
        command += ["--dtype", "float32", "--log-folder", str(folder / "log")]
        environment = os.environ | {"JAXRL_SIDECAR_KEY": KEY, "OMP_NUM_THREADS": "1"}
        sidecar = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        try:
            assert sidecar.stdout is not None
            sidecar.stdout.readline()  # printed when it is up
            measured = {}
            for staleness in (0, 1):
                settings = SETTINGS | {
                    "grpo.steps": options.steps,
                    "rollout.max_staleness": staleness,
                    "rollout.sidecar.addresses": f"('http://127.0.0.1:{options.port}',)",
                }
                run = train(folder, f"staleness_{staleness}", 0, **settings)
                records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
                steps = [r for r in records if r["stage"] == "grpo"][5:]  # the first ones compile
                total = sum(r["time/step_s"] for r in steps)
                measured[f"staleness {staleness}"] = {
                    "median_step_s": statistics.median(r["time/step_s"] for r in steps),
                    "busy": {p: sum(r[f"time/busy_{p}_s"] for r in steps) / total for p in ("sampler", "trainer")},
                    "mismatch_max": max(r["mismatch/max"] for r in steps),
                }
        finally:
            sidecar.send_signal(signal.SIGTERM)
            sidecar.wait()
    print(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()

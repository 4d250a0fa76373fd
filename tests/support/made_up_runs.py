"""Folders of runs with known numbers, as training and evaluation leave them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from jaxrl.config import Config
from models.config import ModelConfig

MODEL = ModelConfig("qwen2", 416, 192, 512, 3, 4, 2, 48, 4096, qkv_bias=True, tied_embeddings=True)
HOSTILE = (
    "</pre></script><script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\"><b>bold"
)


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in records))


def scored(score: float, half: float = 0.05, **costs: float) -> dict[str, Any]:
    """The record of an evaluation with its interval and costs."""
    record = {"held_out/pass@1": score, "held_out/pass@1/low": score - half, "held_out/pass@1/high": score + half}
    record |= {"held_out/n": 200, "held_out/length": costs.get("tokens", 5.0)}
    costs = {"flops": 1e8, "tokens": 5.0, "turns": 1.0, "calls": 0.0, "failed_calls": 0.0} | costs
    return record | {f"held_out/cost/{name}": value for name, value in costs.items()}


def write_config(folder: Path, **settings: Any) -> None:
    """config.json of a run with these settings; the names of nested ones with __ for the dot."""
    config = dataclasses.asdict(Config(name=folder.name, runs_dir=str(folder.parent)))
    for name, value in settings.items():
        *holders, last = name.split("__")
        place = config
        for holder in holders:
            place = place[holder]
        plugin = isinstance(place.get(last), dict) and isinstance(value, str)
        place[last] = {"name": value} if plugin else value
    (folder / "model").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model" / "model.json").write_text(json.dumps(dataclasses.asdict(MODEL)))


def training_run(
    folder: Path, stage: str, first: dict[str, Any], last: dict[str, Any], steps: int = 20, **settings: Any
) -> Path:
    """A run of `steps` steps; SFT steps cost 3e9 FLOPs, GRPO steps 1e9 to sample, 2e9 of logprobs, 6e9 to update."""
    write_config(folder, **settings)
    records = [{"step": 0, "stage": "evaluate", "stage_step": 0, "after": "start", **first}]
    for step in range(1, steps + 1):
        times = {"time/step_s": 0.5, "time/tokens_per_s": 1000.0 + step, "time/mfu": 0.25}
        record = {"step": step, "stage": stage, "stage_step": step, "loss": 1 / step, "tokens": 500.0, **times}
        if stage == "sft":
            record |= {"flops": 3e9, "flops/update": 3e9}
        else:
            record |= {"flops": 9e9, "flops/sampling": 1e9, "flops/old": 1.5e9, "flops/reference": 0.5e9}
            record |= {"flops/update": 6e9, "solved": 0.4 + 0.4 * step / steps, "length/mean": 20.0 + step}
            record |= {"turns/mean": last["held_out/cost/turns"], "calls/mean": last["held_out/cost/calls"]}
            record |= {"length/solved": 19.0 + step, "length/unsolved": 25.0 + step, "reward/mean": 0.5}
            if last["held_out/cost/calls"]:
                record["calls/failed"] = 0.5 - 0.4 * step / steps
            if step == steps // 2:
                records.append({"step": step, "stage": "evaluate", "stage_step": step, "after": "grpo", **first})
        records.append(record)
    records.append({"step": steps, "stage": "evaluate", "stage_step": steps, "after": stage, **last})
    write_lines(folder / "metrics.jsonl", records)
    devices = {"kind": "TPU v5e", "count": 4, "peak_flops": 1.97e14, "peak": "published"}
    (folder / "devices.json").write_text(json.dumps(devices))
    if stage == "grpo":
        for step in range(1, steps + 1):
            write_lines(folder / "samples" / f"{step:08d}.jsonl", [episode(step, i) for i in range(2)])
    return folder


def three_stages(folder: Path) -> Path:
    """A run of stages, a headline and slices that nothing in the reports knows: "probe" and "judge_model" sample
    nothing, "spar" does and counts operations of its own. The accuracy of 0.25, 0.5, 1.75 and 0.75 is not a share."""
    write_config(folder)
    records: list[dict[str, Any]] = []

    def steps() -> int:
        return sum(r["stage"] != "evaluate" for r in records)

    def evaluate(after: str, score: float) -> None:
        record = {"step": steps(), "stage": "evaluate", "stage_step": 0, "after": after, "headline": "accuracy"}
        scores = {"held_out/accuracy": score, "held_out/accuracy/low": score - 0.1, "held_out/accuracy/high": score}
        scores |= {"held_out/accuracy/standard_error": 0.01, "held_out/other": 0.9, "held_out/other/shape_round": 0.9}
        slices = {"held_out/accuracy/shape_round": score + 0.125, "held_out/accuracy/colour_dark_blue": score - 0.125}
        costs = {f"held_out/cost/{name}": 1.0 for name in ("flops", "tokens", "turns", "calls", "failed_calls")}
        records.append(record | scores | slices | costs)

    evaluate("start", 0.25)
    for stage, score in (("probe", 0.5), ("judge_model", 1.75), ("spar", 0.75)):
        for i in range(1, 4):
            record = {"step": steps() + 1, "stage": stage, "stage_step": i, "loss": 0.5, "time/step_s": 1.0}
            if stage == "spar":
                record |= {"reward/mean": 0.5, "solved": 0.5, "length/mean": 5.0, "flops/critic": 5e9}
                record |= {"flops/sampling": 1e9, "flops/old": 2e9, "flops/reference": 0.0, "flops/update": 3e9}
            records.append(record | {"flops": 1.1e10 if stage == "spar" else 7e9})
        evaluate(stage, score)
    write_lines(folder / "metrics.jsonl", records)
    return folder


def evaluation_run(folder: Path, record: dict[str, Any], **settings: Any) -> Path:
    write_config(folder, **settings)
    (folder / "evaluation.json").write_text(json.dumps(record))
    write_lines(folder / "samples" / "evaluation.jsonl", [episode(0, i) for i in range(4)])
    return folder


def episode(step: int, i: int, text: str = "x = 3\nprint(x)") -> dict[str, Any]:
    """A line of a samples file: an answer with a tool call, solved if i is odd."""
    status = "passed" if i % 2 else "wrong_answer"
    tests = [{"status": "passed", "message": ""}, {"status": status, "message": f"want 3 {HOSTILE}", "expected": "3"}]
    turns = [
        {"role": "assistant", "text": text, "tokens": [72, 105, 33], "sampled": True, "learned": True, "cached": 0,
         "logprobs": [-0.01, -1.2, -6.5]},
        {"role": "tool", "text": f"3\n{HOSTILE}", "tokens": [51], "sampled": False, "learned": False,
         "status": "passed" if i % 2 else "runtime_error"},
        {"role": "assistant", "text": "3", "tokens": [51, 46], "sampled": True, "learned": True, "cached": 9,
         "logprobs": [-0.2, -0.7]},
    ]  # fmt: skip
    return {
        "step": step, "stage": "grpo", "problem": f"p/{step}/{i}", "prompt": f"{step} {i} {HOSTILE}", "text": text,
        "reward": float(i % 2), "parts": {"solved": float(i % 2)}, "solved": bool(i % 2), "status": "finished",
        "verdict": {"status": status, "tests": tests}, "tokens": 5, "weight_versions": [step - 1] * 2, "turns": turns,
        "attempts": [[False, False, False], [True, bool(i % 2), True]],
    }  # fmt: skip


def study(folder: Path) -> list[Path]:
    """SFT from random weights, the same with answers drawn again, and GRPO from it in three environments."""
    sft = str(folder / "sft")
    after_sft, grpo = scored(0.40), {"model__path": sft, "grpo__steps": 20}
    tool = scored(0.70, flops=3e8, tokens=30.0, calls=1.5, failed_calls=0.3)
    tools = {"rollout__environment": "interpreter"}
    feedback = scored(0.60, flops=5e8, tokens=50.0, turns=1.8)
    return [
        training_run(folder / "sft", "sft", scored(0.02), after_sft, label="SFT"),
        evaluation_run(
            folder / "again", scored(0.45, flops=1.4e8) | {"held_out/attempts": 1.4}, label="SFT + regenerate",
            model__path=sft,
        ),
        training_run(folder / "direct", "grpo", after_sft, scored(0.52), label="GRPO direct", **grpo),
        training_run(folder / "tool", "grpo", after_sft, tool, label="GRPO + tool use", **grpo, **tools),
        training_run(
            folder / "feedback", "grpo", after_sft, feedback, label="GRPO + feedback", **grpo,
            rollout__environment="feedback",
        ),
    ]  # fmt: skip

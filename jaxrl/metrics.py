"""What a run logs: metrics.jsonl, TensorBoard, and a live display."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from jaxrl.files import write_beside
from rollouts.episode import Group, Turn


class MetricsLog:
    """metrics.jsonl, one JSON object a line, and the same numbers for TensorBoard.

    A record has "step" (of the run), "stage", "stage_step" and numbers; wall-clock values have names that begin with
    "time/", so two runs can be compared without them. Floats are written so that they read back bit by bit; numbers
    that are not finite as the strings "nan", "inf" and "-inf".

    Args:
        folder: of the run.
        keep_lines: lines that are kept of a log that is there already; those of later steps, and a line that was cut
            off, are dropped.
        writes: False: only counts, as another process writes.

    Raises ValueError if there are fewer whole lines than keep_lines.
    """

    def __init__(self, folder: Path, keep_lines: int = 0, writes: bool = True):
        self.path, self.writes, self.lines = folder / "metrics.jsonl", writes, keep_lines
        if not writes:
            return
        records = read_metrics(self.path) if keep_lines else []
        if len(records) < keep_lines:
            raise ValueError(f"{self.path} has {len(records)} whole lines, the checkpoint was made after {keep_lines}")
        lines = self.path.read_bytes().splitlines(keepends=True)[:keep_lines] if keep_lines else []
        write_beside(self.path, b"".join(lines))
        self._file = open(self.path, "a")
        step = max((record["step"] for record in records[:keep_lines]), default=-1)
        self._events = EventFileWriter(str(folder / "tensorboard"))
        # Tells TensorBoard to forget what a killed run wrote after this step.
        self._events.add_event(Event(wall_time=time.time(), step=step + 1, session_log={"status": 1}))

    def write(self, record: dict[str, Any]) -> None:
        """Appends a record. Raises OSError when the disk is full."""
        self.lines += 1
        if not self.writes:
            return
        self._file.write(json.dumps({name: _plain(value) for name, value in record.items()}) + "\n")
        self._file.flush()
        stage = record["stage"]
        values = [
            Summary.Value(tag=f"{stage}/{name}", simple_value=value)
            for name, value in record.items()
            if isinstance(value, float) and math.isfinite(value)
        ]
        self._events.add_event(Event(wall_time=time.time(), step=record["step"], summary=Summary(value=values)))

    def sync(self) -> None:
        """Returns when everything is on the disk."""
        if not self.writes:
            return
        os.fsync(self._file.fileno())
        self._events.flush()

    def close(self) -> None:
        self.sync()
        if self.writes:
            self._file.close()
            self._events.close()


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line that was cut off is left out.

    Raises ValueError with file and line for any other line that is not JSON.
    """
    records, lines = [], path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise ValueError(f"{path}:{number}: not JSON: {error}") from None
    return records


def write_samples(path: Path, groups: Sequence[Group], step: int, stage: str) -> None:
    """One episode a line, with its verdict."""
    path.parent.mkdir(exist_ok=True)
    lines = []
    for episode in (e for g in groups for e in g.episodes):
        problem, reward = episode.problem, episode.reward
        record = {
            "step": step,
            "stage": stage,
            "problem": problem.id,
            "prompt": problem.prompt if problem.prompt is not None else problem.messages[-1]["content"],
            "text": episode.text,
            "reward": reward.value,
            "parts": reward.parts,
            "solved": reward.solved,
            "status": episode.status,
            "verdict": _verdict_without_times(reward.verdict.to_json()) if reward.verdict else None,
            "tokens": episode.sampled_length,
            "weight_versions": list(episode.weight_versions),
            "turns": [_turn(t) for t in episode.turns],
            "attempts": [list(a) for a in episode.attempts],
            **({"difficulty": problem.meta["difficulty"]} if "difficulty" in problem.meta else {}),
        }
        lines.append(json.dumps(record, default=str))
    write_beside(path, "\n".join(lines) + "\n")


def _turn(turn: Turn) -> dict[str, Any]:
    record: dict[str, Any] = {"role": turn.role, "text": turn.text, "tokens": turn.tokens.tolist()}
    record |= {"sampled": turn.sampled, "learned": turn.learned}
    if turn.sampled:
        record["cached"] = turn.cached
    if turn.logprobs is not None:
        record["logprobs"] = [round(float(p), 4) for p in turn.logprobs]
    return record | ({"status": turn.status} if turn.status else {})


def _verdict_without_times(verdict: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in verdict.items() if name not in ("wall_s", "cpu_s", "memory_mb")}


class Progress:
    """The stage's progress in a terminal; elsewhere a line every few seconds; nowhere if `quiet`."""

    def __init__(self, seconds_between_lines: float = 10.0, quiet: bool = False):
        self._console = Console(quiet=quiet)
        self._bar = RichProgress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            speed_estimate_period=600.0,  # seconds; the step of a large model takes more than rich's 30
            disable=quiet or not self._console.is_terminal,
        )
        self._task, self._stage, self._total, self._first, self._began = None, "", 0, 0, 0.0
        self._between, self._last_line = seconds_between_lines, 0.0

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def print(self, text: str) -> None:
        """A line above the display."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def stage(self, name: str, total: int, done: int = 0) -> None:
        """A new stage of `total` steps, of which `done` are done."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._stage, self._total, self._first, self._began = name, total, done, time.monotonic()
        self._task = self._bar.add_task(name, total=total, completed=done, numbers="")

    def update(self, step: int, **values: float | None) -> None:
        """The stage's step and its numbers: reward, pass_rate, loss, tokens_per_s; None is not shown."""
        formats = {"reward": "reward {:.3f}", "pass_rate": "solved {:.0%}", "loss": "loss {:.4f}"}
        formats["tokens_per_s"] = "{:,.0f} tokens/s"
        numbers = "  ".join(formats[name].format(v) for name, v in values.items() if v is not None)
        if self._task is not None:
            self._bar.update(self._task, completed=step, numbers=numbers)
        now = time.monotonic()
        if not self._console.is_terminal and (now - self._last_line > self._between or step == self._total):
            self._last_line = now
            left = (now - self._began) / max(step - self._first, 1) * (self._total - step)
            self.print(f"{self._stage} {step}/{self._total}  {numbers}  {int(left) // 60}:{int(left) % 60:02} left")

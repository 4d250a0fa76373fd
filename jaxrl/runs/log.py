"""What a run logs: metrics.jsonl, TensorBoard and Weights & Biases, samples, and a live display."""

from __future__ import annotations

import json
import math
import os
import secrets
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from jaxrl.errors import UserError
from jaxrl.files import read_metrics, write_beside
from rollouts.episode import Episode, Group, Turn

SHOW_S = 10.0  # seconds until TensorBoard sees a new record, at most
WANDB_ID = "wandb_id.txt"  # in the run's folder: the id of its run at Weights & Biases


class MetricsLog:
    """metrics.jsonl, one JSON object a line, and the same numbers for TensorBoard and Weights & Biases.

    A record has "step" (of the run), "stage", "stage_step" and numbers; wall-clock values have names that begin with
    "time/", so two runs can be compared without them. Floats are written so that they read back bit by bit; numbers
    that are not finite as the strings "nan", "inf" and "-inf".

    Args:
        folder: of the run.
        keep_lines: lines to keep of an existing log; those of later steps, and an incomplete last line, are dropped.
        writes: False: only counts lines, because another process writes them.
        wandb: a project's name: the log is uploaded there too; "": it is not.

    Raises UserError if there are fewer whole lines than keep_lines, or if wandb is not installed or refuses.
    """

    def __init__(self, folder: Path, keep_lines: int = 0, writes: bool = True, wandb: str = ""):
        self.path, self.writes, self.lines = folder / "metrics.jsonl", writes, keep_lines
        if not writes:
            return
        records = read_metrics(self.path) if keep_lines else []
        if len(records) < keep_lines:
            raise UserError(f"{self.path} has {len(records)} whole lines, the checkpoint was made after {keep_lines}")
        lines = self.path.read_bytes().splitlines(keepends=True)[:keep_lines] if keep_lines else []
        write_beside(self.path, b"".join(lines))
        self._file = open(self.path, "a")
        step = max((record["step"] for record in records[:keep_lines]), default=-1)
        self._events = EventFile(folder / "tensorboard", step + 1)
        self._wandb = start_wandb(folder, wandb, records[:keep_lines]) if wandb else None

    def write(self, record: dict[str, Any]) -> None:
        """Appends a record. Raises OSError when the disk is full."""
        self.lines += 1
        if not self.writes:
            return
        self._file.write(json.dumps({name: _plain(value) for name, value in record.items()}) + "\n")
        self._file.flush()
        self._events.write(record["step"], _numbers(record))
        if self._wandb is not None:
            _upload(self._wandb, self.lines - 1, record)

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
            if self._wandb is not None:
                self._wandb.finish()


class EventFile:
    """An event file for TensorBoard, which forgets the events of earlier files from step `first` on.

    tensorboardX's SummaryWriter hands events to a thread: its flush does not wait for them, and where that thread ends
    (a full disk) the run would wait for it without end. Its RecordWriter writes in place.
    """

    def __init__(self, folder: Path, first: int):
        # Here, since tensorboardX imports torch where that is installed; reports and studies read logs without it.
        from tensorboardX import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files in the order of their names.
        path = folder / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self._records, self._shown = RecordWriter(str(path)), time.monotonic()
        self._add(step=first, file_version="brain.Event:2")
        self._add(step=first, session_log={"status": 1})  # START, which purges

    def write(self, step: int, values: dict[str, float]) -> None:
        """Adds the values at this step. Raises OSError when the disk is full."""
        self._add(step=step, summary={"value": [{"tag": name, "simple_value": v} for name, v in values.items()]})
        if time.monotonic() - self._shown > SHOW_S:
            self.flush()

    def _add(self, **fields: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

        self._records.write(Event(wall_time=time.time(), **fields).SerializeToString())

    def flush(self) -> None:
        """Returns when everything is on the disk."""
        self._records.flush()
        self._shown = time.monotonic()

    def close(self) -> None:
        self._records.close()


def start_wandb(folder: Path, project: str, records: Sequence[dict[str, Any]]) -> Any:
    """The wandb run of a folder, continued under the id that the folder keeps, with the log's `records` uploaded.

    wandb's own step is the line in metrics.jsonl, since several records may have one step of the run. What wandb has
    already (from lines that a killed run wrote after its checkpoint) is not uploaded again.

    Raises UserError if wandb is not installed or refuses to start.
    """
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(f"config.log.wandb = {project!r} needs wandb: pip install 'jaxrl[wandb]'") from None
    path = folder / WANDB_ID
    if not path.exists():
        write_beside(path, secrets.token_hex(8))
    try:
        run = wandb.init(
            project=project, id=path.read_text().strip(), resume="allow", name=folder.name, dir=str(folder),
            config=_settings(folder), settings=wandb.Settings(console="off"),
        )  # fmt: skip
    except wandb.Error as error:
        raise UserError(
            f"config.log.wandb = {project!r}: wandb does not start: {error}; WANDB_MODE=offline keeps its data here"
        ) from None
    run.define_metric("*", step_metric="step")
    for line, record in enumerate(records):
        _upload(run, line, record)
    return run


def _upload(run: Any, line: int, record: dict[str, Any]) -> None:
    if line >= run.step:
        run.log({"step": record["step"], **_numbers(record)}, step=line, commit=True)


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _numbers(record: dict[str, Any]) -> dict[str, float]:
    """The record's finite floats, named after the stage."""
    return {
        f"{record['stage']}/{name}": value
        for name, value in record.items()
        if isinstance(value, float) and math.isfinite(value)
    }


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def write_samples(path: Path, groups: Sequence[Group], step: int, stage: str) -> None:
    """One episode a line, with its verdict."""
    path.parent.mkdir(exist_ok=True)
    write_beside(path, "".join(f"{sample_line(e, step, stage)}\n" for g in groups for e in g.episodes) or "\n")


def sample_line(episode: Episode, step: int, stage: str) -> str:
    """An episode as a line of a samples file, JSON."""
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
        "prompt_tokens": episode.prompt.tolist(),
        "turns": [_turn(t) for t in episode.turns],
        "attempts": [list(a) for a in episode.attempts],
        **({"judged": episode.submitted.text} if episode.submitted.text != episode.text else {}),
        **({"difficulty": problem.meta["difficulty"]} if "difficulty" in problem.meta else {}),
    }
    return json.dumps(record, default=str)


def _turn(turn: Turn) -> dict[str, Any]:
    record: dict[str, Any] = {"role": turn.role, "text": turn.text, "tokens": turn.tokens.tolist()}
    record |= {"sampled": turn.sampled, "learned": turn.learned}
    if turn.sampled:
        record["cached"] = turn.cached
    if turn.logprobs is not None:
        record["logprobs"] = [round(float(p), 4) for p in turn.logprobs]
    record |= {"plain": turn.plain} if turn.plain is not None else {}
    record |= {"versions": stretches(turn.versions)} if turn.versions is not None else {}
    return record | {name: value for name in ("status", "kind") if (value := getattr(turn, name))}


def stretches(versions: np.ndarray) -> list[list[int]]:
    """[version, how many tokens in a row], for each stretch of equal ones."""
    starts = np.flatnonzero(np.diff(versions, prepend=versions[:1] - 1))
    ends = [*starts[1:].tolist(), len(versions)]
    return [[int(versions[start]), int(end - start)] for start, end in zip(starts, ends)]


def _verdict_without_times(verdict: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in verdict.items() if name not in ("wall_s", "cpu_s", "memory_mb")}


class Progress:
    """The stage's progress: a bar in a terminal, elsewhere a line every few seconds, nothing if `quiet`."""

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
            speed_estimate_period=600.0,  # seconds; one step of a large model may take longer than rich's 30
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

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Stages that begin inside the block end with it; then the current one continues."""
        before = self._task, self._stage, self._total, self._first, self._began
        self._task = None
        try:
            yield
        finally:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task, self._stage, self._total, self._first, self._began = before

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

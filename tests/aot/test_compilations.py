"""How many programs a run compiles, and that it stops compiling: a shape that changes would cost seconds each time."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest
from test_train import run

from jaxrl.runs.log import MetricsLog

COMPILED = "/jax/core/compile/backend_compile_duration"
EVERY_STAGE = 2  # steps of a stage within which all of its programs are compiled
MOST = 45  # programs of the whole run


@pytest.fixture
def compiled(monkeypatch) -> Iterator[dict[tuple[str, int], int]]:
    """Programs compiled, or read from the cache, before each record of metrics.jsonl: by (stage, step of it)."""
    counts: dict[tuple[str, int], int] = {}
    since = 0

    def count(event: str, _: float, **__: object) -> None:
        nonlocal since
        since += event == COMPILED

    def write(log: MetricsLog, record: dict) -> None:
        nonlocal since
        original(log, record)
        counts[record["stage"], record["stage_step"]] = since
        since = 0

    original = MetricsLog.write
    monkeypatch.setattr(MetricsLog, "write", write)
    jax.clear_caches()  # of the tests before
    jax.monitoring.register_event_duration_secs_listener(count)
    yield counts
    jax.monitoring.unregister_event_duration_listener(count)


def test_a_run_compiles_few_programs_and_none_once_its_stages_are_under_way(compiled, tmp_path):
    result = run(tmp_path)
    assert result.returncode == 0, result.stderr
    late = {place: n for place, n in compiled.items() if place[0] != "evaluate" and place[1] > EVERY_STAGE}
    assert len(late) == 10
    assert not any(late.values()), late
    assert compiled["sft", 1] >= 3 and compiled["grpo", 1] >= 3  # counted at all
    assert compiled["evaluate", 6] == compiled["evaluate", 14] == 0  # as the one at the start
    assert sum(compiled.values()) <= MOST, compiled

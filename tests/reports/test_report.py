"""Metrics log and report of a made-up run."""

from __future__ import annotations

import html
import json
import math
import subprocess
import sys

import pytest
from made_up_runs import study, three_stages

from jaxrl.report import main
from jaxrl.reports import plots
from jaxrl.reports.comparison import make_rows
from jaxrl.reports.episodes import choose_episodes
from jaxrl.reports.run_folder import read_run
from jaxrl.reports.run_page import EPISODES, stages, write_comparison, write_report
from jaxrl.runs.log import MetricsLog, Progress, read_metrics

HOSTILE = "</pre></script><script>alert('x')</script><b>bold"


@pytest.fixture
def run(tmp_path):
    from dataclasses import asdict

    from jaxrl.config import Config

    (tmp_path / "config.json").write_text(json.dumps(asdict(Config(name="made-up"))))
    (tmp_path / "task.json").write_text(json.dumps({"name": "contest", "rejected": {"no tests": 3}}))
    log = MetricsLog(tmp_path)
    log.write({"step": 0, "stage": "evaluate", "stage_step": 0, "after": "start", "held_out/pass@1": 0.015})
    for step in range(1, 21):
        log.write(
            {"step": step, "stage": "sft", "stage_step": step, "loss": 1 / step, "time/step_s": 0.5, "tokens": 9.0}
        )
    log.write({"step": 20, "stage": "evaluate", "stage_step": 20, "after": "sft", "held_out/pass@1": 0.333})
    (tmp_path / "samples").mkdir()
    for step in range(21, 41):
        values = {"reward/mean": 0.01 * step, "solved": 0.5, "loss": 0.1, "time/sample_s": 0.2, "time/step_s": 0.7}
        values |= {"time/busy_sampler_s": 0.2, "time/busy_sandbox_s": 0.07, "time/busy_trainer_s": 0.6}
        log.write({"step": step, "stage": "grpo", "stage_step": step - 20, "flops": 1e9, **values})
        episodes = [
            {
                "step": step, "stage": "grpo", "problem": f"p/{step}/{i}", "prompt": f"{step} {i} {HOSTILE}",
                "text": HOSTILE, "reward": float(i), "parts": {"solved": float(i)}, "solved": bool(i),
                "status": "finished",
                "verdict": {"status": "wrong_answer", "tests": [{"status": "wrong_answer", "message": HOSTILE}]},
                "tokens": 12,
            }
            for i in range(2)
        ]  # fmt: skip
        (tmp_path / "samples" / f"{step:08d}.jsonl").write_text("\n".join(map(json.dumps, episodes)) + "\n")
    log.write({"step": 40, "stage": "evaluate", "stage_step": 40, "after": "grpo", "held_out/pass@1": 0.888})
    log.close()
    return tmp_path


def test_report_holds_what_it_promises_and_nothing_runs(run):
    page = write_report(run).read_text()
    for text in ("made-up", "1.5%", "33.3%", "88.8%", "no tests: 3", "SFT", "GRPO", "2.00e+10", "<svg"):
        assert text in page, text
    for row in ("sampler</td><td>4.0 s</td><td>28.6%", "sandbox</td><td>1.4 s</td><td>10.0%", "trainer</td><td>12.0 s"):
        assert row in page, row
    assert page.count('<details class="episode ') == 20
    assert "<script" not in page and "<b>bold" not in page
    assert "http://" not in page and "https://" not in page
    assert "| base | 1 | 1.5 |" in (run / "report.md").read_text()


def test_stages_and_metric_are_those_that_the_log_names(run):
    log = (run / "metrics.jsonl").read_text().replace('"sft"', '"distill"').replace('"grpo"', '"ppo"')
    log = log.replace('"held_out/pass@1"', '"headline": "accuracy", "held_out/accuracy"')
    (run / "metrics.jsonl").write_text(log)
    page = html.unescape(write_report(run).read_text())
    for text in ("DISTILL", "PPO", "end of DISTILL", "of PPO steps", "accuracy before", "held-out accuracy, after PPO"):
        assert text in page, text
    assert not any(name in page for name in ("SFT", "GRPO", "pass@1"))


def test_stages_headline_and_slices_that_nothing_knows(tmp_path):
    folder = three_stages(tmp_path / "run")
    run = read_run(folder)
    assert plots.run_curves(run)["legend"] == [
        ("PROBE", plots.STAGES[False][0]), ("JUDGE MODEL", plots.STAGES[False][1]), ("SPAR", plots.STAGES[True][0])
    ]  # fmt: skip
    header, cells = stages(run)
    assert [line[:4] for line in cells] == [
        ["PROBE", "3", "0.25", "0.5"], ["JUDGE MODEL", "3", "0.5", "1.75"], ["SPAR", "3", "1.75", "0.75"]
    ]  # fmt: skip
    assert header[2:4] == ["accuracy before", "accuracy after"] and cells[2][5] == "3.30e+10"
    training = make_rows([run])[-1].training
    assert (training.supervised, training.sampling, training.logprobs) == (6 * 7e9, 3e9, 6e9)
    assert training.update == 3 * (3e9 + 5e9)  # what it counts under a name of its own is in it

    page = html.unescape(write_report(folder).read_text())
    for text in ("end of PROBE, JUDGE MODEL", "held-out accuracy, after SPAR", "accuracy, as the task defines it"):
        assert text in page, text
    assert "PROBE, JUDGE MODEL" in page and "SPAR: sampling" in page
    slices = {
        "shape round": ("0.375", "0.625", "1.875", "0.875"),
        "colour dark_blue": ("0.125", "0.375", "1.625", "0.625"),
    }
    for name, values in slices.items():
        cells = "".join(f'<td class="number">{value}</td>' for value in values)
        assert f"<tr><td>{name}</td>{cells}</tr>" in page
    assert not any(name in page.split("<h2>Settings")[0] for name in ("SFT", "GRPO", "pass@1", "standard"))


def test_slices_side_by_side_and_none_in_older_runs(tmp_path):
    older = study(tmp_path)
    page = write_comparison([*older[:1], three_stages(tmp_path / "run")], tmp_path / "out").read_text()
    columns = ("base of SFT", "base of run", "SFT", "run")
    header = "".join(f'<th class="number">{name}</th>' for name in columns)
    cells = "".join(f'<td class="number">{value}</td>' for value in ("–", "0.375", "–", "0.875"))
    assert f"<th>part of the problems</th>{header}" in page and f"<td>shape round</td>{cells}" in page
    assert "different headline metrics: pass@1, accuracy" in page
    log = older[2] / "metrics.jsonl"
    log.write_text(log.read_text().replace('"held_out/n"', '"held_out/pass@1/difficulty_2": 0.1, "held_out/n"'))
    assert "by part of the problems" not in write_report(older[2]).read_text()


def test_episodes_are_spread_and_of_both_kinds(run):
    episodes = choose_episodes(run / "samples", EPISODES)
    assert episodes[0]["step"] == 21 and episodes[-1]["step"] == 40
    assert [e["solved"] for e in episodes] == [True, False] * 10
    path = sorted((run / "samples").iterdir())[0]
    for other in set((run / "samples").iterdir()) - {path}:
        other.unlink()
    assert len(choose_episodes(run / "samples", EPISODES)) == 2  # none is shown twice


def test_report_shows_half_characters_as_escapes(run):
    path = sorted((run / "samples").iterdir())[0]
    path.write_text(path.read_text().replace(json.dumps(HOSTILE), json.dumps("print('\ud83d')")))
    assert "print('\\ud83d')" in html.unescape(write_report(run).read_text())


def test_report_of_a_run_that_has_only_begun(tmp_path, run):
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text().splitlines()[0] + "\n")
    for path in (run / "samples").iterdir():
        path.unlink()
    assert "1.5%" in write_report(run).read_text()


def test_a_report_needs_no_jax(tmp_path):
    """Neither the import nor a page, with pretraining to count."""
    folder = three_stages(tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    config["model"] |= {"path": "Qwen/Qwen2.5-Coder-1.5B", "pretraining_tokens": 5.5e12}
    (folder / "config.json").write_text(json.dumps(config))
    code = f"""
import sys, jaxrl.report, jaxrl.reports.run_page
unwanted = {{"jax", "flax", "transformers", "tensorboard", "jaxrl.train"}}
assert not unwanted & {{*sys.modules}}
jaxrl.reports.run_page.write_report(jaxrl.report.Path({str(folder)!r}))
assert not unwanted & {{*sys.modules}}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Pretraining, 4.28e+19 FLOPs" in (folder / "report.html").read_text()


def test_no_run_is_an_error_in_one_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "config.json does not exist" in capsys.readouterr().err
    assert main([]) == 2


def test_broken_line_in_the_log_is_named(run, capsys):
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], lines[3][:9], *lines[4:]]) + "\n")
    assert main([str(run)]) == 2
    assert f"{path}:4: not JSON" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"metrics\.jsonl:4"):
        MetricsLog(run, keep_lines=10)


def test_log_shorter_than_the_checkpoint_is_an_error_and_kept(run):
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match="has 43 whole lines, the checkpoint was made after 50"):
        MetricsLog(run, keep_lines=50)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_log_reads_back_bit_by_bit_and_is_cut_on_resume(tmp_path):
    log = MetricsLog(tmp_path)
    values = [0.1 + 0.2, 1e-300, math.pi, 12345678.9]
    for step, value in enumerate(values):
        log.write({"step": step, "stage": "grpo", "stage_step": step, "value": value})
    log.write({"step": 4, "stage": "grpo", "stage_step": 4, "value": float("nan")})
    log.close()
    with open(tmp_path / "metrics.jsonl", "a") as f:
        f.write('{"step": 5, "sta')  # killed in the middle of a line
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [r["value"] for r in records] == [*values, "nan"]
    log = MetricsLog(tmp_path, keep_lines=2)
    assert log.lines == 2
    log.write({"step": 2, "stage": "grpo", "stage_step": 2, "value": 7.0})
    log.close()
    assert [r["value"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [*values[:2], 7.0]


def test_tensorboard_reads_the_events(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard")).Reload()
    losses = events.Scalars("sft/loss")
    assert [e.step for e in losses] == list(range(1, 21))
    assert losses[3].value == pytest.approx(1 / 4)


def test_tensorboard_forgets_what_a_resumed_run_repeats(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for kept in (0, 0, 2):
        log = MetricsLog(tmp_path, keep_lines=kept)
        for step in range(kept, 4):
            log.write({"step": step, "stage": "sft", "stage_step": step, "loss": 1.0})
        log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("sft/loss")] == [0, 1, 2, 3]


def test_progress_prints_lines_without_a_terminal(capsys):
    with Progress(seconds_between_lines=0) as progress:
        progress.stage("grpo", total=2)
        progress.update(1, reward=0.25, pass_rate=0.5, loss=None, tokens_per_s=1234.0)
    assert "grpo 1/2  reward 0.250  solved 50%  1,234 tokens/s" in capsys.readouterr().out


def test_progress_goes_on_after_a_stage_aside(capsys):
    with Progress(seconds_between_lines=0) as progress:
        progress.stage("grpo", total=2)
        with progress.aside():
            progress.stage("evaluation", total=4)
            progress.update(3, pass_rate=0.5)
        progress.update(1, reward=0.25)
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == ["evaluation 3/4", "grpo 1/2"]

"""Runs side by side: rows, costs of ancestors, intervals, the Pareto front, and a page that runs nothing."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made_up_runs import HOSTILE, MODEL, evaluation_run, scored, study, training_run
from matplotlib.transforms import Bbox

from jaxrl.costs.flops import pretraining_flops
from jaxrl.evaluation.estimators import t_interval
from jaxrl.report import main
from jaxrl.reports.comparison import differences, headline, make_row, make_rows, notes, pareto_front, table
from jaxrl.reports.episodes import Span, pieces, token_class, turn_spans
from jaxrl.reports.page import markdown_table
from jaxrl.reports.plots import label_places, moving_mean, samples_curves
from jaxrl.reports.run_folder import Run, find_parent, read_run
from jaxrl.reports.run_page import with_distinct_names
from jaxrl.runs.tokenizer import train_tokenizer
from jaxrl.study import complete
from jaxrl.training.step_metrics import episode_metrics
from rollouts.episode import Episode, Group, Problem, Reward, Turn


def rows_of(*folders: Path):
    return {row.label: row for row in make_rows([read_run(folder) for folder in folders])}


def test_a_run_is_complete_when_it_was_evaluated_after_its_last_step(tmp_path):
    """A report does not show it: one can be made of a run that is still going."""
    for steps in (20, 30):
        folder = tmp_path / str(steps)
        training_run(folder, "sft", scored(0.1), scored(0.2), sft__steps=steps, grpo__steps=0)
        assert not complete(folder)
        (folder / "report.html").write_text("")
        assert complete(folder) == (steps == 20)


def test_rows_of_a_study(tmp_path):
    rows = rows_of(*study(tmp_path))
    assert list(rows) == ["base", "SFT", "SFT + regenerate", "GRPO direct", "GRPO + tool use", "GRPO + feedback"]
    assert [row.score for row in rows.values()] == [0.02, 0.40, 0.45, 0.52, 0.70, 0.60]
    tool = rows["GRPO + tool use"]
    assert (tool.low, tool.high, tool.interval) == (0.70 - 0.05, 0.70 + 0.05, "bootstrap")
    assert (tool.flops, tool.tokens, tool.turns, tool.calls, tool.failed_calls) == (3e8, 30, 1, 1.5, 0.3)
    assert rows["SFT + regenerate"].answers == 1.4


def test_training_flops_are_those_of_all_ancestors(tmp_path):
    rows = rows_of(*study(tmp_path))
    assert rows["base"].training.total == 0
    nothing = dict.fromkeys(("pretraining", "supervised", "sampling", "logprobs", "update"), 0)
    assert rows["SFT"].training.parts() == nothing | {"supervised": 20 * 3e9}
    assert rows["SFT + regenerate"].training == rows["SFT"].training
    parts = {"pretraining": 0, "supervised": 20 * 3e9, "sampling": 20 * 1e9, "logprobs": 20 * 2e9, "update": 20 * 6e9}
    assert rows["GRPO + tool use"].training.parts() == parts
    again = {"model__path": str(tmp_path / "tool"), "grpo__steps": 5}
    third = training_run(tmp_path / "third", "grpo", scored(0.7), scored(0.8), steps=5, **again)
    assert rows_of(third)["third"].training.total == 20 * 3e9 + 25 * 9e9


def test_a_run_that_goes_on_has_spent_what_it_had_at_its_evaluation(tmp_path):
    run = training_run(tmp_path / "run", "grpo", scored(0.1), scored(0.2))
    lines = (run / "metrics.jsonl").read_text().splitlines()[:-4]  # of step 18; evaluated at the start and at step 10
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert rows_of(run)["run"].training.total == 10 * 9e9


def test_pretraining_is_that_of_the_root(tmp_path):
    model = {"model__path": "Qwen/Qwen2.5-Coder-1.5B", "model__pretraining_tokens": 5.5e12}
    sft = training_run(tmp_path / "sft", "sft", scored(0.1), scored(0.2), **model)
    # What the child says of pretraining does not count: its weights come from the run.
    child = {"model__path": str(sft), "model__pretraining_tokens": 1e20}
    grpo = training_run(tmp_path / "grpo", "grpo", scored(0.2), scored(0.3), **child)
    rows = rows_of(sft, grpo)
    assert list(rows) == ["base", "sft", "grpo"]
    for row in rows.values():
        assert row.training.pretraining == pretraining_flops(MODEL, 5.5e12)
    silent = training_run(tmp_path / "silent", "sft", scored(0.1), scored(0.2), model__path="Qwen/Qwen2.5-Coder-1.5B")
    row = rows_of(silent)["silent"]
    assert row.training.pretraining is None and row.training.supervised == 6e10 and row.training.total is None


def test_what_is_gone_is_not_known(tmp_path):
    folders = study(tmp_path)
    shutil.rmtree(folders[0])
    rows = rows_of(*folders[1:])
    assert "base" not in rows and rows["GRPO direct"].training.total is None
    header, cells = table(list(rows.values()))
    assert {line[header.index("training FLOPs")] for line in cells} == {"not known"}
    assert any("is gone" in note for note in notes(list(rows.values()), [read_run(f) for f in folders[1:]]))


def test_parents_are_found_from_the_working_directory_and_above_the_run(tmp_path, monkeypatch):
    sft = training_run(tmp_path / "runs" / "study" / "sft", "sft", scored(0.1), scored(0.2))
    child = training_run(
        tmp_path / "runs" / "study" / "grpo", "grpo", scored(0.1), scored(0.2), model__path="runs/study/sft"
    )
    assert find_parent(read_run(child)) == ("run", tmp_path / "runs" / "study" / "sft")
    monkeypatch.chdir(tmp_path)
    assert find_parent(read_run(child)) == ("run", Path("runs/study/sft"))
    short = training_run(tmp_path / "runs" / "short", "grpo", scored(0.1), scored(0.2), model__path="runs/gone")
    assert find_parent(read_run(short)) == ("gone", None)
    assert find_parent(read_run(sft)) == ("random", None)
    (tmp_path / "model.gguf").touch()
    of_a_file = training_run(tmp_path / "runs" / "f", "grpo", scored(0.1), scored(0.2), model__path="model.gguf")
    assert find_parent(read_run(of_a_file)) == ("model", Path("model.gguf"))


def test_a_run_that_descends_from_itself_is_an_error(tmp_path, capsys):
    run = training_run(tmp_path / "a", "grpo", scored(0.1), scored(0.2), model__path=str(tmp_path / "a"))
    assert main([str(run)]) == 2
    assert "leads back to itself" in capsys.readouterr().err


def test_seeds_of_a_label_are_one_row_with_a_t_interval(tmp_path):
    runs = [
        training_run(tmp_path / f"s{i}", "grpo", scored(0.1), scored(score, flops=1e8 * (i + 1)), label="A", seed=i)
        for i, score in enumerate((0.5, 0.6))
    ]
    row = rows_of(*runs)["A"]
    assert row.score == pytest.approx(0.55) and row.flops == 1.5e8 and row.interval == "seeds"
    half = math.tan(math.pi * 0.475) * 0.1 / 2  # Student's t with one degree of freedom is Cauchy's; s / sqrt(2) = 0.05
    assert (row.low, row.high) == (max(0.0, 0.55 - half), min(1.0, 0.55 + half))
    found = notes([row], [read_run(r) for r in runs])
    assert any("t-interval" in note for note in found) and not any("same seed" in note for note in found)


def test_one_seed_twice_is_noted(tmp_path):
    sft = training_run(tmp_path / "sft", "sft", scored(0.1), scored(0.2), label="SFT")
    twice = evaluation_run(tmp_path / "twice", scored(0.3), label="SFT", model__path=str(sft), evaluation__samples=7)
    runs = [read_run(sft), read_run(twice)]
    found = " ".join(notes(make_rows(runs), runs))
    assert "SFT: runs of the same seed among them" in found and "SFT: its runs differ in evaluation.samples" in found


def test_t_interval_against_closed_forms():
    values = (0.2, 0.5, 0.8)  # two degrees of freedom: t = a sqrt(2 / (1 - a^2)), a = 2 p - 1
    t = 0.95 * math.sqrt(2 / (1 - 0.95**2))
    low, high = t_interval(values)
    assert (low, high) == pytest.approx((0.5 - t * 0.3 / math.sqrt(3), 0.5 + t * 0.3 / math.sqrt(3)))
    with pytest.raises(ValueError, match="two values"):
        t_interval([0.5])


def test_pareto_front_against_brute_force():
    import random

    draw = random.Random(0)
    for _ in range(300):
        points = [(draw.randrange(5), draw.randrange(5)) for _ in range(draw.randrange(1, 9))]
        beaten = {
            i
            for i, (x, y) in enumerate(points)
            if any(a <= x and b >= y and (a, b) != (x, y) for a, b in points)
        }  # fmt: skip
        assert set(pareto_front(points)) == set(range(len(points))) - beaten


def test_base_models_of_runs_that_ask_differently_are_apart(tmp_path):
    direct = training_run(tmp_path / "direct", "grpo", scored(0.1), scored(0.2))
    tool = training_run(tmp_path / "tool", "grpo", scored(0.3), scored(0.4), rollout__environment="interpreter")
    assert list(rows_of(direct, tool)) == ["base of direct", "base of tool", "direct", "tool"]


def test_headline(tmp_path):
    rows = list(rows_of(*study(tmp_path)).values())
    text = headline(rows)
    assert text.startswith("Best is GRPO + tool use: 70.0% pass@1 (95% interval 65.0 – 75.0). Its interval overlaps")
    assert "Tool use is worth +18.0 points over answering at once: GRPO + tool use against GRPO direct" in text
    assert "3 times the inference FLOPs a question (3.00e+08 against 1.00e+08)" in text
    assert "Execution feedback is worth +8.0 points over answering at once (their intervals overlap)" in text
    assert headline([]) == "No run has been evaluated yet."
    assert headline([make_row("A", rows[0].entries)]) == "A: 2.0% pass@1 (95% interval -3.0 – 7.0)."


def test_settings_that_differ(tmp_path):
    folders = study(tmp_path)
    different = differences([read_run(f) for f in folders[2:4]])
    assert different["rollout.environment.name"] == ["single_turn", "interpreter"]
    assert set(different) == {"name", "label", "rollout.environment.name"}


def test_the_environment_is_known_in_older_runs_too(tmp_path):
    """Their config.json has its name where newer ones have its settings."""
    run = training_run(tmp_path / "run", "grpo", scored(0.1), scored(0.2), rollout__environment="feedback")
    config = json.loads((run / "config.json").read_text())
    assert config["rollout"]["environment"]["name"] == rows_of(run)["run"].environment == "feedback"
    config["rollout"]["environment"] = "interpreter"
    (run / "config.json").write_text(json.dumps(config))
    assert rows_of(run)["run"].environment == "interpreter"


def test_other_questions_are_noted(tmp_path):
    one = training_run(tmp_path / "one", "sft", scored(0.1), scored(0.2), task__name="contest")
    two = evaluation_run(tmp_path / "two", scored(0.2), model__path=str(one), evaluation__task__name="humaneval")
    runs = [read_run(one), read_run(two)]
    assert "task.name: they may not have had the same questions" in " ".join(notes(make_rows(runs), runs))
    again = evaluation_run(
        tmp_path / "again", scored(0.2) | {"held_out/n": 7}, model__path=str(one), task__name="contest"
    )
    runs = [read_run(one), read_run(again)]
    found = " ".join(notes(make_rows(runs), runs))
    assert "same questions" not in found and "different numbers of problems: 7, 200" in found


def test_labels_cover_nothing_where_there_is_room():
    frame = Bbox([[0, 0], [400, 300]])
    texts = [(100, 100, 80, 10), (104, 102, 80, 10), (102, 98, 80, 10), (390, 100, 80, 10)]
    points = [Bbox([[x - 6, y - 6], [x + 6, y + 6]]) for x, y, _, _ in texts]
    moves = label_places(texts, points, frame)
    boxes = [Bbox([[x + dx, y + dy], [x + dx + w, y + dy + h]]) for (x, y, w, h), (dx, dy) in zip(texts, moves)]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in (*points, *boxes[:i]))
        assert box.x0 >= 0 and box.x1 <= 400


def test_moving_mean():
    assert moving_mean([1, 2, 3, 4], 3) == [1.5, 2, 3, 3.5]


def test_markdown_table_shows_text_as_it_is():
    text = markdown_table(["a", "b|c"], [["<b>", "x_y"]])
    assert text == "| a | b\\|c |\n| --- | ---: |\n| &lt;b> | x\\_y |\n"


def test_more_samples_are_shown_where_three_k_were_evaluated(tmp_path):
    def after(**values):
        return scored(0.2) | {f"held_out/{name}": value for name, value in values.items()}

    many = {"pass@2": 0.3, "pass@16": 0.5, "pass@4": 0.4, "distinct_solutions": 2.5}
    runs = [training_run(tmp_path / "many", "grpo", after(**many), after(**many), label="many")]
    runs += [training_run(tmp_path / "two", "grpo", after(**{"pass@2": 0.3}), after(**{"pass@2": 0.3}), label="two")]
    shown = samples_curves([row for row in rows_of(*runs).values() if row.label in ("many", "two")])
    header, (line,) = shown["table"]
    assert header == ["variant", "pass@1, %", "pass@2, %", "pass@4, %", "pass@16, %", "distinct solutions"]
    assert line == ["many", "20.0", "30.0", "40.0", "50.0", "2.5"]
    assert [label for label, _ in shown["legend"]] == ["many"] and "<svg" in shown["figure"]
    assert samples_curves([row for row in rows_of(runs[1]).values() if row.label == "two"]) is None


def test_pieces_are_whole_characters():
    tokenizer = train_tokenizer(["plain text"], 300)
    text = "naïve 😀!"
    tokens = tokenizer.encode(text)
    found = pieces(tokens, lambda ids: tokenizer.decode(ids))
    assert "".join(t for _, t in found) == text and sum(n for n, _ in found) == len(tokens)
    assert "😀" in [t for _, t in found] or " 😀" in [t for _, t in found]
    lone = tokenizer.encode("😀")[-1]  # the last byte of a character, without the others
    found = pieces([lone, *tokenizer.encode("ab")], lambda ids: tokenizer.decode(ids))
    assert found[0] == (1, "\ufffd") and "".join(t for _, t in found[1:]) == "ab"


def test_tokens_are_coloured():
    turn = {"text": "?", "tokens": [0, 1, 2], "logprobs": [math.log(0.95), math.log(0.2), math.log(0.001)]}
    spans = turn_spans(turn, lambda ids: "".join("<b\x1b"[i] for i in ids))
    assert [span.kind for span in spans] == ["p0", "p2", "p4"]
    assert [span.text for span in spans] == ["<", "b", "␛"] and spans[2].title.endswith("logprob -6.91, token 2")
    assert turn_spans(turn, None) == [Span("?")]
    assert token_class(float("nan")) == "unknown"


def test_long_turns_are_cut_and_say_so():
    turn = {"text": "?", "tokens": [0] * 3000, "logprobs": [-1.0] * 3000}
    spans = turn_spans(turn, lambda ids: "x" * len(ids))
    assert "1,000 tokens not shown" in spans[1500].text and [span.kind for span in spans].count("p2") == 2000


class Elements(HTMLParser):
    """Names of the elements of a page, and the addresses in it."""

    def __init__(self, page: str):
        super().__init__()
        self.names: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.text += data


def test_page_holds_what_it_promises_runs_nothing_and_needs_no_network(tmp_path, capsys):
    folders = study(tmp_path)
    assert main(list(map(str, folders))) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    elements = Elements(page)
    assert not elements.names & {"script", "img", "link", "iframe", "object"}
    assert not [name for name, _ in elements.attributes if name.startswith("on")]
    addresses = [v for name, v in elements.attributes if name in ("src", "href", "xlink:href", "action")]
    assert all(address.startswith("#") for address in addresses)
    assert not re.search(r"url\((?!#)", page) and "@import" not in page and not re.search(r"https?://", page)
    assert HOSTILE in elements.text
    costs = ("2.40e+11", "4 × TPU v5e", "1.97e+14 (published)", "21.5 → 39.5")
    verdicts = ("1 of 2 tests passed", "1: fails public tests, 2: passes the public tests only", "runtime_error")
    for text in (*costs, *verdicts, "rollout.environment", "in the loss"):
        assert text in elements.text, text
    text = (tmp_path / "report.md").read_text()
    assert "| GRPO + tool use | 1 | 70.0 | 65.0 – 75.0 | 2.40e+11 | 3.00e+08 | 30 | 1 | 1.5 | 0.3 (20%) | 1 |" in text


def test_names_are_shown_as_they_are(tmp_path):
    label = f"$x^{{ {HOSTILE} | $"
    runs = [training_run(tmp_path / n, "grpo", scored(0.1), scored(0.2), label=n + label) for n in "ab"]
    assert main([*map(str, runs), "--output", str(tmp_path / "out")]) == 0
    elements = Elements((tmp_path / "out" / "report.html").read_text())
    assert not elements.names & {"script", "img"} and "svg" in elements.names
    assert elements.text.count("a" + label) >= 3  # table, plot, legend


def test_chromium_shows_hostile_text_as_text(tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on the path")
    main(list(map(str, study(tmp_path / "runs"))))
    # Without the policy that forbids scripts: the escaping alone must hold.
    page = (tmp_path / "runs" / "report.html").read_text()
    (tmp_path / "page.html").write_text(re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page))
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, "--dump-dom", f"file://{tmp_path / 'page.html'}"], capture_output=True, text=True, timeout=120
    )
    elements = Elements(done.stdout)
    assert "<title>jaxrl: 5 runs side by side</title>" in done.stdout and "taken</title>" not in done.stdout
    assert not elements.names & {"script", "img"} and HOSTILE in elements.text


def test_output_folder_and_evaluation_alone(tmp_path, capsys):
    sft, again, *_ = study(tmp_path / "runs")
    assert main([str(sft), str(again), "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "report.md").is_file() and (tmp_path / "out" / "report.html").is_file()
    assert main([str(again)]) == 0
    assert "SFT + regenerate: 45.0% pass@1" in (again / "report.md").read_text()
    assert main([str(sft)]) == 0
    assert "| base | 1 | 2.0 |" in (sft / "report.md").read_text()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: shutil.rmtree(run), "config.json does not exist; give the folder of a run"),
        (lambda run: (run / "metrics.jsonl").unlink(), "holds no run's results"),
        (lambda run: (run / "config.json").write_text("{"), "config.json: not JSON"),
        (lambda run: (run / "config.json").write_text("{}"), "config.json has no field 'name'"),
        (lambda run: (run / "devices.json").write_text("[]"), "devices.json holds a list, should hold an object"),
        (
            lambda run: (run / "metrics.jsonl").write_text(
                json.dumps({"step": 0, "stage": "evaluate", "after": "start"}) + "\n"
            ),
            "metrics.jsonl: an evaluation has no number 'held_out/pass@1'",
        ),
        (lambda run: (run / "samples" / "00000001.jsonl").write_text("x\n{}\n"), "00000001.jsonl:1: not JSON"),
    ],
)
def test_what_cannot_be_read_is_an_error_in_one_line(tmp_path, capsys, spoil, message):
    good = training_run(tmp_path / "good", "sft", scored(0.1), scored(0.2))
    bad = training_run(tmp_path / "bad", "grpo", scored(0.1), scored(0.2))
    spoil(bad)
    assert main([str(good), str(bad)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and str(bad) in error


def test_the_same_command_again_passes_over_its_own_files(tmp_path):
    study(tmp_path)
    for _ in range(2):
        assert main([str(path) for path in sorted(tmp_path.iterdir())]) == 0


def test_a_run_given_twice_is_an_error(tmp_path, capsys):
    run = training_run(tmp_path / "run", "sft", scored(0.1), scored(0.2))
    assert main([str(run), str(run) + "/"]) == 2
    assert "is given twice" in capsys.readouterr().err


def test_steps_say_how_their_episodes_went():
    problem = Problem("p", prompt="?")

    def episode(length: int, solved: bool, *calls: str) -> Episode:
        turns = [Turn("assistant", np.zeros(length, np.int32), True)]
        for status in calls:
            turns += [Turn("tool", np.zeros(7, np.int32), False, status=status)]
            turns += [Turn("assistant", np.zeros(1, np.int32), True)]
        return Episode(problem, np.zeros(3, np.int32), turns, Reward(float(solved), solved), "finished", "")

    metrics = episode_metrics(
        [Group(problem, [episode(4, True, "passed", "timeout"), episode(2, False, "passed"), episode(9, False)])],
        lambda group: False,
    )
    assert metrics["groups/zero_variance"] == 1
    assert metrics["turns/mean"] == 2 and metrics["calls/mean"] == 1 and metrics["calls/failed"] == pytest.approx(1 / 3)
    assert (metrics["length/solved"], metrics["length/unsolved"]) == (6, 6)
    without = episode_metrics([Group(problem, [episode(4, True)])], lambda group: True)
    assert without["calls/mean"] == 0 and not {"calls/failed", "length/unsolved"} & without.keys()


def test_runs_of_the_same_name_are_with_distinct_names():
    places = ("a/x", "b/x", "b/y")
    runs = [Run(Path(f"study/{place}"), {"name": place[-1], "seed": 0}, [], None, None) for place in places]
    apart = with_distinct_names(runs)
    assert [r.name for r in apart] == ["a/x", "b/x", "y"] and [r.label for r in apart] == ["x", "x", "y"]

"""Pages of runs whose every text is hostile: names, prompts, answers, errors, settings."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import evaluation_run, scored, training_run

from jaxrl.report import main
from jaxrl.runs.tokenizer import train_tokenizer

ATTACK = "</pre></style></svg><script>alert('1')</script><img src=x onerror=\"alert(1)\">{{ 7 * 7 }}{% raw %}"
HOSTILE = f"{ATTACK}' \" & \ud83d \x00 \x1b"
SHOWN = f"{ATTACK}' \" & \\ud83d ␀ ␛"
pytestmark = pytest.mark.filterwarnings("ignore:Glyph")  # matplotlib's font has no pictures of control characters
# Texts that say what kind of thing something is; the rest is for people.
KEPT = {"path", "environment", "runs_dir"}
KEPT_VALUES = {"evaluate", "start"}


def spoil(value: Any, name: str = "") -> Any:
    """Every text in it, keys of rewards' parts included, is followed by a hostile one."""
    if isinstance(value, dict):
        keys = {k: k + HOSTILE if name in ("parts", "rejected") else k for k in value}
        return {keys[k]: spoil(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [spoil(v, name) for v in value]
    kept = not isinstance(value, str) or name in KEPT or value in KEPT_VALUES
    return value if kept else value + HOSTILE


def spoil_folder(folder: Path) -> None:
    for path in [folder / "config.json", folder / "devices.json", folder / "task.json", folder / "evaluation.json"]:
        if path.is_file():
            path.write_text(json.dumps(spoil(json.loads(path.read_text()))))
    for path in [*folder.glob("samples/*.jsonl"), folder / "metrics.jsonl"]:
        if path.is_file():
            lines = [json.dumps(spoil(json.loads(line))) for line in path.read_text().splitlines()]
            path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def runs(tmp_path):
    first, last = ({"headline": "best", f"held_out/best{HOSTILE}": score} for score in (0.1, 0.3))
    sft = training_run(tmp_path / "sft", "sft", first, last)
    (sft / "task.json").write_text(json.dumps({"name": "contest", "rejected": {"no tests": 3}}))
    grpo = training_run(tmp_path / "grpo", "grpo", scored(0.1), scored(0.3, calls=1.0, failed_calls=0.5), label="G")
    tokenizer = train_tokenizer(["plain text"], 300)
    tokenizer.save_pretrained(str(grpo / "model" / "tokenizer"))
    samples = sorted((grpo / "samples").iterdir())
    for path in samples[::2]:  # tokens that are hostile when they are decoded
        episode = json.loads(path.read_text().splitlines()[0])
        tokens = tokenizer.encode(ATTACK)
        episode["turns"][0] |= {"tokens": tokens, "logprobs": [-0.5] * len(tokens)}
        path.write_text(json.dumps(episode) + "\n")
    evaluated = evaluation_run(tmp_path / "evaluated", scored(0.2), label="E", model__path=str(sft))
    other = training_run(tmp_path / "other", "grpo", scored(0.1), scored(0.2), label="G", rollout__temperature=0.5)
    folders = [sft, grpo, evaluated, other]
    for folder in folders:
        spoil_folder(folder)
    return folders


class Page(HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text += data


ELEMENTS = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "div", "span", "small", "i", "b", "br", "pre",
    "table", "tr", "th", "td", "ul", "li", "details", "summary", "fieldset", "legend", "label", "input",
    "svg", "defs", "g", "path", "use", "clippath", "rect", "text", "tspan",
}  # fmt: skip


def check(text: str) -> Page:
    page = Page(text)
    assert page.elements <= ELEMENTS and not [name for name in page.attributes if name.startswith("on")]
    assert not re.search("[\x00-\x08\x0b-\x1f]", text) and "49{%" not in page.text
    return page


@pytest.mark.parametrize("i", range(3))
def test_hostile_texts_of_one_run_are_shown_as_they_are(runs, i):
    assert main([str(runs[i])]) == 0
    page = check((runs[i] / "report.html").read_text())
    texts = [f"task functions{SHOWN}", [f"sft{SHOWN}", f"grpo{SHOWN}", f"evaluated{SHOWN}"][i]]
    if i == 0:
        texts += [f"no tests{SHOWN}: 3"]
    else:
        texts += [f"solved{SHOWN} ", f"wrong_answer{SHOWN}", f"first failing test: passed{SHOWN}", f"finished{SHOWN}"]
    for text in texts:
        assert text in page.text, text


def test_hostile_texts_of_runs_side_by_side_are_shown_as_they_are(runs, tmp_path):
    assert main([*map(str, runs), "--output", str(tmp_path / "out")]) == 0
    page = check((tmp_path / "out" / "report.html").read_text())
    labels = (f"G{SHOWN}: its runs differ in", f"E{SHOWN}", f"not known: base of {SHOWN}")
    for text in (*labels, f"4 × TPU v5e{SHOWN}", f"tool{SHOWN}", f"message: {SHOWN}"):
        assert text in page.text, text
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert "<script" not in markdown and "<img" not in markdown and "\x00" not in markdown

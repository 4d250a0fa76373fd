"""python -m jaxrl.synthesize: by a server that writes questions and programs, by the template, and by two models."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from jaxrl.config.command_line import read_config
from jaxrl.errors import UserError
from jaxrl.synthesize import main
from jaxrl.tasks import load_task
from jaxrl.tasks.acecode import Settings

RULES = {"double": "* 2", "inc": "+ 1", "square": "* x", "broken": "+ 3", "half": "// 2", "wrong": "+ 5"}
SEEDS = {name: f"def {name}(x):\n    y = x\n    return y {rule}\n" for name, rule in RULES.items()}
VALUES = {"double": lambda x: 2 * x, "inc": lambda x: x + 1, "square": lambda x: x * x, "half": lambda x: x // 2,
          "wrong": lambda x: x + 5}  # fmt: skip


def reply_to(prompt: str) -> str:
    """A careless model: of 8 tests the last two are wrong, one reply is no JSON, one program has a mistake."""
    if (solved := re.search(r"name must be `(\w+)`", prompt)) is not None:
        name = solved[1]
        code = SEEDS[name].replace("+ 5", "- 5")
        return f"Sure.\n```python\n{code}```"
    name = next(n for n in SEEDS if f"def {n}(" in prompt)
    if name == "broken":
        return "Let me think."
    tests = [f"assert {name}({i}) == {VALUES[name](i) + (i >= 6)}" for i in range(8)]
    return json.dumps({"question": f"Write a function {name} of x.", "tests": [*tests, f"assert {name}(x) == 1"]})


class Handler(BaseHTTPRequestHandler):
    prompts: ClassVar[list[str]] = []

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.prompts.append(body["prompt"])
        reply = json.dumps({"choices": [{"text": reply_to(body["prompt"]), "finish_reason": "stop"}]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)


@pytest.fixture
def arguments(tmp_path):
    """Of a run whose model is the server, on a folder of seeds."""
    Handler.prompts = []
    (tmp_path / "code").mkdir()
    for name, code in SEEDS.items():
        (tmp_path / "code" / f"{name}.py").write_text(code)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    yield [
        "--config=configs/scramble.py", f"--config.runs_dir={tmp_path}", "--config.rollout.engine=openai",
        f"--config.rollout.sidecar.addresses=('{address}',)", "--config.rollout.sidecar.model=careless",
        "--config.rollout.max_prompt_length=4000", "--config.rollout.max_new_tokens=1000", "--config.name=made",
        f"--config.synthesis.path={tmp_path / 'code'}",
    ]  # fmt: skip
    server.shutdown()
    server.server_close()


def rows(path):
    return {re.sub(r".*function (\w+) of.*", r"\1", r["question"]): r for r in map(json.loads, path.open())}


def test_from_code_to_a_task(arguments, tmp_path, capsys):
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    candidates, questions = rows(tmp_path / "made/candidates.jsonl"), rows(tmp_path / "made/questions.jsonl")
    assert candidates.keys() == SEEDS.keys() - {"broken"} and questions.keys() == candidates.keys() - {"wrong"}
    for name, row in questions.items():
        assert row["test_cases"] == [f"assert {name}({i}) == {VALUES[name](i)}" for i in range(6)]
        assert row["removed_tests"] == candidates[name]["test_cases"][6:] and row["source"] == "code"
        assert row["inferences"][0]["model_name"] == "careless"
    found = json.loads((tmp_path / "made/synthesis.json").read_text())
    assert found["dropped"]["reply: no JSON object"] == 1
    assert found["dropped"]["test: arguments are not constant"] == 5
    assert found["dropped"]["test: the reference program fails it"] == 4 * 2 + 8
    assert found["dropped"]["question: fewer than 5 tests kept"] == 1
    assert "questions after the filter" in shown and "dropped reply: no JSON object" in shown
    assert not any("assert" in p for p in Handler.prompts if "name must be" in p)  # the reference sees no test
    task = load_task(Settings(path=str(tmp_path / "made/questions.jsonl")), 0)
    assert {p.meta["entry_point"] for p in [*task.train, *task.held_out]} == questions.keys()
    assert all(p.demonstration for p in task.train)


def test_it_carries_on_where_it_was_killed(arguments, tmp_path):
    assert main(arguments) == 0
    whole = {name: (tmp_path / "made" / name).read_bytes() for name in ("candidates.jsonl", "questions.jsonl")}
    replies = tmp_path / "made/replies.jsonl"
    lines = replies.read_bytes().splitlines(keepends=True)
    replies.write_bytes(b"".join(lines[:4]) + lines[4][:20])
    (tmp_path / "made/references.jsonl").unlink()
    Handler.prompts = []
    assert main(arguments) == 0
    assert len(Handler.prompts) == 2 + 5  # the replies that were lost, and all programs
    assert whole == {name: (tmp_path / "made" / name).read_bytes() for name in whole}


def test_another_model_writes_the_programs(arguments, tmp_path):
    assert main([*arguments, "--config.synthesis.reference=none"]) == 0
    assert not (tmp_path / "made/questions.jsonl").exists() and len(Handler.prompts) == 6
    more = [f"--config.synthesis.path={tmp_path / 'made/candidates.jsonl'}", "--config.name=solved"]
    assert main([*arguments, *more, "--config.synthesis.rule=code"]) == 0
    assert len(Handler.prompts) == 6 + 5
    assert rows(tmp_path / "solved/questions.jsonl").keys() == {"double", "inc", "square", "half"}


def test_the_template_needs_no_model(tmp_path, capsys):
    arguments = ["--config=configs/acecode/synthesize.py", f"--config.runs_dir={tmp_path}"]
    assert main([*arguments, "--config.synthesis.seeds=40"]) == 0
    numbers = json.loads((tmp_path / "ace_questions/synthesis.json").read_text())["numbers"]
    assert 0.65 < numbers["right tests"] < 0.85 and numbers["right tests after the filter"] > 0.97
    assert numbers["questions after the filter"] >= 30 and numbers["tests of each after the filter"] > 7
    more = ["--config.synthesis.seeds=3", "--config.synthesis.wrong_tests=1", "--config.name=none"]
    assert main([*arguments, *more, "--config.synthesis.wrong_references=1"]) == 1
    assert "questions: no question is left" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["writer=template", "path=x"], r"synthesis\.path = 'x' has no effect"),
        (["wrong_tests=0.5"], r"synthesis\.wrong_tests = 0\.5 needs synthesis\.writer = 'template'"),
        (["reference=template"], r"synthesis\.reference = 'template' needs"),
        (["wrong_references=0.5"], r"synthesis\.wrong_references = 0\.5 needs synthesis\.reference = 'template'"),
        (["reference=none", "rule=code"], r"synthesis\.rule = 'code' has no effect"),
    ],
)
def test_settings_that_do_nothing(settings, message):
    with pytest.raises(UserError, match=message):
        read_config(["--config", "configs/scramble.py", *(f"--config.synthesis.{s}" for s in settings)])


def test_without_seeds(tmp_path, capsys):
    assert main(["--config=configs/scramble.py", f"--config.runs_dir={tmp_path}"]) == 1
    assert "synthesis.path = '' must be seeds" in capsys.readouterr().err

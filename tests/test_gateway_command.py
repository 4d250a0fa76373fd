"""python -m jaxrl.gateway: sessions of a task's problems for agents from elsewhere, and what is kept of them."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from conftest import ROOT

from jaxrl.gateway import main


def post(url: str, body: dict) -> dict:
    request = urllib.request.Request(url, json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.loads(response.read())
    except urllib.error.HTTPError as error:
        return json.loads(error.read())


OPTIONS = [
    "--config", "configs/scramble.py", "--config.model.shape.hidden_size=32", "--config.rollout.environment=agent",
    "--config.model.shape.num_hidden_layers=1", "--config.task.held_out_problems=3", "--config.name=served",
    "--config.rollout.max_prompt_length=200", "--config.rollout.max_new_tokens=64",
]  # fmt: skip


def test_problems_are_served_and_episodes_kept(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jaxrl.gateway", *OPTIONS, f"--config.runs_dir={tmp_path}",
               f"--config.rollout.environment.port={port}"]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said = ""
        for line in process.stdout:  # type: ignore[union-attr]
            said += line
            if line.startswith("serving 3 problems of scramble at http://127.0.0.1:"):
                break
        else:
            pytest.fail(said)
        door = f"http://127.0.0.1:{port}/sessions"
        opened = post(door, {})
        assert set(opened["problem"]) == {"id", "messages", "prompt"}
        answer = post(f"{opened['url']}/chat/completions", {"messages": opened["problem"]["messages"], "max_tokens": 8})
        assert answer["usage"]["completion_tokens"] <= 8
        ended = post(f"{door}/{opened['session']}/end", {})
        assert ended["problem"] == opened["problem"]["id"] and ended["status"] == "finished"
        other = post(door, {"problem": opened["problem"]["id"]})
        assert other["problem"] == opened["problem"] and other["session"] != opened["session"]
        assert post(f"{door}/{other['session']}/end", {"submission": "abc"})["solved"] is False
        assert "no held-out problem 'x'" in post(door, {"problem": "x"})["error"]["message"]
        assert "no such session" in post(f"{door}/x/end", {})["error"]["message"]
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    rows = [json.loads(line) for line in (tmp_path / "served/samples/gateway.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and rows[1]["judged"] == "abc"
    (turn,) = rows[0]["turns"]
    assert turn["sampled"] and len(turn["tokens"]) == len(turn["logprobs"]) == answer["usage"]["completion_tokens"]
    assert len(rows[0]["prompt_tokens"]) == answer["usage"]["prompt_tokens"]


def test_other_environments_are_refused(tmp_path, capsys):
    options = [o for o in OPTIONS if "environment" not in o]
    assert main([*options, f"--config.runs_dir={tmp_path}"]) == 1
    assert "needs rollout.environment = 'agent' without a command" in capsys.readouterr().err

"""An agent from outside, as a program of its own: asks twice in one conversation, and may misbehave.

python talking_agent.py [plain | stream | submit | changed | fails | silent | forever | greedy]
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

URL = os.environ["OPENAI_BASE_URL"]
MODE = sys.argv[1] if len(sys.argv) > 1 else "plain"


def ask(messages: list[dict[str, Any]], **more: Any) -> str:
    body = json.dumps({"model": "any", "messages": messages, **more}).encode()
    request = urllib.request.Request(f"{URL}/chat/completions", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        said = response.read().decode()
    if more.get("stream"):
        (first, last) = (line.removeprefix("data: ") for line in said.split("\n\n") if line)
        assert last == "[DONE]"
        return json.loads(first)["choices"][0]["delta"]["content"]
    return json.loads(said)["choices"][0]["message"]["content"]


def main() -> None:
    if MODE == "fails":
        sys.exit("I cannot do this")
    if MODE == "silent":
        return
    problem = json.loads(Path(os.environ["JAXRL_PROBLEM"]).read_text())
    assert set(problem) == {"id", "messages", "prompt"}  # neither tests nor the answer
    more = {"stream": True} if MODE == "stream" else {"temperature": 0.0} if MODE == "greedy" else {}
    messages = [{"role": "system", "content": "You are an agent."}, *problem["messages"]]
    answer = ask(messages, **more)
    if MODE == "forever":
        time.sleep(60)
    said = "something else" if MODE == "changed" else answer
    messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "Again."}]
    try:
        ask(messages, **more)
    except urllib.error.HTTPError as error:
        sys.exit(error.read().decode())
    if MODE == "submit":
        Path(os.environ["JAXRL_SUBMISSION"]).write_text("\\boxed{42}")


if __name__ == "__main__":
    main()

"""The extraction switches one by one, and the table of what each is worth."""

from __future__ import annotations

import json

import pytest

from jaxrl.ablate import main as ablate_command
from jaxrl.ablate import settings
from jaxrl.config import BASE_STOPS, ExtractionConfig
from jaxrl.extract import USUAL_IMPORTS, block_program, code_block, cut_at, function_program, normal_form

HEADER = "import math\ndef f(x):\n    '''Adds one.'''\n"
PLAIN = ExtractionConfig(import_helper=False)


def test_each_switch_of_a_function():
    body = "    return x + 1\n"
    assert function_program(body, "f", HEADER) == f"{USUAL_IMPORTS}import math\n{HEADER}{body}"
    assert function_program(body, "f", HEADER, PLAIN) == HEADER + body
    bare = ExtractionConfig(import_helper=False, prepend_header=False)
    assert function_program(body, "f", HEADER, bare) == body
    blocks = "```python\ndef f(x): return 1\n```\n```python\ndef f(x): return 2\n```\n```python\nf(3)\n```"
    for block, code in (("last", "def f(x): return 2\n"), ("first", "def f(x): return 1\n"), ("none", HEADER + blocks)):
        # The fences hide no definition from "none": the text defines f, and is taken as it is.
        expected = blocks if block == "none" else code
        assert function_program(blocks, "f", HEADER, ExtractionConfig(block, False)) == expected


def test_imports_come_after_those_from_the_future():
    answer = "```python\n# adds\nfrom __future__ import annotations\ndef f(x): return x + 1\n```"
    for program in (function_program(answer, "f", HEADER), block_program(answer)):
        assert program.startswith("from __future__ import annotations\nimport collections")
        compile(program, "program", "exec")


def test_a_block_in_a_list_is_to_the_left():
    assert code_block("1. So:\n   ```python\n   def f(x):\n       return x\n   ```\n") == "def f(x):\n    return x\n"
    assert code_block("```python\n    return x\n```") == "    return x\n"  # a body keeps its place


def test_stop_strings_cut_completions_and_not_fenced_answers():
    stops = ExtractionConfig(import_helper=False, stop_strings=BASE_STOPS)
    completion = "    return x + 1\n\ndef f(x):\n    return 0\nprint(f(1))"
    assert function_program(completion, "f", HEADER, stops) == HEADER + "    return x + 1\n"
    assert function_program("    return x + 1\n# or\n", "f", HEADER, stops) == HEADER + "    return x + 1"
    answer = "Sure.\n# Answer\n```python\nimport math\ndef f(x): return 3\n```"
    assert function_program(answer, "f", HEADER, stops) == "import math\ndef f(x): return 3\n"
    assert cut_at("abcd", ("d", "b")) == "a" and cut_at("abcd", ()) == "abcd"


def test_switches_of_a_block():
    assert block_program("x = 1") == USUAL_IMPORTS + "x = 1"
    assert block_program("import re\nx = 1") == "import re\nx = 1"
    assert block_program("x = 1\nprint(x)", ExtractionConfig("last", False, stop_strings=BASE_STOPS)) == "x = 1"
    text = "```python\nx = 1\n```\n```python\nx = 2\n```"
    assert [code_block(text, which) for which in ("first", "last", "none")] == ["x = 1\n", "x = 2\n", text]


def test_the_normal_form_is_that_of_the_syntax():
    assert normal_form("x=1 # one\n") == normal_form("x = (1)") == "x = 1"
    assert normal_form("x = (") is None


@pytest.mark.parametrize(
    ("extraction", "message"),
    [
        (ExtractionConfig(block="middle"), "task.extraction.block = 'middle' must be one of: last, first, none"),
        (ExtractionConfig(stop_strings=("",)), "must be a tuple of texts, none empty"),
    ],
)
def test_wrong_switches_are_errors(extraction, message):
    with pytest.raises(ValueError, match=message):
        extraction.check()


def test_the_defaults_are_all_switches_but_the_stop_strings():
    assert settings("humaneval")["all but stop strings"] == ExtractionConfig()
    assert "+ header" not in settings("mbpp")


def test_the_table(data, tmp_path, capsys):
    """HumanEval/0: has_close_elements, a chat answer without its import, a body, and a base model that goes on."""
    body = "    return any(abs(a - b) < threshold for i, a in enumerate(numbers) for b in numbers[:i])\n"
    definition = "def has_close_elements(numbers: List[float], threshold: float):\n"
    texts = [f"```python\n{definition}{body}```", body, f"{body}\n\ndef other():\n    return ("]
    rows = [{"problem": "HumanEval/0", "text": t} for t in texts] + [{"problem": "HumanEval/999", "text": ""}]
    samples = tmp_path / "samples.jsonl"
    samples.write_text("".join(json.dumps(r) + "\n" for r in rows))
    path = str(data / "humaneval" / "HumanEval.jsonl.gz")
    output = tmp_path / "table.md"
    assert ablate_command([str(samples), "--task", "humaneval", "--path", path, "--output", str(output)]) == 0
    assert "3 samples; of other problems, not scored: 1" in capsys.readouterr().out
    solved = {c[1].strip(): int(c[4]) for c in (line.split("|") for line in output.read_text().splitlines()[2:])}
    assert solved == {
        "raw": 0, "+ fenced block": 0, "+ import helper": 0, "+ header": 1, "+ stop strings": 0, "all": 3,
        "all but fenced block": 2, "all but import helper": 2, "all but header": 1, "all but stop strings": 2,
    }  # fmt: skip

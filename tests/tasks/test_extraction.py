"""The extraction switches one by one, and the table of what each is worth."""

from __future__ import annotations

import ast
import collections
import itertools
import json
import re
import time
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrl.ablate import main as ablate_command
from jaxrl.ablate import settings
from jaxrl.config.rules import check_settings
from jaxrl.tasks.extract import (
    BASE_STOPS,
    USUAL_IMPORTS,
    ExtractionConfig,
    block_program,
    code_block,
    cut_at,
    function_program,
    normal_form,
    parses,
)

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
        assert program.startswith("# adds\nfrom __future__ import annotations\nfrom typing import *\nimport ")
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
        check_settings(extraction, "task.extraction")


def test_the_defaults_are_all_switches_but_the_stop_strings():
    assert settings("humaneval")["all but stop strings"] == ExtractionConfig()
    assert "+ header" not in settings("mbpp")


def test_the_table(data, tmp_path, capsys):
    """HumanEval/0: has_close_elements, a chat answer without its import, a body, and a base model that runs on."""
    body = "    return any(abs(a - b) < threshold for i, a in enumerate(numbers) for b in numbers[:i])\n"
    definition = "def has_close_elements(numbers: List[float], threshold: float):\n"
    texts = [f"```python\n{definition}{body}```", body, f"{body}\n\ndef other():\n    return ("]
    rows = [{"problem": "HumanEval/0", "text": t} for t in texts] + [{"problem": "HumanEval/999", "text": ""}]
    rows[2] = {"problem": "HumanEval/0", "text": f"{texts[0]}\n{texts[2]}", "judged": texts[2]}  # the last of two turns
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


F, T = "`" * 3, "~" * 3
INC = "def inc(x):\n    return x + 1\n"
WRONG = "def inc(x):\n    return x\n"
BODY = "    return x + 1\n"
DOC = 'def inc(x):\n    """Adds one.\n\n{}\n    """\n    return x + 1\n'
ANSWERS = {
    "plain": f"{F}python\n{INC}{F}",
    "no fence": INC,
    "no fence, no last line end": INC.rstrip(),
    "words around": f"Sure!\n\n{F}python\n{INC}{F}\n\nThat is all.",
    "never closed": f"{F}python\n{INC}",
    "a lambda": f"{F}python\ninc = lambda x: x + 1\n{F}",
    "capitals": f"{F}Python\n{INC}{F}",
    "python3": f"{F}python3\n{INC}{F}",
    "python with a version": f"{F}python3.11\n{INC}{F}",
    "py": f"{F}py\n{INC}{F}",
    "a blank before the tag": f"{F} python\n{INC}{F}",
    "blanks after the tag": f"{F}python   \n{INC}{F}   \n",
    "a file name after a colon": f"{F}python:inc.py\n{INC}{F}",
    "attributes in braces": f'{F}{{.python .numberLines startFrom="1"}}\n{INC}{F}',
    "a tag in braces": f"{F}{{python}}\n{INC}{F}",
    "line numbers": f"{F}python linenos=table hl_lines=[1]\n{INC}{F}",
    "tildes": f"{T}python\n{INC}{T}",
    "tildes around backticks": f"{T}python\n{DOC.format('    ' + F)}{T}",
    "backticks around tildes": f"{F}python\n{DOC.format(T)}{F}",
    "four backticks around three": f"{F}`python\n{DOC.format(F)}{F}`",
    "a closing fence that is longer": f"{F}python\n{INC}{F}``",
    "five backticks": f"{F}``python\n{INC}{F}``",
    "a fence in a fence for Markdown": f"{F}`markdown\n{F}python\n{INC}{F}\n{F}`",
    "a fence in a fence without a tag": f"{F}`\nHere:\n{F}python\n{INC}{F}\n{F}`",
    "in a list": f"1. So:\n\n   {F}python\n   def inc(x):\n       return x + 1\n   {F}\n2. Done.",
    "on a list's own line": f"- {F}python\n  def inc(x):\n      return x + 1\n  {F}",
    "on a list's line, code not indented": f"1. {F}python\n{INC}{F}\n",
    "in a list, closed at the left": f"1. So:\n   {F}python\n   def inc(x):\n       return x + 1\n{F}\n",
    "in a quote": f"> {F}python\n> def inc(x):\n>     return x + 1\n> {F}",
    "indented by four": f"Code:\n\n    {F}python\n    def inc(x):\n        return x + 1\n    {F}\n",
    "indented by a tab": f"Code:\n\n\t{F}python\n\tdef inc(x):\n\t    return x + 1\n\t{F}\n",
    "CRLF": f"{F}python\n{INC}{F}\n".replace("\n", "\r\n"),
    "CR": f"{F}python\n{INC}{F}\n".replace("\n", "\r"),
    "CRLF inside only": f"{F}python\n{INC}".replace("\n", "\r\n") + F,
    "a lone closing fence": f"{INC}{F}",
    "a lone closing fence and words": f"{INC}{F}\n\nThis adds one to its argument.",
    "a lone closing fence of tildes": f"{INC}{T}\n",
    "a lone closing fence and a use": f"{INC}{F}\nUse it:\n{F}python\nprint(inc(1))\n{F}\n",
    "a glued closing fence": f"{F}python\n{INC.rstrip()}{F}",
    "a glued closing fence and words": f"{F}python\n{INC.rstrip()}{F}\nIt adds one.\n",
    "a glued closing fence, none opened": f"{INC.rstrip()}{F}\nIt adds one.",
    "words after the closing fence": f"{F}python\n{INC}{F} and so on.",
    "a full stop after the closing fence": f"{F}python\n{INC}{F}.",
    "opened after words": f"Answer: {F}python\n{INC}{F}\n",
    "opened after words, no tag": f"The function is {F}\n{INC}{F}\n",
    "opened after a tag of XML": f"<answer>{F}python\n{INC}{F}</answer>",
    "between tags of XML": f"<answer>\n{F}python\n{INC}{F}\n</answer>",
    "after thoughts": f"<think>\nFirst:\n{F}python\n{WRONG}{F}\nno.\n</think>\n{F}python\n{INC}{F}",
    "in a details element": f"<details>\n<summary>Code</summary>\n{F}python\n{INC}{F}\n</details>",
    "an end token": f"{F}python\n{INC}{F}<|im_end|>",
    "two end tokens and what follows": f"{F}python\n{INC}{F}<|im_end|>\n<|im_start|>user\nThanks",
    "an end token on its line": f"{F}python\n{INC}{F}\n<|endoftext|>",
    "an end token without a fence": f"{INC.rstrip()}<|im_end|>\n",
    "an end token with wide bars": f"{INC.rstrip()}<\uff5cend\u2581of\u2581sentence\uff5c>",
    "</s>": f"{F}python\n{INC}{F}</s>",
    "code on the line of the fence": f"{F}def inc(x):\n    return x + 1\n{F}",
    "code on the line of the tag": f"{F}python def inc(x):\n    return x + 1\n{F}",
    "an import on the line of the fence": f"{F}import math\n{INC}{F}",
    "all on one line": f"{F}def inc(x): return x + 1{F}",
    "all on one line with a tag": f"Answer: {F}python def inc(x): return x + 1{F}",
    "fences at the left in a docstring": f"{F}python\n{DOC.format(f'{F}{chr(10)}inc(1){chr(10)}{F}')}{F}\nwords",
    "fences in a docstring": f"{F}python\n{DOC.format(f'    {F}python{chr(10)}    inc(1){chr(10)}    {F}')}{F}\n",
    "fences in a docstring, no fence around": DOC.format(f"{F}python\nfrom inc import inc\ninc(1)\n{F}"),
    "a fence in a comment": f"{F}python\n# {F}\n{INC}{F}",
    "a fence in a string": f"{F}python\nS = '{F}'\n{INC}{F}",
    "a use after it": f"{F}python\n{INC}{F}\nUse:\n{F}python\nassert inc(1) == 2\n{F}",
    "a use with an import after it": f"{F}python\n{INC}{F}\n{F}python\nimport sys\nsys.exit(inc(1))\n{F}",
    "tests after it": f"{F}python\n{INC}{F}\n{F}python\ndef test_inc():\n    assert inc(1) == 2\n{F}",
    "a shell command after it": f"{F}python\n{INC}{F}\n{F}bash\npython inc.py\n{F}",
    "an install before it, no tags": f"{F}\npip install inc\n{F}\n{F}\n{INC}{F}",
    "its output after it, no tags": f"{F}\n{INC}{F}\nOutput:\n{F}\n[2, 3]\n{F}",
    "its output as text after it": f"{F}\n{INC}{F}\n{F}text\n2\n{F}",
    "no tag, and a use with one": f"{F}\n{INC}{F}\n{F}python\nprint(inc(1))\n{F}",
    "a use that never ends": f"{F}python\n{INC}{F}\n{F}python\nwhile True: print(inc(1",
    "a use before it": f"{F}python\nprint(inc(1))\n{F}\nis what you want:\n{F}python\n{INC}{F}",
    "a first attempt before it": f"{F}python\n{WRONG}{F}\nNo:\n{F}python\n{INC}{F}",
    "its helper in a block before": f"{F}python\ndef one():\n    return 1\n{F}\n"
    f"{F}python\ndef inc(x):\n    return x + one()\n{F}",
    "its import in a block before": f"{F}python\nimport operator\n{F}\n"
    f"{F}python\ndef inc(x):\n    return operator.add(x, 1)\n{F}",
    "another language before it": f"{F}js\nfunction inc(x) {{ return x; }}\n{F}\n{F}python\n{INC}{F}",
    "a session after it": f"{F}python\n{INC}{F}\n{F}pycon\n>>> inc(1)\n2\n{F}",
    "future imports": f"{F}python\nfrom __future__ import annotations\n{INC}{F}",
    "future imports over lines": f"{F}python\n'''Doc.'''\nfrom __future__ import (  # new\n    annotations,\n"
    f"    division,\n)\n{INC}{F}",
    "future imports with others": f"{F}python\nfrom __future__ import annotations; import os\n{INC}{F}",
    "a form feed": f"{F}python\nA = 1\n\f\n{INC}{F}",
    "line separators of Unicode": f"{F}python\n'''\u2028'''  # \x1c \x85\nfrom __future__ import annotations\n{INC}{F}",
    "tabs": f"{F}python\ndef inc(x):\n\treturn x + 1\n{F}",
    "between lines": f"Answer\n---\n{F}python\n{INC}{F}\n---\n",
    "a table before it": f"| a | b |\n| - | - |\n| {F} | 1 |\n\n{F}python\n{INC}{F}",
    "an empty block after it": f"{F}python\n{INC}{F}\n{F}python\n{F}",
    "an empty block before it": f"{F}python\n{F}\n{F}python\n{INC}{F}",
    "words, code, no fence": f"Here is the code:\n\n{INC}",
    "code, words, no fence": f"{INC}\nThis adds one to x, whatever it's.",
    "words, code, a lone closing fence": f"Here is the code:\n\n{INC}{F}\n",
    "never closed, words after it": f"{F}python\n{INC}\nThis function adds one.",
    "never closed, a use after it": f"{F}python\n{INC}\nUse it so:\n{F}python\nprint(inc(1))\n{F}",
    "tildes after words": f"Answer: {T}python\n{INC}{T}",
    "in bold words": f"**Solution:**{F}python\n{INC}{F}",
    "a byte order mark": f"\ufeff{F}python\n{INC}{F}",
    "in a list in a quote": f"> - {F}python\n>   def inc(x):\n>       return x + 1\n>   {F}",
    "another info after the closing fence": f"{F}python\n{INC}{F} python",
    "the next block opens where it closes": f"{F}python\n{INC}{F}python\nprint(inc(1))\n{F}",
}
BODIES = {
    "a body": BODY,
    "a body and a lone fence": f"{BODY}{F}\n",
    "a body and a lone fence and words": f"{BODY}{F}\nIt adds one.",
    "a body and a glued fence": f"{BODY.rstrip()}{F}\n",
    "a body and words": f"{BODY}\nThis adds one.",
    "a body and an end token": f"{BODY.rstrip()}<|endoftext|>",
    "a body in a fence": f"{F}python\n{BODY}{F}",
    "a body in a fence without a tag": f"So:\n{F}\n{BODY}{F}\n",
    "a body in a fence, glued": f"{F}python\n{BODY.rstrip()}{F}",
    "a body in a fence and a use": f"{F}python\n{BODY}{F}\n{F}python\ninc(1)\n{F}",
    "a body and another function": f"{BODY}\ndef dec(x):\n    return x - 1\n",
    "a body of many lines, CRLF": "    y = x\r\n\r\n    y += 1\r\n    return y\r\n",
}


def adds_one(code: str) -> bool:
    namespace: dict = {"__name__": "answer"}
    exec(compile(code, "answer", "exec"), namespace)
    return namespace["inc"](1) == 2


@pytest.mark.parametrize("text", ANSWERS.values(), ids=ANSWERS)
def test_the_program_of_an_answer(text):
    header = "def inc(x):\n    '''Adds one.'''\n"
    assert adds_one(function_program(text, "inc", header))
    assert adds_one(block_program(text, names=["inc"])) and adds_one(code_block(text, names=["inc"]))


@pytest.mark.parametrize("text", BODIES.values(), ids=BODIES)
def test_the_body_of_an_answer(text):
    assert adds_one(function_program(text, "inc", "def inc(x):\n    '''Adds one.'''\n"))


SCRIPT = "n = int(input())\nprint(n + 1)\n"


@pytest.mark.parametrize(
    "text",
    [
        f"{F}python\n{SCRIPT}{F}\nFor the input\n{F}\n1\n{F}\nit prints\n{F}\n2\n{F}",
        f"{F}\n{SCRIPT}{F}\nOutput:\n{F}\nx = 5\n{F}",
        f"{F}python\n{INC}{F}\n{F}python\n{SCRIPT}{F}",
        f"{F}\n{SCRIPT}{F}\nRun it:\n{F}sh\npython a.py < in\n{F}",
        f"{SCRIPT}{F}\nIt reads a number.",
        f"Answer: {F}python\n{SCRIPT}{F}",
    ],
)
def test_a_script_without_names(text):
    assert code_block(text).strip() == SCRIPT.strip()


def test_a_block_with_what_it_needs():
    """Without names: uses and tests of a block are not the program; a block that builds on others is."""
    helper, main = "def one():\n    return 1\n", "def solve():\n    print(one())\nsolve()\n"
    for use in ("print(one())\n", "one()\n", "def test_one():\n    assert one() == 1\n", "import sys\nprint(one())\n"):
        assert code_block(f"{F}python\n{helper}{F}\n{F}python\n{use}{F}") == helper
    assert code_block(f"{F}python\n{helper}{F}\n{F}python\n{main}{F}") == helper + main
    methods = "class Solution:\n    def inc(self, x): return x + 1\n"
    text = f"{F}python\n{methods}{F}\n{F}python\nclass Other: pass\n{F}"
    assert code_block(text, names=["inc"]) == methods and code_block(text) == "class Other: pass\n"
    assert code_block(f"{F}python\n{INC}{F}\n{F}python\n{WRONG}{F}", "first", ["inc"]) == INC


def test_what_is_not_python_is_left_as_it_is():
    for text in (f"{F}js\nf()\n{F}", "No idea.", "", F, f"{F}{F}", f"{F}\n{F}", f"{F}\n", f"{T}rust\nfn f() {{}}"):
        assert code_block(text) == text and function_program(text, "f", "", PLAIN) == text
    assert code_block(f"{F}python\nprint('cut") == "print('cut"
    cut = f"{INC}\nN = 3\nwhile N: print(inc("
    assert code_block(f"{F}python\n{cut}", names=["inc"]) == cut  # no words, but code that was cut: not a program


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200), st.sampled_from("`~"), st.integers(0, 2))
def test_a_block_in_a_longer_fence_comes_back(code, mark, extra):
    """Whatever it holds, by the rule of CommonMark; its line ends as Python reads them."""
    code = re.sub(r"\r\n?", "\n", code)
    longest = max((len(run) for run in re.findall(f"{mark}+", code)), default=0)
    fence = mark * (max(longest, 2) + 1 + extra)
    program = f"def inc(x):\n    return x + 1\n\nTEXT = {code!r}\n# {code}\n"
    program = program if parses(program) else f"{INC}'''{code}'''\n"
    if parses(program):
        assert code_block(f"{fence}python\n{program}{fence}\nDone.") == program
        assert function_program(f"So:\n\n{fence}py\n{program}{fence}", "inc", "", PLAIN) == program


LINES = st.sampled_from(
    ["def f(x):", "    return x", "x = 1", "# a", "", "    ", "if x:", "    '''", "'''", F, f"    {F}", f"{F}python", T,
     "f(1)", "import os", "class A:", "    pass", f"s = '{F}'", f"'''{F}'''", "> a", "- a", "1. a", "<b>", "\tpass"]
)  # fmt: skip


@given(st.lists(LINES, max_size=12), st.booleans())
def test_a_program_of_such_lines_comes_back(lines, tilde):
    program = "\n".join([*lines, "def inc(x): return x + 1", ""])
    runs = re.findall("~+" if tilde else "`+", program)
    fence = ("~" if tilde else "`") * max(3, *(len(run) + 1 for run in runs), 3)
    if parses(program):
        assert code_block(f"{fence}python\n{program}{fence}\nDone.", names=["inc"]) == program


@given(
    st.lists(st.sampled_from([F, T, "python", "\n", "    ", "x = 1", "def inc(x):", "> ", "- ", "<|im_end|>", "a b"]))
)
def test_any_text_has_an_answer(parts):
    text = "".join(parts)
    assert isinstance(code_block(text), str) and isinstance(block_program(text, names=["inc"]), str)
    assert isinstance(function_program(text, "inc", HEADER), str)


@pytest.mark.parametrize(
    "text",
    [
        f"{F}\n" * 50_000, f"{F}python\n" * 50_000, f"{F}python\nx = (\n{F}\n" * 20_000, "> " * 50_000 + F,
        "- " * 50_000 + F, f"a {F}" * 50_000, "`" * 300_000, f"{'(' * 100_000}{F}", f"{F}python\n{'-' * 100_000}1\n{F}",
        f"{F}python\ndef f():\n    '''\n{F}\n" * 5000, "<|im_end|>" * 50_000 + "x", f"{F}`\n{F}\n" * 20_000,
    ],
    ids=map(str, itertools.count()),
)  # fmt: skip
def test_long_texts_take_no_long_time(text):
    start = time.process_time()
    code_block(text, names=["f"])
    function_program(text, "f", HEADER)
    assert time.process_time() - start < 20


def test_the_usual_imports_keep_the_program_whole():
    code = "'''Doc.'''\nfrom __future__ import annotations\nX = 'from __future__ import x'\n"
    program = block_program(f"{F}python\n{code}{F}")
    assert ast.get_docstring(ast.parse(program)) == "Doc." and program.endswith("X = 'from __future__ import x'\n")
    assert program.replace(USUAL_IMPORTS, "") == code


def test_the_usual_imports_are_the_types_of_values():
    names: dict = {}
    exec(USUAL_IMPORTS, names)
    assert names["Counter"] is collections.Counter and names["OrderedDict"] is collections.OrderedDict
    assert names["Optional"] is typing.Optional
    hidden = [n for n in typing.__all__ if hasattr(collections, n) and n in names and n != "ChainMap"]
    assert all(names[n] is getattr(collections, n) for n in hidden) and len(hidden) == 2

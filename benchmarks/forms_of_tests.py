"""Which tests of the public benchmarks become data, and which need an examiner (docs/results/sandbox.md).

JAXRL_DATA=... python benchmarks/forms_of_tests.py
"""

from __future__ import annotations

import collections
import os
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from jaxrl.evaluation.harnesses import read_examples
from sandbox.translate import translate
from sandbox.verdict import AssertTest, CheckTest, Test

DATA = Path(os.environ.get("JAXRL_DATA", "../shared/data"))
SETS = {
    "HumanEval": ("humaneval", "humaneval/HumanEval.jsonl.gz"),
    "HumanEval+": ("humaneval", "evalplus/v0.1.10-HumanEvalPlus.jsonl.gz"),
    "MBPP": ("mbpp", "mbpp/mbpp.jsonl"),
    "MBPP+": ("mbpp", "evalplus/MbppPlus-v0.1.0.jsonl.gz"),
}


def main() -> None:
    for name, (task, path) in SETS.items():
        examples = read_examples(task, str(DATA / path))
        forms = {id: form(t for tests in e.suites.values() for t in tests) for id, e in examples.items()}
        count = collections.Counter(forms.values())
        rest = [id for id, f in forms.items() if f != "values"]
        share = f"{count['values']} of {len(forms)} problems are data ({count['values'] / len(forms):.1%})"
        print(f"{name}: {share}; not: {rest}")


def form(tests: Iterable[Test]) -> str:
    """That of the problem's least favourable test."""
    for test in tests:
        if isinstance(test, (AssertTest, CheckTest)) and not translate(test.code, getattr(test, "entry_point", "")):
            return "examined"
    return "values"


if __name__ == "__main__":
    main()

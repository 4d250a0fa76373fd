"""The reward of SWE-RL: cases of the published code, measured with it, and rules of its own checked by other means."""

from __future__ import annotations

import difflib
import random
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrl.tasks.swe.reward import (
    changes,
    changes_of_patch,
    ratio,
    reward_of_answer,
    reward_of_contents,
    reward_of_patches,
)
from rollouts.blocks import Edit, FormatError, apply_edits, edits_between, read_answer, write_answer, write_edit
from rollouts.unified import PatchError, apply_patch, diff_lines, read_patch, write_patch

A = "def add(a, b):\n    return a + b\n\ndef subtract(a, b):\n    return a - b"
B = "def sort_list(lst):\n    return sorted(lst)"
FILES = {"a.py": A, "b.py": B}
ORACLE = {"a.py": A.replace("a + b", "a + b + 0")}
EXACT = Edit("a.py", "    return a + b", "    return a + b + 0")
OTHER = Edit("a.py", "    return a - b", "    return a - b - 0")


def answered(*edits: Edit, thought: str = "dummy") -> str:
    return write_answer(thought, edits)


# Each measured with the published reward.
MEASURED = {
    "exact": (answered(EXACT), 1.0),
    "another constant": (answered(EXACT._replace(replace="    return a + b + 1")), 0.9910714285714286),
    "other words": (answered(EXACT._replace(replace="    return sum((a, b))")), 0.9380530973451328),
    "the other function": (answered(OTHER), 0.6634615384615384),
    "both functions": (answered(EXACT, OTHER), 0.9024390243902439),
    "a trailing blank in b.py": (
        answered(EXACT, Edit("b.py", "    return sorted(lst)", "    return sorted(lst) ")), 0.5,
    ),
    "the beginning of a line, in two places": (
        answered(Edit("a.py", "    return a", "    return a ")), 0.8916666666666667,
    ),
    "without indentation": (answered(Edit("a.py", "return a + b", "return a + b + 0")), -1.0),
    "nothing changed": (answered(EXACT._replace(replace=EXACT.search)), -1.0),
    "undone": (answered(EXACT, Edit("a.py", EXACT.replace, EXACT.search)), 0.0),
    "two closing tags": (answered(EXACT) + "</solution>", -1.0),
    "no thought": (answered(EXACT, thought=" "), -1.0),
    "an empty search": (answered(Edit("a.py", "", "# x")), 0.589041095890411),
}  # fmt: skip


@pytest.mark.parametrize("name", MEASURED)
def test_as_measured_with_the_published_code(name):
    text, expected = MEASURED[name]
    assert reward_of_answer(FILES, ORACLE, text) == pytest.approx(expected, abs=1e-12)


def test_the_diff_that_is_compared():
    assert diff_lines(A, ORACLE["a.py"]) == (
        "@@ -1,5 +1,5 @@\n def add(a, b):\n-    return a + b\n+    return a + b + 0\n \n"
        " def subtract(a, b):\n     return a - b"
    )


# --- the published tests

THREE = (
    Edit("a.py", "    return a + b", "    return b + a"),
    Edit("a.py", "    return a - b", "    return -(b - a)"),
    Edit("b.py", "    return sorted(lst)", "    return sorted(lst)[:]"),
)


def test_three_blocks_in_two_files():
    oracle = apply_edits(FILES, THREE)
    text = answered(*THREE)
    assert read_answer(text) == ("dummy", list(THREE)) and reward_of_answer(FILES, oracle, text) == 1.0


def test_a_new_file():
    oracle = apply_edits(FILES, THREE)
    new = Edit("c.py", "", "def triple(x):\n    return 3 * x")
    assert reward_of_answer(FILES, oracle, answered(new)) == 0.0
    two = Edit("c.py", "    return 3 * x", "    return x * 3")
    assert reward_of_answer(FILES, oracle, answered(new, two, THREE[2])) == pytest.approx(1 / 3, abs=1e-12)
    assert apply_edits(FILES, [new])["c.py"] == new.replace
    assert reward_of_answer(FILES, oracle, answered(two)) == -1.0  # there is nothing to search in


@pytest.mark.parametrize("gone", ["<think>", "</think>", "<solution>", "</solution>", ">>>>>>> REPLACE\n", "```python"])
def test_what_is_not_the_format(gone):
    assert reward_of_answer(FILES, ORACLE, answered(EXACT).replace(gone, "")) == -1.0


def test_oddities_of_the_format():
    """The order of the tags does not matter, blanks after a path belong to it, text around the blocks is ignored."""
    thought, _, solution = answered(EXACT).partition("<solution>")
    assert reward_of_answer(FILES, ORACLE, f"<solution>{solution}\n{thought}") == 1.0
    assert read_answer(answered(EXACT).replace("a.py", "a.py "))[1][0].path == "a.py "
    padded = answered(EXACT).replace("```python", "Here it is: ```python").replace("</solution>", "Done.</solution>")
    assert reward_of_answer(FILES, ORACLE, padded) == 1.0


PATCH = """diff --git a/x.py b/x.py
--- a/x.py
+++ b/x.py
@@ -1,3 +1,3 @@
 import os
-print("the first line of them all")
+print("the second line of all of them")
 print(os)
"""
OF_Y = PATCH.replace("x.py", "y.py")


@pytest.mark.parametrize(
    ("predicted", "low", "high"),
    [
        (PATCH, 1.0, 1.0),
        (PATCH.replace("all of them", "them"), 0.9, 0.9999),
        (OF_Y, 0.0, 0.0),
        (PATCH + OF_Y, 0.5, 0.5),
        ("", 0.0, 0.0),
        ("no diff at all", 0.0, 0.0),
        (PATCH.replace("@@ -1,3 +1,3 @@", "@@ -1,9 +1,9 @@"), 0.0, 0.0),  # unparsable: no change
    ],
)
def test_unified_diffs(predicted, low, high):
    assert low <= reward_of_patches(PATCH, predicted) <= high
    assert reward_of_patches("", "") == 1.0


# --- unified diffs, as the package unidiff 1.0.1 reads them (measured)

GIT = """diff --git a/old name.txt b/new.txt
similarity index 90%
rename from old name.txt
rename to new.txt
index 1..2 100644
--- a/old name.txt
+++ b/new.txt
@@ -1 +1,2 @@ def f():
-a
\\ No newline at end of file
+a
+b
\\ No newline at end of file
diff --git a/pic.png b/pic.png
index 1..2 100644
Binary files a/pic.png and b/pic.png differ
diff --git a/gone.py b/gone.py
deleted file mode 100644
index 1..0
--- a/gone.py
+++ /dev/null
@@ -1,2 +0,0 @@
-x = 1
-
diff --git a/made.py b/made.py
new file mode 100644
--- /dev/null
+++ b/made.py
@@ -0,0 +1 @@
+--- a/not a name
diff --git a/moved.py b/there.py
similarity index 100%
rename from moved.py
rename to there.py
"""


def test_what_a_diff_says_of_each_file():
    no_newline = "\\ No newline at end of file"
    assert changes_of_patch(GIT) == {
        "old name.txt": "rename from old name.txt to new.txt\n"
        f"@@ -1,1 +1,2 @@ def f():\n-a\n{no_newline}\n+a\n+b\n{no_newline}",
        "gone.py": "@@ -1,2 +0,0 @@\n-x = 1\n-",
        "made.py": "@@ -0,0 +1,1 @@\n+--- a/not a name",
        "moved.py": "rename from moved.py to there.py",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("@@ -1 +1 @@\n-a\n+b", "line 1: a hunk without a file"),
        ("--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\nso\n@@ -3 +3 @@\n-a\n+b", "line 7: a hunk without a file"),
        ("--- a/x\n+++ b/x\n@@ what @@", "line 3: not the head of a hunk"),
        ("--- a/x\n+++ b/x\n@@ -1,2 +1 @@\n-a\n+b", "line 6: a hunk is shorter"),
        ("--- a/x\n+++ b/x\n@@ -1,2 +1,2 @@\n-a\n+b\n+c\n d", "line 7: a hunk is longer"),
    ],
)
def test_what_is_not_a_diff(text, message):
    with pytest.raises(PatchError, match=message):
        read_patch(text)


def drawn_text(rng: random.Random) -> str:
    lines = [rng.choice(["", "a", "b", "  c", "- d", "+ e", "\\ f", "@@ g"]) for _ in range(rng.randrange(12))]
    return "\n".join(lines) + rng.choice(["", "\n"])


def changed_text(rng: random.Random, text: str) -> str:
    lines = text.split("\n")
    for _ in range(rng.randrange(1, 4)):
        i = rng.randrange(len(lines) + 1)
        lines[i : i + rng.randrange(3)] = [rng.choice(["new", "a", "", "z"])] * rng.randrange(3)
    return "\n".join(lines)


def test_diffs_are_those_that_git_applies(tmp_path):
    """What write_patch writes, `git apply` and apply_patch both turn into the new files."""
    rng = random.Random(0)
    for case in range(25):
        folder = tmp_path / str(case)
        folder.mkdir()
        old = {f"{name}.txt": drawn_text(rng) for name in "pq"}
        new = {path: changed_text(rng, text) for path, text in old.items()} | {"r.txt": drawn_text(rng) or "r"}
        old = {path: text for path, text in old.items() if text or rng.random() < 0.5}
        patch = write_patch(old, new)
        for path, text in old.items():
            (folder / path).write_text(text)
        (folder / "patch").write_text(patch)
        subprocess.run(["git", "apply", "--whitespace=nowarn", "patch"], cwd=folder, check=True)
        expected = {path: text for path, text in new.items() if text != old.get(path)}
        assert {path: (folder / path).read_text() for path in expected} == expected
        assert apply_patch(old, patch) == expected
    with pytest.raises(PatchError, match=r"x\.py: its lines from 1 on are not those of the diff"):
        apply_patch({"x.py": "other\n"}, PATCH)


# --- properties

TEXTS = st.text("ab\n ", max_size=40)


@given(TEXTS, TEXTS)
def test_demonstrated_edits_give_the_new_file(old, new):
    edits = edits_between({"f": old}, {"f": new})
    assert apply_edits({"f": old}, edits) == ({"f": new} if edits else {}) and bool(edits) == (old != new)
    if edits:
        assert reward_of_answer({"f": old}, {"f": new}, answered(*edits)) == 1.0
        assert all(f"\n{old}".count(f"\n{e.search}") >= 1 for e in edits)


def test_demonstrated_edits_are_small():
    text = "\n".join(["x = 1", "y = 2", "x = 1", "z = 3", "x = 10"])
    assert edits_between({"f": text}, {"f": text.replace("z = 3", "z = 4")}) == [Edit("f", "z = 3", "z = 4")]
    (edit,) = edits_between({"f": text}, {"f": text.replace("y = 2\nx = 1", "y = 2\nx = 5")})
    assert edit == Edit("f", "y = 2\nx = 1", "y = 2\nx = 5")  # x = 1 alone would occur three times
    with pytest.raises(FormatError, match="look like the marks of a block"):
        edits_between({"f": "a\n=======\nb"}, {"f": "c\n-------\nd"})


@given(st.text("abcü\n", min_size=1, max_size=60), st.text("abcü\n", min_size=1, max_size=60))
def test_the_ratio_is_that_of_difflib_and_a_limit_only_lowers_it(predicted, oracle):
    whole = difflib.SequenceMatcher(None, predicted, oracle, autojunk=False).ratio()
    assert ratio(predicted, oracle) == ratio(predicted, oracle, 60) == whole
    most = 2 * min(10, len(predicted), len(oracle)) / (len(predicted) + len(oracle))
    assert predicted == oracle or ratio(predicted, oracle, 10) <= most


def test_the_ratio_of_long_texts():
    """Of texts in which difflib's heuristic would leave out frequent characters."""
    text = Path(difflib.__file__).read_text()
    a, b = text[2000:4500], text[2100:4600].replace("self", "this")
    assert ratio(a, b) == difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()
    assert ratio("\ud800 a", "\ud800 b") == 2 / 3  # what a tokenizer makes of half a character


def test_contents_and_last_lines_ends():
    assert reward_of_contents(FILES, ORACLE, {"a.py": ORACLE["a.py"] + "\n"}) == 1.0
    assert changes(FILES, {"a.py": A + "\n"}) == {} and reward_of_contents(FILES, {}, {}) == 1.0
    assert write_edit(EXACT).startswith("```python\n### a.py\n<<<<<<< SEARCH\n")

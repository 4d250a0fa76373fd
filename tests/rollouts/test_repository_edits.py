"""Edits of an agent in a repository: their patch applies to the files of the commit, whatever became of the tree."""

from __future__ import annotations

import subprocess

import pytest

from rollouts.blocks import Edit
from rollouts.environments.repository import RefusedError, Work, edit, original, with_ends_of
from sandbox.checkout import Checkout
from sandbox.layers import IsolationError

MIXED = "a\r\nb\nc\r\nd\r\ne\nf"
FILES = {"mixed.txt": MIXED, "plain.txt": "one\ntwo\n", "sub/run.sh": "echo 1\n"}


@pytest.fixture
def tree(tmp_path):
    folder = tmp_path / "tree"
    for path, content in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content.encode())
    (folder / "sub/run.sh").chmod(0o755)
    (folder / "linked").symlink_to("sub")
    try:
        with Checkout(str(folder), disk_mb=16) as checkout:
            yield folder, checkout
    except IsolationError as error:
        pytest.skip(str(error))


def shell(checkout, script: str) -> str:
    return checkout.run(["sh", "-c", script]).output


def applied(folder, work: Work) -> None:
    """Git applies the patch to the files of the commit, which then are those that the agent left."""
    done = subprocess.run(["git", "apply"], input=work.patch.encode(), cwd=folder, capture_output=True)
    assert done.returncode == 0, done.stderr
    for path, content in work.after.items():
        assert (folder / path).read_bytes() == content.encode()


def test_lines_keep_their_ends(tree):
    folder, checkout = tree
    work = Work(str(folder))
    edit(checkout, [Edit("mixed.txt", "d", "D\nnew")], work, ())
    edit(checkout, [Edit("mixed.txt", "a\r\nb", "a\r\nB"), Edit("plain.txt", "one", "1")], work, ())
    assert work.after["mixed.txt"] == "a\r\nB\r\nc\r\nD\r\nnew\r\ne\nf" and work.after["plain.txt"] == "1\ntwo\n"
    assert checkout.run(["cat", "mixed.txt"]).output == work.after["mixed.txt"]
    applied(folder, work)


@pytest.mark.parametrize(
    ("old", "new", "made"),
    [
        ("a\r\nb\r\n", "a\nx\nb\n", "a\r\nx\r\nb\r\n"),
        ("a\r\nb", "a", "a"),
        ("a\r\nb", "a\nb\nc", "a\r\nb\r\nc"),
        ("a\nb\r\nc\n", "a\nb\nC\n", "a\nb\r\nC\n"),
        ("1\r\n2\n3\n4\n5\r\n", "1\n2\nx\n4\n5\ny\n", "1\r\n2\nx\r\n4\n5\r\ny\r\n"),
        ("a\r\nb\n", "", ""),
        ("a\n", "b\n", "b\n"),
    ],
)
def test_line_ends(old, new, made):
    assert with_ends_of(old, new) == made


def test_what_tests_have_written_does_not_spoil_the_patch(tree):
    folder, checkout = tree
    work = Work(str(folder))
    shell(checkout, "printf 'zero\\none\\ntwo\\n' > plain.txt; echo made > made.txt")
    edit(checkout, [Edit("plain.txt", "two", "2"), Edit("made.txt", "made", "changed")], work, ())
    assert work.before == {"plain.txt": FILES["plain.txt"]}
    applied(folder, work)


BOTH = [Edit("mixed.txt", "b", "B"), Edit("plain.txt", "one", "x" * 100_000)]


def test_on_a_full_disk_nothing_changes(tree):
    folder, checkout = tree
    work = Work(str(folder))
    shell(checkout, "mkdir ../file; head -c 100000000 /dev/zero > big")
    with pytest.raises(RefusedError, match=r"cannot be written: .*; nothing is changed"):
        edit(checkout, BOTH, work, ())
    assert not work.after and checkout.run(["cat", "mixed.txt"]).output == MIXED
    shell(checkout, "rm big")
    edit(checkout, BOTH, work, ())
    assert shell(checkout, "ls -d ../edit.* 2>/dev/null; ls -A") == "linked\nmixed.txt\nplain.txt\nsub\n"
    applied(folder, work)


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([Edit("mixed.txt", "b", "B"), Edit("plain.txt/x", "", "new")], "cannot be written"),
        ([Edit("new", "", "new"), Edit("new/b", "", "new")], "is in a folder that is a file of the same edit"),
        ([Edit("mixed.txt", "b", "B"), Edit("a" * 300, "", "new")], "cannot be read: File name too long"),
        ([Edit("a/" * 600 + "b", "", "new")], "a path has more than 1024 bytes"),
    ],
)
def test_what_cannot_be_written_changes_nothing(tree, edits, message):
    folder, checkout = tree
    work = Work(str(folder))
    with pytest.raises(RefusedError, match=message):
        edit(checkout, edits, work, ())
    assert not work.after and checkout.run(["cat", "mixed.txt"]).output == MIXED


def test_rights_are_kept_and_links_are_refused(tree):
    folder, checkout = tree
    work = Work(str(folder))
    edit(checkout, [Edit("sub/run.sh", "echo 1", "echo 2")], work, ())
    assert shell(checkout, "./sub/run.sh") == "2\n"
    for path in ("linked/run.sh", "linked/new.sh"):
        with pytest.raises(RefusedError, match="is a link"):
            edit(checkout, [Edit(path, "", "echo 3")], work, ())
    edit(checkout, [Edit("far/down/new.txt", "", "new")], work, ())
    applied(folder, work)


def test_originals_outside_are_not_read(tmp_path):
    (tmp_path / "secret").write_text("x")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "out").symlink_to(tmp_path)
    assert original(str(tmp_path / "tree"), "out/secret") is None
    assert original({"a": "b"}, "a") == "b" and original({}, "a") is None

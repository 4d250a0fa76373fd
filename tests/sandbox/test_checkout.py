"""Working trees: a private copy, commands within limits, nothing left behind."""

from __future__ import annotations

import os
import subprocess
import time

import pytest

from sandbox.checkout import Checkout, CheckoutError
from sandbox.layers import IsolationError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tree")
    (path / "a.txt").write_text("one\ntwo\n")
    (path / "sub").mkdir()
    (path / "sub" / "b ü.txt").write_text("b")
    (path / "link").symlink_to("a.txt")
    return path


@pytest.fixture(scope="module")
def checkout(folder):
    try:
        with Checkout(str(folder), disk_mb=64) as made:
            yield made
    except IsolationError as error:
        pytest.skip(str(error))


def shell(checkout, script: str, **limits):
    return checkout.run(["sh", "-c", script], **limits)


def test_commands_see_the_tree_and_what_others_did(checkout, folder):
    assert shell(checkout, "cat a.txt 'sub/b ü.txt'; readlink link").output == "one\ntwo\nba.txt\n"
    assert shell(checkout, "echo three >> a.txt; echo new > c.txt; exit 3").exit_code == 3
    assert shell(checkout, "cat link c.txt").output == "one\ntwo\nthree\nnew\n"
    assert (folder / "a.txt").read_text() == "one\ntwo\n" and not (folder / "c.txt").exists()


def test_a_patch_from_stdin(checkout):
    patch = "--- /dev/null\n+++ b/p.txt\n@@ -0,0 +1 @@\n+patched\n"
    patch = f"diff --git a/p.txt b/p.txt\nnew file mode 100644\n{patch}"
    assert checkout.run(["git", "apply"], stdin=patch).exit_code == 0
    assert shell(checkout, "cat p.txt").output == "patched\n"


def test_each_command_reads_its_own_input_from_the_start(checkout):
    text = "ü\udcff" + "x" * 200_000
    assert checkout.run(["wc", "-c"], stdin=text).output == "200003\n"
    direct = "import fcntl, os; os.read(0, 2); fcntl.fcntl(0, fcntl.F_SETFL, os.O_DIRECT)"
    checkout.run(["python3", "-c", direct], stdin="one")
    assert checkout.run(["cat"], stdin="two").output == "two"
    assert checkout.run(["cat"]).output == "" and shell(checkout, "echo x >&0 2>/dev/null").exit_code != 0
    assert checkout.run(["cat"], stdin="\ud800").output == "?"


def test_a_checkout_cannot_reach_the_machine(checkout, folder):
    assert "Read-only" in shell(checkout, f"touch {folder}/x /usr/x 2>&1").output
    assert shell(checkout, "ls /home /etc/passwd 2>/dev/null").output == ""
    network = "import socket; s = socket.socket(); s.settimeout(2); s.connect(('1.1.1.1', 80))"
    assert checkout.run(["python3", "-c", network]).exit_code != 0
    assert shell(checkout, "kill -9 1; echo still here").output.endswith("still here\n")


def test_time_output_and_missing_commands(checkout):
    start = time.monotonic()
    ran = shell(checkout, "echo before; sleep 60", wall_s=1.0)
    assert (ran.status, ran.exit_code, ran.output) == ("timeout", None, "before\n") and time.monotonic() - start < 20
    assert checkout.run(["yes"], wall_s=20, output_kb=64).status == "output_limit"
    ran = checkout.run(["no-such-command"])
    assert ran.status == "no_command" and ran.output == "no-such-command: No such file or directory"
    assert shell(checkout, "echo out; echo err >&2").output == "out\nerr\n"


def test_what_a_command_starts_ends_with_it(checkout):
    start = time.monotonic()
    assert shell(checkout, "(sleep 3; echo late > late.txt) & echo started", wall_s=30).output == "started\n"
    assert time.monotonic() - start < 2.5
    time.sleep(3.2)
    assert shell(checkout, "ls late.txt").exit_code != 0


def test_many_processes_and_a_full_disk_are_survived(checkout):
    shell(checkout, "bomb() { bomb | bomb & }; bomb; sleep 1", wall_s=5.0)
    assert shell(checkout, "head -c 200000000 /dev/zero > big; echo done").output.endswith("done\n")
    assert shell(checkout, "rm -f big; echo fine").output == "fine\n"


def test_processes_that_take_all_memory_end_alone(folder):
    try:
        with Checkout(str(folder), memory_mb=200, disk_mb=64) as made:
            if made._cgroup is None or "memory" not in made._cgroup.folders:
                pytest.skip("no control group bounds the memory")
            many = "import os, time\nfor _ in range(150):\n    if not os.fork():\n        x = bytearray(3_000_000)\n"
            made.run(["python3", "-c", f"{many}        time.sleep(5)\ntime.sleep(5)"], wall_s=20)
            assert shell(made, "echo fine").output == "fine\n"
    except IsolationError as error:
        pytest.skip(str(error))


def test_nothing_is_left_when_it_is_closed(folder):
    try:
        with Checkout(str(folder), {"packages": str(folder / "sub")}) as made:
            assert shell(made, "cat 'packages/b ü.txt'").output == "b"
            assert shell(made, "echo x > packages/y").exit_code != 0
            shell(made, "sleep 1000 &")
            number = made._process.pid
    except IsolationError as error:
        pytest.skip(str(error))
    assert not os.path.exists(f"/proc/{number}")
    with pytest.raises(CheckoutError, match="has ended"):
        made.run(["true"])
    assert "sleep 1000" not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout

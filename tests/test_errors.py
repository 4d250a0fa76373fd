"""Which errors are one line and which keep their traceback; outputs that nobody reads any more."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from jaxrl.errors import CheckpointError, TrainingError, UserError, command, for_user
from models.convert import ConversionError
from models.sharding import MeshError
from rollouts.engine import PromptTooLongError
from sandbox.layers import IsolationError

PROGRAM = """
import sys
from jaxrl.errors import command

@command()
def main(arguments):
    for i in range(20000):
        print("line", i)
    print("to stderr", file=sys.stderr)
    with open(arguments[0], "w") as file:
        file.write("done")
    return 0

sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "error",
    [UserError("a\nb"), TrainingError("a b"), CheckpointError("a b"), ConversionError("a b"), MeshError("a b"),
     PromptTooLongError("a b"), IsolationError("a b"), OSError("a b")],
    ids=lambda e: type(e).__name__,
)  # fmt: skip
def test_errors_for_the_user_are_one_line(error, capsys, monkeypatch):
    @command(failed=3)
    def main(arguments: list[str]) -> int:
        raise error

    assert main([]) == 3
    assert capsys.readouterr().err == "error: a b\n"
    monkeypatch.setenv("JAXRL_TRACEBACK", "1")
    with pytest.raises(type(error)):
        main([])


@pytest.mark.parametrize(
    "error", [ValueError("shapes (3,) and (4,)"), KeyError("x"), TypeError("x"), RuntimeError("x")]
)
def test_faults_of_the_program_keep_their_traceback(error):
    @command()
    def main(arguments: list[str]) -> int:
        raise error

    assert not for_user(error)
    with pytest.raises(type(error)):
        main([])


def test_a_shape_error_in_a_loss_is_a_traceback(tmp_path):
    """A whole training run with a loss that a researcher got wrong."""
    code = (
        "import sys, numpy as np, jaxrl.train as train, jaxrl.algorithms.sft as sft\n"
        "def wrong(logprobs, batch): return np.zeros(3) + np.zeros(4)\n"
        "sft.sft_loss = wrong\n"
        "sys.exit(train.main(sys.argv[1:]))\n"
    )
    small = ["--config=configs/scramble.py", "--config.model.shape.hidden_size=32"]
    small += ["--config.grpo.steps=0", "--config.rollout.slots=2", "--config.model.tokenizer_size=300"]
    small += ["--config.model.shape.num_hidden_layers=1", "--config.task.held_out_problems=2", "--config.sft.steps=1"]
    line = [sys.executable, "-c", code, *small, f"--config.runs_dir={tmp_path}"]
    result = subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert result.returncode == 1
    assert "Traceback" in result.stderr and "in wrong" in result.stderr and "could not be broadcast" in result.stderr


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


def test_ctrl_c_is_a_line_and_status_130(capsys):
    @command()
    def main(arguments: list[str]) -> int:
        raise KeyboardInterrupt

    assert main([]) == 130 and capsys.readouterr().err == "interrupted\n"


def test_warnings_about_sampled_programs_are_not_shown():
    program = "import ast\nfrom jaxrl.errors import command\n"
    program += "@command()\ndef main(_):\n    ast.parse('1if x else 2')\n    return 0\nmain([])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_goes_away_does_not_end_the_work(tmp_path):
    out = tmp_path / "done"
    line = f"{sys.executable} -c '{PROGRAM}' {out} 2>&1 | head -1; echo status ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", line], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert result.stdout == "line 0\nstatus 0\n" and result.stderr == "" and out.read_text() == "done"


def test_a_lost_terminal_does_not_end_the_work(tmp_path):
    """Writes to a terminal whose other side is closed fail with EIO."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "done")],
        cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    os.read(ours, 10)
    os.close(ours)
    assert process.wait(60) == 0 and (tmp_path / "done").read_text() == "done"

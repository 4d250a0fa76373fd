"""Whether a run fits a TPU slice and how fast it could be there, without a TPU:

    python -m jaxrl.compile --config configs/qwen2p5_coder_1p5b.py --topology v5e:4x4

The TPU's own compiler compiles everything that the run executes, from shapes alone. Printed are the memory needed and
available on a chip, operations (counted analytically), collectives, and the roofline time of a step.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import jax
from rich.console import Console

from jaxrl.aot.fit import compile_config
from jaxrl.aot.tables import show
from jaxrl.aot.topology import find_topology
from jaxrl.config.command_line import read_config
from jaxrl.errors import UserError, command


def read_arguments(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The command's own options, and the rest, which is for the config."""
    parser = argparse.ArgumentParser(
        "python -m jaxrl.compile",
        description="Whether a run fits a TPU slice, and how fast it could be",
        allow_abbrev=False,
    )
    parser.add_argument("--topology", default="v5e:4x4", help="a TPU slice (v5e:4x4), or a number of GPUs (h100:8)")
    parser.add_argument("--model", default="", help="a folder with a config.json, or a published shape's name")
    parser.add_argument("--stage", default="", choices=("", "sft", "reward", "grpo"), help="compile only this one")
    parser.add_argument("--hlo", type=Path, help="a folder to write the compiled programs' text to")
    parser.add_argument("--json", type=Path, help="also write the result there")
    return parser.parse_known_args(arguments)


@command(failed=2)
def main(arguments: list[str]) -> int:
    """The command: 0 if the run fits, 1 if it does not, 2 with one line on stderr for an error of the user."""
    jax.config.update("jax_platforms", "cpu")
    options, rest = read_arguments(arguments)
    config = read_config(rest)
    config.model.path = options.model or config.model.path
    config.rollout.check_training()
    if options.json and not options.json.parent.is_dir():  # before the compilation, not after it
        raise UserError(f"--json {options.json}: the folder {options.json.parent} does not exist")
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {text}", file=sys.stderr)

    result = compile_config(config, find_topology(options.topology), options.stage, options.hlo, say)
    show(result, Console(width=None if sys.stdout.isatty() else 140))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if result["fits"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

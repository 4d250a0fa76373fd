"""maj@k as the objective: as configs/passk.py, for the answer that most of eight samples give."""

from pathlib import Path
from runpy import run_path

from jaxrl.config import Config


def get_config() -> Config:
    config = run_path(str(Path(__file__).with_name("passk.py")))["get_config"]()
    config.name = "majk"
    config.grpo.loss.advantage = "maj_at_k"
    return config

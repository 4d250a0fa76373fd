"""pass@k as the objective: the default model after a short SFT, 100 steps for the best of eight samples.

Three runs that differ in the advantage only, to compare their pass@k and maj@k:
    python -m jaxrl.train --config configs/passk.py
    python -m jaxrl.train --config configs/majk.py
    python -m jaxrl.train --config configs/passk.py --config.name=mean --config.grpo.loss.name=policy_gradient
        --config.grpo.loss.advantage=leave_one_out --config.grpo.loss.averaging=sequence
"""

from pathlib import Path
from runpy import run_path

from jaxrl.algorithms import set_objectives
from jaxrl.config import Config


def get_config() -> Config:
    config = run_path(str(Path(__file__).with_name("grpo.py")))["get_config"]()
    config.name = "passk"
    config.sft.steps = 350
    config.grpo.steps = 100
    config.grpo.loss = set_objectives.Settings(advantage="pass_at_k", objective_k=8)
    config.evaluation.samples = 16
    config.evaluation.k = (1, 2, 4, 8, 16)
    config.evaluation.temperature = 1.0
    return config

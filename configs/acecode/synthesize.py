"""Questions with tests: of the demonstration, or by a real model from any Python code.

    python -m jaxrl.synthesize --config configs/acecode/synthesize.py
    python -m jaxrl.synthesize --config configs/acecode/synthesize.py:model --config.model.path=MODEL \
        --config.synthesis.path=FOLDER_OF_PYTHON_FILES

The first makes 400 questions of task functions without a model: a quarter of their tests and a tenth of their
reference programs are wrong, and the table says how many tests are right before and after the filter.
"""

from typing import Literal

from configs.acecode.sft import get_config as sft_config
from jaxrl.config import Config
from jaxrl.config.sampled import SynthesisConfig


def get_config(writer: Literal["template", "model"] = "template") -> Config:
    if writer == "template":
        config = sft_config()
        config.name = "ace_questions"
        config.sft.steps = 0
        config.synthesis = SynthesisConfig(
            writer="template", reference="template", seeds=400, tests=12, wrong_tests=0.25, wrong_references=0.1
        )
        return config
    config = Config(name="ace_model_questions")
    config.model.compute_dtype = "bfloat16"
    config.rollout.max_prompt_length = 1024
    config.rollout.max_new_tokens = 1024
    config.rollout.reject_long_prompts = True
    return config

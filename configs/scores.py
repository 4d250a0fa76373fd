"""The four scores that reports of code models give: HumanEval, HumanEval+, MBPP and MBPP+, greedy, by EvalPlus' chat.

    python -m jaxrl.evaluate --config configs/scores.py:humaneval --config.model.path=MODEL \
        --config.task.path=HumanEvalPlus.jsonl.gz
    python -m jaxrl.evaluate --config configs/scores.py:mbpp --config.model.path=MODEL \
        --config.task.path=MbppPlus.jsonl.gz

gives the scores with all tests (the +). Those of the base tests alone, of the same samples:

    python -m jaxrl.score runs/scores_humaneval/samples/evalplus.jsonl --task humaneval --path HumanEvalPlus.jsonl.gz

The data is EvalPlus' (https://github.com/evalplus). The model is asked in this project's own words with
--config.task.prompt_style=chat --config.rollout.stop_strings="()".
"""

from jaxrl.config import Config
from jaxrl.tasks import humaneval, mbpp


def get_config(data: str = "humaneval") -> Config:
    config = Config(name=f"scores_{data}")
    if data == "mbpp":
        config.task = mbpp.Settings(prompt_style="evalplus", held_out_part="all", held_out_problems=399)
    else:
        config.task = humaneval.Settings(prompt_style="evalplus", held_out_problems=164)
    config.model.compute_dtype = "bfloat16"
    config.rollout.max_prompt_length = 640
    config.rollout.max_new_tokens = 768  # EvalPlus' own
    config.rollout.stop_strings = ("\n```\n",)
    config.evaluation.temperature = 0.0
    return config

"""One cell of benchmarks/tpu_table.jsonl: `--config benchmarks/tpu_cell.py:MODEL,STAGE,CONTEXT,DEVICES`."""

from jaxrl.config import Config
from models.shapes import known_shape

MICROBATCH_TOKENS = 4096  # of each device, in one forward and backward pass
FEWER = {("Llama-3.1-70B", 256): 1024}  # on v5e, where the state leaves too little for more
CACHE_BYTES = 2 * 2**30  # of each device, in the JAX engine
STAGES = ("sft", "grpo", "grpo+jax")  # the last: sampled by the JAX engine on the same chips


def bytes_a_token(model: str) -> int:
    """Of keys and values in bf16."""
    shape = known_shape(model)
    assert shape is not None
    return 2 * 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim


def get_config(cell: str) -> Config:
    model, stage, context, devices = cell.split(",")
    T, chips = int(context), int(devices)
    config = Config(name="tpu_cell")
    config.model.path = model
    config.model.remat = "full"
    config.rollout.max_prompt_length = min(2048, T // 2)
    config.rollout.max_new_tokens = T - config.rollout.max_prompt_length
    config.rollout.engine = "jax" if stage == "grpo+jax" else "vllm"
    config.rollout.slots = min(256, chips * CACHE_BYTES // (T * bytes_a_token(model)))
    config.batch.microbatch_rows = max(1, chips * FEWER.get((model, chips), MICROBATCH_TOKENS) // T)
    config.mesh.context = 0  # a row's tokens over several chips where there are fewer rows
    if stage == "sft":
        config.sft.steps, config.sft.batch_size = 1, 256
    else:
        config.grpo.steps, config.grpo.problems_per_step, config.grpo.group_size = 1, 16, 16
        config.grpo.loss.minibatches = 2  # so that old logprobs are computed
    return config
